//! Every command, settings block, subscription and verifying function of README and docs, as it is printed,
//! against the real binary and servers.

#[path = "../support/mod.rs"]
mod support;

mod blocks;
mod commands;
mod verifying;
