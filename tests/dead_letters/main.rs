//! Dead letters: how they come to be though an advisory is missed, the commands, and what is sent again.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod redrive;
mod sweep;
