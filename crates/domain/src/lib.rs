//! The pure core: no async, no clock, no randomness, no I/O, no broker types.
//!
//! It decides; the adapters and roles around it act. Its `Cargo.toml` names no crate that could break the rule, and
//! `tests/layout.rs` looks for what the standard library offers.

pub mod access;
pub mod address;
pub mod attempt;
pub mod attempt_record;
pub mod bulk_job;
pub mod carried;
pub mod category;
pub mod dead_letter;
pub mod dead_letter_query;
pub mod duration;
pub mod envelope;
pub mod event;
pub mod fair_share;
pub mod field_error;
pub mod filter;
pub mod headers;
pub mod index;
pub mod key;
pub mod last_words;
pub mod message_id;
pub mod outcome;
pub mod producer_outbox;
pub mod redact;
pub mod resolution;
pub mod status;
pub mod subscription;
pub mod token;
pub mod trace;
pub mod turns;
