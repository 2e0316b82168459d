//! The pure core of Integration Hub: what events, subscriptions, envelopes and dead letters are, and every decision
//! about them.
//!
//! No async, no clock, no I/O and no broker types: callers pass in the time and random values. The `Cargo.toml` names no
//! crate that has any of them, and `.clippy.toml` forbids those of the standard library.
//!
//! The seeds of hash maps are the only thing that is random: tenants choose the keys, so a fixed seed would let them
//! choose keys with one hash. No result depends on a seed (`tests/hash_seeds`). An iterator over a hash map has no
//! particular order, and says so.
//!
//! ```
//! use hub_domain::index::{IndexEntry, SubscriptionIndex};
//! use hub_domain::key::EventKey;
//! use hub_domain::subscription::Subscription;
//!
//! let subscription = Subscription::from_value(serde_json::json!({
//!     "id": "crm", "events": ["user.*"], "delivery": {"url": "https://crm.example/hook"}
//! }))?;
//! let mut index = SubscriptionIndex::default();
//! index.insert(IndexEntry::new(subscription, 1)?);
//!
//! let key: EventKey = "user.created".parse()?;
//! let found = index.of_key("default", &key);
//! assert_eq!(found[0].subscription.id(), "crm");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod access;
pub mod address;
pub mod agreement;
pub mod allotment;
pub mod api_changes;
pub mod attempt;
pub mod attempt_record;
pub mod backlog;
pub mod bulk_job;
pub mod carried;
pub mod category;
pub mod circuit;
pub mod commit_group;
pub mod dead_letter;
pub mod dead_letter_query;
pub mod dead_letter_room;
pub mod deliveries;
pub mod duration;
pub mod envelope;
pub mod event;
pub mod fair_share;
pub mod field_error;
pub mod filter;
pub mod headers;
mod hex;
pub mod holds;
pub mod index;
pub mod key;
pub mod lane_creation;
pub mod lane_places;
pub mod last_words;
pub mod lately;
pub mod leftovers;
pub mod letter_tally;
pub mod message_id;
pub mod outcome;
pub mod producer_outbox;
pub mod publishing_order;
pub mod redact;
pub mod registry_backup;
pub mod repeated_lines;
pub mod replay_pace;
pub mod resolution;
pub mod shared_settings;
pub mod status;
pub mod stream_fill;
pub mod stream_leaders;
pub mod strict_json;
pub mod strict_order;
pub mod subscription;
pub mod sweep;
pub mod take_over;
pub mod token;
pub mod trace;
pub mod turns;
pub mod words;
