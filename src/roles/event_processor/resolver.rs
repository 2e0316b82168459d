//! Resolves an event's subscriptions: with the registry's index in this process, or by a question to a resolver service.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::event::Event;
use crate::domain::index::IndexEntry;
use crate::domain::resolution::{Cache, Candidates, Outage, Question};
use crate::facts::{
    Metrics, RegistryUnavailable, ResolverAnswerRejected, ResolverAnswered, ResolverCacheHit, ResolverFailed,
    ResolverRecovered,
};
use crate::health::ReadyFlag;
use crate::nats::{JetStream, Registry};
use crate::subscriptions_grpc::{ResolveError, ResolverClient};

/// Concurrent questions.
const QUESTIONS_IN_FLIGHT: usize = 16;
/// Delay of the events if the registry is unavailable.
const REGISTRY_DOWN_DELAY: Duration = Duration::from_secs(1);
/// Delay of a tenant's events while one of its subscriptions is unreadable.
const INCOMPLETE_DELAY: Duration = Duration::from_secs(5);
/// Tenant and key of the question at the start, before there is an event. Any would do.
const FIRST_QUESTION: (&str, &str) = ("default", "hub.started");
/// Most questions whose rejected answers are remembered as logged.
const MOST_LOGGED: usize = 1024;

/// Where subscriptions come from.
#[derive(Clone)]
pub enum Resolver {
    Registry(Registry),
    Remote(Arc<RemoteResolver>),
}

/// A resolver service, with a cache of its answers.
pub struct RemoteResolver {
    client: ResolverClient,
    cache: Mutex<Cache>,
    outage: Mutex<Outage>,
    /// The question to ask until the resolver answers again; `None` while it answers.
    unanswered: watch::Sender<Option<Question>>,
    /// Questions whose answer is rejected; each is logged once.
    refused: Mutex<HashSet<Question>>,
    metrics: Metrics,
    started: Instant,
}

/// How the events of a group are resolved.
pub(super) enum Resolution {
    Registry(Registry),
    /// By tenant and key; without an answer, the delay of its events.
    Answers(HashMap<Question, Result<Candidates, Duration>>),
}

/// Source of an event's candidates.
pub(super) enum Source {
    Registry(Registry),
    Answer(Candidates),
}

impl Source {
    /// The subscriptions whose patterns match the event. Filters are not considered.
    pub(super) fn candidates(&self, event: &Event) -> Vec<Arc<IndexEntry>> {
        match self {
            Self::Registry(registry) => registry.read().of_key(&event.tenant, &event.key),
            Self::Answer(candidates) => candidates.to_vec(),
        }
    }
}

impl Resolver {
    /// Whether deliveries look their subscription up in this hub's registry.
    pub(super) fn is_registry(&self) -> bool {
        matches!(self, Self::Registry(_))
    }

    pub(super) async fn wait_until_ready(&self) {
        match self {
            Self::Registry(registry) => registry.wait_until_loaded().await,
            // It may start later than the hub: until then events wait.
            Self::Remote(_) => {}
        }
    }

    /// Prepares a group. The error is the delay of the whole group.
    pub(super) async fn prepare(
        &self,
        js: &JetStream,
        events: impl Iterator<Item = &Event>,
    ) -> Result<Resolution, Duration> {
        match self {
            // A subscription that was written before the event was published gets it: the index must
            // have every write that the bucket has now.
            Self::Registry(registry) => match registry.catch_up(js).await {
                Ok(()) => Ok(Resolution::Registry(registry.clone())),
                Err(error) => {
                    // A lost registry is reported once, by the watch of the agreement.
                    if !error.is_registry_lost() {
                        RegistryUnavailable { error: &error }.emit();
                    }
                    Err(REGISTRY_DOWN_DELAY)
                }
            },
            Self::Remote(remote) => {
                let questions: BTreeSet<Question> =
                    events.map(|event| (event.tenant.clone(), event.key.as_str().to_owned())).collect();
                let answers = stream::iter(questions)
                    .map(|question| async move {
                        let answer = remote.ask(&question).await;
                        (question, answer)
                    })
                    .buffer_unordered(QUESTIONS_IN_FLIGHT)
                    .collect()
                    .await;
                Ok(Resolution::Answers(answers))
            }
        }
    }
}

