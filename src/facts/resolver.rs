//! Who gets an event: the registry, the resolver that this process asks, and the resolver that it is.

use std::time::Duration;

use super::Cause;
use super::limited::{About, limited};
use super::metrics::{KindLabel, Metrics, ResultLabel};
use crate::domain::words::rounded;

/// The registry's last revision could not be read, so events wait.
pub struct RegistryUnavailable<'a> {
    pub error: Cause<'a>,
}

impl RegistryUnavailable<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(
            WARN "subscription registry unavailable, events wait", About::default().cause(error);
            %error
        );
    }
}

/// The resolver answered, and the answer is used.
pub struct ResolverAnswered;

impl ResolverAnswered {
    pub fn emit(self, metrics: &Metrics) {
        metrics.families().resolver_answers.inc();
    }
}

/// An event's subscriptions came from the cache of the resolver's answers.
pub struct ResolverCacheHit;

impl ResolverCacheHit {
    pub fn emit(self, metrics: &Metrics) {
        metrics.families().resolver_cache_hits.inc();
    }
}

/// The resolver's answer to one question is unusable.
pub struct ResolverAnswerRejected<'a> {
    pub error: Cause<'a>,
    pub kind: &'static str,
    pub tenant: &'a str,
    pub key: &'a str,
    /// It was not logged before.
    pub is_new: bool,
}

impl ResolverAnswerRejected<'_> {
    pub fn emit(self, metrics: &Metrics) {
        let Self { error, kind, tenant, key, is_new } = self;
        metrics.families().resolver_failures.get_or_create(&KindLabel { kind }).inc();
        if is_new {
            limited!(
                ERROR "subscription resolver's answer rejected, its events wait",
                About::default().of_parts(tenant, "");
                %error, tenant, key
            );
        }
    }
}

/// The resolver did not answer.
pub struct ResolverFailed<'a> {
    pub error: Cause<'a>,
    pub kind: &'static str,
    pub tenant: &'a str,
    pub key: &'a str,
    pub retry_in: Duration,
    /// The outage begins with it.
    pub is_new: bool,
}

impl ResolverFailed<'_> {
    pub fn emit(self, metrics: &Metrics) {
        let Self { error, kind, tenant, key, retry_in, is_new } = self;
        metrics.families().resolver_failures.get_or_create(&KindLabel { kind }).inc();
        if is_new {
            tracing::warn!(%error, tenant, key, retry_in = %rounded(retry_in), "subscription resolver failed, events wait");
        } else {
            tracing::debug!(%error, tenant, key, retry_in = %rounded(retry_in), "subscription resolver still fails, events wait");
        }
    }
}

/// An outage of the resolver is over.
pub struct ResolverRecovered;

impl ResolverRecovered {
    pub fn emit(self) {
        tracing::info!("subscription resolver answers again");
    }
}

/// Another hub's question to this one was answered or refused.
pub struct QuestionServed {
    pub result: &'static str,
}

impl QuestionServed {
    pub fn emit(self, metrics: &Metrics) {
        let Self { result } = self;
        metrics.families().resolver_served.get_or_create(&ResultLabel { result }).inc();
    }
}

/// Another hub's question could not be answered: the registry's last revision could not be read.
pub struct QuestionNotServed<'a> {
    pub error: Cause<'a>,
}

impl QuestionNotServed<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(
            WARN "subscription registry unavailable, question not answered", About::default().cause(error);
            %error
        );
    }
}

/// A call of the resolver failed, and is repeated.
pub struct ResolverCallFailed<'a> {
    pub error: Cause<'a>,
    pub tenant: &'a str,
    pub key: &'a str,
    pub calls: u32,
}

impl ResolverCallFailed<'_> {
    pub fn emit(self) {
        let Self { error, tenant, key, calls } = self;
        tracing::debug!(%error, tenant, key, calls, "resolver call failed, will retry");
    }
}
