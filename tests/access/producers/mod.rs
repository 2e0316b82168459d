//! The producer's side of NATS: the subject that binds a tenant, message ids that two may share, the
//! accounts and their permissions, and what a reply subject can do where there are none.

mod accounts;
mod ids;
mod registry;
mod secured;
mod tenants;

use std::time::Duration;

const STEP: Duration = Duration::from_secs(30);
