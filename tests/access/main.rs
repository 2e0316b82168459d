//! Access: credentials, tokens, tenants, producers, secrets, and limits that keep one caller from locking out
//! others.

use hub_harness as support;

mod credentials;
mod identity;
mod plain_fields;
mod producers;
mod protection;
mod sealed_settings;
mod secrets;
