//! `hub-bench` against real servers.

mod figures;
mod processes;
mod support;
