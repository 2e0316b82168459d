//! What became of an event.

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
use crate::api::openapi::{Missing, Usual};
use crate::api::problem::{Kind, Problem};
use crate::api::query::{Asked, PathPart};
use crate::api::shares::{Holder, What};
use crate::domain::duration;
use crate::domain::trace::Trace;
use crate::management::domain_names;
use crate::management::traces::TraceRequest;
use crate::settings::Quota;

/// How long is looked for an event where nothing is said, and at most: below the time for a request.
const TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(trace))
}

/// Where and for how long is looked.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TraceParameters {
    /// In these domains alone, separated by commas
    domain: Option<String>,
    /// Only what happened at or after: a time, such as `2026-01-31T08:00:00Z`, or how long ago, such as `2h`
    since: Option<String>,
    /// For so long at most, up to `30s`; `10s` where not given
    timeout: Option<String>,
}

/// An event's story.
#[derive(Debug, Serialize, ToSchema)]
struct EventTrace {
    #[serde(flatten)]
    trace: Trace,
    /// Whether everything was read within the time; else there may be more to tell
    complete: bool,
}

/// Tell what became of an event (scope `read`)
///
/// Every step from its publication to each subscriber's last state. The id in the path is percent-encoded.
#[utoipa::path(get, path = "/v1/events/{id}", tag = "events",
    params(("id" = String, Path, description = "What it was published with, or <events stream>-<sequence>"), TraceParameters),
    responses((status = 200, description = "Its story", body = EventTrace), Usual, Missing))]
async fn trace(
    FromState(state): FromState<State>,
    Reader(caller): Reader,
    PathPart(id): PathPart,
    Asked(query): Asked<TraceParameters>,
) -> Result<Response, Problem> {
    let domains: Vec<String> =
        query.domain.iter().flat_map(|names| names.split(',')).map(str::to_owned).collect();
    domain_names(state.management.settings(), &domains)
        .map_err(|error| Problem::field("domain", error.to_string()))?;
    let since = query.since.map(|text| moment(&text, OffsetDateTime::now_utc())).transpose();
    let request = TraceRequest {
        event_id: id,
        domains,
        since: since.map_err(|problem| Problem::field("since", problem))?,
        tenant: caller.tenant().map(str::to_owned),
        timeout: timeout(query.timeout.as_deref()).map_err(|problem| Problem::field("timeout", problem))?,
    };
    let _share = match caller.tenant() {
        None => None,
        Some(tenant) => {
            let Quota { limit, setting } = state.management.settings().trace_quota(tenant);
            let share =
                state.admission.shares().take(Holder::Tenant(tenant.to_owned()), What::Traces, 1, limit);
            Some(share.ok_or_else(|| {
                let text = format!(
                    "the tenant {tenant:?} has {limit} traces in hand, as many as {setting} allows; try again when one is done"
                );
                Problem::too_many(1, text)
            })?)
        }
    };
    let Ok(_permit) = state.bounds.traces.try_acquire() else {
        return Err(Problem::later(1, "the API follows as many events as it does at once; try again"));
    };
    let traced = state.management.trace_event(&request).await?;
    match (traced.trace, traced.complete) {
        (Some(trace), complete) => Ok(Json(EventTrace { trace, complete }).into_response()),
        (None, true) => Err(Problem::new(
            Kind::NotFound,
            "nothing is known of this event: it was never published, nobody wanted it, or everything of it is delivered \
             and not in the delivery log",
        )),
        (None, false) => Err(Problem::new(
            Kind::NotFound,
            format!(
                "nothing was found of this event within {}, and not everything was read; narrow it with domain or since, \
                 or give more with timeout",
                humantime::format_duration(request.timeout)
            ),
        )),
    }
}

fn timeout(text: Option<&str>) -> Result<Duration, String> {
    let timeout = text.map_or(Ok(TIMEOUT), duration::parse)?;
    if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
        return Err(format!("is {}; write one up to 30s", humantime::format_duration(timeout)));
    }
    Ok(timeout)
}

/// A time, or how long ago; further back than time reaches is: from the beginning.
fn moment(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at);
    }
    let ago = duration::parse(text).map_err(|_| {
        format!("{text:?} is neither a time, such as 2026-01-31T08:00:00Z, nor how long ago, such as 2h")
    })?;
    let at = time::Duration::try_from(ago).ok().and_then(|ago| now.checked_sub(ago));
    Ok(at.unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_within_their_bounds() {
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
