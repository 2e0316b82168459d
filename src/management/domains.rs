//! The state of each domain, and pausing and resuming its deliveries.

use std::time::Duration;

use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use super::{Management, ManagementError};
use crate::domain::field_error::FieldError;
use crate::domain::words::span;
use crate::nats::subjects::{SHARED_LANE, lane_of_consumer};
use crate::nats::{NatsError, UNTIL_RESUMED};
use crate::settings::Domain;

/// Longest pause with an end, far below [`UNTIL_RESUMED`], so that none is taken for a pause without an end.
const LONGEST_PAUSE: Duration = Duration::from_secs(3_650 * 24 * 60 * 60);

/// The current state of a domain.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = Domain)]
pub struct DomainRow {
    pub name: String,
    pub events: Vec<String>,
    pub concurrency: usize,
    /// Envelopes in the domain outbox: not delivered yet.
    pub outbox: u64,
    /// Of these, those that a process has taken and not settled: being delivered, queued, or waiting for a retry.
    pub in_flight: u64,
    /// Unresolved dead letters.
    pub dlt: u64,
    pub lanes: usize,
    /// Whether any lane is paused.
    pub paused: bool,
    /// End of the pause in UTC, to the second; null if not paused, or paused until resumed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub paused_until: Option<OffsetDateTime>,
    #[serde(skip)]
    pub paused_lanes: usize,
}

/// The end of a pause.
#[derive(Debug, Clone, Copy)]
pub enum Pause {
    /// After this time by the clock of the server, which ends it.
    Lasting(Duration),
    Until(OffsetDateTime),
}

impl Pause {
    /// A pause of this duration; without one, until the domain is resumed.
    pub fn lasting(duration: Option<Duration>) -> Result<Self, FieldError> {
        if duration.is_some_and(|duration| duration.is_zero()) {
            return Err(FieldError::new(
                "for",
                "must be longer than 0; write a duration such as 2h, or omit it",
            ));
        }
        if duration.is_some_and(|duration| duration > LONGEST_PAUSE) {
            return Err(FieldError::new(
                "for",
                format!(
                    "must be at most {}; write a shorter duration, or omit it to pause until resumed",
                    span(LONGEST_PAUSE)
                ),
            ));
        }
        Ok(Self::Lasting(duration.unwrap_or(UNTIL_RESUMED)))
    }

    /// A pause until a time, which must be in the future.
    pub fn until(at: OffsetDateTime, now: OffsetDateTime) -> Result<Self, FieldError> {
        if at <= now {
            return Err(FieldError::new("until", "is in the past; write a time in the future"));
        }
        if at - now > LONGEST_PAUSE {
            let problem = format!("must be at most {} from now; write an earlier time", span(LONGEST_PAUSE));
            return Err(FieldError::new("until", problem));
        }
        Ok(Self::Until(at))
    }

    /// Its end, as RFC 3339.
    fn end(self, now: OffsetDateTime) -> Result<String, FieldError> {
        let at = match self {
            Self::Lasting(duration) => {
                time::Duration::try_from(duration).ok().and_then(|duration| now.checked_add(duration))
            }
            Self::Until(at) => Some(at),
        };
        let text = at.and_then(|at| at.checked_to_offset(UtcOffset::UTC)?.format(&Rfc3339).ok());
        text.ok_or_else(|| FieldError::new("for", "ends after the year 9999; write a shorter duration"))
    }
}

impl Management {
    /// Every domain, in the order of the settings.
    pub async fn domains(&self) -> Result<Vec<DomainRow>, ManagementError> {
        let mut rows = Vec::new();
        for domain in &self.settings.domains {
            rows.push(self.look(domain).await?);
        }
        Ok(rows)
    }

    pub async fn domain_row(&self, name: &str) -> Result<DomainRow, ManagementError> {
        self.look(self.domain(name)?).await
    }

    /// Pauses the domain's deliveries; envelopes wait in its outbox.
    pub async fn pause_domain(&self, name: &str, pause: &Pause) -> Result<DomainRow, ManagementError> {
        let until = pause.end(self.js.read_now().await?);
        let until = until.map_err(|error| ManagementError::Invalid(vec![error]))?;
        self.set_pause(name, Some(&until)).await
    }

    pub async fn resume_domain(&self, name: &str) -> Result<DomainRow, ManagementError> {
        self.set_pause(name, None).await
    }

