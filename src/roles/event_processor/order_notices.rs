//! Notifies the processes whose ordered events wait when events were settled here, so that they look at once: a look every
//! few milliseconds would let two processes pass through a long order slowly, turn by turn.
//!
//! Nothing is sent while nobody waits. A lost notice, or one that permissions refuse, costs a few milliseconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::facts::OrderNoticeNotSent;
use crate::nats::{JetStream, OrderNotice, OrderNoticeSender};

/// Interval of the notices that events wait.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// The same if this process does not hear its own: the client logs each message that the broker's permissions refuse.
const ASK_UNHEARD_EVERY: Duration = Duration::from_secs(60);
/// A process that said that it waits is notified for this long.
const TOLD_FOR: Duration = Duration::from_secs(1);

/// Of one domain.
pub(super) struct OrderNotes {
    sender: OrderNoticeSender,
    shared: Arc<NoticeState>,
    asked: Option<Instant>,
}

struct NoticeState {
    started: Instant,
    /// Until when another process is notified, in milliseconds since `started`.
    tell_until: AtomicU64,
    /// This process hears its own notices.
    is_heard: AtomicBool,
    /// Another process has settled events.
    settled: Notify,
}

/// Follows the notices.
pub(super) struct Follower {
    sender: OrderNoticeSender,
    shared: Arc<NoticeState>,
}

impl OrderNotes {
    pub(super) fn new(js: &JetStream, domain: &str) -> (Self, Follower) {
        let shared = Arc::new(NoticeState {
            started: Instant::now(),
            tell_until: AtomicU64::new(0),
            is_heard: AtomicBool::new(false),
            settled: Notify::new(),
        });
        let sender = js.order_notice_sender(domain, rand::random());
        let follower = Follower { sender: sender.clone(), shared: shared.clone() };
        (Self { sender, shared, asked: None }, follower)
    }

    /// Waits until another process has settled events.
    pub(super) async fn heard(&self) {
        self.shared.settled.notified().await;
    }

    /// Ordered events wait here: asks the others to say when they settle events.
    pub(super) async fn ask(&mut self) {
        let every = if self.shared.is_heard.load(Ordering::Relaxed) { ASK_EVERY } else { ASK_UNHEARD_EVERY };
        if self.asked.is_none_or(|asked| asked.elapsed() >= every) {
            self.asked = Some(Instant::now());
            self.send(OrderNotice::Waits).await;
        }
    }

    /// Events were settled here.
    pub(super) async fn settled(&self) {
        let now = self.shared.started.elapsed();
        if now < Duration::from_millis(self.shared.tell_until.load(Ordering::Relaxed)) {
            self.send(OrderNotice::Settled).await;
        }
    }

    async fn send(&self, notice: OrderNotice) {
        if let Err(error) = self.sender.send(notice).await {
            OrderNoticeNotSent { error: &error }.emit();
        }
    }
}

impl Follower {
    /// Returns only if the connection is closed for good.
    pub(super) async fn run(self) {
        let mut notices = match self.sender.subscribe().await {
            Ok(notices) => notices,
            Err(error) => return OrderNoticeNotSent { error: &error }.emit(),
        };
        loop {
            let (process, notice) = notices.next().await;
            match notice {
                _ if process == self.sender.process() => self.shared.is_heard.store(true, Ordering::Relaxed),
                OrderNotice::Waits => {
                    let until = self.shared.started.elapsed() + TOLD_FOR;
                    let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
                    self.shared.tell_until.store(until, Ordering::Relaxed);
                }
                OrderNotice::Settled => self.shared.settled.notify_one(),
            }
        }
    }
}
