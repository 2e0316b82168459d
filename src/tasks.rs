//! Every task of the process is started here, by name, and says what its end means.
//!
//! A role or a follower is expected to run until it is told to stop. If one ends by itself, by an
//! error or a panic, the whole process stops and says why: a hub that silently lacks a role would
//! look healthy and lose time.

use std::future::Future;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a task was and why it ended.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("{name}: {reason}")]
    Failed { name: String, reason: String },
    #[error("{name} ended although nobody told it to")]
    Ended { name: String },
    #[error("{name} panicked: {reason}")]
    Panicked { name: String, reason: String },
}

/// The tasks of a process and the one switch that stops them.
pub struct Tasks {
    set: JoinSet<(String, Result<(), String>)>,
    names: std::collections::HashMap<tokio::task::Id, String>,
    stop: CancellationToken,
}

impl Tasks {
    pub fn new(stop: CancellationToken) -> Self {
        Self { set: JoinSet::new(), names: std::collections::HashMap::new(), stop }
    }

    /// A task that watches the switch itself and finishes what it has in hand.
    pub fn graceful<E: std::fmt::Display>(
        &mut self,
        name: &str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let owned = name.to_owned();
        let handle = self.set.spawn(async move { (owned, task.await.map_err(|error| error.to_string())) });
        self.names.insert(handle.id(), name.to_owned());
    }

    /// A task that may be dropped at any await when the switch is thrown.
    pub fn droppable(&mut self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.graceful(name, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// Waits until the switch is thrown and every task has ended, or one ends before: then throws
    /// the switch itself, waits for the others, and tells the first failure.
    pub async fn join(mut self) -> Result<(), TaskError> {
        let mut failure = None;
        while let Some(ended) = self.set.join_next().await {
            let stopping = self.stop.is_cancelled();
            let error = match ended {
                Ok((_, Ok(()))) if stopping => continue,
                Ok((name, Ok(()))) => TaskError::Ended { name },
                Ok((name, Err(reason))) => TaskError::Failed { name, reason },
                Err(error) => {
                    let name = self.names.get(&error.id()).cloned().unwrap_or_else(|| "a task".to_owned());
                    TaskError::Panicked { name, reason: error.to_string() }
                }
            };
            tracing::error!(%error, "a task ended; stopping");
            failure.get_or_insert(error);
            self.stop.cancel();
        }
        failure.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_by_itself_stops_the_others_and_is_named() {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::new(stop.clone());
        tasks.droppable("the follower", std::future::pending());
        tasks.graceful("the role", async { Err("no broker") });
        let error = tasks.join().await.unwrap_err();
        assert_eq!(error.to_string(), "the role: no broker");
        assert!(stop.is_cancelled());
    }

    #[tokio::test]
    async fn a_stop_that_was_asked_for_is_no_failure() {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::new(stop.clone());
        tasks.droppable("the follower", std::future::pending());
        stop.cancel();
        tasks.join().await.unwrap();
    }
}
