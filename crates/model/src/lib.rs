//! Model checks of the protocols that the roles of the hub follow on the streams: with crashes, lost notices and repetitions
//! at every step, in every order. A model has a few envelopes and small budgets of faults, so that all of its states are
//! visited.
//!
//! * [`letters`]: an event becomes an envelope, which is delivered, or exhausted, dead-lettered, redriven and resolved.
//! * [`lanes`]: envelopes move from the shared lane to a lane of their own, which is paused, and removed when it is empty.
//!
//! Seeded bugs show that the checker finds what it is for.

pub mod lanes;
pub mod letters;
