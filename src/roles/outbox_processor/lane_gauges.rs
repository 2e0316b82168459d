//! Sums up the states of a domain's lanes for the metrics.
//!
//! The list of lanes reads the states of the own lanes anyway, and passes a summary on. A task of its own adds the state of
//! the shared lane, and looks for the oldest envelope of each kind of lane, so that the reading of lanes never waits for it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::subscription::SubscriptionRef;
use crate::facts::{DomainMetrics, DomainPause, LaneKind, LaneTotals, LanesNotListed, SubscriptionBacklog};
use crate::nats::subjects::{SHARED_LANE, is_strict_lane, lane_consumer, subscription_of_lane};
use crate::nats::{ConsumerInfo, JetStream, NatsError, UNTIL_RESUMED};

/// One of this many summaries is followed by the search for the oldest envelopes.
const SEARCH_EVERY: u32 = 3;
/// Most messages that one search reads per kind of lane, and for the worst subscriptions.
const MOST_READS: usize = 50;
/// Age after which the first message of a lane is read again, because somebody may have deleted it.
const READ_AGAIN: Duration = Duration::from_secs(60);

/// The lanes of single subscriptions, at one look.
#[derive(Debug, Clone, Default)]
pub(super) struct Summary {
    own: LaneTotals,
    strict: LaneTotals,
    /// Bytes in the memory of this process, of the shared lane and of the others.
    held: [u64; 2],
    /// Those with pending envelopes.
    waiting_own: Vec<PendingLane>,
    waiting_strict: Vec<PendingLane>,
}

/// A lane with pending envelopes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PendingLane {
    lane: String,
    /// Its ack floor in the stream: what is pending has a higher sequence.
    floor: u64,
    pending: u64,
}

impl PendingLane {
    fn new(lane: &str, info: &ConsumerInfo) -> Self {
        Self { lane: lane.to_owned(), floor: info.ack_floor.stream_seq, pending: pending(info) }
    }
}

impl Summary {
    pub(super) fn of(infos: &HashMap<String, ConsumerInfo>, held: [u64; 2]) -> Self {
        let mut summary = Self { held, ..Self::default() };
        for (lane, info) in infos {
            let (totals, waiting) = if is_strict_lane(lane) {
                (&mut summary.strict, &mut summary.waiting_strict)
            } else {
                (&mut summary.own, &mut summary.waiting_own)
            };
            add(totals, info);
            if pending(info) > 0 {
                waiting.push(PendingLane::new(lane, info));
            }
        }
        summary
    }

    /// The subscriptions whose lanes have the most envelopes, worst first, with these lanes.
    fn worst(&self, most: usize) -> Vec<(SubscriptionRef, Vec<PendingLane>)> {
        let mut lanes: HashMap<&str, (u64, Vec<&PendingLane>)> = HashMap::new();
        for waiting in self.waiting_own.iter().chain(&self.waiting_strict) {
            let Some(token) = subscription_of_lane(&waiting.lane) else { continue };
            let (pending, of_token) = lanes.entry(token).or_default();
            *pending = pending.saturating_add(waiting.pending);
            of_token.push(waiting);
        }
        let mut worst: Vec<_> = lanes.into_iter().collect();
        worst.sort_unstable_by(|(token, (pending, _)), (other_token, (other, _))| {
            other.cmp(pending).then_with(|| token.cmp(other_token))
        });
        let named = worst.into_iter().filter_map(|(token, (_, lanes))| {
            Some((SubscriptionRef::from_token(token)?, lanes.into_iter().cloned().collect()))
        });
        named.take(most).collect()
    }
}

fn pending(info: &ConsumerInfo) -> u64 {
    info.num_pending.saturating_add(info.num_ack_pending)
}

fn add(totals: &mut LaneTotals, info: &ConsumerInfo) {
    totals.lanes += 1;
    totals.pending = totals.pending.saturating_add(pending(info));
    totals.redelivered = totals.redelivered.saturating_add(info.num_redelivered);
}

