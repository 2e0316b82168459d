//! Producers on NATS: the subject that binds a tenant, message ids that two producers may share, accounts and
//! their permissions, and what a reply subject can do without them.

mod accounts;
mod ids;
mod registry;
mod secured;
mod tenants;

use std::time::Duration;

const STEP: Duration = Duration::from_secs(30);
