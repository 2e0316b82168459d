//! One module per role, all of the same shape: `new` and `run`. A role never imports another:
//! they meet only on streams.

pub mod dlt_processor;
pub mod dlt_router;
pub mod event_processor;
pub mod gauges;
pub mod outbox_processor;
pub mod outbox_relay;
pub mod subscription_resolver;