/// Takes the summaries.
pub(super) type Summaries = watch::Sender<Summary>;

pub(super) struct LaneGauges {
    js: JetStream,
    domain: String,
    stream: String,
    metrics: DomainMetrics,
    summaries: watch::Receiver<Summary>,
    firsts: Firsts,
}

impl LaneGauges {
    pub(super) fn new(js: JetStream, domain: &str, metrics: DomainMetrics) -> (Self, Summaries) {
        let (sender, summaries) = watch::channel(Summary::default());
        let stream = js.names().outbox_stream(domain);
        let domain = domain.to_owned();
        (Self { js, domain, stream, metrics, summaries, firsts: Firsts::default() }, sender)
    }

    /// Ends when the sender of summaries is dropped.
    pub(super) async fn run(mut self) {
        let mut until_search = 0;
        while self.summaries.changed().await.is_ok() {
            let summary = self.summaries.borrow_and_update().clone();
            self.metrics.lanes(LaneKind::Own, summary.own);
            self.metrics.lanes(LaneKind::Strict, summary.strict);
            let [shared, own] = summary.held;
            self.metrics.held_bytes(LaneKind::Shared, shared);
            self.metrics.held_bytes(LaneKind::Own, own);
            let search = until_search == 0;
            until_search = if search { SEARCH_EVERY - 1 } else { until_search - 1 };
            if let Err(error) = self.measure(&summary, search).await {
                LanesNotListed { error: &error, stream: &self.stream }.emit();
            }
        }
    }

    async fn measure(&mut self, summary: &Summary, search: bool) -> Result<(), NatsError> {
        let shared = self.js.consumer_info(&self.stream, &lane_consumer(SHARED_LANE)).await?;
        let mut totals = LaneTotals::default();
        add(&mut totals, &shared);
        self.metrics.lanes(LaneKind::Shared, totals);
        self.metrics.pause(pause(&shared, self.js.now()));
        if !search {
            return Ok(());
        }
        let waiting = (pending(&shared) > 0).then(|| PendingLane::new(SHARED_LANE, &shared));
        let waiting: &[PendingLane] = waiting.as_slice();
        let all = summary.waiting_own.iter().chain(&summary.waiting_strict).chain(waiting);
        self.firsts.keep(all);
        for (kind, lanes) in [
            (LaneKind::Shared, waiting),
            (LaneKind::Own, &summary.waiting_own[..]),
            (LaneKind::Strict, &summary.waiting_strict[..]),
        ] {
            let mut reads = MOST_READS;
            let oldest = self.oldest(lanes, &mut reads).await?;
            let age = oldest.and_then(|at| (self.js.now() - at).try_into().ok());
            self.metrics.lane_oldest(kind, age.unwrap_or_default());
        }
        self.worst(summary).await
    }

    /// Measures the subscriptions whose lanes have the most envelopes.
    async fn worst(&mut self, summary: &Summary) -> Result<(), NatsError> {
        let mut worst = Vec::new();
        let mut reads = MOST_READS;
        for (name, lanes) in summary.worst(self.metrics.most_subscriptions()) {
            let oldest = self.oldest(&lanes, &mut reads).await?;
            let age = oldest.and_then(|at| (self.js.now() - at).try_into().ok()).unwrap_or_default();
            let pending = lanes.iter().fold(0, |sum: u64, lane| sum.saturating_add(lane.pending));
            worst.push(SubscriptionBacklog { name, pending, age });
        }
        self.metrics.worst_backlogs(worst);
        Ok(())
    }

