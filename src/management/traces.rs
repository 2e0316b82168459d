//! Traces one event, within a time limit.

use std::time::Duration;

use time::OffsetDateTime;

use super::{Management, ManagementError};
use crate::domain::trace::{Findings, Trace};
use crate::nats::TraceQuery;

/// The event to trace, where to look, and for how long.
#[derive(Debug, Clone)]
pub struct TraceRequest {
    pub event_id: String,
    /// Domain names; empty means all.
    pub domains: Vec<String>,
    /// Only messages that were stored, or failed, at or after this time.
    pub since: Option<OffsetDateTime>,
    /// Only messages of this tenant.
    pub tenant: Option<String>,
    /// Time limit; what was found until then is returned.
    pub timeout: Duration,
}

/// The result of a trace.
#[derive(Debug, PartialEq)]
pub struct Traced {
    /// `None` if nothing was found.
    pub trace: Option<Trace>,
    /// Whether all streams were read within the time limit.
    pub complete: bool,
}

impl Management {
    /// Everything that the streams have about an event. That they have nothing is confirmed by their leaders.
    pub async fn trace_event(&self, request: &TraceRequest) -> Result<Traced, ManagementError> {
        let query = TraceQuery {
            event_id: request.event_id.clone(),
            domains: self.domain_names(&request.domains)?,
            since: request.since,
        };
        let mut findings = Findings::default();
        let complete = match tokio::time::timeout(request.timeout, self.js.trace(&query, &mut findings)).await
        {
            Ok(result) => result.map(|()| true)?,
            Err(_) => false,
        };
        if let Some(tenant) = &request.tenant {
            findings.keep_tenant(tenant);
        }
        let trace = Trace::new(&request.event_id, findings);
        if trace.is_none() && complete {
            let names = self.js.names();
            let mut streams = vec![names.events_stream(), names.attempts_stream(), names.rejected_stream()];
            streams.extend(query.domains.iter().map(|domain| names.outbox_stream(domain)));
            self.confirm_leaders(&streams).await?;
        }
        Ok(Traced { trace, complete })
    }
}
