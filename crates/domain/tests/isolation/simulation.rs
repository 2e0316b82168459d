//! A worker with its lanes, on a virtual clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use hub_domain::fair_share::{FairShare, Finish, PoolLimits};
use hub_domain::subscription::{Identity, Incarnation, RateLimit, SubscriptionRef};

use crate::endpoint::Endpoint;

const SLOTS: usize = 64;
const MEMORY: usize = 4096;
/// Envelopes of an own lane in memory.
const OWN_LANE_HELD: usize = 64;
/// The reader of the shared lane gets this many envelopes in one go, and the next after this time.
const READ_AT_ONCE: usize = 256;
const READ_PAUSE: Duration = Duration::from_millis(5);
/// Delay before a failed envelope is delivered again.
const RETRY: Duration = Duration::from_secs(2);

/// A subscription and the events that it gets.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    /// Events per second.
    pub(crate) rate: f64,
    pub(crate) endpoint: Endpoint,
    pub(crate) max_in_flight: u32,
    /// Deliveries per second.
    pub(crate) rate_limit: Option<f64>,
}

impl Default for Traffic {
    fn default() -> Self {
        let endpoint = Endpoint::answers_after(Duration::from_millis(10));
        Self { rate: 1.0, endpoint, max_in_flight: 10, rate_limit: None }
    }
}

struct Subscription {
    identity: Identity,
    traffic: Traffic,
    first_request: Option<Duration>,
    /// Its own lane: envelopes that are not in memory.
    own: VecDeque<Envelope>,
    has_lane: bool,
    own_in_memory: usize,
    published: usize,
    delivered: usize,
    latencies: Vec<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Envelope {
    number: u64,
    subscription: usize,
    published: Duration,
    own_lane: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Publish(usize),
    End { envelope: Envelope, started: Duration, healthy: bool, retry_after: Option<Duration> },
    Redeliver(Envelope),
    Read,
}

/// The results of a time.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) published: usize,
    pub(crate) delivered: usize,
    latencies: Vec<Duration>,
}

impl Measured {
    pub(crate) fn add(&mut self, other: Measured) {
        self.published += other.published;
        self.delivered += other.delivered;
        self.latencies.extend(other.latencies);
    }

    /// The time from publishing to the answer that 99% of the deliveries keep.
    pub(crate) fn p99(&self) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 99 / 100).copied().unwrap_or_default()
    }
}

pub(crate) struct Simulation {
    pool: FairShare<Envelope>,
    subscriptions: Vec<Subscription>,
    /// The shared lane: envelopes that are not in memory.
    shared: VecDeque<Envelope>,
    /// Envelopes that the reader gets before its next pause.
    may_read: usize,
    /// Envelopes of the shared lane in memory, in flight included.
    in_memory: usize,
    most_in_memory: usize,
    spilled: usize,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    now: Duration,
    count: u64,
    numbers: u64,
    random: u64,
    pending: HashSet<u64>,
    delivered: u64,
}

impl Simulation {
    pub(crate) fn new(seed: u64) -> Self {
        let limits = PoolLimits {
            slots: SLOTS,
            queue_per_subscription: 1024,
            queue_per_tenant: MEMORY / 2,
            memory: MEMORY,
        };
        Self {
            pool: FairShare::new(limits),
            subscriptions: Vec::new(),
            shared: VecDeque::new(),
            may_read: READ_AT_ONCE,
            in_memory: 0,
            most_in_memory: 0,
            spilled: 0,
            events: BinaryHeap::new(),
            now: Duration::ZERO,
            count: 0,
            numbers: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            pending: HashSet::new(),
            delivered: 0,
        }
    }

