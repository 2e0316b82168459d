//! `GET /v1/events/{id}`: traces an event.

use std::time::Duration;

use axum::extract::State as FromState;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::State;
use crate::api::access::Reader;
use crate::api::json::Json;
use crate::api::limits::{Holder, Resource};
use crate::api::openapi::{CommonProblems, NotFoundProblem};
use crate::api::problem::{Problem, ProblemKind};
use crate::api::query::{PathPart, QueryParams};
use crate::domain::duration;
use crate::domain::trace::Trace;
use crate::domain::words::span;
use crate::management::domain_names;
use crate::management::traces::TraceRequest;
use crate::settings::Quota;

/// Default and maximum duration of a trace, below the time limit of a request.
const TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(trace))
}

/// Options of a trace.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TraceParameters {
    /// Domains to search, separated by commas. Default: all
    domain: Option<String>,
    /// Start of the search: a time, such as `2026-01-31T08:00:00Z`, or an age, such as `2h`
    since: Option<String>,
    /// Maximum duration of the search, up to `30s`. Default: `10s`
    timeout: Option<String>,
}

/// The trace of an event.
#[derive(Debug, Serialize, ToSchema)]
struct EventTrace {
    #[serde(flatten)]
    trace: Trace,
    /// True if all streams were read within the timeout; otherwise steps may be missing
    complete: bool,
}

/// Trace an event (scope `read`)
///
/// Returns every step from its publication to the last state of each of its envelopes. Percent-encode the id in the path.
#[utoipa::path(get, path = "/v1/events/{id}", tag = "events",
    params(("id" = String, Path, description = "Id that the event was published with, or <events stream>-<sequence>"), TraceParameters),
    responses((status = 200, description = "The trace", body = EventTrace), CommonProblems, NotFoundProblem))]
async fn trace(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    PathPart(id): PathPart,
    QueryParams(query): QueryParams<TraceParameters>,
) -> Result<Response, Problem> {
    let domains: Vec<String> =
        query.domain.iter().flat_map(|names| names.split(',')).map(str::to_owned).collect();
    domain_names(state.management.settings(), &domains)
        .map_err(|error| Problem::field("domain", error.to_string()))?;
    let since = query.since.map(|text| moment(&text, state.management.now())).transpose();
    let request = TraceRequest {
        event_id: id,
        domains,
        since: since.map_err(|problem| Problem::field("since", problem))?,
        tenant: caller.tenant().map(str::to_owned),
        timeout: timeout(query.timeout.as_deref()).map_err(|problem| Problem::field("timeout", problem))?,
    };
    let _usage = match caller.tenant() {
        None => None,
        Some(tenant) => {
            let Quota { limit, setting } = state.management.settings().trace_quota(tenant);
            let usage =
                state.admission.usage().take(Holder::Tenant(tenant.to_owned()), Resource::Traces, 1, limit);
            Some(usage.ok_or_else(|| {
                let text = format!(
                    "the tenant {tenant:?} has reached its limit of {limit} concurrent traces ({setting}); try again when one \
                     has finished"
                );
                Problem::too_many(1, text)
            })?)
        }
    };
    let Ok(_permit) = state.event_limits.traces.try_acquire() else {
        return Err(Problem::later(1, "the API has reached its limit of concurrent traces; try again later"));
    };
    let traced = state.management.trace_event(&request).await?;
    match (traced.trace, traced.complete) {
        (Some(trace), complete) => Ok(Json(EventTrace { trace, complete }).into_response()),
        (None, true) => Err(Problem::new(
            ProblemKind::NotFound,
            "no trace of this event: it was not published, no subscription matched it, or it was delivered and is not in the \
             delivery log",
        )),
        (None, false) => Err(Problem::new(
            ProblemKind::NotFound,
            format!(
                "no trace of this event found within {}, but not all streams were read; narrow the search with domain or since, \
                 or raise timeout",
                span(request.timeout)
            ),
        )),
    }
}

fn timeout(text: Option<&str>) -> Result<Duration, String> {
    let timeout = text.map_or(Ok(TIMEOUT), duration::parse).map_err(|error| error.to_string())?;
    if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
        return Err(format!("is {}; must be more than 0s and at most 30s", span(timeout)));
    }
    Ok(timeout)
}

/// Parses a time or an age. An age before the first representable time means the Unix epoch.
fn moment(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at);
    }
    let ago = duration::parse(text).map_err(|_| {
        format!("{text:?} is neither a time, such as 2026-01-31T08:00:00Z, nor an age, such as 2h")
    })?;
    let at = time::Duration::try_from(ago).ok().and_then(|ago| now.checked_sub(ago));
    Ok(at.unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_checked_against_their_limits() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time");
        let seconds = |text: &str| moment(text, now).map(OffsetDateTime::unix_timestamp);
        assert_eq!(seconds("2h"), Ok(1_800_000_000 - 7200));
        assert_eq!(seconds("1970-01-01T00:01:00Z"), Ok(60));
        assert_eq!(seconds("900000000years"), Ok(0));
        assert!(seconds("yesterday").is_err());
        assert_eq!(timeout(None), Ok(TIMEOUT));
        assert_eq!(timeout(Some("30s")), Ok(LONGEST_TIMEOUT));
        for bad in ["0s", "31s", "soon"] {
            assert!(timeout(Some(bad)).is_err(), "{bad}");
        }
    }
}
