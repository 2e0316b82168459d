//! Integration Hub: event distribution on NATS JetStream. See `docs/architecture.md`.

// `print!` and `eprint!` panic if the reader has closed the pipe; `queued_writer` and `cli::output` do not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod api;
pub mod cli;
pub mod demo;
pub mod dev;
pub mod facts;
pub mod from_settings;
pub mod health;
pub mod http_delivery;
pub mod management;
pub mod nats;
pub mod open_files;
pub mod panics;
pub mod printable;
pub mod queued_writer;
pub mod roles;
pub mod seal;
pub mod serve;
pub mod settings;
pub mod shell_command;
pub mod signals;
pub mod sinks;
pub mod subscriptions_grpc;
pub mod tasks;

pub use hub_domain as domain;
