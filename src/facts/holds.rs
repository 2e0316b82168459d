//! Holds: endpoints that asked for a pause with `Retry-After`. Of all processes, the one that stored a hold first reports
//! it, and reports its end.

use std::time::Duration;

use super::Cause;
use super::limited::{About, limited};
use crate::domain::subscription::SubscriptionRef;
use crate::domain::words::rounded;

/// An endpoint sent `Retry-After`: nothing of its subscription is sent for this long, in any domain.
pub struct SubscriptionHeld<'a> {
    pub subscription: &'a SubscriptionRef,
    /// Of the envelope that got the answer.
    pub domain: &'a str,
    pub status: u16,
    pub wait: Duration,
    /// In UTC.
    pub until: &'a str,
}

impl SubscriptionHeld<'_> {
    pub fn emit(self) {
        let Self { subscription, domain, status, wait, until } = self;
        let (tenant, subscription) = (subscription.tenant(), subscription.id());
        limited!(
            INFO "endpoint sent Retry-After, subscription held",
            About::domain(domain).of_parts(tenant, subscription);
            domain, tenant, subscription, status, wait = %rounded(wait), until
        );
    }
}

/// Why a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldEndedBecause {
    Over,
    Resumed,
    /// The subscription was changed or removed.
    Subscription,
    /// The broker has it no longer: another process or a person has ended it.
    Gone,
}

impl HoldEndedBecause {
    fn text(self) -> &'static str {
        match self {
            Self::Over => "its time is over",
            Self::Resumed => "the subscription was resumed",
            Self::Subscription => "the subscription was changed or removed",
            Self::Gone => "it was removed from the broker",
        }
    }
}

/// A hold ended, in all domains.
pub struct HoldEnded<'a> {
    pub subscription: &'a SubscriptionRef,
    pub because: HoldEndedBecause,
}

impl HoldEnded<'_> {
    pub fn emit(self) {
        let Self { subscription, because } = self;
        let (tenant, subscription) = (subscription.tenant(), subscription.id());
        limited!(
            INFO "hold ended", About::default().of_parts(tenant, subscription);
            tenant, subscription, reason = because.text()
        );
    }
}

/// A hold was not stored, so that other processes and operators do not see it. They learn of it from the endpoint.
pub struct HoldNotStored<'a> {
    pub error: Cause<'a>,
    pub subscription: &'a SubscriptionRef,
}

impl HoldNotStored<'_> {
    pub fn emit(self) {
        let Self { error, subscription } = self;
        let (tenant, subscription) = (subscription.tenant(), subscription.id());
        tracing::debug!(%error, tenant, subscription, "hold not stored");
    }
}

/// The stored holds were not read; they are read again in some seconds.
pub struct HoldsNotRead<'a> {
    pub error: Cause<'a>,
}

impl HoldsNotRead<'_> {
    pub fn emit(self) {
        tracing::debug!(error = %self.error, "stored holds not read, will retry");
    }
}
