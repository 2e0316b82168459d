//! Producers on NATS: subjects with a tenant, message ids that two producers may share, accounts and their permissions,
//! and attacks with reply subjects without them.

mod accounts;
mod ids;
mod registry;
mod roles;
mod secured;
mod tenants;

use std::time::Duration;

const STEP: Duration = Duration::from_secs(30);
