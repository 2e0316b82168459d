//! The backlogs of the subscriptions of a domain: how much of the outbox each may use, and which of them have envelopes
//! in a lane of their own.
//!
//! Whoever fans out keeps a [`Ledger`]: what the stream said at the last look, and what was added since. It decides for
//! each envelope whether it fits into the quota of its subscription, and which lane it goes to. What does not fit becomes
//! a dead letter, or stays in the outbox if no dead letter can be stored.

mod excess;
mod grace;
mod ledger;
mod limits;
mod own_lane;
pub mod size;

pub use excess::{PATIENCE, Unstored};
pub use ledger::{Backlog, BacklogNotice, Ledger, OutboxLook, QuotaDecision};
pub use limits::{BacklogLimits, Exceeded, Usage};
pub use own_lane::{LEASE, OwnLane};

#[cfg(test)]
mod tests;