    async fn set_pause(&self, name: &str, until: Option<&str>) -> Result<DomainRow, ManagementError> {
        let domain = self.domain(name)?;
        let outbox = self.js.names().outbox_stream(&domain.name);
        let mut lanes = self.lanes(&outbox).await?;
        // The circuits follow the shared lane, so that is changed first.
        lanes.sort_by_key(|lane| lane_of_consumer(lane) != Some(SHARED_LANE));
        if lanes.is_empty() {
            return Err(ManagementError::NotProvisioned { subject: format!("the lanes of {outbox}") });
        }
        for lane in &lanes {
            match self.set_pause_of_lane(&outbox, lane, until).await {
                // It was idle, and is removed.
                Err(error) if error.is_not_found() && lane_of_consumer(lane) != Some(SHARED_LANE) => {}
                done => done?,
            }
        }
        self.look(domain).await
    }

    async fn set_pause_of_lane(
        &self,
        outbox: &str,
        lane: &str,
        until: Option<&str>,
    ) -> Result<(), NatsError> {
        // A resumed domain leaves the pauses of its open circuits as they are.
        if until.is_none() && self.js.consumer_info(outbox, lane).await?.is_paused_by_circuit() {
            return Ok(());
        }
        self.js.pause_consumer(outbox, lane, until).await
    }

    async fn look(&self, domain: &Domain) -> Result<DomainRow, ManagementError> {
        let names = self.js.names();
        let stream = names.outbox_stream(&domain.name);
        let outbox = self.js.stream_info_of_leader(&stream).await?.state.messages;
        let dlt = self.js.stream_info_of_leader(&names.dlt_stream(&domain.name)).await?.state.messages;
        let (mut in_flight, mut paused_lanes, mut until) = (0, 0, None);
        let lanes = self.lanes(&stream).await?;
        for lane in &lanes {
            let info = match self.js.consumer_info(&stream, lane).await {
                // It was idle, and is removed.
                Err(error) if error.is_not_found() && lane_of_consumer(lane) != Some(SHARED_LANE) => continue,
                info => info?,
            };
            in_flight += info.num_ack_pending;
            // The pause of an open circuit is none of the domain.
            if info.paused && !info.is_paused_by_circuit() {
                paused_lanes += 1;
                let text = info.config.get("pause_until").and_then(serde_json::Value::as_str);
                until = until.max(text.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok()));
            }
        }
        // A pause this long means "until resumed".
        let until = until.filter(|until| *until < self.js.now() + UNTIL_RESUMED / 2);
        Ok(DomainRow {
            name: domain.name.clone(),
            events: domain.events.iter().map(ToString::to_string).collect(),
            concurrency: domain.concurrency,
            outbox,
            in_flight,
            dlt,
            lanes: lanes.len(),
            paused: paused_lanes > 0,
            paused_until: until.map(to_the_second),
            paused_lanes,
        })
    }

    /// The durables of an outbox's lanes.
    async fn lanes(&self, outbox: &str) -> Result<Vec<String>, ManagementError> {
        let names = self.js.consumer_names(outbox).await?;
        Ok(names.into_iter().filter(|name| lane_of_consumer(name).is_some()).collect())
    }
}

fn to_the_second(at: OffsetDateTime) -> OffsetDateTime {
    let at = at.checked_to_offset(UtcOffset::UTC).unwrap_or(at);
    at.replace_nanosecond(0).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_in_the_future() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let hour = Duration::from_secs(3600);
        let end = |pause: Pause| pause.end(now).unwrap();
        assert_eq!(end(Pause::lasting(Some(hour)).unwrap()), "2027-01-15T09:00:00Z");
        assert_eq!(end(Pause::until(now + hour, now).unwrap()), "2027-01-15T09:00:00Z");
        assert!(end(Pause::lasting(None).unwrap()).starts_with("2126-"));
        assert_eq!(Pause::lasting(Some(Duration::MAX)).unwrap_err().field, "for");
        assert_eq!(Pause::lasting(Some(hour * 24 * 366 * 8000)).unwrap_err().field, "for");
        assert_eq!(Pause::Lasting(Duration::MAX).end(now).unwrap_err().field, "for");
        assert_eq!(Pause::until(now, now).unwrap_err().field, "until");
        // A pause with an end is never taken for one without.
        assert!(LONGEST_PAUSE < UNTIL_RESUMED / 2);
        assert!(
            Pause::lasting(Some(LONGEST_PAUSE)).is_ok() && Pause::until(now + LONGEST_PAUSE, now).is_ok()
        );
        let longer = LONGEST_PAUSE + Duration::from_secs(1);
        assert!(Pause::lasting(Some(longer)).unwrap_err().problem.contains("at most 3650d"));
        assert!(Pause::until(now + longer, now).unwrap_err().problem.contains("at most 3650d"));
    }
}
