//! One fact, one place: what the hub logs or counts is a struct here, and its `emit` writes the log line and changes
//! the metrics, so that they cannot disagree.
//!
//! A fact that is counted takes the metrics that it counts in; one that is only logged takes none. Fields are borrowed.
//! The log line is a short fixed sentence, to be searched for, with the fields beside it. A fact is emitted when it is
//! one: after the write that makes it true. Where events, endpoints or tenants decide how many there are, the line is
//! `limited!`, and the metrics count each. A field is shown by its `Display`, as people write it, never by its `Debug`.
//! The facts of the connections to external brokers are in their crate, `hub-sinks`.

mod api;
mod backlogs;
mod circuits;
mod dead_letters;
mod delivery;
mod demo;
mod domain_pause;
mod event_processor;
mod holds;
mod http_delivery;
mod leftovers;
mod letter_rooms;
mod limited;
mod management;
mod metrics;
mod nats;
mod outbox_processor;
mod process;
mod registry;
mod relay;
mod resolver;
mod shared_settings;
mod stream_rooms;
mod strict;
mod supervision;

use std::error::Error;
use std::fmt;

pub use api::*;
pub use backlogs::*;
pub use circuits::*;
pub use dead_letters::*;
pub use delivery::*;
pub use demo::*;
pub use domain_pause::*;
pub use event_processor::*;
pub use holds::*;
pub use http_delivery::*;
pub use leftovers::*;
pub use letter_rooms::*;
pub use limited::{limit_repeated_lines, write_left_out, write_rest_of_left_out};
pub use management::*;
pub use metrics::{
    DeliveryPath, DomainMetrics, DomainPause, LaneKind, LaneTotals, LetterBy, Metrics, Observed,
    RelayMetrics, StrandedResult, SubscriptionBacklog, TokenResult,
};
pub use nats::*;
pub use outbox_processor::*;
pub use process::*;
pub use registry::*;
pub use relay::*;
pub use resolver::*;
pub use shared_settings::*;
pub use stream_rooms::*;
pub use strict::*;
pub use supervision::*;

/// Why something failed, whatever the error's type: shown with `%`.
type Cause<'a> = &'a (dyn Error + 'static);

/// A name or another value that is shown with `%`.
type Shown<'a> = &'a dyn fmt::Display;