    /// When the oldest pending envelope of these lanes was stored. If that takes more than these reads, the oldest known.
    async fn oldest(
        &mut self,
        lanes: &[PendingLane],
        reads: &mut usize,
    ) -> Result<Option<OffsetDateTime>, NatsError> {
        let mut oldest: Option<First> = None;
        for (bound, waiting) in self.firsts.in_order(lanes) {
            // Each message of the remaining lanes is younger.
            if oldest.is_some_and(|oldest| oldest.sequence <= bound) {
                break;
            }
            let first = match self.firsts.get(waiting) {
                Some(first) => first,
                None if *reads == 0 => break,
                None => {
                    *reads -= 1;
                    let filter = self.js.names().lane_filter(&self.domain, &waiting.lane);
                    let from = bound.max(1);
                    let Some(message) = self.js.get_next(&self.stream, from, &filter).await? else {
                        continue;
                    };
                    let Ok(at) = OffsetDateTime::parse(&message.time, &Rfc3339) else { continue };
                    let first = First { sequence: message.sequence, at, read: Instant::now() };
                    self.firsts.known.insert(waiting.lane.clone(), first);
                    first
                }
            };
            if oldest.is_none_or(|oldest| first.sequence < oldest.sequence) {
                oldest = Some(first);
            }
        }
        Ok(oldest.map(|first| first.at))
    }
}

/// The first pending message of a lane.
#[derive(Debug, Clone, Copy)]
struct First {
    sequence: u64,
    at: OffsetDateTime,
    read: Instant,
}

/// The first pending messages that are known, by lane. A first message stays the first until the ack floor passes it, so
/// that most searches read little.
#[derive(Debug, Default)]
struct Firsts {
    known: HashMap<String, First>,
}

impl Firsts {
    fn keep<'a>(&mut self, lanes: impl Iterator<Item = &'a PendingLane>) {
        let lanes: HashSet<&str> = lanes.map(|waiting| waiting.lane.as_str()).collect();
        self.known.retain(|lane, _| lanes.contains(lane.as_str()));
    }

    /// The lanes, each with a sequence that none of its pending messages is below, lowest first.
    fn in_order<'a>(&self, lanes: &'a [PendingLane]) -> Vec<(u64, &'a PendingLane)> {
        let bound = |waiting: &PendingLane| {
            let known = self.known.get(&waiting.lane).map_or(0, |first| first.sequence);
            known.max(waiting.floor.saturating_add(1))
        };
        let mut order: Vec<_> = lanes.iter().map(|waiting| (bound(waiting), waiting)).collect();
        order.sort_unstable_by_key(|(bound, _)| *bound);
        order
    }

    /// The first message of a lane, unless it may have changed.
    fn get(&self, waiting: &PendingLane) -> Option<First> {
        let first = self.known.get(&waiting.lane)?;
        (first.sequence > waiting.floor && first.read.elapsed() < READ_AGAIN).then_some(*first)
    }
}

