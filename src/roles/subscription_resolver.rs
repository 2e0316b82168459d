//! Subscription Resolver: answers other hubs which subscriptions want an event, from this hub's registry.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::domain::key::EventKey;
use crate::facts::{Metrics, QuestionNotServed, QuestionServed};
use crate::health::ReadyFlag;
use crate::nats::{JetStream, Registry};
use crate::subscriptions_grpc::{Found, Lookup, LookupError, ResolverServer, Served, ServerError};

pub struct SubscriptionResolver {
    js: JetStream,
    registry: Registry,
    server: ResolverServer,
    metrics: Metrics,
    ready: ReadyFlag,
}

impl SubscriptionResolver {
    pub fn new(
        js: JetStream,
        registry: Registry,
        server: ResolverServer,
        metrics: Metrics,
        ready: ReadyFlag,
    ) -> Self {
        Self { js, registry, server, metrics, ready }
    }

    /// Serves until `stop`. Until the registry is loaded, questions fail as unavailable.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServerError> {
        let Self { js, registry, server, metrics, ready } = self;
        let loaded = registry.clone();
        let serving = server.run(Arc::new(FromRegistry { js, registry, metrics }), stop);
        let tell = async {
            loaded.wait_until_loaded().await;
            ready.set(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = serving => ended,
            () = tell => Ok(()),
        }
    }
}

struct FromRegistry {
    js: JetStream,
    registry: Registry,
    metrics: Metrics,
}

impl Lookup for FromRegistry {
    fn matching(&self, tenant: String, key: EventKey) -> Found<'_> {
        Box::pin(async move {
            if !self.registry.is_loaded() {
                return Err(LookupError::Loading);
            }
            // As for this hub's own events: the answer includes every write before the question.
            if let Err(error) = self.registry.catch_up(&self.js).await {
                QuestionNotServed { error: &error }.emit();
                return Err(LookupError::Registry(Box::new(error)));
            }
            if self.registry.is_incomplete(&tenant) {
                return Err(LookupError::UnreadableEntry);
            }
            Ok(self.registry.read().of_key(&tenant, &key))
        })
    }

    fn served(&self, result: Served) {
        QuestionServed { result: result.as_str() }.emit(&self.metrics);
    }
}
