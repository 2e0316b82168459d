//! The programs that the command blocks call.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;

use super::blocks::{Block, root};
use super::support::{nats_cli, require_tool, tool};

/// The start of a command, and the program that runs it, with the variable that may name it. The objects that kubectl names are
/// those that Helm renders.
const NEEDED: [(&str, &str, &str); 4] = [
    ("helm ", "helm", "HELM_BIN"),
    ("kubectl ", "helm", "HELM_BIN"),
    ("promtool ", "promtool", "HUB_TEST_PROMTOOL"),
    ("openssl ", "openssl", "HUB_TEST_OPENSSL"),
];
/// What `stand_in.py` stands in for, on `PATH` and in the folder of the blocks.
const STAND_INS: [&str; 6] = ["cargo", "helm", "kubectl", "pip", "skopeo", "sqlite3"];
const SCRIPTS: [&str; 4] =
    [".ci/chart", ".ci/parts/helm.sh", ".ci/parts/kubernetes-validate.sh", "image/build.py"];

/// A folder in which blocks run, and a `PATH` with the hub and the other programs.
pub(crate) struct Programs {
    folder: TempDir,
}

impl Programs {
    /// `None`, with a message, if a program is missing that most blocks need.
    pub(crate) fn find() -> Option<Self> {
        let nats = require_tool("nats", nats_cli())?;
        let python = require_tool("python3", tool("python3", "HUB_TEST_PYTHON3"))?;
        let folder = tempfile::tempdir().expect("a folder");
        let this = Self { folder };
        this.link("bin/hub", Path::new(env!("CARGO_BIN_EXE_hub")));
        this.link("bin/nats", &nats);
        this.link("bin/python3", &python);
        this.link("bin/python", &python);
        if let Some(promtool) = tool("promtool", "HUB_TEST_PROMTOOL") {
            this.link("bin/promtool", &promtool);
        }
        let stand_in = root().join("tests/docs/stand_in.py");
        for name in STAND_INS {
            this.link(&format!("bin/{name}"), &stand_in);
        }
        for name in SCRIPTS {
            this.link(&format!("work/{name}"), &stand_in);
        }
        this.link("work/helm", &root().join("helm"));
        Some(this)
    }

    fn link(&self, name: &str, target: &Path) {
        let link = self.folder.path().join(name);
        std::fs::create_dir_all(link.parent().expect("in a folder")).expect("created");
        symlink(target, link).expect("linked");
    }

    /// The folder in which the blocks run.
    pub(crate) fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// True if every program of the block is there.
    pub(crate) fn can_run(&self, block: &Block) -> bool {
        let mut needed = NEEDED.iter().filter(|(word, ..)| block.text.contains(word));
        needed.all(|(_, name, variable)| require_tool(name, tool(name, variable)).is_some())
    }

    /// A shell that runs the script in a folder.
    pub(crate) fn script(&self, script: &str, folder: &Path) -> Command {
        let mut command = Command::new("bash");
        command.args(["-c", script]);
        self.prepare(&mut command, folder);
        command
    }

    /// A shell at a terminal that runs the script in a folder, and answers its questions.
    pub(crate) fn script_at_a_terminal(&self, script: &str, folder: &Path) -> Command {
        let mut command = Command::new(root().join("tests/docs/terminal.py"));
        command.arg(script).env("TERM", "xterm");
        self.prepare(&mut command, folder);
        command
    }

    fn prepare(&self, command: &mut Command, folder: &Path) {
        let postgres = std::env::var_os("HUB_TEST_POSTGRES").map(PathBuf::from);
        let mut path = vec![self.folder.path().join("bin")];
        path.extend(postgres);
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        command
            .current_dir(folder)
            .env("PATH", std::env::join_paths(path).expect("a path"))
            .env("DOCS_ROOT", root())
            .env("DOCS_CARGO", env!("CARGO"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let real =
            [("DOCS_HELM", tool("helm", "HELM_BIN")), ("DOCS_KUBECTL", tool("kubectl", "HUB_TEST_KUBECTL"))];
        for (name, path) in real {
            if let Some(path) = path {
                command.env(name, path);
            }
        }
    }
}
