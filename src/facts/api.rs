//! The HTTP API.

use std::time::Duration;

use super::Cause;
use super::limited::{About, change_has_line, limited};
use super::metrics::{Metrics, RequestLabel, RouteLabel};
use crate::domain::api_changes::ApiChange;

/// A request was answered. The log has the route and the path, but never a query or a body, which may hold secrets.
pub struct RequestAnswered<'a> {
    pub method: &'a str,
    /// The route's pattern; `unknown` if the path has none.
    pub route: &'a str,
    pub path: &'a str,
    pub status: u16,
    /// The caller's name; `unknown` if it is not authenticated.
    pub caller: &'a str,
    /// The tenant that the caller is bound to.
    pub bound: Option<&'a str>,
    /// The tenant of what was changed, if that belongs to one.
    pub tenant: Option<&'a str>,
    /// The path of what was created.
    pub created: Option<&'a str>,
    pub elapsed: Duration,
}

impl RequestAnswered<'_> {
    pub fn emit(self, metrics: &Metrics) {
        let Self { method, route, path, status, caller, bound, tenant, created, elapsed } = self;
        // An unknown method would be a label that the caller chooses, and so would the path.
        let known = ["GET", "POST", "PUT", "PATCH", "DELETE"].contains(&method);
        let label = if known { method } else { "other" };
        let label = RequestLabel { method: label.to_owned(), route: route.to_owned(), status };
        metrics.api().requests.get_or_create(&label).inc();
        let label = RouteLabel { route: route.to_owned() };
        metrics.api().seconds.get_or_create(&label).observe(elapsed.as_secs_f64());
        let changes = !matches!(method, "GET" | "HEAD") && !matches!(route, "/v1/events" | "unknown");
        let ms = elapsed.as_millis();
        let about = About::detail(caller);
        // A 503 is temporary, and there are many while the broker is unavailable or a stream is full.
        if status == 503 {
            limited!(
                WARN "API request rejected, temporarily unavailable", about;
                %method, path, status, caller, ms
            );
        } else if status >= 500 {
            limited!(ERROR "API request failed", about; %method, path, status, caller, ms);
        } else if changes && status >= 400 {
            limited!(INFO "API request refused", about; %method, path, status, caller, ms);
        } else if changes
            && change_has_line(ApiChange { bound, caller, tenant: tenant.unwrap_or_default(), method, route })
        {
            tracing::info!(%method, route, path, created, status, tenant, caller, ms, "API request");
        } else {
            tracing::debug!(%method, path, status, caller, ms, "API request");
        }
    }
}

/// A connection was not accepted, for example for lack of file descriptors.
pub struct ConnectionNotAccepted<'a> {
    pub error: Cause<'a>,
}

impl ConnectionNotAccepted<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(WARN "accepting a connection failed", About::default(); %error);
    }
}

/// A connection broke, or its client does not speak HTTP.
pub struct ConnectionFailed<'a> {
    pub error: Cause<'a>,
}

impl ConnectionFailed<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        tracing::debug!(%error, "connection ended with an error");
    }
}

/// Requests were still open after the grace period of a stop.
pub struct OpenRequestsClosed {
    pub waited: Duration,
}

impl OpenRequestsClosed {
    pub fn emit(self) {
        let Self { waited } = self;
        tracing::warn!(waited_s = waited.as_secs(), "closed requests that were still open at shutdown");
    }
}

/// An answer could not be written as JSON.
pub struct AnswerNotWritten<'a> {
    pub error: Cause<'a>,
}

impl AnswerNotWritten<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(ERROR "writing an answer as JSON failed", About::default(); %error);
    }
}

/// A request failed because the outbox database is unavailable.
pub struct RequestWithoutStore<'a> {
    pub error: Cause<'a>,
}

impl RequestWithoutStore<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(WARN "outbox database unavailable", About::default(); %error);
    }
}

/// A request failed because of an error in the outbox database.
pub struct RequestFailedInStore<'a> {
    pub error: Cause<'a>,
}

impl RequestFailedInStore<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(ERROR "API request failed in the outbox database", About::default(); %error);
    }
}

/// A request failed because a stored credential cannot be opened.
pub struct RequestWithoutCredential<'a> {
    pub error: Cause<'a>,
}

impl RequestWithoutCredential<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(ERROR "opening a stored credential failed", About::default(); %error);
    }
}

/// A request failed because the NATS server is unavailable.
pub struct RequestWithoutNats<'a> {
    pub error: Cause<'a>,
}

impl RequestWithoutNats<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(WARN "NATS server unavailable", About::default().cause(error); %error);
    }
}

/// A request failed because of an error in the NATS server.
pub struct RequestFailedInNats<'a> {
    pub error: Cause<'a>,
}

impl RequestFailedInNats<'_> {
    pub fn emit(self) {
        let Self { error } = self;
        limited!(ERROR "API request failed in the NATS server", About::default().cause(error); %error);
    }
}
