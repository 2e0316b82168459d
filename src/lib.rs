//! Integration Hub: event distribution on NATS JetStream. See `docs/architecture.md`.

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