impl Resolution {
    /// The source of an event's candidates. The error is the delay of the event.
    pub(super) fn of(&self, event: &Event) -> Result<Source, Duration> {
        match self {
            // An unreadable subscription of the tenant might want the event.
            Self::Registry(registry) if registry.is_incomplete(&event.tenant) => Err(INCOMPLETE_DELAY),
            Self::Registry(registry) => Ok(Source::Registry(registry.clone())),
            Self::Answers(answers) => {
                match answers.get(&(event.tenant.clone(), event.key.as_str().to_owned())) {
                    Some(Ok(candidates)) => Ok(Source::Answer(candidates.clone())),
                    Some(Err(wait)) => Err(*wait),
                    None => Err(Outage::FIRST_WAIT),
                }
            }
        }
    }
}

impl RemoteResolver {
    /// `cache_entries`: most subscriptions in the cache; `max_staleness`: their longest age.
    pub fn new(
        client: ResolverClient,
        cache_entries: usize,
        max_staleness: Duration,
        metrics: Metrics,
    ) -> Self {
        let (tenant, key) = FIRST_QUESTION;
        Self {
            client,
            cache: Mutex::new(Cache::new(cache_entries, max_staleness)),
            outage: Mutex::default(),
            unanswered: watch::Sender::new(Some((tenant.to_owned(), key.to_owned()))),
            refused: Mutex::default(),
            metrics,
            started: Instant::now(),
        }
    }

    /// Sets `ready` to whether the resolver answers; never returns. While it does not answer, asks it even without
    /// events, so that readiness recovers by itself.
    pub async fn watch(self: Arc<Self>, ready: ReadyFlag) {
        let mut unanswered = self.unanswered.subscribe();
        loop {
            let question = unanswered.borrow_and_update().clone();
            ready.set(question.is_none());
            let Some(question) = question else {
                // The sender lives as long as `self`.
                let _ = unanswered.changed().await;
                continue;
            };
            let left = lock(&self.outage).left(self.started.elapsed());
            if let Some(left) = left {
                // The question of an event may be answered earlier.
                let _ = tokio::time::timeout(left, unanswered.changed()).await;
            } else {
                // `unanswered` and `outage` have the result.
                let _ = self.ask_now(&question).await;
            }
        }
    }

    /// The candidates, from the cache or from the resolver. The error is the delay before the next question.
    async fn ask(&self, question: &Question) -> Result<Candidates, Duration> {
        let asked_at = self.started.elapsed();
        if let Some(known) = lock(&self.cache).get(question, asked_at) {
            ResolverCacheHit.emit(&self.metrics);
            return Ok(known);
        }
        if let Some(left) = lock(&self.outage).left(asked_at) {
            return Err(left);
        }
        self.ask_now(question).await
    }

    async fn ask_now(&self, question: &Question) -> Result<Candidates, Duration> {
        let asked_at = self.started.elapsed();
        let (tenant, key) = question;
        let error = match self.client.resolve(tenant, key).await {
            Ok(entries) => {
                ResolverAnswered.emit(&self.metrics);
                let candidates: Candidates = entries.into_iter().map(Arc::new).collect();
                let now = self.started.elapsed();
                lock(&self.cache).insert(question.clone(), candidates.clone(), asked_at, now);
                lock(&self.refused).remove(question);
                self.answers_again();
                return Ok(candidates);
            }
            Err(error) => error,
        };
        let kind = error.kind();
        // An unusable answer to one question does not concern the others.
        if let ResolveError::Answer(_) = error {
            self.answers_again();
            ResolverAnswerRejected { error: &error, kind, tenant, key, is_new: self.is_new(question) }
                .emit(&self.metrics);
            return Err(Outage::LONGEST_WAIT);
        }
        let unanswered = lock(&self.outage).failed(self.started.elapsed(), rand::random(), kind);
        self.unanswered.send_if_modified(|asked| {
            let begins = asked.is_none();
            asked.get_or_insert_with(|| question.clone());
            begins
        });
        // Logged once, not for each event: hub_resolver_failures_total counts them.
        let (retry_in, is_new) = (unanswered.wait, unanswered.is_news);
        ResolverFailed { error: &error, kind, tenant, key, retry_in, is_new }.emit(&self.metrics);
        Err(unanswered.wait)
    }

    /// Ends an outage, if there is one.
    fn answers_again(&self) {
        if lock(&self.outage).answered() {
            ResolverRecovered.emit();
        }
        self.unanswered.send_if_modified(|asked| asked.take().is_some());
    }

    /// Whether this question's rejected answer is not logged yet.
    fn is_new(&self, question: &Question) -> bool {
        let mut refused = lock(&self.refused);
        if refused.len() >= MOST_LOGGED {
            refused.clear();
        }
        refused.insert(question.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