fn pause(shared: &ConsumerInfo, now: OffsetDateTime) -> DomainPause {
    if !shared.paused {
        return DomainPause::No;
    }
    match shared.pause_until() {
        // A pause this long means "until resumed".
        Some(until) if until < now + UNTIL_RESUMED / 2 => {
            DomainPause::Until(until.unix_timestamp_nanos() as f64 / 1e9)
        }
        _ => DomainPause::UntilResumed,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info(lane: &str, pending: [u64; 3], floor: u64) -> ConsumerInfo {
        let [num_pending, num_ack_pending, num_redelivered] = pending;
        serde_json::from_value(json!({
            "name": lane_consumer(lane),
            "config": {},
            "delivered": {"consumer_seq": 9, "stream_seq": 9},
            "ack_floor": {"consumer_seq": 1, "stream_seq": floor},
            "num_pending": num_pending,
            "num_ack_pending": num_ack_pending,
            "num_redelivered": num_redelivered,
        }))
        .unwrap()
    }

    #[test]
    fn lanes_are_summed_up_by_kind() {
        let lanes = [
            ("own-crm", info("own-crm", [5, 2, 1], 40)),
            ("own-idle", info("own-idle", [0, 0, 0], 90)),
            ("own-huge", info("own-huge", [u64::MAX, 1, 0], 7)),
            ("strict-0-crm", info("strict-0-crm", [3, 1, 1], 8)),
        ];
        let infos = lanes.into_iter().map(|(lane, info)| (lane.to_owned(), info)).collect();
        let summary = Summary::of(&infos, [0; 2]);
        assert_eq!(summary.own, LaneTotals { lanes: 3, pending: u64::MAX, redelivered: 1 });
        assert_eq!(summary.strict, LaneTotals { lanes: 1, pending: 4, redelivered: 1 });
        let mut waiting: Vec<_> =
            summary.waiting_own.iter().map(|one| (one.lane.as_str(), one.floor)).collect();
        waiting.sort_unstable();
        assert_eq!(waiting, [("own-crm", 40), ("own-huge", 7)]);
        assert_eq!(
            summary.waiting_strict,
            [PendingLane { lane: "strict-0-crm".to_owned(), floor: 8, pending: 4 }]
        );
        let worst = |most| -> Vec<(String, Vec<u64>)> {
            let worst = summary.worst(most).into_iter();
            let pending = |lanes: Vec<PendingLane>| lanes.into_iter().map(|lane| lane.pending).collect();
            worst.map(|(name, lanes)| (name.id().to_owned(), pending(lanes))).collect()
        };
        assert_eq!(worst(1), [("huge".to_owned(), vec![u64::MAX])]);
        assert_eq!(worst(9), [("huge".to_owned(), vec![u64::MAX]), ("crm".to_owned(), vec![7, 4])]);
        assert!(worst(0).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_message_is_known_until_the_floor_passes_it_or_it_is_old() {
        let lane = |name: &str, floor| PendingLane { lane: name.to_owned(), floor, pending: 1 };
        let mut firsts = Firsts::default();
        let at = OffsetDateTime::UNIX_EPOCH;
        firsts.known.insert("own-b".to_owned(), First { sequence: 70, at, read: Instant::now() });
        let lanes = [lane("own-a", 50), lane("own-b", 0), lane("own-c", 60)];
        // What is known is a better bound than the floor.
        let order = |firsts: &Firsts| -> Vec<(u64, String)> {
            firsts.in_order(&lanes).into_iter().map(|(bound, one)| (bound, one.lane.clone())).collect()
        };
        let wanted = [(51, "own-a".to_owned()), (61, "own-c".to_owned()), (70, "own-b".to_owned())];
        assert_eq!(order(&firsts), wanted);
        assert_eq!(firsts.get(&lane("own-b", 69)).map(|first| first.sequence), Some(70));
        assert!(firsts.get(&lane("own-b", 70)).is_none() && firsts.get(&lane("own-a", 0)).is_none());
        tokio::time::advance(READ_AGAIN).await;
        assert!(firsts.get(&lane("own-b", 0)).is_none());
        // It is still a bound.
        assert_eq!(order(&firsts), wanted);
        firsts.keep([lane("own-a", 1)].iter());
        assert!(firsts.known.is_empty());
    }

    #[test]
    fn a_pause_without_an_end_is_told_from_one_with_an_end() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let paused = |paused: bool, until: Option<OffsetDateTime>| {
            let mut shared = info(SHARED_LANE, [0; 3], 0);
            shared.paused = paused;
            if let Some(until) = until {
                shared.config.insert("pause_until".to_owned(), json!(until.format(&Rfc3339).unwrap()));
            }
            pause(&shared, now)
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(paused(false, Some(now - hour)), DomainPause::No);
        assert_eq!(paused(true, Some(now + hour)), DomainPause::Until(1_800_003_600.0));
        assert_eq!(paused(true, Some(now + UNTIL_RESUMED)), DomainPause::UntilResumed);
        assert_eq!(paused(true, None), DomainPause::UntilResumed);
    }
}
