//! Counts the dead letters that are left at the end.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::domain::{DomainDrain, READ_AT_ONCE, State};
use super::pages::{Fate, Part};
use crate::domain::replay_pace::{Allowance, Awaited, Extent, WaitingEvents};
use crate::management::ManagementError;

/// Dead letters of a subscription that are read at once.
const COUNTED_AT_ONCE: usize = 2_000;
/// Time of the count after an interruption.
const COUNT_TIME: Duration = Duration::from_secs(10);

/// Ends the count some time after an interruption.
pub(super) struct CountLimit<'a> {
    stop: &'a CancellationToken,
    until: Option<Instant>,
}

impl<'a> CountLimit<'a> {
    pub(super) fn new(stop: &'a CancellationToken) -> Self {
        Self { stop, until: None }
    }

    fn is_over(&mut self) -> bool {
        self.stop.is_cancelled()
            && Instant::now() >= *self.until.get_or_insert_with(|| Instant::now() + COUNT_TIME)
    }
}

impl DomainDrain<'_> {
    /// Counts the dead letters that are left, by their reasons.
    pub(super) async fn count_rest(&mut self, limit: &mut CountLimit<'_>) {
        let mut rest = 0;
        let result = self.try_count(limit, &mut rest).await;
        *match (self.state, &self.error, self.awaited) {
            (State::GivenUp, None, Some(Awaited::Outbox)) => &mut self.left.outbox_full,
            (State::GivenUp, None, Some(Awaited::Taken)) => &mut self.left.behind_untaken,
            (State::GivenUp, None, _) => &mut self.left.no_room,
            _ => &mut self.left.interrupted,
        } += rest;
        if let Err(error) = result {
            self.more_left = true;
            self.error.get_or_insert(error);
        }
    }

    async fn try_count(&mut self, limit: &mut CountLimit<'_>, rest: &mut u64) -> Result<(), ManagementError> {
        let js = &self.management.js;
        let due = js.redrives_due(&self.domain).await?;
        let end = js.stream_info_of_leader(&js.names().dlt_stream(&self.domain)).await?.state.last_seq;
        // Without a look, all would have been replayed.
        self.extent.get_or_insert_with(|| Extent::new(WaitingEvents::NONE, end, Duration::ZERO));
        self.look_at_used_up(false).await?;
        if self.extent.is_some_and(|extent| extent.began_with_used_up()) {
            self.used_up = self.used_up_of_filter();
        }
        self.read_marks(true).await?;
        let subjects = self.subjects().await?;
        let mut open: VecDeque<&String> = subjects.keys().collect();
        while !open.is_empty() {
            if limit.is_over() {
                self.more_left = true;
                break;
            }
            let some = open.drain(..open.len().min(READ_AT_ONCE));
            let parts: Vec<Part> = some
                .map(|token| Part {
                    token: token.clone(),
                    subjects: subjects.get(token).cloned().unwrap_or_default(),
                    from: self.lines.get(token).map_or(0, |line| line.position),
                    limit: COUNTED_AT_ONCE,
                    room: Allowance::NONE,
                    waiting: 0,
                    is_of_stops: false,
                })
                .collect();
            let mut pages = self.read(&parts, end).await?;
            self.look_up_removed(&pages).await?;
            for page in &mut pages {
                self.judge(page, &due);
                for letter in &page.letters {
                    match letter.fate {
                        Fate::Replay => *rest += 1,
                        Fate::Left(why) => self.left.add(why),
                        Fate::Done => {}
                    }
                }
                self.lines.entry(page.token.clone()).or_default().position = page.next;
                if page.next <= end
                    && let Some((token, _)) = subjects.get_key_value(&page.token)
                {
                    open.push_back(token);
                }
            }
        }
        Ok(())
    }
}
