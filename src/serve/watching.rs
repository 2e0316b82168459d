//! The task that watches whether the server answers.

use crate::nats::JetStream;
use crate::tasks::Tasks;

pub(super) fn watch(tasks: &mut Tasks, js: &JetStream) {
    let watched = js.clone();
    tasks.droppable("the watch of the connection", async move { watched.watch_answers().await });
}
