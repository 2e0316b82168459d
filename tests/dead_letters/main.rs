//! Dead letters: how they are created even if an advisory is lost, the commands, redrive and replay.

use hub_harness as support;

mod commands;
mod drain;
mod drain_bounds;
mod drain_used_up;
mod gone;
mod policy_scenario;
mod redrive;
mod sweep;
mod unread_lanes;
