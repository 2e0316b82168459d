//! The NATS adapter: the only importer of `async-nats`. Subjects are built and parsed in
//! [`subjects`] alone; stream and consumer definitions come from the JSON files under `nats/`.

mod advisory;
mod attempts;
mod browse;
mod connection;
mod dead_letters;
pub mod definitions;
mod error;
mod holds;
mod inspect;
mod message;
mod message_ids;
mod orders;
mod outbox;
pub mod provision;
mod publish;
mod pull;
mod reader;
mod redrive;
mod registry;
mod registry_moves;
mod rejected;
mod scan;
pub mod subjects;
mod tokens;
mod trace;

pub use crate::domain::dead_letter_query::DeadLetterQuery;
pub use advisory::{Advisory, AdvisoryKind};
pub use connection::{ConnectOptions, JetStream, Tls};
pub use dead_letters::{DeadLetterPage, Entry as DeadLetterEntry};
pub use error::{ApiError, NatsError};
pub use holds::{HoldNotice, HoldNotices};
pub use inspect::{ConsumerInfo, StoredMessage, StreamInfo};
pub use message::{Acker, Delivered, Malformed};
pub use outbox::{BatchError, MOST_PER_BATCH, Outgoing};
pub use publish::PublishAck;
pub use pull::HAND_BACK_DELAY;
pub use reader::{Held, Read, Reader};
pub use redrive::{ORDER_HEADER as REDRIVE_ORDER_HEADER, RedriveOrder};
pub use registry::{Listing, Registry, RegistryFollower, Slot, Stored, Unreadable};
pub use tokens::KeptToken;
pub use trace::TraceQuery;
