//! The tasks that watch the server: whether it answers, and whether every stream and consumer exists.

use crate::nats::JetStream;
use crate::nats::definitions::StreamParameters;
use crate::nats::provision::PartKeeper;
use crate::tasks::Tasks;

pub(super) fn watch(tasks: &mut Tasks, js: &JetStream, stream_parameters: &StreamParameters) {
    let watched = js.clone();
    tasks.droppable("the watch of the connection", async move { watched.watch_answers().await });
    let keeper = PartKeeper::new(js.clone(), stream_parameters.clone());
    tasks.droppable("the watch of streams and consumers", keeper.run());
}
