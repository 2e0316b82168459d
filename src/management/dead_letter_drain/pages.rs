//! Reads the dead letters of a domain, several subscriptions at once, and decides about each.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt as _};
use tokio::time::Instant;

use super::domain::DomainDrain;
use crate::domain::backlog::BacklogLimits;
use crate::domain::dead_letter::{DeadLetter, DeadLetterState};
use crate::domain::replay_pace::{self, Allowance, LeftBecause, ReplayedSizes};
use crate::domain::subscription::SubscriptionRef;
use crate::from_settings::backlog_limits;
use crate::management::ManagementError;
use crate::management::dead_letter_actions::SelectedDeadLetter;
use crate::nats::subjects::is_strict_lane;
use crate::nats::{DeadLetterEntry, NatsError, ScannedLetter};

/// Subscriptions that are looked up at once.
const LOOKUPS_AT_ONCE: usize = 64;
/// The marks of replays in progress are read again after this time, and after this many times what it took. They stay for a
/// day, so that there are as many as were replayed, and a replay that is requested twice happens once.
const MARKS_FRESH_FOR: Duration = Duration::from_secs(5);
const MARKS_PAUSE_FACTOR: u32 = 50;

/// The dead letters of one subscription.
#[derive(Default)]
pub(super) struct Line {
    /// Where the unread ones begin.
    pub(super) position: u64,
    /// Where those in strict lanes begin that are unread, if it is after that.
    pub(super) stops: u64,
    pub(super) limits: Option<BacklogLimits>,
    pub(super) sizes: ReplayedSizes,
    /// Average size of those that were read last.
    pub(super) average: u64,
}

/// What to read of a subscription.
pub(super) struct Part {
    pub(super) token: String,
    pub(super) subjects: Vec<String>,
    pub(super) from: u64,
    pub(super) limit: usize,
    pub(super) room: Allowance,
    /// Its backlog.
    pub(super) waiting: u64,
    /// There is no room, so only the one that stops a strict lane is replayed: its envelope is in the outbox already, and
    /// leaves it by its replay only.
    pub(super) is_of_stops: bool,
}

impl Part {
    /// The subjects of strict lanes.
    pub(super) fn keep_strict(&mut self, drain: &DomainDrain<'_>) {
        let names = drain.management.js.names();
        self.subjects.retain(|subject| {
            names.parse_dead_letter(subject).is_some_and(|parsed| is_strict_lane(parsed.lane))
        });
    }
}

/// What happens to a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Replay,
    Left(LeftBecause),
    /// It is requested already.
    Done,
}

pub(super) struct PageLetter {
    pub(super) selected: SelectedDeadLetter,
    pub(super) size: u64,
    pub(super) fate: Fate,
    /// It is replayed beyond the pace.
    pub(super) is_beyond: bool,
    /// Its replay has failed, and its new dead letter waits for room.
    pub(super) is_stuck: bool,
    stops: bool,
    /// Where its envelope was in the outbox.
    envelope: Option<u64>,
    letter: DeadLetter,
}

impl From<ScannedLetter> for PageLetter {
    fn from(scanned: ScannedLetter) -> Self {
        let ScannedLetter { letter, sequence, size, stops, envelope } = scanned;
        let selected = DeadLetterEntry { letter: letter.clone(), sequence }.into();
        Self {
            selected,
            size,
            fate: Fate::Replay,
            is_beyond: false,
            is_stuck: false,
            stops,
            envelope,
            letter,
        }
    }
}

/// The next dead letters of a subscription.
pub(super) struct LinePage {
    pub(super) token: String,
    pub(super) letters: Vec<PageLetter>,
    /// Where the next page begins.
    pub(super) next: u64,
    pub(super) is_of_stops: bool,
}

impl LinePage {
    /// Leaves the dead letters from this one on to the next page.
    pub(super) fn cut(&mut self, index: Option<usize>) {
        if let Some(index) = index
            && let Some(letter) = self.letters.get(index)
        {
            self.next = letter.selected.sequence;
            self.letters.truncate(index);
        }
    }
}

/// The sequences whose replay is in progress.
#[derive(Default)]
pub(super) struct Marks {
    sequences: HashSet<u64>,
    /// Those of the start.
    first: Option<HashSet<u64>>,
    again: Option<Instant>,
}

impl Marks {
    pub(super) fn forget(&mut self) {
        self.again = None;
    }
}

