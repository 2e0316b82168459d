//! The tasks that watch the server: whether it answers, whether every stream and consumer exists, and whether dead letters
//! can be stored.

use crate::facts::Metrics;
use crate::health::Readiness;
use crate::nats::JetStream;
use crate::nats::definitions::StreamParameters;
use crate::nats::provision::PartKeeper;
use crate::roles::letter_watch::LetterWatch;
use crate::tasks::Tasks;

pub(super) fn watch(
    tasks: &mut Tasks,
    js: &JetStream,
    stream_parameters: &StreamParameters,
    metrics: &Metrics,
    readiness: &Readiness,
) {
    let watched = js.clone();
    tasks.droppable("the watch of the connection", async move { watched.watch_answers().await });
    let keeper = PartKeeper::new(js.clone(), stream_parameters.clone());
    tasks.droppable("the watch of streams and consumers", keeper.run());
    let letters = LetterWatch::new(js.clone(), &stream_parameters.domains, metrics, readiness);
    tasks.droppable("the watch of dead letters", letters.run());
}
