//! Running the hub: the commands, the process and its children, `--dev`, the demo, pausing, several replicas.

#[path = "../support/mod.rs"]
mod support;

mod cli;
mod demo;
mod pausing;
mod process;
mod process_children;
mod replicas;
mod serve_dev;
