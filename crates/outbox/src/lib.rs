#![doc = include_str!("../README.md")]
//!
//! [`Store`] also has the operations of the relay and of operators; an application does not need them.

mod database_url;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod error;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod migrations;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod publish;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod rows;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod store;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod unreadable;

pub use database_url::{UnknownParameter, check_parameters};
pub use hub_domain::field_error::FieldError;
pub use hub_domain::key::EventKey;
pub use hub_domain::producer_outbox::{Priority, RaisedEvent};

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use {
    error::StoreError,
    publish::{Producer, RaiseError, publish},
    rows::{
        Batch, BrokerStatus, BrokerSync, ClaimRequest, ClaimedRow, FailedAttempt, GivenUp, InvalidRowCursor,
        Retention, Row, RowCursor, RowSelection, SetUp,
    },
    store::{CONNECT_LIMIT, Store, StoreOptions, Wakeups},
    unreadable::{NeverDueRow, UnreadableColumn},
};
