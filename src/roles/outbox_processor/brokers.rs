//! The external brokers of deliveries: one connection each, shared by all domains of the process, and opened with the
//! first message.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::tasks::Jobs;
use futures_util::future::join_all;

use crate::domain::attempt::Attempt;
use crate::domain::outcome::{Failure, Outcome};
use crate::facts::{BrokerCheckFailed, BrokersNotClosed};
use crate::sinks::{self, Broker, NamedBroker, OutgoingMessage};

/// Longest check of a connection; the brokers' own timeouts are usually shorter.
const CHECK_LIMIT: Duration = Duration::from_secs(60);
const CHECK: &str = "the check of an external broker";
/// How long connections may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Brokers {
    inner: Arc<CheckedBrokers>,
}

struct CheckedBrokers {
    known: BTreeMap<String, KnownBroker>,
    /// At most one per broker; `close` aborts them.
    checks: Mutex<Jobs>,
}

struct KnownBroker {
    broker: Arc<dyn Broker>,
    is_checked: Arc<AtomicBool>,
}

/// Clears the flag when the check ends, by a panic as well.
struct Checked(Arc<AtomicBool>);

impl Drop for Checked {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Brokers {
    pub(super) fn new(brokers: Vec<NamedBroker>) -> Self {
        let known = brokers
            .into_iter()
            .map(|(name, broker)| (name, KnownBroker { broker, is_checked: Arc::default() }))
            .collect();
        let checks = Mutex::new(Jobs::new(CHECK));
        Self { inner: Arc::new(CheckedBrokers { known, checks }) }
    }

    /// One attempt to publish a message at the broker of that name.
    pub(super) async fn attempt(&self, name: &str, message: &OutgoingMessage, timeout: Duration) -> Attempt {
        let Some(known) = self.inner.known.get(name) else {
            let names: Vec<&str> = self.inner.known.keys().map(String::as_str).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Attempt::failed_because(
                Failure::UnknownBroker,
                format!("{name:?}; they have {names} ([[external_brokers]])"),
            );
        };
        let attempt = sinks::attempt(&*known.broker, message, timeout).await;
        if attempt.outcome == Outcome::Failed(Failure::Timeout) {
            self.check(name, known);
        }
        attempt
    }

    /// Checks the connection after a timeout: attempts that are shorter than the broker's own timeouts would never find
    /// out that the connection is broken.
    fn check(&self, name: &str, known: &KnownBroker) {
        if known.is_checked.swap(true, Ordering::AcqRel) {
            return;
        }
        let (name, broker, is_checked) = (name.to_owned(), known.broker.clone(), known.is_checked.clone());
        let mut checks = self.inner.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.start(async move {
            let _checked = Checked(is_checked);
            if let Ok(Err(error)) = tokio::time::timeout(CHECK_LIMIT, broker.check()).await {
                BrokerCheckFailed { error: &error, broker: &name }.emit();
            }
        });
    }

    /// Closes the connections, after the last delivery.
    pub(super) async fn close(&self) {
        let mut checks = std::mem::replace(
            &mut *self.inner.checks.lock().unwrap_or_else(PoisonError::into_inner),
            Jobs::new(CHECK),
        );
        checks.shutdown().await;
        let closing = join_all(self.inner.known.values().map(|known| known.broker.close()));
        if tokio::time::timeout(CLOSE_LIMIT, closing).await.is_err() {
            BrokersNotClosed.emit();
        }
    }
}
