//! Starts every task of the process and of its roles by name, and reports how each one ends.
//!
//! [`Tasks`] run until they are stopped. If one ends by itself, with an error or a panic, its owner stops the others,
//! waits for them and ends with that failure; so does the owner's owner, up to the process: a hub that silently lacks
//! a part would look healthy and lose time. The process owns the tasks of its roles, and a role those of its readers,
//! workers and passes.
//!
//! A [`Task`] is one that its owner joins itself, and [`Jobs`] are short tasks of one kind, such as deliveries: a panic
//! of one is logged with the name, and the others go on.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::facts::{JobPanicked, TaskEnded};
use crate::panics;

/// What a task was and why it ended. A failure within a role names the role, then the task.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("{name}: {source}")]
    Failed { name: String, source: Box<dyn Error + Send + Sync> },
    #[error("{name} ended without being stopped")]
    Ended { name: String },
    /// Of the owner itself, whose name its own owner adds.
    #[error(transparent)]
    Owner(Box<dyn Error + Send + Sync>),
    #[error("{name} panicked: {message}; report this with the version of the hub")]
    Panicked { name: String, message: String },
}

impl TaskError {
    /// Why a task that its owner joins itself has ended.
    pub fn of_join(name: &str, error: JoinError) -> Self {
        let name = name.to_owned();
        match error.try_into_panic() {
            Ok(payload) => Self::Panicked { name, message: panics::message(&*payload) },
            // Only the owner cancels, and then it does not join.
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

/// The tasks of one owner, and the token that stops them.
pub struct Tasks {
    set: JoinSet<Result<(), Box<dyn Error + Send + Sync>>>,
    running: Running,
    stop: CancellationToken,
}

impl Tasks {
    /// `stop` is cancelled by whoever stops the owner, and here when one of the tasks ends before. A role passes a
    /// child of its own token.
    pub fn new(stop: CancellationToken) -> Self {
        Self { set: JoinSet::new(), running: Running::default(), stop }
    }

    /// Starts a task that watches the token itself and finishes its work.
    pub fn graceful<E: Into<Box<dyn Error + Send + Sync>>>(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.spawn(name.into(), async move { task.await.map_err(Into::into) }.boxed());
    }

    /// Starts such a task that cannot fail.
    pub fn infallible(&mut self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name.into(), task.map(Ok).boxed());
    }

    /// Starts a task that may be dropped at any await when the token is cancelled.
    pub fn droppable(&mut self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let (stop, task) = (self.stop.clone(), task.boxed());
        self.infallible(name, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Boxed tasks share one copy of the runtime's code for a task, which is large.
    fn spawn(&mut self, name: String, task: BoxFuture<'static, Result<(), Box<dyn Error + Send + Sync>>>) {
        let handle = self.set.spawn(task);
        self.running.names().insert(handle.id(), name);
    }

    /// Waits for the next task that ends by itself, and then cancels the token. `None`: all were stopped, and have
    /// ended. Cancel-safe.
    pub async fn failure(&mut self) -> Option<TaskError> {
        while let Some(ended) = self.set.join_next_with_id().await {
            let stopping = self.stop.is_cancelled();
            let id = match &ended {
                Ok((id, _)) => *id,
                Err(error) => error.id(),
            };
            let name = self.running.names().remove(&id).unwrap_or_else(|| "a task".to_owned());
            let error = match ended {
                Ok((_, Ok(()))) if stopping => continue,
                Ok((_, Ok(()))) => TaskError::Ended { name },
                Ok((_, Err(source))) => TaskError::Failed { name, source },
                Err(error) => TaskError::of_join(&name, error),
            };
            TaskEnded { error: &error }.emit();
            self.stop.cancel();
            return Some(error);
        }
        None
    }

    /// The tasks that run, also after a call of [`join`](Self::join).
    pub(crate) fn running(&self) -> Running {
        self.running.clone()
    }

    /// Drops the tasks that have not ended.
    pub async fn shutdown(&mut self) {
        self.set.shutdown().await;
    }

    /// Waits until the token is cancelled and every task has ended. If one ends before, cancels the token, waits for
    /// the others, and returns the first failure.
    pub async fn join(mut self) -> Result<(), TaskError> {
        let mut first = None;
        while let Some(error) = self.failure().await {
            first.get_or_insert(error);
        }
        first.map_or(Ok(()), Err)
    }
}

/// The names of the running tasks of one owner. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Running(Arc<Mutex<HashMap<Id, String>>>);

impl Running {
    fn names(&self) -> MutexGuard<'_, HashMap<Id, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sorted, separated by commas.
    pub(crate) fn list(&self) -> String {
        let mut names: Vec<String> = self.names().values().cloned().collect();
        if names.is_empty() {
            names.push("the closing of connections".to_owned());
        }
        names.sort_unstable();
        names.join(", ")
    }
}

/// One task that its owner joins itself. It is aborted when this is dropped.
#[derive(Debug)]
pub struct Task<T> {
    name: String,
    handle: JoinHandle<T>,
}

impl<T: Send + 'static> Task<T> {
    pub fn start(name: impl Into<String>, task: impl Future<Output = T> + Send + 'static) -> Self {
        Self { name: name.into(), handle: tokio::spawn(task.boxed()) }
    }

    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// What the task returned, or its panic. Cancel-safe; must not be called again once it has returned.
    pub async fn join(&mut self) -> Result<T, TaskError> {
        (&mut self.handle).await.map_err(|error| TaskError::of_join(&self.name, error))
    }
}

impl<T> Task<Result<(), T>>
where
    T: Error + Send + Sync + 'static,
{
    /// The same for a task that may fail by itself.
    pub async fn join_result(&mut self) -> Result<(), TaskError> {
        self.join().await?.map_err(|error| TaskError::failed(&self.name, error))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Short tasks of one kind. Those that have not ended are aborted when this is dropped.
pub struct Jobs {
    name: String,
    set: JoinSet<()>,
}

impl Jobs {
    /// `name`: that of each one.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), set: JoinSet::new() }
    }

    pub fn start(&mut self, job: impl Future<Output = ()> + Send + 'static) {
        while let Some(ended) = self.set.try_join_next() {
            self.report(ended);
        }
        self.set.spawn(job);
    }

    /// Waits for all of them.
    pub async fn join(&mut self) {
        while let Some(ended) = self.set.join_next().await {
            self.report(ended);
        }
    }

    /// Aborts those that have not ended.
    pub async fn shutdown(&mut self) {
        self.set.abort_all();
        self.join().await;
    }

    fn report(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended
            && error.is_panic()
        {
            JobPanicked { error: &TaskError::of_join(&self.name, error) }.emit();
        }
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
    async fn a_panic_is_reported_with_its_message_through_all_owners() {
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

    #[tokio::test]
    async fn a_task_that_is_joined_is_named_in_its_failure() {
        let mut fine = Task::start("the planning", async { 7 });
        assert_eq!(fine.join().await.unwrap(), 7);
        let mut failing = Task::start("the reader", async { Err(NoBroker) });
        assert_eq!(failing.join_result().await.unwrap_err().to_string(), "the reader: no broker");
        let mut panicking: Task<()> = Task::start("the reader", async { panic!("no {}", 7) });
        let error = panicking.join().await.unwrap_err().to_string();
        assert!(error.starts_with("the reader panicked: no 7"), "{error}");
    }

    #[tokio::test]
    async fn a_job_that_panics_leaves_the_others_alone() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(2);
        let mut jobs = Jobs::new("a delivery");
        jobs.start(async { panic!("no {}", 7) });
        jobs.start(async move { sender.send(7).await.unwrap() });
        jobs.join().await;
        assert_eq!(receiver.recv().await, Some(7));
        jobs.start(std::future::pending());
        jobs.shutdown().await;
    }
}
