//! Processes with pools, on a virtual clock.

use std::collections::BTreeMap;

use super::*;

const STEP: Duration = Duration::from_millis(5);
/// The time that a notice takes.
const LATENCY: Duration = Duration::from_millis(10);
const URGENT: Duration = Duration::from_millis(100);
pub(super) const POOLS: usize = 4;

pub(super) struct Process {
    allotments: Allotments,
    next_beat: Duration,
    next_urgent: Duration,
    /// Pools that have items, as many as they can take.
    pub(super) busy: [bool; POOLS],
    asks: [Duration; POOLS],
    /// Ends of deliveries in progress.
    running: Vec<(Duration, Pool)>,
    pub(super) taken: [usize; POOLS],
}

impl Process {
    pub(super) fn total(&self) -> usize {
        self.taken.iter().sum()
    }
}

/// One subscription in several processes.
pub(super) struct World {
    pub(super) now: Duration,
    pub(super) processes: BTreeMap<u64, Process>,
    limits: FlowLimits,
    /// The time of a delivery.
    pub(super) service: Duration,
    notices: VecDeque<(Duration, MemberNotice)>,
    pub(super) in_flight: usize,
    /// The most in flight since it was set.
    pub(super) most: usize,
    /// When deliveries started.
    pub(super) starts: Vec<Duration>,
}

impl World {
    pub(super) fn new(limits: FlowLimits, service: Duration) -> Self {
        Self {
            now: Duration::from_secs(100),
            processes: BTreeMap::new(),
            limits,
            service,
            notices: VecDeque::new(),
            in_flight: 0,
            most: 0,
            starts: Vec::new(),
        }
    }

    pub(super) fn start(&mut self, id: u64, busy: [bool; POOLS]) {
        let process = Process {
            allotments: Allotments::new(MemberId::new(id), POOLS),
            next_beat: self.now,
            next_urgent: self.now,
            busy,
            asks: [self.now; POOLS],
            running: Vec::new(),
            taken: [0; POOLS],
        };
        self.processes.insert(id, process);
    }

    /// Its requests end with it.
    pub(super) fn kill(&mut self, id: u64) {
        let killed = self.processes.remove(&id).unwrap();
        self.in_flight -= killed.running.len();
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            self.step();
        }
    }

    /// Deliveries per second from `since` on.
    pub(super) fn rate_since(&self, since: Duration) -> f64 {
        let count = self.starts.iter().filter(|start| **start > since).count();
        count as f64 / (self.now - since).as_secs_f64()
    }

    /// Most deliveries that started within a second from `since` on.
    pub(super) fn most_in_a_second(&self, since: Duration) -> usize {
        let starts: Vec<Duration> = self.starts.iter().copied().filter(|start| *start > since).collect();
        let within =
            |from: &Duration| starts.iter().filter(|at| **at >= *from && **at < *from + millis(1000)).count();
        starts.iter().map(within).max().unwrap_or(0)
    }

    fn step(&mut self) {
        let now = self.now;
        while self.notices.front().is_some_and(|(at, _)| *at <= now) {
            let (_, notice) = self.notices.pop_front().unwrap();
            self.processes.values_mut().for_each(|process| process.allotments.hear(&notice, now));
        }
        for process in self.processes.values_mut() {
            let ended = process.running.extract_if(.., |(end, _)| *end <= now);
            for (_, pool) in ended {
                process.allotments.release(pool, &crm(), now);
                process.asks[pool] = now;
                self.in_flight -= 1;
            }
            let mut notice = None;
            if process.next_beat <= now {
                process.next_beat = now + BEAT;
                notice = Some(process.allotments.beat(now));
            } else if process.next_urgent <= now {
                process.next_urgent = now + URGENT;
                notice = process.allotments.urgent_notice(now);
            }
            self.notices.extend(notice.map(|notice| (now + LATENCY, notice)));
            if !process.allotments.has_joined(now) {
                continue;
            }
            let mut again = true;
            while std::mem::take(&mut again) {
                for pool in 0..POOLS {
                    if !process.busy[pool] || process.asks[pool] > now {
                        continue;
                    }
                    match process.allotments.take(pool, &crm(), self.limits, 100, now) {
                        Ok(()) => {
                            process.running.push((now + self.service, pool));
                            process.taken[pool] += 1;
                            self.in_flight += 1;
                            self.most = self.most.max(self.in_flight);
                            self.starts.push(now);
                            again = true;
                        }
                        // All slots of the process are in use here: the next finish asks again (`FairShare::admits`).
                        Err(Refused { in_flight: Some(all), .. })
                            if process.running.iter().filter(|(_, of)| *of == pool).count() == all =>
                        {
                            process.asks[pool] = Duration::MAX;
                        }
                        Err(refused) => process.asks[pool] = now + refused.wait,
                    }
                }
                for pool in process.allotments.take_to_wake() {
                    process.allotments.freed(pool);
                    process.asks[pool] = now;
                    again = true;
                }
            }
        }
    }
}
