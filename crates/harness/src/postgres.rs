//! A PostgreSQL server of the tests' own, and a database of its own for each test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tempfile::TempDir;

use super::{eventually, free_port, require_tool};

/// No error, log or output may hold it.
pub const PASSWORD: &str = "pg-tell-nobody";
const READY_LIMIT: Duration = Duration::from_secs(60);

/// One database on a server with the settings of an installation (fsync included), reached over TCP with a
/// password. The server is shared by the tests that run at the same time, and goes with the last of them.
pub struct TestPostgres {
    server: Arc<Server>,
    database: String,
}

struct Server {
    folder: TempDir,
    port: u16,
    binaries: PathBuf,
    /// None while it is down.
    process: Mutex<Option<Child>>,
    databases: AtomicU32,
}

static SHARED: tokio::sync::Mutex<Weak<Server>> = tokio::sync::Mutex::const_new(Weak::new());

/// The folder of the server's binaries: `HUB_TEST_POSTGRES`, Debian's, or that of `postgres` on `PATH`.
fn binaries() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("HUB_TEST_POSTGRES").filter(|folder| !folder.is_empty()) {
        let folder = PathBuf::from(folder);
        assert!(folder.join("postgres").is_file(), "HUB_TEST_POSTGRES names {}", folder.display());
        return Some(folder);
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut debian: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    debian.sort();
    debian.retain(|folder| folder.join("postgres").is_file());
    debian.pop().or_else(|| {
        let postgres = super::tool("postgres", "HUB_TEST_POSTGRES_BINARY")?.canonicalize().ok()?;
        Some(postgres.parent()?.to_owned())
    })
}

/// Runs a server's program as somebody who may: PostgreSQL refuses to run as root.
fn command(program: &Path) -> Command {
    let mut command;
    if rustix::process::getuid().is_root() {
        command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]).arg(program);
    } else {
        command = Command::new(program);
    }
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    output
}

impl Server {
    async fn new(binaries: PathBuf) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let password = folder.path().join("password");
        std::fs::write(&password, PASSWORD).expect("the password file is written");
        if rustix::process::getuid().is_root() {
            let id = |what| -> u32 {
                let output = run(Command::new("id").args([what, "nobody"]));
                String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
            };
            let (user, group) = (id("-u"), id("-g"));
            for path in [folder.path(), &password] {
                std::os::unix::fs::chown(path, Some(user), Some(group)).expect("root may give files away");
            }
        }
        let server = Self {
            port: free_port(),
            folder,
            binaries,
            process: Mutex::default(),
            databases: AtomicU32::default(),
        };
        run(command(&server.binaries.join("initdb"))
            .args(["--username=hub", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"])
            .arg("--pwfile")
            .arg(&password)
            .arg("--pgdata")
            .arg(server.data()));
        server.start().await;
        server
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://hub:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    async fn start(&self) {
        let log = self.folder.path().join("log");
        let output = File::options().create(true).append(true).open(&log).expect("the log opens");
        let child = command(&self.binaries.join("postgres"))
            .arg("-D")
            .arg(self.data())
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"])
            .args(["-c", &format!("port={}", self.port), "-c", "unix_socket_directories="])
            .stdout(output.try_clone().expect("the log's descriptor is shared"))
            .stderr(output)
            .spawn()
            .expect("the server starts");
        *self.process.lock().expect("nobody panics with it") = Some(child);
        eventually(READY_LIMIT, "PostgreSQL takes connections", async || {
            if let Some(child) = self.process.lock().expect("nobody panics with it").as_mut()
                && let Ok(Some(status)) = child.try_wait()
            {
                panic!("PostgreSQL ended: {status}\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            PgConnection::connect(&self.url("postgres")).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }

    fn pid(&self) -> Pid {
        let process = self.process.lock().expect("nobody panics with it");
        process.as_ref().and_then(pid_of).expect("a running process has an id")
    }

    fn signal(&self, signal: Signal) {
        let Some(mut child) = self.process.lock().expect("nobody panics with it").take() else { return };
        let pid = pid_of(&child).expect("a running process has an id");
        kill_process(pid, signal).expect("the process is the test's own");
        child.wait().expect("it is a child");
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}

impl Drop for Server {
    fn drop(&mut self) {
        // Immediate shutdown: nothing of it is needed any more.
        self.signal(Signal::QUIT);
    }
}

impl TestPostgres {
    /// A new, empty database. None where there is no PostgreSQL on this machine, and that may be.
    pub async fn start() -> Option<Self> {
        let binaries = require_tool("PostgreSQL", binaries())?;
        let mut shared = SHARED.lock().await;
        let server = match shared.upgrade() {
            Some(server) => server,
            None => {
                let server = Arc::new(Server::new(binaries).await);
                *shared = Arc::downgrade(&server);
                server
            }
        };
        drop(shared);
        Some(Self::on(server).await)
    }

    /// The same on a server that no other test shares: to crash it.
    pub async fn start_alone() -> Option<Self> {
        let binaries = require_tool("PostgreSQL", binaries())?;
        Some(Self::on(Arc::new(Server::new(binaries).await)).await)
    }

    async fn on(server: Arc<Server>) -> Self {
        let database = format!("test_{}", server.databases.fetch_add(1, Ordering::Relaxed));
        let mut connection =
            PgConnection::connect(&server.url("postgres")).await.expect("the server answers");
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {database}")))
            .execute(&mut connection)
            .await
            .expect("the database is made");
        Self { server, database }
    }

    /// With the password in it.
    pub fn url(&self) -> String {
        self.server.url(&self.database)
    }

    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// `SIGKILL` to all its processes, as on a power failure. Returns when the last is gone.
    pub async fn crash(&self) {
        let pid = self.server.pid();
        // It starts no more of them.
        kill_process(pid, Signal::STOP).expect("the process is the test's own");
        let id = pid.as_raw_nonzero();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("of Linux");
        let children: Vec<Pid> =
            children.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?)).collect();
        self.server.signal(Signal::KILL);
        for child in &children {
            // An error says that it has ended by itself.
            let _ = kill_process(*child, Signal::KILL);
        }
        eventually(READY_LIMIT, "all of PostgreSQL's processes are gone", async || {
            let is_there = |child: &&Pid| {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.as_raw_nonzero()));
                // Behind the name in parentheses: the state, Z for what nobody has waited for.
                stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
            };
            let left = children.iter().filter(is_there).count();
            if left == 0 { Ok(()) } else { Err(left) }
        })
        .await;
    }

    /// Starts it again after a crash; returns when it has recovered.
    pub async fn restart(&self) {
        self.server.start().await;
    }

    /// Runs a script with the real `psql`, which stops at the first error.
    pub fn psql(&self, script: &str) -> Output {
        command(&self.server.binaries.join("psql"))
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"])
            .args(["--command", script, &self.url()])
            .output()
            .expect("psql runs")
    }
}
