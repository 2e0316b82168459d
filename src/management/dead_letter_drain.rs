//! Replays many dead letters at the pace at which their domains and subscriptions have room, until none is left that can be
//! replayed.
//!
//! The dead letters of each subscription are read by itself, from a position that only advances. So memory does not grow
//! with their number, one whose endpoint does not keep up delays no other, and each is requested once. Nothing is stored
//! for the whole: whoever interrupts it can start it again.

mod domain;
mod pages;
mod rest;
mod used_up;

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use self::domain::{DomainDrain, State};
use self::rest::CountLimit;
use super::dead_letters::DeadLetterQuery;
use super::{Management, ManagementError};
use crate::domain::replay_pace::LeftBecause;

/// Interval of the looks at the domains while replays are requested, and while all wait.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOK_AT_WAITING_EVERY: Duration = Duration::from_millis(500);
/// Domains that are looked at at once, so that a slow one does not use up the patience of others.
const DOMAINS_AT_ONCE: usize = 8;

/// The dead letters that were not replayed, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LeftLetters {
    /// Their replay was in progress before.
    pub already_replaying: u64,
    /// Their subscriptions were removed.
    pub removed: u64,
    /// Their envelopes cannot be read.
    pub undecodable: u64,
    /// They failed after the start, perhaps after a replay.
    pub failed_since: u64,
    /// They came while the last others were replayed, and were never sent.
    pub new_since: u64,
    /// There was no room in the backlogs of their subscriptions.
    pub no_room: u64,
    /// There was no room in the outbox.
    pub outbox_full: u64,
    /// No process took the replays that were requested before.
    pub behind_untaken: u64,
    /// Somebody or an error interrupted the whole.
    pub interrupted: u64,
}

impl LeftLetters {
    fn add(&mut self, why: LeftBecause) {
        *match why {
            LeftBecause::Replaying => &mut self.already_replaying,
            LeftBecause::Removed => &mut self.removed,
            LeftBecause::Undecodable => &mut self.undecodable,
            LeftBecause::FailedSince => &mut self.failed_since,
            LeftBecause::NewSince => &mut self.new_since,
        } += 1;
    }

    fn add_all(&mut self, other: Self) {
        let Self {
            already_replaying,
            removed,
            undecodable,
            failed_since,
            new_since,
            no_room,
            outbox_full,
            behind_untaken,
            interrupted,
        } = other;
        self.already_replaying += already_replaying;
        self.removed += removed;
        self.undecodable += undecodable;
        self.failed_since += failed_since;
        self.new_since += new_since;
        self.no_room += no_room;
        self.outbox_full += outbox_full;
        self.behind_untaken += behind_untaken;
        self.interrupted += interrupted;
    }
}

/// The result so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Drained {
    pub replayed: u64,
    pub left: LeftLetters,
    /// There are more that are left, which were not counted.
    pub more_left: bool,
    /// Replays that no process with the role dlt-processor has taken yet.
    pub not_taken: u64,
    /// Envelopes that have used up their attempts, and still wait in the outbox for room in the dead letters.
    pub used_up: u64,
    /// It waits for room.
    #[serde(skip)]
    pub is_waiting: bool,
}

impl Drained {
    /// Whether another start would replay some of those that are left.
    pub fn can_continue(&self) -> bool {
        let LeftLetters { no_room, outbox_full, behind_untaken, interrupted, new_since, .. } = self.left;
        no_room + outbox_full + behind_untaken + interrupted + new_since + self.used_up > 0 || self.more_left
    }

    fn add(&mut self, domain: &DomainDrain<'_>) {
        self.replayed += domain.replayed;
        self.not_taken += domain.not_taken();
        self.used_up += domain.used_up;
        self.left.add_all(domain.left);
        self.more_left |= domain.more_left;
        self.is_waiting |= domain.state == State::Waiting;
    }
}

/// How a drain ended.
#[derive(Debug)]
pub struct DrainEnd {
    pub drained: Drained,
    /// The error that ended it for a domain.
    pub error: Option<ManagementError>,
}

/// How long a domain may wait for room, or for the server.
#[derive(Debug, Clone, Copy)]
pub struct Patience(pub Duration);

impl Management {
    /// Replays the dead letters that the filter selects, until none is left that can be replayed, or a domain has had no
    /// room, or errors that may pass, for `patience`. On `stop` it finishes the requests in progress. `report` gets each
    /// interim result. Fails only if the filter names an unknown domain.
    pub async fn drain_dead_letters(
        &self,
        filter: &DeadLetterQuery,
        Patience(patience): Patience,
        stop: &CancellationToken,
        mut report: impl FnMut(Drained) + Send,
    ) -> Result<DrainEnd, ManagementError> {
        let names = self.domain_names(&filter.domains)?;
        let mut domains: Vec<DomainDrain<'_>> =
            names.into_iter().map(|domain| DomainDrain::new(self, filter, domain)).collect();
        loop {
            let open = domains.iter_mut().filter(|domain| !domain.is_over());
            stream::iter(open)
                .for_each_concurrent(DOMAINS_AT_ONCE, |domain| async move {
                    if !stop.is_cancelled() {
                        domain.look(patience, stop).await;
                    }
                })
                .await;
            report(total(&domains));
            if stop.is_cancelled() || domains.iter().all(DomainDrain::is_over) {
                break;
            }
            let replays = domains.iter().any(|domain| domain.state == State::Replaying);
            tokio::select! {
                () = tokio::time::sleep(if replays { LOOK_EVERY } else { LOOK_AT_WAITING_EVERY }) => {}
                () = stop.cancelled() => {}
            }
        }
        let mut limit = CountLimit::new(stop);
        for domain in &mut domains {
            domain.count_rest(&mut limit).await;
        }
        let drained = total(&domains);
        report(drained);
        Ok(DrainEnd { drained, error: domains.into_iter().find_map(|domain| domain.error) })
    }
}

fn total(domains: &[DomainDrain<'_>]) -> Drained {
    domains.iter().fold(Drained::default(), |mut drained, domain| {
        drained.add(domain);
        drained
    })
}
