//! Which dead letters a command means, and reading them page by page.

use std::collections::{HashSet, VecDeque};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::error::CliError;
use crate::cli::find_domain;
use crate::domain::dead_letter::State;
use crate::domain::duration;
use crate::domain::key::EventKey;
use crate::domain::outcome::Reason;
use crate::nats::{DeadLetterEntry, DeadLetterQuery, JetStream};
use crate::settings::Settings;

/// Dead letters read at once: what a command holds of them, however many there are.
pub(super) const PAGE: usize = 20_000;

#[derive(Debug, Default, Args)]
pub struct Filter {
    /// Of these domains; repeat it or separate by commas
    #[arg(long = "domain", value_name = "NAME", value_delimiter = ',')]
    pub domains: Vec<String>,
    /// Of this subscription
    #[arg(long, value_name = "ID")]
    pub subscription: Option<String>,
    /// exhausted, permanent, circuit-open, undecodable, stranded, removed or paused
    #[arg(long)]
    pub reason: Option<Reason>,
    /// scheduled, replaying or parked
    #[arg(long)]
    pub state: Option<State>,
    /// Of events with this key
    #[arg(long, value_name = "KEY")]
    pub event_key: Option<EventKey>,
    /// Failed at or after: a time, such as 2026-01-31T08:00:00Z, or how long ago, such as 2h
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,
    /// Failed before: a time or how long ago
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,
}

/// A time, or how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    At(OffsetDateTime),
    Ago(Duration),
}

impl FromStr for Moment {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
            return Ok(Self::At(at));
        }
        duration::parse(text).map(Self::Ago).map_err(|_| {
            format!("{text:?} is neither a time, such as 2026-01-31T08:00:00Z, nor how long ago, such as 2h")
        })
    }
}

impl Moment {
    pub fn resolve(self, now: OffsetDateTime) -> OffsetDateTime {
        match self {
            Self::At(at) => at,
            // Further back than time reaches is: from the beginning.
            Self::Ago(ago) => time::Duration::try_from(ago)
                .ok()
                .and_then(|ago| now.checked_sub(ago))
                .unwrap_or(OffsetDateTime::UNIX_EPOCH),
        }
    }
}

impl Filter {
    pub fn is_empty(&self) -> bool {
        let Self { domains, subscription, reason, state, event_key, since, until } = self;
        domains.is_empty()
            && subscription.is_none()
            && reason.is_none()
            && state.is_none()
            && event_key.is_none()
            && since.is_none()
            && until.is_none()
    }

    /// The names of the chosen domains, all where none is named, in the order of the settings.
    pub fn domain_names(&self, settings: &Settings) -> Result<Vec<String>, CliError> {
        chosen(&self.domains, settings)
    }

    pub fn query(&self) -> DeadLetterQuery {
        let now = OffsetDateTime::now_utc();
        DeadLetterQuery {
            subscription: self.subscription.clone(),
            reason: self.reason,
            state: self.state,
            event_key: self.event_key.clone().map(String::from),
            event_id: None,
            since: self.since.map(|since| since.resolve(now)),
            until: self.until.map(|until| until.resolve(now)),
            ids: HashSet::new(),
        }
    }
}

pub fn chosen(names: &[String], settings: &Settings) -> Result<Vec<String>, CliError> {
    for name in names {
        find_domain(settings, name)?;
    }
    let all = settings.domains.iter().map(|domain| domain.name.clone());
    Ok(all.filter(|name| names.is_empty() || names.contains(name)).collect())
}

/// Where a list goes on: `<domain>/<sequence>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub domain: String,
    pub sequence: u64,
}

impl FromStr for Cursor {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once('/')
            .and_then(|(domain, sequence)| {
                Some(Self { domain: domain.to_owned(), sequence: sequence.parse().ok()? })
            })
            .ok_or_else(|| {
                format!("{text:?} is no cursor: write what the list before printed, <domain>/<sequence>")
            })
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.domain, self.sequence)
    }
}

/// The dead letters of some domains, one domain after the other.
pub(super) struct Pages<'a> {
    js: &'a JetStream,
    query: DeadLetterQuery,
    domains: VecDeque<String>,
    from: u64,
}

impl<'a> Pages<'a> {
    pub(super) fn new(js: &'a JetStream, query: DeadLetterQuery, domains: Vec<String>) -> Self {
        Self { js, query, domains: domains.into(), from: 1 }
    }

    /// Goes on where a list ended.
    pub(super) fn after(mut self, cursor: &Cursor) -> Result<Self, CliError> {
        match self.domains.iter().position(|domain| *domain == cursor.domain) {
            Some(position) => {
                self.domains.drain(..position);
                self.from = cursor.sequence;
                Ok(self)
            }
            None => Err(CliError::Usage(format!(
                "--after {cursor}: {} is not among the domains listed; give the same --domain as before",
                cursor.domain
            ))),
        }
    }

    /// Up to `limit` (at least 1) of them, never empty; `None` at the end.
    pub(super) async fn next(&mut self, limit: usize) -> Result<Option<Vec<DeadLetterEntry>>, CliError> {
        while let Some(domain) = self.domains.front() {
            let page = self.js.dead_letters(domain, &self.query, self.from, limit).await?;
            match page.next {
                Some(next) => self.from = next,
                None => {
                    self.domains.pop_front();
                    self.from = 1;
                }
            }
            if !page.entries.is_empty() {
                return Ok(Some(page.entries));
            }
        }
        Ok(None)
    }

    /// Where to go on, if there is anything left.
    pub(super) async fn cursor(mut self) -> Result<Option<Cursor>, CliError> {
        let next = self.next(1).await?.and_then(|page| page.into_iter().next());
        Ok(next.map(|entry| Cursor { domain: entry.letter.domain, sequence: entry.sequence }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let resolve = |text: &str| text.parse::<Moment>().map(|moment| moment.resolve(now).unix_timestamp());
        assert_eq!(resolve("2h"), Ok(1_800_000_000 - 7200));
        assert_eq!(resolve("1970-01-01T00:01:00Z"), Ok(60));
        assert_eq!(resolve("900000000years"), Ok(0));
        assert!(resolve("yesterday").unwrap_err().contains("2h"));
    }

    #[test]
    fn a_cursor_reads_back() {
        let cursor = Cursor { domain: "policy-client".to_owned(), sequence: 7 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        assert!("policy-client".parse::<Cursor>().is_err());
        assert!("policy-client/x".parse::<Cursor>().is_err());
    }
}
