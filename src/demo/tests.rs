//! The demo fails if the hub does not work.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};

use super::*;

#[derive(Clone, Default)]
struct Shown(Arc<Mutex<Vec<u8>>>);

impl Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs the steps against a hub with these roles. Returns the result and the output.
async fn play_with(roles: BTreeSet<Role>, limit: Duration) -> (Result<(), Unmet>, String) {
    let shown = Shown::default();
    let mut narrator = Narrator::new(Box::new(shown.clone()), false);
    let folder = tempfile::tempdir().unwrap();
    let binary = tokio::task::spawn_blocking(|| find_or_fetch(None, &|_| {})).await.unwrap().unwrap();
    let (stage, processes) = stage::start(folder.path(), binary, roles, &mut narrator).await.unwrap();
    let played = scenario::play(&stage, &mut narrator, limit).await;
    processes.stop().await;
    let shown = String::from_utf8(shown.0.lock().unwrap().clone()).unwrap();
    (played, shown)
}

fn all_but(role: Role) -> BTreeSet<Role> {
    Role::ALL.into_iter().filter(|other| *other != role).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_router_the_step_of_the_dead_letter_fails() {
    let (played, shown) = play_with(all_but(Role::DltRouter), Duration::from_secs(8)).await;
    let unmet = played.expect_err("nobody dead-letters");
    assert!(unmet.expected.starts_with("one dead letter in HUB_OUTBOX_POLICY_CLIENT_DLT"), "{unmet}");
    assert!(unmet.seen.to_string().starts_with("0 dead letters"), "{unmet}");
    assert!(shown.contains("B was tried 4 times"), "{shown}");
    assert!(!shown.contains("the dead letter is in the policy DLT"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_dlt_processor_the_step_of_the_redrive_fails() {
    let (played, shown) = play_with(all_but(Role::DltProcessor), Duration::from_secs(8)).await;
    let unmet = played.expect_err("nobody redrives");
    assert_eq!(unmet.expected, "B to accept the redriven policy event");
    assert!(unmet.seen.to_string().contains("503 to policy.updated"), "{unmet}");
    assert!(shown.contains("the dead letter is in the policy DLT and in no other"), "{shown}");
}
