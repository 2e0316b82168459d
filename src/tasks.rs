//! Every task is started here, by name, and says what its end means.
//!
//! A task is expected to run until it is told to stop. If one ends by itself, by an error or a panic, its owner stops
//! the others, waits for them and ends with that failure; so does the owner's owner, up to the process: a hub that
//! silently lacks a part would look healthy and lose time. Roles own the tasks of their readers, workers and passes in
//! the same way as the process owns those of its roles.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::panics;

/// What a task was and why it ended. A failure within a role names the role, then the task.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("{name}: {source}")]
    Failed { name: String, source: Box<dyn Error + Send + Sync> },
    #[error("{name} ended although nobody told it to")]
    Ended { name: String },
    /// Of the owner itself, which has its name from its own owner.
    #[error(transparent)]
    Owner(Box<dyn Error + Send + Sync>),
    #[error("{name} panicked: {message}; report this with the version of the hub")]
    Panicked { name: String, message: String },
}

impl TaskError {
    /// The end of a task that was joined by its owner itself.
    pub fn of_join(name: &str, error: JoinError) -> Self {
        let name = name.to_owned();
        match error.try_into_panic() {
            Ok(payload) => Self::Panicked { name, message: panics::message(&*payload) },
            // Nobody but the owner cancels, and then it does not ask.
            Err(_) => Self::Ended { name },
        }
    }

    pub fn of_owner(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Owner(source.into())
    }

    pub fn failed(name: &str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed { name: name.to_owned(), source: source.into() }
    }
}

/// The tasks of one owner and the one switch that stops them.
pub struct Tasks {
    set: JoinSet<Result<(), Box<dyn Error + Send + Sync>>>,
    names: HashMap<Id, String>,
    stop: CancellationToken,
}

impl Tasks {
    /// `stop`: thrown by whoever stops the owner, and by the owner itself when one of the tasks ends before. A role
    /// gives a child of the token that it was given.
    pub fn new(stop: CancellationToken) -> Self {
        Self { set: JoinSet::new(), names: HashMap::new(), stop }
    }

    /// A task that watches the switch itself and finishes what it has in hand.
    pub fn graceful<E: Into<Box<dyn Error + Send + Sync>>>(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let handle = self.set.spawn(async move { task.await.map_err(Into::into) });
        self.names.insert(handle.id(), name.into());
    }

    /// The same for one that cannot fail.
    pub fn infallible(&mut self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        self.graceful(name, async move {
            task.await;
            Ok::<(), Infallible>(())
        });
    }

    /// A task that may be dropped at any await when the switch is thrown.
    pub fn droppable(&mut self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.infallible(name, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Waits for the next task that ends by itself, and throws the switch then. `None`: each was told to stop, and
    /// has ended. May be dropped while it waits.
    pub async fn failure(&mut self) -> Option<TaskError> {
        while let Some(ended) = self.set.join_next_with_id().await {
            let stopping = self.stop.is_cancelled();
            let id = match &ended {
                Ok((id, _)) => *id,
                Err(error) => error.id(),
            };
            let name = self.names.remove(&id).unwrap_or_else(|| "a task".to_owned());
            let error = match ended {
                Ok((_, Ok(()))) if stopping => continue,
                Ok((_, Ok(()))) => TaskError::Ended { name },
                Ok((_, Err(source))) => TaskError::Failed { name, source },
                Err(error) => TaskError::of_join(&name, error),
            };
            tracing::error!(%error, "a task ended; stopping");
            self.stop.cancel();
            return Some(error);
        }
        None
    }

    /// Drops what has not ended.
    pub async fn shutdown(&mut self) {
        self.set.shutdown().await;
    }

    /// Waits until the switch is thrown and every task has ended, or one ends before: then throws the switch itself,
    /// waits for the others, and tells the first failure.
    pub async fn join(mut self) -> Result<(), TaskError> {
        let mut first = None;
        while let Some(error) = self.failure().await {
            first.get_or_insert(error);
        }
        first.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no broker")]
    struct NoBroker;

    #[tokio::test]
    async fn a_task_that_ends_by_itself_stops_the_others_and_is_named() {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::new(stop.clone());
        tasks.droppable("the follower", std::future::pending());
        tasks.graceful("the role", async { Err(NoBroker) });
        let error = tasks.join().await.unwrap_err();
        assert_eq!(error.to_string(), "the role: no broker");
        assert!(error.source().is_some_and(|source| source.is::<NoBroker>()), "the source is kept");
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

    #[tokio::test]
    async fn a_panic_is_told_as_one_with_its_words_through_all_owners() {
        let process = CancellationToken::new();
        let mut tasks = Tasks::new(process.clone());
        let stop = process.child_token();
        tasks.graceful("the role", async move {
            let mut own = Tasks::new(stop);
            own.droppable("its pass", async { panic!("no {}", 7) });
            own.droppable("its reader", std::future::pending());
            own.join().await
        });
        let error = tasks.join().await.unwrap_err().to_string();
        assert_eq!(error, "the role: its pass panicked: no 7; report this with the version of the hub");
        assert!(process.is_cancelled());
    }
}