    pub(crate) fn add(&mut self, traffic: &Traffic) {
        let subscription = SubscriptionRef::of("acme", &format!("s{}", self.subscriptions.len())).unwrap();
        self.subscriptions.push(Subscription {
            identity: Identity { subscription, incarnation: Incarnation::new(1) },
            traffic: traffic.clone(),
            first_request: None,
            own: VecDeque::new(),
            has_lane: false,
            own_in_memory: 0,
            published: 0,
            delivered: 0,
            latencies: Vec::new(),
        });
        self.schedule_publish(self.subscriptions.len() - 1);
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        loop {
            let wake =
                self.pool.next_wake(self.now).map(|wait| self.now + wait.max(Duration::from_micros(1)));
            let event = self.events.peek().map(|Reverse((at, ..))| *at);
            let Some(next) = event.into_iter().chain(wake).min().filter(|next| *next <= end) else { break };
            self.now = next;
            while self.events.peek().is_some_and(|Reverse((at, ..))| *at <= next) {
                let Some(Reverse((_, _, event))) = self.events.pop() else { break };
                self.apply(event);
            }
            self.settle();
        }
        self.now = end;
    }

    /// The results of these subscriptions since the last call.
    pub(crate) fn measure(&mut self, subscriptions: Range<usize>) -> Measured {
        let mut measured = Measured::default();
        for subscription in &mut self.subscriptions[subscriptions] {
            measured.published += std::mem::take(&mut subscription.published);
            measured.delivered += std::mem::take(&mut subscription.delivered);
            measured.latencies.append(&mut subscription.latencies);
        }
        measured
    }

    /// Stores `count` envelopes of each of the last `subscriptions` subscriptions at once, in turns.
    pub(crate) fn add_backlog(&mut self, subscriptions: usize, count: usize) {
        for _ in 0..count {
            for subscription in self.subscriptions.len() - subscriptions..self.subscriptions.len() {
                self.publish(subscription);
            }
        }
    }

    /// Envelopes that moved to own lanes.
    pub(crate) fn spilled(&self) -> usize {
        self.spilled
    }

    /// How many of these have a lane of their own.
    pub(crate) fn with_lanes(&self, subscriptions: Range<usize>) -> usize {
        self.subscriptions[subscriptions].iter().filter(|subscription| subscription.has_lane).count()
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn most_in_memory(&self) -> usize {
        self.most_in_memory
    }

    /// Each published envelope is delivered or pending.
    pub(crate) fn assert_none_lost(&self) {
        assert_eq!(self.numbers, self.delivered + self.pending.len() as u64);
        let in_lanes = self.shared.len() + self.subscriptions.iter().map(|one| one.own.len()).sum::<usize>();
        let retried = self.events.iter().filter(|event| matches!(event.0.2, Event::Redeliver(_))).count();
        let held = self.pool.waiting() + self.pool.in_flight();
        assert_eq!(self.pending.len(), in_lanes + retried + held);
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Publish(subscription) => {
                self.schedule_publish(subscription);
                self.publish(subscription);
            }
            Event::Redeliver(envelope) => self.put(envelope),
            Event::Read => self.may_read = READ_AT_ONCE,
            Event::End { envelope, started, healthy, retry_after } => {
                let subscription = &mut self.subscriptions[envelope.subscription];
                let finish = if healthy { Finish::Healthy } else { Finish::Unhealthy };
                self.pool.finished(&subscription.identity, finish, started, self.now);
                self.leave(&envelope);
                let subscription = &mut self.subscriptions[envelope.subscription];
                if healthy {
                    assert!(self.pending.remove(&envelope.number), "delivered twice");
                    self.delivered += 1;
                    subscription.delivered += 1;
                    subscription.latencies.push(self.now - envelope.published);
                } else {
                    self.schedule(RETRY.max(retry_after.unwrap_or_default()), Event::Redeliver(envelope));
                }
                if let Some(pause) = retry_after {
                    let identity = self.subscriptions[envelope.subscription].identity.clone();
                    for given_back in self.pool.hold(&identity, self.now + pause, self.now) {
                        self.spill(given_back);
                    }
                }
            }
        }
    }

