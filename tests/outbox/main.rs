//! The producer outbox: its SQL and its rows on PostgreSQL and SQLite, its commands, its protocol and the relay.

use hub_harness as support;

mod claims;
mod cli;
mod corrupt_rows;
mod cost;
mod database;
mod protocol;
mod relay;
mod relay_brokers;
mod relay_faults;
mod relay_metrics;
mod relay_names;
mod relay_scripted;
mod rules;
mod sql;
mod store;
