//! Runs every command, settings block, subscription and verifying function of README and docs against the binary and
//! real servers.

use hub_harness as support;

mod blocks;
mod commands;
mod verifying;
