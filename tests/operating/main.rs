//! Running the hub: the commands, the process and its children, `--dev`, the demo, pausing, several replicas.

use hub_harness as support;

mod cli;
mod clocks;
mod damaged_records;
mod deleted_parts;
mod demo;
mod first_steps;
mod full_streams;
mod kept_state;
mod limits;
mod log_lines;
mod lost_quorum;
mod metrics;
mod pausing;
mod process;
mod process_children;
mod recorded_nonsense;
mod registry;
mod remedies;
mod repeated_lines;
mod replicas;
mod serve_dev;
mod shared_settings;
mod silent_server;
mod stopping;
mod waiting_start;
