//! The processes that the bench starts: their environment, and that no process and no folder is left behind,
//! however and whenever the bench ends.

use crate::support::observed_run::{
    ObservedRun, closed_terminal, each_signal_at, get_no_secret, interrupted_download,
};
use crate::support::{BENCH, postgres_programs, redis_server, required};
use rustix::process::Signal;

const STARTS: [&str; 6] = ["--figures", "s", "--sync", "default", "--subscriptions", "10"];

#[tokio::test]
async fn the_bench_leaves_nothing_whichever_signal_ends_it() {
    let args = ["--figures", "a", "--sync", "default", "--messages", "100000"];
    each_signal_at(BENCH, &args, &["--ports_file_dir", "bare-loop"], 1).await;
    each_signal_at(BENCH, &STARTS, &[" serve"], 1).await;
}

/// The arguments of a bench with its own PostgreSQL and Redis; `None` if one of them is not installed.
fn outbox_args() -> Option<Vec<String>> {
    let (redis, postgres) = (redis_server()?, postgres_programs()?);
    let mut args =
        ["outbox", "--figures", "redis", "--rows", "4000", "--redis-server"].map(str::to_owned).to_vec();
    args.push(redis.to_string_lossy().into_owned());
    args.extend(["--postgres-bin".to_owned(), postgres.to_string_lossy().into_owned()]);
    Some(args)
}

#[tokio::test]
async fn the_bench_of_the_outbox_leaves_nothing_whichever_signal_ends_it() {
    let Some(args) = outbox_args() else { return };
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    each_signal_at(BENCH, &args, &["initdb", "listen_addresses", "redis-server", " serve"], 1).await;
}

#[tokio::test]
async fn one_that_is_killed_takes_its_processes_and_folders_along() {
    let outbox = outbox_args().unwrap_or_default();
    let mut cases = vec![(STARTS.to_vec(), " serve")];
    for moment in ["initdb", "redis-server"] {
        if !outbox.is_empty() {
            cases.push((outbox.iter().map(String::as_str).collect(), moment));
        }
    }
    for (args, moment) in cases {
        let mut run = ObservedRun::start(BENCH, &args);
        run.process(moment).await;
        run.signal(Signal::KILL);
        run.ended().await;
    }
}

#[tokio::test]
async fn a_terminal_that_is_closed_leaves_nothing() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let python =
        std::env::split_paths(&path).map(|folder| folder.join("python3")).find(|path| path.is_file());
    let Some(python) = required("python3", python) else { return };
    closed_terminal(BENCH, &STARTS, " serve", &python).await;
}

#[tokio::test]
async fn a_download_ends_with_the_bench_and_gets_no_secret() {
    interrupted_download(BENCH, &["--figures", "s"], Signal::KILL).await;
}

#[tokio::test]
async fn no_child_gets_the_secrets_of_the_bench() {
    let args = ["--figures", "a", "--sync", "default", "--messages", "20000"];
    get_no_secret(BENCH, &args, &["--ports_file_dir", "bare-loop", " serve"]).await;
    if let Some(args) = outbox_args() {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        get_no_secret(BENCH, &args, &["initdb", "listen_addresses", "redis-server", " serve"]).await;
    }
}
