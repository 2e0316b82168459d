//! The events whose fan-out this process committed lately.
//!
//! An event that comes again, because the broker forgot its acknowledgement or its consumer was made again, is only
//! acknowledged. The sweep for [leftovers](super::leftovers) removes such an event, if it is still in the stream.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::lately::{Lately, Stored};
use crate::nats::{Answers, Delivered, JetStream};

/// Events of one generation; there are two, of at most 3 MB together.
const MOST: usize = 32 * 1024;
/// Life of a generation.
const TIME: Duration = Duration::from_secs(15 * 60);

/// Cheap to clone; all clones share what they know.
#[derive(Clone)]
pub(super) struct Settled {
    answers: Answers,
    lately: Arc<Mutex<Lately<Stored, ()>>>,
    started: Instant,
}

impl Settled {
    /// `answers`: the acknowledgements, which are sent again after a reconnect.
    pub(super) fn new(answers: Answers) -> Self {
        let lately = Arc::new(Mutex::new(Lately::new(MOST, TIME)));
        Self { answers, lately, started: Instant::now() }
    }

    /// Sends the acknowledgements again after each reconnect, forever.
    pub(super) fn repeat_answers(&self, js: JetStream) -> impl Future<Output = ()> + Send + 'static {
        self.answers.clone().repeat(js)
    }

    /// Acknowledges an event whose fan-out is committed.
    pub(super) async fn ack(&self, message: &Delivered) {
        self.with(|lately, now| lately.remember(message.stored(), (), now));
        self.answers.ack(&message.acker).await;
    }

    pub(super) fn knows(&self, message: Stored) -> bool {
        self.with(|lately, now| lately.of(&message, now)).is_some()
    }

    fn with<T>(&self, work: impl FnOnce(&mut Lately<Stored, ()>, Duration) -> T) -> T {
        work(&mut self.lately.lock().unwrap_or_else(PoisonError::into_inner), self.started.elapsed())
    }
}