impl DomainDrain<'_> {
    /// Reads the marks of replays in progress, unless they are fresh.
    pub(super) async fn read_marks(&mut self, now: bool) -> Result<(), NatsError> {
        let is_fresh = self.marks.again.is_some_and(|again| Instant::now() < again);
        if !is_fresh || now {
            let asked = Instant::now();
            self.marks.sequences = self.management.js.replaying(&self.domain).await?;
            if self.marks.first.is_none() {
                self.marks.first = Some(self.marks.sequences.clone());
            }
            let pause = (asked.elapsed() * MARKS_PAUSE_FACTOR).max(MARKS_FRESH_FOR);
            self.marks.again = Some(Instant::now() + pause);
        }
        Ok(())
    }

    /// Reads these parts up to a sequence, at once.
    pub(super) async fn read(&self, parts: &[Part], end: u64) -> Result<Vec<LinePage>, ManagementError> {
        Ok(try_join_all(parts.iter().map(|part| self.read_part(part, end))).await?)
    }

    async fn read_part(&self, part: &Part, end: u64) -> Result<LinePage, NatsError> {
        let Part { token, subjects, from, limit, is_of_stops, .. } = part;
        let mut page =
            LinePage { token: token.clone(), letters: Vec::new(), next: *from, is_of_stops: *is_of_stops };
        if subjects.is_empty() || *from > end {
            return Ok(page);
        }
        let (js, marks) = (&self.management.js, &self.marks.sequences);
        let scan = js.scan_dead_letters(&self.domain, subjects, self.filter, *from, *limit, marks).await?;
        page.next = scan.next.map_or(end + 1, |next| next.min(end + 1));
        page.letters = scan.letters.into_iter().map(PageLetter::from).collect();
        page.letters.retain(|letter| letter.selected.sequence <= end);
        Ok(page)
    }

    /// Looks up which owners' subscriptions were removed.
    pub(super) async fn look_up_removed(&mut self, pages: &[LinePage]) -> Result<(), ManagementError> {
        let letters = pages.iter().flat_map(|page| &page.letters);
        let selected: Vec<SelectedDeadLetter> = letters.map(|letter| letter.selected.clone()).collect();
        self.management.look_up_owners(&selected, &mut self.removals).await
    }

    /// Decides about the dead letters of a page. `due`: the requests that are not taken.
    pub(super) fn judge(&mut self, page: &mut LinePage, due: &HashSet<u64>) {
        let Some(extent) = self.extent else { return };
        // Nothing of the subscription is delivered any more, so neither is what was replayed before the start.
        let is_all_used_up = self.watch.used_up.is_all(&page.token);
        for one in &mut page.letters {
            let sequence = one.selected.sequence;
            let is_requested = one.letter.state == DeadLetterState::Replaying || due.contains(&sequence);
            if self.uncertain.remove(&sequence) && is_requested {
                self.replayed += 1;
                self.ahead.insert(sequence);
            }
            one.fate = if self.ahead.contains(&sequence) {
                Fate::Done
            } else {
                one.is_stuck = is_all_used_up
                    && one.letter.state == DeadLetterState::Replaying
                    && !one.stops
                    && !due.contains(&sequence)
                    && self.marks.first.as_ref().is_some_and(|first| first.contains(&sequence));
                if one.is_stuck {
                    one.letter.state = DeadLetterState::Parked;
                }
                let removed = self.removals.has(&one.selected);
                let left = replay_pace::is_left(&one.letter, sequence, one.envelope, removed, &extent);
                left.map_or(Fate::Replay, Fate::Left)
            };
        }
        let sizes: u64 = page.letters.iter().map(|one| one.size).sum();
        if let Some(average) = sizes.checked_div(page.letters.len() as u64) {
            self.lines.entry(page.token.clone()).or_default().average = average;
        }
        if page.is_of_stops {
            let next = page.letters.iter().position(|one| one.fate == Fate::Replay);
            let stops = next.is_some_and(|next| page.letters.get(next).is_some_and(|one| one.stops));
            page.cut(next.map(|next| next + usize::from(stops)));
        }
    }

    /// The subjects of the dead letters that the filter may select, by the token of their subscription.
    pub(super) async fn subjects(&self) -> Result<BTreeMap<String, Vec<String>>, NatsError> {
        let js = &self.management.js;
        let (names, mut by_token) = (js.names(), BTreeMap::<String, Vec<String>>::new());
        for subject in js.dead_letter_subjects(&self.domain).await? {
            let Some(parsed) = names.parse_dead_letter(&subject) else { continue };
            let token = parsed.subscription.to_owned();
            if self.wants(parsed.reference()) {
                by_token.entry(token).or_default().push(subject);
            }
        }
        Ok(by_token)
    }

    /// Looks up the quotas of these subscriptions; that of every subscription for one that was removed.
    pub(super) async fn look_up_limits(&mut self, tokens: &[&String]) -> Result<(), NatsError> {
        let management = self.management;
        let all = backlog_limits(&management.settings);
        let is_unknown = |token: &&&String| self.lines.get(**token).is_none_or(|line| line.limits.is_none());
        let unknown: Vec<String> = tokens.iter().filter(is_unknown).map(|token| (*token).clone()).collect();
        let mut found = stream::iter(unknown)
            .map(|token| async move {
                let stored = match SubscriptionRef::from_token(&token) {
                    Some(name) => management.js.subscription(&name).await?,
                    None => None,
                };
                let limits = stored.map_or(all, |stored| stored.subscription.delivery.backlog().within(all));
                Ok::<_, NatsError>((token, limits))
            })
            .buffer_unordered(LOOKUPS_AT_ONCE);
        while let Some(found) = found.next().await {
            let (token, limits) = found?;
            self.lines.entry(token).or_default().limits = Some(limits);
        }
        Ok(())
    }
}
