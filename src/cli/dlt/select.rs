//! Options that select dead letters.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::error::CliError;
use crate::cli::output::note;
use crate::cli::{selector, tenant};
use crate::domain::dead_letter::DeadLetterState;
use crate::domain::duration;
use crate::domain::key::EventKey;
use crate::domain::outcome::Reason;
use crate::management::dead_letters::DeadLetterQuery;
use crate::management::{Management, ManagementError, SubscriptionFilter, SubscriptionSelector};

#[derive(Debug, Default, Args)]
pub(super) struct DeadLetterSelectionOptions {
    /// Domains; repeatable, or separated by commas [default: all]
    #[arg(long = "domain", value_name = "NAME", value_delimiter = ',')]
    pub domains: Vec<String>,
    /// Tenant
    #[arg(long, value_parser = tenant)]
    pub tenant: Option<String>,
    /// Subscription: <id>, or <tenant>/<id>
    #[arg(long, value_name = "ID", value_parser = selector)]
    pub subscription: Option<SubscriptionSelector>,
    /// Reason: exhausted, permanent, too-large, undecodable, stranded, removed, paused, disabled, internal-error,
    /// over-quota or expired
    #[arg(long)]
    pub reason: Option<Reason>,
    /// State: scheduled, replaying or parked
    #[arg(long)]
    pub state: Option<DeadLetterState>,
    /// Event key, for example user.created
    #[arg(long, value_name = "KEY")]
    pub event_key: Option<EventKey>,
    /// Earliest time of failure: a time, for example 2026-01-31T08:00:00Z, or an age, for example 2h
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,
    /// End of the range of failure times (exclusive): a time, or an age
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,
}

/// A time or an age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
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
            format!("{text:?} is neither a time, such as 2026-01-31T08:00:00Z, nor an age, such as 2h")
        })
    }
}

impl Moment {
    pub(crate) fn resolve(self, now: OffsetDateTime) -> OffsetDateTime {
        match self {
            Self::At(at) => at,
            // An age before the first representable time means the Unix epoch.
            Self::Ago(ago) => time::Duration::try_from(ago)
                .ok()
                .and_then(|ago| now.checked_sub(ago))
                .unwrap_or(OffsetDateTime::UNIX_EPOCH),
        }
    }
}

impl DeadLetterSelectionOptions {
    /// Builds the query, with ages relative to now.
    pub(super) fn resolve(&self, ids: &[String]) -> Result<DeadLetterQuery, CliError> {
        let now = OffsetDateTime::now_utc();
        let (tenant, subscription) = match &self.subscription {
            None => (None, None),
            Some(SubscriptionSelector { tenant, id }) => (tenant.clone(), Some(id.to_string())),
        };
        if let (Some(one), Some(other)) = (&tenant, &self.tenant)
            && one != other
        {
            return Err(CliError::Usage(format!(
                "--tenant {other}: conflicts with --subscription, which names the tenant {one}; use one of the two"
            )));
        }
        let since = self.since.map(|since| since.resolve(now));
        let until = self.until.map(|until| until.resolve(now));
        if let (Some(since), Some(until)) = (since, until)
            && since >= until
        {
            return Err(CliError::Usage(
                "--until: must be after --since; an age such as 2h is before 1h".to_owned(),
            ));
        }
        Ok(DeadLetterQuery {
            domains: self.domains.clone(),
            tenant: tenant.or_else(|| self.tenant.clone()),
            subscription,
            reason: self.reason,
            state: self.state,
            event_key: self.event_key.clone(),
            since,
            until,
            event_id: None,
            ids: ids.iter().cloned().collect(),
        })
    }
}

/// Notes on standard error that a filter names a tenant or subscription that does not exist, so that an empty list is not
/// taken for "no failures". It is not an error: the dead letters of a removed subscription are kept.
pub(super) async fn note_unknown_names(hub: &Management, filter: &DeadLetterQuery) -> Result<(), CliError> {
    let tenant = filter.tenant.as_deref();
    let of_tenant = tenant.map(|tenant| format!(" of tenant {tenant:?}")).unwrap_or_default();
    let wanted = SubscriptionFilter { tenant: filter.tenant.clone(), event: None, state: None };
    if tenant.is_none() && filter.subscription.is_none() {
        return Ok(());
    }
    let found = hub.subscriptions(&wanted).await?;
    let missing = match &filter.subscription {
        Some(id) if !found.iter().any(|one| one.subscription.id.as_str() == id) => {
            format!(" {id:?}{of_tenant}")
        }
        None if found.is_empty() => of_tenant,
        _ => return Ok(()),
    };
    note(&format!("no subscription{missing} exists; list the subscriptions with `hub subscription list`"));
    Ok(())
}

/// Adds the remedy of the command line to an error.
pub(super) fn explain(error: ManagementError) -> CliError {
    let names_none = match &error {
        ManagementError::NoDeadLetter { .. } => true,
        ManagementError::NoneSelected { ids } => !ids.is_empty(),
        _ => false,
    };
    match error {
        source if names_none => {
            CliError::NotFound { source, remedy: "list the dead letters with `hub dlt list`" }
        }
        ManagementError::ForeignCursor { cursor, domain } => CliError::ForeignCursor { cursor, domain },
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_reason() {
        let help =
            DeadLetterSelectionOptions::augment_args(clap::Command::new("list")).render_help().to_string();
        let words: Vec<&str> = help.split([' ', ',', '\n']).collect();
        for reason in Reason::PRODUCED {
            assert!(words.contains(&reason.as_str()), "{reason:?} in {help}");
        }
    }

    #[test]
    fn a_moment_is_a_time_or_an_age() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let resolve = |text: &str| text.parse::<Moment>().map(|moment| moment.resolve(now).unix_timestamp());
        assert_eq!(resolve("2h"), Ok(1_800_000_000 - 7200));
        assert_eq!(resolve("1970-01-01T00:01:00Z"), Ok(60));
        assert_eq!(resolve("900000000years"), Ok(0));
        assert!(resolve("yesterday").unwrap_err().contains("2h"));
    }
}
