//! The NATS adapter, the only importer of `async-nats` in the hub. Subjects are built and parsed only in [`subjects`];
//! stream and consumer definitions come from the JSON files under `nats/`.

mod advisory;
mod agreement;
mod answers;
mod attempts;
mod backlogs;
mod bulk_jobs;
mod byte_budget;
mod circuits;
mod clock;
mod connection;
mod dead_letters;
pub mod definitions;
mod direct_get;
mod domain_outbox;
mod error;
mod gone;
mod heartbeat;
mod holds;
mod liveness;
mod logged_attempts;
mod members;
mod message;
mod message_ids;
mod ordered_reader;
mod outage;
pub mod provision;
mod publish;
mod pull;
mod reader;
mod redrive;
mod registry;
mod rejected;
mod server_choice;
mod stream_api;
pub mod subjects;
mod tokens;
mod trace;

pub use crate::domain::dead_letter_query::DeadLetterQuery;
pub use advisory::{Advisory, AdvisoryKind};
pub use agreement::{Agreement, WorkGate};
pub use answers::Answers;
pub use byte_budget::ByteBudget;
pub use circuits::{CircuitNotice, CircuitNotices, CircuitRecord, Trip, Tripped};
pub use connection::{ConnectOptions, JetStream, Tls};
pub use dead_letters::{DeadLetterEntry, DeadLetterPage};
pub use domain_outbox::{BatchError, EnvelopeMessage, MOST_PER_BATCH};
pub use error::{ApiError, NatsError};
pub use gone::Predecessor;
pub use heartbeat::Heartbeat;
pub use holds::{HoldNotice, HoldNotices};
pub use logged_attempts::LoggedAttempts;
pub use members::MemberNotices;
pub use message::{Acker, Delivered, Malformed};
pub use publish::PublishAck;
pub use pull::HAND_BACK_DELAY;
pub use reader::{Held, Read, Reader};
pub use redrive::{RedriveTrigger, TRIGGER_HEADER as REDRIVE_TRIGGER_HEADER};
pub use registry::{
    Registry, RegistryEntry, RegistryFollower, RegistryListing, StoredSubscription, UnreadableEntry,
    UnreadableRevision,
};
pub use stream_api::{ConsumerInfo, StoredMessage, StreamInfo};
pub use tokens::{TokenEntry, UnreadableToken};
pub use trace::TraceQuery;
