//! The tasks that watch the server: whether it answers, whether every stream and consumer exists, and whether dead letters
//! can be stored; and the one that completes the log.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::waiting::Link;
use crate::facts::{Metrics, Observed, write_left_out};
use crate::health::{Readiness, ReadyFlag};
use crate::nats::JetStream;
use crate::nats::definitions::StreamParameters;
use crate::nats::provision::PartKeeper;
use crate::roles::letter_watch::LetterWatch;
use crate::tasks::Tasks;

/// How often the log is completed with the numbers of lines that were left out.
const LOG_TICK: Duration = Duration::from_secs(1);

/// Starts the task that writes how many lines were left out, when no further one follows. The rest is written at the end
/// of the process.
pub(super) fn complete_log(tasks: &mut Tasks) {
    tasks.droppable("numbers of lines left out of the log", async {
        let mut ticks = tokio::time::interval(LOG_TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            write_left_out();
        }
    });
}

/// Shows the connection and the readiness of each part in the metrics. A server without a quorum counts as not connected,
/// because it neither stores nor delivers.
pub(super) fn observe(metrics: &Metrics, link: &Link, readiness: &Readiness, jetstream: &ReadyFlag) {
    let (answering, jetstream) = (link.clone(), jetstream.clone());
    let (connections, readiness) = (link.clone(), readiness.clone());
    metrics.attach(Observed {
        is_connected: Box::new(move || answering.is_answering() && jetstream.is_ready()),
        reconnects: Box::new(move || connections.reconnects()),
        parts: Box::new(move || readiness.parts()),
    });
}

/// Starts the task that observes whether the server answers, which `/readyz` shows from the start of the process on.
pub(super) fn observe_connection(tasks: &mut Tasks, js: &JetStream) {
    let watched = js.clone();
    tasks.droppable("the watch of the connection", async move { watched.watch_answers().await });
}

/// Starts the tasks that watch streams, consumers and dead letters.
pub(super) fn watch(
    tasks: &mut Tasks,
    js: &JetStream,
    stream_parameters: &StreamParameters,
    metrics: &Metrics,
    readiness: &Readiness,
) {
    metrics.make_series(&stream_parameters.domains);
    let keeper = PartKeeper::new(js.clone(), stream_parameters.clone());
    tasks.droppable("the watch of streams and consumers", keeper.run());
    let letters = LetterWatch::new(js.clone(), &stream_parameters.domains, metrics, readiness);
    tasks.droppable("the watch of dead letters", letters.run());
}
