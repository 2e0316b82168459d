//! One connection that many publishes share. The first publish that needs it connects; after a loss the next one
//! reconnects, but not before the pause after the last failed attempt has passed.

use std::time::Duration;

use hub_domain::words::span;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::PublishError;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Holds at most one connection `C`, whose clones share it.
pub(super) struct Link<C> {
    connect_timeout: Duration,
    slot: Mutex<Slot<C>>,
}

struct Slot<C> {
    /// Number of connections made.
    generation: u64,
    current: Option<C>,
    closed: bool,
    /// The last failure, if no connection succeeded since.
    failure: Option<ConnectFailure>,
}

struct ConnectFailure {
    error: PublishError,
    not_before: Instant,
    pause: Duration,
}

/// A connection and its number. The NATS client reconnects by itself, so only the other providers need the number.
pub(super) struct Linked<C> {
    pub(super) connection: C,
    #[cfg(any(test, feature = "redis", feature = "amqp", feature = "kafka"))]
    generation: u64,
}

impl<C: Clone> Slot<C> {
    fn linked(&self, connection: C) -> Linked<C> {
        Linked {
            connection,
            #[cfg(any(test, feature = "redis", feature = "amqp", feature = "kafka"))]
            generation: self.generation,
        }
    }
}

impl<C: Clone> Link<C> {
    pub(super) fn new(connect_timeout: Duration) -> Self {
        let slot = Slot { generation: 0, current: None, closed: false, failure: None };
        Self { connect_timeout, slot: Mutex::new(slot) }
    }

    /// Returns the connection. `connect` is polled only if there is none; concurrent callers wait for it and get
    /// its result, including an error.
    pub(super) async fn get(
        &self,
        connect: impl Future<Output = Result<C, PublishError>> + Send,
    ) -> Result<Linked<C>, PublishError> {
        let mut slot = self.slot.lock().await;
        if slot.closed {
            return Err(PublishError::unavailable("closed"));
        }
        if let Some(connection) = &slot.current {
            return Ok(slot.linked(connection.clone()));
        }
        if let Some(failure) = &slot.failure
            && Instant::now() < failure.not_before
        {
            return Err(failure.error.clone());
        }
        let result = tokio::time::timeout(self.connect_timeout, connect).await.unwrap_or_else(|_| {
            Err(PublishError::unavailable(format!("no connection within {}", span(self.connect_timeout))))
        });
        match result {
            Ok(connection) => {
                slot.generation += 1;
                slot.failure = None;
                slot.current = Some(connection.clone());
                Ok(slot.linked(connection))
            }
            Err(error) => {
                let before = slot.failure.as_ref().map(|failure| failure.pause);
                let pause = before.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
                // Jitter, so that several processes do not reconnect at the same time.
                let not_before = Instant::now() + pause.mul_f64(rand::random_range(0.5..1.0));
                slot.failure = Some(ConnectFailure { error: error.clone(), not_before, pause });
                Err(error)
            }
        }
    }

    /// Drops a broken connection, unless a newer one has replaced it. The first caller gets the connection back.
    #[cfg(any(test, feature = "redis", feature = "amqp", feature = "kafka"))]
    pub(super) async fn lost(&self, linked: &Linked<C>) -> Option<C> {
        let mut slot = self.slot.lock().await;
        if slot.generation == linked.generation { slot.current.take() } else { None }
    }

    /// Refuses further connections, and returns the current one.
    pub(super) async fn close(&self) -> Option<C> {
        let mut slot = self.slot.lock().await;
        slot.closed = true;
        slot.current.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken() -> PublishError {
        PublishError::unavailable("broken")
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_until_a_connection_succeeds() {
        let link = Link::<u8>::new(Duration::from_secs(1));
        let mut attempts = 0;
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            let refused = link.get(async {
                attempts += 1;
                Err(broken())
            });
            assert_eq!(refused.await.err(), Some(broken()));
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert!((12..=32).contains(&attempts), "{attempts} attempts in a minute");
        tokio::time::advance(LONGEST_PAUSE).await;
        assert_eq!(link.get(async { Ok(7) }).await.ok().map(|linked| linked.connection), Some(7));
        assert!(link.slot.lock().await.failure.is_none(), "the next loss begins with the first pause");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_attempt_times_out() {
        let link = Link::<u8>::new(Duration::from_secs(3));
        let started = Instant::now();
        let error = link.get(std::future::pending()).await.err();
        assert!(matches!(error, Some(PublishError::Unavailable { .. })), "{error:?}");
        assert_eq!(started.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test]
    async fn a_loss_is_reported_once_and_does_not_drop_a_newer_connection() {
        let link = Link::new(Duration::from_secs(1));
        let get = async |value| match link.get(async move { Ok(value) }).await {
            Ok(linked) => linked,
            Err(error) => panic!("{error}"),
        };
        let first = get(1).await;
        let again = get(2).await;
        assert_eq!(again.connection, 1, "the connection is shared");
        assert_eq!(link.lost(&first).await, Some(1));
        let second = get(2).await;
        assert_eq!(second.connection, 2);
        assert_eq!(link.lost(&again).await, None, "it was replaced already");
        assert_eq!(get(3).await.connection, 2);
        assert_eq!(link.close().await, Some(2));
        assert!(link.get(async { Ok(4) }).await.is_err(), "closed for good");
    }
}
