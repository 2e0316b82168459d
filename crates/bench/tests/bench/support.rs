//! Shared parts of the tests of the bench.

use std::path::PathBuf;

pub(crate) use hub_harness::{nats_server, observed_run};

pub(crate) const BENCH: &str = env!("CARGO_BIN_EXE_hub-bench");

/// The path in a variable.
pub(crate) fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Returns the program, or `None` with a message, and the test returns. With `HUB_TEST_REQUIRE_TOOLS=1`, as in CI, a
/// missing program fails the test.
pub(crate) fn required(name: &str, path: Option<PathBuf>) -> Option<PathBuf> {
    if path.is_none() {
        let required = std::env::var_os("HUB_TEST_REQUIRE_TOOLS").is_some_and(|value| value == "1");
        assert!(!required, "this test needs {name}, and HUB_TEST_REQUIRE_TOOLS=1 requires it");
        eprintln!("SKIPPED: this test needs {name}, which is not installed");
    }
    path
}

/// `redis-server`: `HUB_TEST_REDIS_SERVER`, or the one on `PATH`.
pub(crate) fn redis_server() -> Option<PathBuf> {
    let given = named("HUB_TEST_REDIS_SERVER");
    required("redis-server", hub_testkit::redis_server::find(given.as_deref()))
}

/// The programs of PostgreSQL: `HUB_TEST_POSTGRES`, or those of `PATH` or Debian.
pub(crate) fn postgres_programs() -> Option<PathBuf> {
    let given = named("HUB_TEST_POSTGRES");
    required("PostgreSQL", hub_testkit::postgres::find(given.as_deref()))
}
