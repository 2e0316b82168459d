//! The basis of the system tests: real servers on free ports, and faults on demand. Servers, receivers and proxies are those
//! of `hub_testkit`; this crate adds clients of them and assertions.
//!
//! * [`TestBroker`]: a private nats-server, with a check that nothing is left pending.
//! * [`TestClient`]: publishes, subscribes, and accounts for every envelope ([`Account`]).
//! * [`ApiClient`]: a caller of its HTTP API.
//! * [`Hub`]: the built `hub` as a child process, with its log; [`TestSettings`]: its settings.
//! * [`Receiver`]: an HTTP endpoint whose answers can be changed while it runs.
//! * [`TokenEndpoint`]: an OAuth2 token endpoint.
//! * [`TestPostgres`]: a PostgreSQL database; [`TestDatabase`]: one with an outbox, or the same on SQLite.
//! * [`RedisServer`], [`RabbitMq`], [`KafkaServer`]: external brokers, and [`external_broker`] for all of them.
//! * [`ShiftedClock`]: a wall clock of a [`Hub`] that jumps.
//! * [`ChildProcess`]: another program, such as an [`example`].
//! * [`Ca`]: a private certificate authority.
//! * [`FaultProxy`]: a TCP proxy that freezes or cuts its connections, on demand or at a chosen step of a protocol.
//! * [`RequestProxy`]: a proxy of a nats-server that delays or swallows single messages by their subjects.
//!
//! Every wait has a deadline; its failure names the expectation.

mod api;
mod broker;
pub mod broker_target;
mod ca;
mod child;
mod client;
mod eventually;
pub mod external_broker;
mod hub;
pub mod kafka;
pub mod observed_run;
pub mod outbox;
pub mod partner;
mod postgres;
mod rabbitmq;
mod raw;
mod redis_server;
pub mod relay;
pub mod settings;
mod shifted_clock;

use std::path::PathBuf;
use std::sync::OnceLock;

pub use api::{ApiAnswer, ApiClient};
pub use broker::{TestBroker, freeze};
pub use ca::{Ca, IdentityFiles};
pub use child::{ChildProcess, example};
pub use client::{Account, TestClient, ids, patient, register_owner, subscription};
use eventually::POLL;
pub use eventually::{eventually, ticks_during};
pub use hub::{Hub, complete, http_client, print_output, sum_of};
pub use hub_testkit::proxy::{Direction, FaultProxy, Trigger};
pub use hub_testkit::receiver::{Behaviour, Received, Receiver};
pub use hub_testkit::request_proxy::{RequestProxy, Treatment};
pub use hub_testkit::token_endpoint::TokenEndpoint;
pub use kafka::KafkaServer;
pub use observed_run::{with_hangup, wrapped};
pub use outbox::TestDatabase;
pub use postgres::{PASSWORD, TestPostgres};
pub use rabbitmq::RabbitMq;
pub use raw::RawPublisher;
pub use redis_server::RedisServer;
pub use settings::TestSettings;
pub use shifted_clock::ShiftedClock;

/// The nats-server of all tests: `HUB_NATS_SERVER`, one on `PATH`, or a fetched one.
pub fn nats_server() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            hub_testkit::broker_process::find_or_fetch(None, &|line| eprintln!("{line}"))
                .unwrap_or_else(|error| panic!("the tests need a nats-server: {error}"))
        })
        .clone()
}

/// A free loopback port.
pub fn free_port() -> u16 {
    hub_testkit::free_port().expect("a port is free")
}

/// The real `nats` command line: `HUB_TEST_NATS_CLI`, or `nats` on `PATH`.
pub fn nats_cli() -> Option<PathBuf> {
    tool("nats", "HUB_TEST_NATS_CLI")
}

/// An external program: the file that the variable names, or the one on `PATH`.
pub fn tool(name: &str, variable: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "{variable} names {}, which is not a file", path.display());
        return Some(path);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Returns the tool, or `None` with a message, and the test returns. With `HUB_TEST_REQUIRE_TOOLS=1`, as in CI, a missing
/// tool fails the test.
pub fn require_tool(name: &str, path: Option<PathBuf>) -> Option<PathBuf> {
    if path.is_none() {
        let required = std::env::var_os("HUB_TEST_REQUIRE_TOOLS").is_some_and(|value| value == "1");
        assert!(!required, "this test needs {name}, and HUB_TEST_REQUIRE_TOOLS=1 requires it");
        eprintln!("SKIPPED: this test needs {name}, which is not installed");
    }
    path
}