    fn publish(&mut self, subscription: usize) {
        self.numbers += 1;
        self.pending.insert(self.numbers);
        self.subscriptions[subscription].published += 1;
        let (number, published) = (self.numbers, self.now);
        self.put(Envelope { number, subscription, published, own_lane: false });
    }

    /// Stores an envelope in its lane.
    fn put(&mut self, envelope: Envelope) {
        let subscription = &mut self.subscriptions[envelope.subscription];
        if envelope.own_lane { subscription.own.push_back(envelope) } else { self.shared.push_back(envelope) }
    }

    /// Reads what there is room for, and starts what can start, until nothing changes.
    fn settle(&mut self) {
        self.start();
        for given_back in self.pool.relieve(self.now) {
            self.spill(given_back);
        }
        for subscription in 0..self.subscriptions.len() {
            if self.subscriptions[subscription].has_lane {
                self.read_own(subscription);
            }
        }
        while self.in_memory < MEMORY
            && self.may_read > 0
            && let Some(envelope) = self.shared.pop_front()
        {
            self.may_read -= 1;
            if self.may_read == 0 {
                self.schedule(READ_PAUSE, Event::Read);
            }
            self.in_memory += 1;
            self.most_in_memory = self.most_in_memory.max(self.in_memory);
            let (identity, max_in_flight, rate) = self.limits(envelope.subscription);
            if let Err(refused) = self.pool.offer(&identity, max_in_flight, rate, envelope, self.now) {
                self.spill(refused);
            }
        }
        self.start();
    }

    fn start(&mut self) {
        while let Some(envelope) = self.pool.next(self.now) {
            let subscription = &mut self.subscriptions[envelope.subscription];
            let first = *subscription.first_request.get_or_insert(self.now);
            let answer = subscription.traffic.endpoint.answer(self.now - first);
            let (healthy, retry_after) = (answer.healthy, answer.retry_after);
            self.schedule(answer.after, Event::End { envelope, started: self.now, healthy, retry_after });
        }
    }

    fn read_own(&mut self, subscription: usize) {
        while self.subscriptions[subscription].own_in_memory < OWN_LANE_HELD
            && let Some(envelope) = self.subscriptions[subscription].own.pop_front()
        {
            self.subscriptions[subscription].own_in_memory += 1;
            let (identity, max_in_flight, rate) = self.limits(subscription);
            self.pool.offer_beyond(&identity, max_in_flight, rate, envelope, self.now);
        }
    }

    /// Moves an envelope of the shared lane to the subscription's own lane.
    fn spill(&mut self, envelope: Envelope) {
        self.in_memory -= 1;
        self.spilled += 1;
        let subscription = &mut self.subscriptions[envelope.subscription];
        subscription.has_lane = true;
        subscription.own.push_back(Envelope { own_lane: true, ..envelope });
    }

    fn leave(&mut self, envelope: &Envelope) {
        if envelope.own_lane {
            self.subscriptions[envelope.subscription].own_in_memory -= 1;
        } else {
            self.in_memory -= 1;
        }
    }

    fn limits(&self, subscription: usize) -> (Identity, u32, Option<RateLimit>) {
        let subscription = &self.subscriptions[subscription];
        let rate = subscription.traffic.rate_limit.map(|per_second| RateLimit { per_second, burst: 1 });
        (subscription.identity.clone(), subscription.traffic.max_in_flight, rate)
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.count += 1;
        self.events.push(Reverse((self.now + after, self.count, event)));
    }

    /// Events come at random (exponential) intervals.
    fn schedule_publish(&mut self, subscription: usize) {
        let rate = self.subscriptions[subscription].traffic.rate;
        let uniform = (self.next_random() >> 11) as f64 / (1u64 << 53) as f64;
        let wait = -(1.0 - uniform).ln() / rate;
        self.schedule(Duration::from_secs_f64(wait), Event::Publish(subscription));
    }

    /// xorshift64* (Vigna, 2016).
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
