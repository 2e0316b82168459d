//! Tests with small programs; tests/operating/process.rs tests what the real binary leaves.

use std::time::Instant;

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

fn sh(script: &str) -> Plan {
    Plan::new("sh").args(["-c", script])
}

fn is_there(pid: u32) -> bool {
    // A zombie counts as gone.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim().starts_with('Z')))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        if Instant::now() >= deadline {
            panic!("not within {LIMIT:?}: {what}");
        }
        std::thread::yield_now();
    }
}

/// The processes of a group, by the fifth field of their stat.
fn group(pid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("Linux").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|other| {
        let stat = std::fs::read_to_string(format!("/proc/{other}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut fields = fields.split_whitespace();
        fields.next() != Some("Z") && fields.nth(1) == Some(&pid.to_string())
    })
    .collect()
}

#[test]
fn a_hanging_command_is_ended_with_the_processes_that_it_started() {
    let done = sh("echo out; echo err >&2; exit 3").output_within(LIMIT).expect("sh runs");
    assert_eq!((done.stdout.as_slice(), done.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(done.status.code(), Some(3));

    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("pid");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 60 & wait", file.display());
    // On a busy machine the first limits may have passed before it has started.
    for limit in [1, 4, 16] {
        let late = sh(&script).output_within(Duration::from_secs(limit)).expect_err("the limit is shorter");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        if file.exists() {
            break;
        }
    }
    let pid = std::fs::read_to_string(file).expect("it ran").trim().parse().expect("a process id");
    until("nothing of its group is left", || group(pid).is_empty());
}

#[test]
fn a_missing_or_unusable_program_is_an_error_of_the_start() {
    for program in ["/nowhere/program", "no-such-program-on-path"] {
        let error = Plan::new(program).output_within(LIMIT).expect_err("it does not exist");
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{program}");
    }
    let error = Plan::new("/etc/passwd").output_within(LIMIT).expect_err("it is not a program");
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn the_environment_has_the_allowed_and_the_given_variables() {
    let done = Plan::new("env").env("GIVEN", "1").output_within(LIMIT).expect("env runs");
    let text = String::from_utf8(done.stdout).expect("text");
    // CARGO_MANIFEST_DIR is an example of any other variable.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(text.lines().any(|line| line == "GIVEN=1") && text.contains("PATH="), "{text}");
    assert!(!text.contains("CARGO"), "{text}");
}

#[tokio::test]
async fn dropping_it_ends_its_process_group() {
    let mut process = sh("sleep 60 & echo ready; wait").stdout(Stdio::piped()).spawn().expect("it starts");
    let pid = process.pid();
    let mut ready = [0; 6];
    process.take_stdout().expect("piped").read_exact(&mut ready).await.expect("it is ready");
    assert!(group(pid).len() >= 3, "itself, the watch and its own child: {:?}", group(pid));
    drop(process);
    until("nothing of its group is left", || group(pid).is_empty());
}

#[tokio::test]
async fn it_ends_when_its_owner_is_gone_and_its_folder_is_removed() {
    for ending in [Ending::Plain, Ending::Quit] {
        let folder = tempfile::tempdir().expect("temporary folder").keep();
        std::fs::write(folder.join("file"), "").expect("written");
        let plan = Plan::new("sleep").arg("60").ends_by(ending).with_folder(&folder);
        let mut process = plan.spawn().expect("it starts");
        let pid = process.pid();
        assert!(is_there(pid));
        // As the system does when the owner is killed.
        drop(process.owner.take());
        let ended = tokio::time::timeout(LIMIT, process.wait()).await.expect("in time").expect("waited for");
        assert!(!ended.success());
        until("the folder is gone", || !folder.exists());
        until("nothing of its group is left", || group(pid).is_empty());
    }
}

#[tokio::test]
async fn a_process_that_ignores_the_signal_is_killed() {
    let mut process = sh("trap '' TERM; echo ready; while :; do sleep 1; done")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut ready = [0; 6];
    process.take_stdout().expect("piped").read_exact(&mut ready).await.expect("it is ready");
    assert!(!process.stop(Duration::from_millis(100)).await.expect("stopped"));
    let mut process = sh("exit 0").spawn().expect("it starts");
    assert!(process.wait().await.expect("waited for").success());
}

#[test]
fn standard_input_can_be_a_file_that_it_holds() {
    let mut file = tempfile::tempfile().expect("a file");
    io::Write::write_all(&mut file, b"held").expect("written");
    io::Seek::rewind(&mut file).expect("rewound");
    let output = tempfile::NamedTempFile::new().expect("a file");
    let script = format!("cat > {}", output.path().display());
    sh(&script).holding(file).output_within(LIMIT).expect("sh runs");
    assert_eq!(std::fs::read(output.path()).expect("written"), b"held");
}
