//! Runs every command, settings block, subscription and verifying function of README and all other pages against the
//! binary and real servers.

use hub_harness as support;

mod blocks;
mod ci;
mod commands;
mod example;
mod pages;
mod programs;
mod stage;
mod verifying;
