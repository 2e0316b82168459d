//! One module per role, each with `new` and `run`. A role never imports another: they exchange data through streams
//! only.

pub mod dlt_processor;
pub mod dlt_router;
pub mod event_processor;
pub mod gauges;
pub mod letter_watch;
pub mod outbox_processor;
pub mod outbox_relay;
pub mod subscription_resolver;
