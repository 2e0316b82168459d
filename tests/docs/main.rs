//! Every command, settings block, subscription and verifying function of README and docs, as it is printed,
//! against the real binary and servers.

use hub_harness as support;

mod blocks;
mod commands;
mod verifying;
