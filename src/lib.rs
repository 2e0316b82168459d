//! The library behind the program `hub`, which distributes events on NATS JetStream.
//!
//! The interface of the hub is the program: its commands, its settings, its HTTP API, and its streams. This library is
//! public for `src/main.rs`, the tests and the benchmark only, and changes without notice. It is not published. A program of
//! your own depends on one of these crates instead; each has an example:
//!
//! | crate | for |
//! |---|---|
//! | `hub-outbox` | producers: raise events in the transaction of a database |
//! | `hub-domain` | events, subscriptions, filters and dead letters as types, and the decisions about them |
//! | `hub-sinks` | publishing to NATS, Redis, AMQP and Kafka |
//! | `hub-testkit` | tests: private servers, receivers and a fault proxy |
//!
//! A receiver needs none of them: an event arrives as an HTTP request or as a message of a broker (`docs/receiving.md`).
//!
//! The modules, from the outside to the inside; `docs/architecture.md` describes all of them:
//!
//! | module | content |
//! |---|---|
//! | [`cli`] | the commands of the program |
//! | [`management`] | the operations that command line and HTTP API share |
//! | [`roles`] | the roles of a process, such as the event processor and the outbox processor |
//! | [`nats`] | the adapter to NATS: streams, consumers, subscriptions, dead letters |
//! | [`domain`], [`sinks`] | the crates `hub-domain` and `hub-sinks` |
//! | [`settings`], [`from_settings`] | the settings, and the options of each part that follow from them |
//! | [`seal`] | secrets at rest |
//! | [`facts`], [`health`] | log lines and metrics; the readiness of a process |
//! | [`tasks`], [`signals`], [`queued_writer`], [`open_files`] | the process itself |

// `print!` and `eprint!` panic if the reader has closed the pipe; `queued_writer` and `cli::output` do not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod api;
mod bounded;
pub mod cli;
mod demo;
mod dev;
pub mod facts;
pub mod from_settings;
pub mod health;
mod http_delivery;
mod huge_pages;
pub mod management;
pub mod nats;
pub mod open_files;
mod panics;
mod printable;
pub mod queued_writer;
pub mod roles;
pub mod seal;
mod serve;
pub mod settings;
mod shell_command;
pub mod signals;
mod standstill;
mod subscriptions_grpc;
pub mod tasks;

pub use hub_domain as domain;
pub use hub_sinks as sinks;
