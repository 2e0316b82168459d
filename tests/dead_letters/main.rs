//! Dead letters: how they are created even if an advisory is lost, the commands, redrive and replay.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod policy_scenario;
mod redrive;
mod sweep;
