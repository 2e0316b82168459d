//! One event's story, within a time.

use std::time::Duration;

use time::OffsetDateTime;

use super::{Management, ManagementError};
use crate::domain::trace::{Findings, Trace};
use crate::nats::TraceQuery;

/// Which event, where it is looked for, and for how long.
#[derive(Debug, Clone)]
pub struct TraceRequest {
    pub event_id: String,
    /// Names of domains; empty: all.
    pub domains: Vec<String>,
    /// Only what was stored, or failed, at or after this.
    pub since: Option<OffsetDateTime>,
    /// Only what belongs to this tenant.
    pub tenant: Option<String>,
    /// Look for so long at most, and tell what was found until then.
    pub timeout: Duration,
}

/// What was found.
#[derive(Debug, PartialEq)]
pub struct Traced {
    /// `None` if nothing is known of the event.
    pub trace: Option<Trace>,
    /// Whether all streams were read within the time.
    pub complete: bool,
}

impl Management {
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
        Ok(Traced { trace: Trace::tell(&request.event_id, findings), complete })
    }
}
