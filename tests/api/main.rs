//! The HTTP API, the gRPC resolver of subscriptions, and the operations that the API shares with the command line.

use hub_harness as support;

mod batch_order;
mod change_log;
mod dead_letters;
mod events;
mod management;
mod outbox;
mod resolver;
mod resolver_tls;
mod scopes;
mod strictness;
mod subscriptions;
mod tenants;
mod unread_requests;
