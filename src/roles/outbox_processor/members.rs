//! Exchanges notices between the processes that deliver, so that they divide the limits of subscriptions.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::domain::allotment::{BEAT, MemberId, MemberNotice, SharedAllotments, Sharer, Wake};
use crate::facts::{LimitsNotShared, LimitsShared, MemberNoticeNotSent};
use crate::nats::{JetStream, MemberNotices, NatsError};

/// Interval of the looks for changes that the others should hear before the next regular notice.
const LOOK: Duration = Duration::from_millis(100);
/// A process that does not hear its own notices delivers after this time: the broker's permissions may lack them.
const UNHEARD: Duration = Duration::from_secs(5);
/// Such a process sends one of this many notices, because the client logs each one that the broker refuses.
const SENT_UNHEARD: u32 = 60;
/// Longest time of the last notice, at a stop.
const AT_STOP: Duration = Duration::from_secs(2);

/// The access of a domain's worker to the limits of subscriptions.
#[derive(Clone)]
pub(super) struct Sharing {
    pub(super) sharer: Sharer,
    /// Notified when another worker of the process leaves a slot or a token to this one.
    pub(super) woken: Arc<Notify>,
    /// The start of the time of all workers.
    pub(super) started: Instant,
    /// Dropped when the worker starts no more deliveries.
    starting: Option<Arc<DropGuard>>,
    /// Dropped when the worker has ended.
    _running: Arc<DropGuard>,
}

impl Sharing {
    /// The worker starts no more deliveries: its part of the limits is for the others.
    pub(super) fn starts_no_more(&mut self) {
        self.starting = None;
    }
}

/// Runs beside the workers.
pub(super) struct MemberExchange {
    js: JetStream,
    allotments: SharedAllotments,
    started: Instant,
    /// Cancelled when the workers may start.
    joined: CancellationToken,
    /// Cancelled when the workers start no more deliveries.
    idle: CancellationToken,
    /// Cancelled when the workers have ended.
    ended: CancellationToken,
    others: usize,
}

impl MemberExchange {
    /// With the access of each of `workers` workers. The exchange ends when all of these are dropped.
    pub(super) fn new(js: JetStream, workers: usize) -> (Self, Vec<Sharing>) {
        let woken: Vec<Arc<Notify>> = (0..workers).map(|_| Arc::new(Notify::new())).collect();
        let wakes = woken.iter().map(|woken| {
            let woken = Arc::clone(woken);
            Box::new(move || woken.notify_one()) as Wake
        });
        let allotments = SharedAllotments::new(MemberId::new(rand::random()), wakes.collect());
        let (started, ended) = (Instant::now(), CancellationToken::new());
        let running = Arc::new(ended.clone().drop_guard());
        let idle = CancellationToken::new();
        let starting = Arc::new(idle.clone().drop_guard());
        let sharing = woken.into_iter().enumerate().map(|(pool, woken)| Sharing {
            sharer: allotments.sharer(pool),
            woken,
            started,
            starting: Some(Arc::clone(&starting)),
            _running: Arc::clone(&running),
        });
        let sharing = sharing.collect();
        let joined = CancellationToken::new();
        (Self { js, allotments, started, joined, idle, ended, others: 0 }, sharing)
    }

    /// Cancelled when the other processes know of this one, so that its workers may start.
    pub(super) fn joined(&self) -> CancellationToken {
        self.joined.clone()
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), NatsError> {
        let ended = self.ended.clone();
        // Whatever it waits for.
        tokio::select! {
            () = ended.cancelled() => {}
            failed = self.exchange() => return failed,
        }
        // Without it, the others wait until its last notice is old.
        let _ = tokio::time::timeout(AT_STOP, self.send(&self.allotments.goodbye())).await;
        // A worker that failed is the first failure.
        stop.cancelled().await;
        Ok(())
    }

    /// Ends only if it fails. May be dropped at any point.
    async fn exchange(&mut self) -> Result<(), NatsError> {
        let joined = self.joined.clone().drop_guard();
        let mut joined = Some(joined);
        let mut notices = self.js.member_notices().await?;
        let (mut beats, mut looks) = (every(BEAT), every(LOOK));
        let (mut stopping, mut number) = (false, 0u32);
        loop {
            tokio::select! {
                () = self.idle.cancelled(), if !stopping => {
                    stopping = true;
                    self.allotments.stop();
                }
                notice = hear(&mut notices) => self.allotments.hear(&notice, self.started.elapsed()),
                _ = beats.tick() => {
                    let notice = self.allotments.beat(self.started.elapsed());
                    number = number.wrapping_add(1);
                    if !self.is_unheard(self.started.elapsed()) || number.is_multiple_of(SENT_UNHEARD) {
                        self.send(&notice).await;
                    }
                }
                _ = looks.tick() => {
                    let now = self.started.elapsed();
                    if let Some(notice) = self.allotments.urgent_notice(now) {
                        self.send(&notice).await;
                    }
                    self.tell_others();
                    if joined.is_some() && self.has_joined(now) {
                        joined = None;
                    }
                }
            }
        }
    }

    /// Whether the workers may start.
    fn has_joined(&self, now: Duration) -> bool {
        let unheard = self.is_unheard(now);
        if unheard {
            LimitsNotShared { subject: &self.js.names().members_filter() }.emit();
        }
        unheard || self.allotments.has_joined(now)
    }

    fn is_unheard(&self, now: Duration) -> bool {
        now >= UNHEARD && !self.allotments.has_joined(now)
    }

    fn tell_others(&mut self) {
        let others = self.allotments.others();
        if others != self.others {
            self.others = others;
            LimitsShared { processes: others + 1 }.emit();
        }
    }

    /// A notice that is not sent is repeated soon. Without a connection it would arrive late.
    async fn send(&self, notice: &MemberNotice) {
        if self.js.is_connected()
            && let Err(error) = self.js.publish_member_notice(notice).await
        {
            MemberNoticeNotSent { error: &error }.emit();
        }
    }
}

fn every(time: Duration) -> Interval {
    let mut interval = tokio::time::interval(time);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// A connection that is closed ends the process elsewhere; here it only yields nothing.
async fn hear(notices: &mut MemberNotices) -> MemberNotice {
    match notices.next().await {
        Some(notice) => notice,
        None => std::future::pending().await,
    }
}
