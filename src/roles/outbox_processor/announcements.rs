//! Exchanges with the other processes what each of them delivered lately.
//!
//! A broker that was killed, or whose disk was full, forgets acknowledgements, and delivers those envelopes again, perhaps to
//! another process. So each process announces what it delivered: each second what is new, and everything after a reconnect, when
//! it stops, and when one that starts asks. After a reconnect and at its start, a worker waits a moment for these announcements before it reads.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::remembered::Remembered;
use crate::domain::allotment::Sharer;
use crate::facts::SettledNoticeNotSent;
use crate::nats::{
    JetStream, MOST_IN_NOTICE, NatsError, Reconnects, SettledEnvelope, SettledNotice, SettledNotices,
};

/// Longest wait for the others after a reconnect. Each tries to reconnect at least every half a second.
const LONGEST_WAIT: Duration = Duration::from_millis(750);
/// Interval of the announcements of what is new.
const INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time from one announcement to the next, so that the questions of many processes have one answer.
const ANNOUNCE_EVERY: Duration = Duration::from_millis(100);

/// Longest time of the last announcement, at a stop.
const AT_STOP: Duration = Duration::from_secs(2);

/// The announcements that a worker waits for.
#[derive(Clone)]
pub(super) struct Announcements(Arc<Shared>);

struct Shared {
    reconnects: Reconnects,
    sharer: Sharer,
    waiting: Mutex<AnnouncementWait>,
    /// Another process has announced everything.
    heard: Notify,
}

#[derive(Default)]
struct AnnouncementWait {
    /// The reconnects until now.
    count: u64,
    until: Option<Instant>,
    /// The processes that have announced everything since the last one.
    heard: HashSet<u64>,
}

/// Announces and listens, for one domain.
pub(super) struct Announcer {
    js: JetStream,
    domain: String,
    process: u64,
    remembered: Arc<Remembered>,
    announcements: Announcements,
    reconnects: Reconnects,
    next: Option<Instant>,
    last: Option<Instant>,
    /// The number of envelopes that were delivered until the last announcement.
    announced: u64,
    /// It receives its own notices.
    is_heard: bool,
}

impl Announcements {
    pub(super) fn new(js: &JetStream, sharer: Sharer) -> Self {
        let reconnects = js.reconnects();
        // At the start, too: what the broker forgot may come at once.
        let until = Some(Instant::now() + LONGEST_WAIT);
        let waiting = AnnouncementWait { count: reconnects.count(), until, ..AnnouncementWait::default() };
        Self(Arc::new(Shared { reconnects, sharer, waiting: Mutex::new(waiting), heard: Notify::new() }))
    }

    fn waiting(&self) -> MutexGuard<'_, AnnouncementWait> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when the worker takes no message, at most; `None` if it need not wait.
    pub(super) fn wait(&self) -> Option<Instant> {
        let count = self.0.reconnects.count();
        let (mut waiting, now) = (self.waiting(), Instant::now());
        if count != waiting.count {
            waiting.count = count;
            waiting.heard.clear();
            waiting.until = Some(now + LONGEST_WAIT);
        }
        let is_over = |until| until <= now || waiting.heard.len() >= self.0.sharer.others();
        if waiting.until.is_some_and(is_over) {
            waiting.until = None;
        }
        waiting.until
    }

    /// Ends when `wait` may return something else.
    pub(super) async fn changed(&self, until: Option<Instant>) {
        match until {
            Some(until) => tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = self.0.heard.notified() => {}
            },
            None => std::future::pending().await,
        }
    }

    fn heard(&self, process: u64) {
        let mut waiting = self.waiting();
        // More processes than any hub has.
        if waiting.heard.len() < 1_000 {
            waiting.heard.insert(process);
        }
        drop(waiting);
        self.0.heard.notify_one();
    }
}

impl Announcer {
    pub(super) fn new(
        js: JetStream,
        domain: String,
        remembered: Arc<Remembered>,
        announcements: Announcements,
    ) -> Self {
        let (process, reconnects) = (rand::random(), js.reconnects());
        Self {
            js,
            domain,
            process,
            remembered,
            announcements,
            reconnects,
            next: None,
            last: None,
            announced: 0,
            is_heard: false,
        }
    }

    /// Runs until the worker has `ended`.
    pub(super) async fn run(mut self, ended: CancellationToken) -> Result<(), NatsError> {
        let subscribed = self.js.settled_notices(&self.domain, self.process);
        let mut notices = tokio::select! {
            () = ended.cancelled() => return Ok(()),
            notices = subscribed => notices?,
        };
        // Whatever it waits for.
        tokio::select! {
            () = ended.cancelled() => {}
            never = self.follow(&mut notices) => match never {},
        }
        let last = async {
            self.announce(&notices).await;
            self.js.flush_at_stop().await
        };
        // Without a connection it is lost.
        let _ = tokio::time::timeout(AT_STOP, last).await;
        Ok(())
    }

    /// May be dropped at any point.
    async fn follow(&mut self, notices: &mut SettledNotices) -> Infallible {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.reconnects.next() => {
                    // What the others announced before was not received.
                    self.send(notices, SettledNotice::Ask).await;
                    self.announce_soon();
                }
                (process, notice) = notices.next() => {
                    if process == self.process {
                        self.is_heard = true;
                    } else {
                        self.hear(process, notice);
                    }
                }
                () = until(self.next) => self.announce(notices).await,
                _ = ticks.tick() => {
                    if notices.is_identified() {
                        self.announce_new(notices).await;
                    } else if notices.identify().await {
                        self.send(notices, SettledNotice::Ask).await;
                        self.announce_soon();
                    }
                }
            }
        }
    }

    fn hear(&mut self, process: u64, notice: SettledNotice) {
        match notice {
            SettledNotice::Ask => self.announce_soon(),
            SettledNotice::Delivered { envelopes, is_last } => {
                self.remembered.learn(&envelopes);
                if is_last {
                    self.announcements.heard(process);
                }
            }
        }
    }

    fn announce_soon(&mut self) {
        let now = Instant::now();
        let at = self.last.map_or(now, |last| (last + ANNOUNCE_EVERY).max(now));
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    async fn announce(&mut self, notices: &SettledNotices) {
        (self.next, self.last) = (None, Some(Instant::now()));
        let (envelopes, count) = self.remembered.recent(0);
        self.announced = count;
        self.send_all(notices, envelopes, true).await;
    }

    async fn announce_new(&mut self, notices: &SettledNotices) {
        // The client logs each message that the broker's permissions refuse.
        if !self.is_heard || !self.js.is_connected() {
            return;
        }
        let (envelopes, count) = self.remembered.recent(self.announced);
        self.announced = count;
        if !envelopes.is_empty() {
            self.send_all(notices, envelopes, false).await;
        }
    }

    async fn send_all(&self, notices: &SettledNotices, mut envelopes: Vec<SettledEnvelope>, is_last: bool) {
        while envelopes.len() > MOST_IN_NOTICE {
            let rest = envelopes.split_off(MOST_IN_NOTICE);
            self.send(notices, SettledNotice::Delivered { envelopes, is_last: false }).await;
            envelopes = rest;
        }
        self.send(notices, SettledNotice::Delivered { envelopes, is_last }).await;
    }

    async fn send(&self, notices: &SettledNotices, notice: SettledNotice) {
        if self.js.is_connected()
            && let Err(error) = notices.send(notice).await
        {
            SettledNoticeNotSent { error: &error }.emit();
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
