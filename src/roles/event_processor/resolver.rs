//! Who gets an event: asked of the registry's index in this process, or of another process.

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

/// Questions under way at once.
const QUESTIONS_IN_FLIGHT: usize = 16;
/// When the registry cannot be asked, its events come again after this.
const REGISTRY_DOWN_DELAY: Duration = Duration::from_secs(1);
/// When a subscription of the tenant is unreadable, the tenant's events come again after this.
const INCOMPLETE_DELAY: Duration = Duration::from_secs(5);
/// Tenant and key that are asked for at the start, before there is an event: any will do.
const FIRST_QUESTION: (&str, &str) = ("default", "hub.started");
/// Questions whose refused answers are remembered as told.
const MOST_TOLD: usize = 1024;

/// Where subscriptions come from.
#[derive(Clone)]
pub enum Resolver {
    Registry(Registry),
    Remote(Arc<RemoteResolver>),
}

/// A resolver in another process, with what it answered a short while ago.
pub struct RemoteResolver {
    client: ResolverClient,
    cache: Mutex<Cache>,
    outage: Mutex<Outage>,
    /// What to ask until there is an answer again; none while the resolver answers.
    unanswered: watch::Sender<Option<Question>>,
    /// Questions whose answer is refused, each told once.
    refused: Mutex<HashSet<Question>>,
    metrics: Metrics,
    started: Instant,
}

/// What a group of events is resolved with.
pub(super) enum Resolution {
    Registry(Registry),
    /// By tenant and key; without an answer, how long its events wait.
    Answers(HashMap<Question, Result<Candidates, Duration>>),
}

/// Where an event's candidates come from.
pub(super) enum Source {
    Registry(Registry),
    Answer(Candidates),
}

impl Source {
    /// Whose patterns match the event, whatever their filters say.
    pub(super) fn candidates(&self, event: &Event) -> Vec<Arc<IndexEntry>> {
        match self {
            Self::Registry(registry) => registry.read().of_key(&event.tenant, &event.key),
            Self::Answer(candidates) => candidates.to_vec(),
        }
    }
}

impl Resolver {
    /// Whether the deliveries look their subscription up in this hub's registry.
    pub(super) fn is_registry(&self) -> bool {
        matches!(self, Self::Registry(_))
    }

    pub(super) async fn wait_until_ready(&self) {
        match self {
            Self::Registry(registry) => registry.wait_until_loaded().await,
            // It may come up later than the hub: until then events wait.
            Self::Remote(_) => {}
        }
    }

    /// Makes ready for a group, whose events `events` gives where they are asked for. The error says
    /// how long the whole group waits.
    pub(super) async fn prepare(
        &self,
        js: &JetStream,
        events: impl Iterator<Item = &Event>,
    ) -> Result<Resolution, Duration> {
        match self {
            // Whoever wrote a subscription before he published an event finds it honoured: the
            // index must hold every write that the bucket holds now.
            Self::Registry(registry) => match registry.catch_up(js).await {
                Ok(()) => Ok(Resolution::Registry(registry.clone())),
                Err(error) => {
                    RegistryUnavailable { error: &error }.emit();
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
    /// Whom to ask for the event's candidates when its turn comes; the error says how long it waits.
    pub(super) fn of(&self, event: &Event) -> Result<Source, Duration> {
        match self {
            // Who gets it cannot be said as long as one of the tenant's subscriptions is unreadable.
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
    /// `cache_entries`: the most subscriptions kept; `max_staleness`: how long.
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

    /// Makes `ready` tell whether the resolver answers, for ever. At the start, and as long as it
    /// does not answer, it is asked, whether there are events or not: readiness comes back by
    /// itself.
    pub async fn watch(self: Arc<Self>, ready: ReadyFlag) {
        let mut unanswered = self.unanswered.subscribe();
        loop {
            let question = unanswered.borrow_and_update().clone();
            ready.set(question.is_none());
            let Some(question) = question else {
                // The sender lives as long as this.
                let _ = unanswered.changed().await;
                continue;
            };
            let left = lock(&self.outage).left(self.started.elapsed());
            if let Some(left) = left {
                // An event's question may be answered before.
                let _ = tokio::time::timeout(left, unanswered.changed()).await;
            } else {
                // What came of it is in `unanswered` and in the outage.
                let _ = self.ask_now(&question).await;
            }
        }
    }

    /// The candidates, from the cache or from the resolver; without an answer, how long to wait.
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
        // One answer that cannot be used says nothing of the others.
        if let ResolveError::Answer(_) = error {
            self.answers_again();
            ResolverAnswerRejected { error: &error, kind, tenant, key, is_new: self.is_news(question) }
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

    /// Whether this question's refused answer has not been told yet.
    fn is_news(&self, question: &Question) -> bool {
        let mut refused = lock(&self.refused);
        if refused.len() >= MOST_TOLD {
            refused.clear();
        }
        refused.insert(question.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
