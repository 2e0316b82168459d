//! The operations on a hub, shared by the command line and the HTTP API. Each operation uses the adapters and returns
//! values; nothing here prints or depends on HTTP.

mod bulk_jobs;
pub mod circuits;
pub mod dead_letter_actions;
pub mod dead_letter_drain;
pub mod dead_letters;
pub mod domains;
mod error;
pub mod holds;
mod keyed_lock;
pub mod producer_outbox;
pub mod publishing;
mod rotation;
mod samples;
mod secrets;
mod subscription_quota;
mod subscriptions;
pub mod traces;
mod unreadable_entries;
pub mod waits;
mod write_rules;

use std::collections::HashMap;
use std::sync::Arc;

pub use bulk_jobs::{BulkJobRunner, BulkJobs, MAX_RUNNING_JOBS, NewBulkJob};
pub use error::ManagementError;
pub use rotation::{LONGEST_OVERLAP, PreviousSecret, RotationResult, VerificationKey};
pub use samples::{Sample, SampleAttempt, UnusableSubscription};
pub use subscriptions::{
    PlannedWrite, StateSet, SubscriptionFilter, SubscriptionPage, SubscriptionSelector, WriteAction,
    patterns_without_domain, read_subscription,
};

/// Types of the adapters that occur in values of this layer.
pub use crate::http_delivery::signature::Algorithm;
pub use crate::nats::{Registry, StoredSubscription};

use futures_util::future::try_join_all;
use tokio::sync::OnceCell;

use self::keyed_lock::KeyedLock;
use crate::domain::access::{StoredToken, TokenId};
use crate::domain::category::Categories;
use crate::domain::message_id::MessageIds;
use crate::from_settings;
use crate::nats::{JetStream, NatsError};
use crate::seal::{MasterKeyError, Sealer};
use crate::settings::{Domain, Settings};

/// Operates a hub through its broker, settings and master key. Cheap to clone.
#[derive(Clone)]
pub struct Management {
    js: JetStream,
    settings: Arc<Settings>,
    /// `None` if no master key is configured; credentials can then be neither stored nor used.
    sealer: Option<Arc<Sealer>>,
    message_ids: Arc<OnceCell<MessageIds>>,
    /// Publications in progress, by message id, so that the second of two equal ones finds the first.
    publishing: Arc<KeyedLock>,
    /// Creations of subscriptions in progress, by tenant.
    creations: Arc<KeyedLock>,
    /// The registry index, if this process follows the registry.
    index: Option<Registry>,
    /// Without an index: the number and size of each tenant's subscriptions, read once and updated with planned writes.
    counted: Arc<tokio::sync::Mutex<Option<HashMap<String, subscription_quota::QuotaUsage>>>>,
}

impl Management {
    pub fn new(js: JetStream, settings: Arc<Settings>) -> Result<Self, MasterKeyError> {
        let sealer = Sealer::from_settings(&settings.secrets)?.map(Arc::new);
        Ok(Self { sealer, ..Self::without_secrets(js, settings) })
    }

    /// For operations that touch no credential; does not read the master key.
    pub fn without_secrets(js: JetStream, settings: Arc<Settings>) -> Self {
        Self {
            js,
            settings,
            sealer: None,
            message_ids: Arc::default(),
            publishing: Arc::default(),
            creations: Arc::default(),
            index: None,
            counted: Arc::default(),
        }
    }

    /// The time of the server.
    pub fn now(&self) -> time::OffsetDateTime {
        self.js.now()
    }

    /// Read from the broker at most once.
    async fn message_ids(&self) -> Result<&MessageIds, NatsError> {
        self.message_ids.get_or_try_init(|| from_settings::message_ids(&self.js, self.sealer())).await
    }

    /// Uses the registry index that this process follows.
    #[must_use]
    pub fn with_index(self, index: Registry) -> Self {
        Self { index: Some(index), ..self }
    }

    /// Fails unless the leader of JetStream answers; otherwise what was not found may exist.
    pub(crate) async fn confirm_leader(&self) -> Result<(), NatsError> {
        match self.settings.domains.first() {
            Some(domain) => self.js.confirm_leader(&self.js.names().outbox_stream(&domain.name)).await,
            None => Ok(()),
        }
    }

    /// The same, and that each of these streams has a leader.
    pub(crate) async fn confirm_leaders(&self, streams: &[String]) -> Result<(), NatsError> {
        self.confirm_leader().await?;
        try_join_all(streams.iter().map(|stream| self.js.confirm_leader_of(stream))).await.map(drop)
    }

    pub fn jet_stream(&self) -> &JetStream {
        &self.js
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The API token with this name.
    pub async fn token(&self, id: &TokenId) -> Result<Option<StoredToken>, ManagementError> {
        Ok(self.js.token(id).await?)
    }

    fn sealer(&self) -> Option<&Sealer> {
        self.sealer.as_deref()
    }

    pub fn categories(&self) -> Categories {
        categories(&self.settings)
    }

    /// The domain with this name.
    pub fn domain(&self, name: &str) -> Result<&Domain, ManagementError> {
        find_domain(&self.settings, name)
    }

    /// The names of the chosen domains, or of all if none is chosen, in the order of the settings.
    pub fn domain_names(&self, chosen: &[String]) -> Result<Vec<String>, ManagementError> {
        domain_names(&self.settings, chosen)
    }
}

/// The configured domain with this name. Needs no connection.
pub fn find_domain<'s>(settings: &'s Settings, name: &str) -> Result<&'s Domain, ManagementError> {
    settings.domains.iter().find(|domain| domain.name == name).ok_or_else(|| ManagementError::UnknownDomain {
        name: name.to_owned(),
        known: settings.domains.iter().map(|domain| domain.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}

/// The names of the chosen domains, or of all if none is chosen, in the order of the settings.
pub fn domain_names(settings: &Settings, chosen: &[String]) -> Result<Vec<String>, ManagementError> {
    for name in chosen {
        find_domain(settings, name)?;
    }
    let all = settings.domains.iter().map(|domain| domain.name.clone());
    Ok(all.filter(|name| chosen.is_empty() || chosen.contains(name)).collect())
}

/// The categorisation rules of the settings.
pub fn categories(settings: &Settings) -> Categories {
    Categories::new(
        settings.domains.iter().map(|domain| (domain.name.clone(), domain.events.clone())).collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use dead_letter_actions::SelectedDeadLetter;
    use dead_letters::DeadLetterQuery;
    use producer_outbox::{BatchRun, ProducerOutboxAdmin, RowCursor, RowSelection};
    use publishing::RawEvent;
    use traces::TraceRequest;

    fn sendable<T: Send>(operation: T) -> T {
        operation
    }

    /// The compiler checks that each operation is `Send`, because a server runs each as a task.
    #[expect(dead_code, reason = "compiled but not called")]
    async fn every_operation_may_be_spawned(
        hub: Management,
        admin: ProducerOutboxAdmin,
    ) -> Result<(), ManagementError> {
        let (filter, selected) = (DeadLetterQuery::default(), Vec::<SelectedDeadLetter>::new());
        let request = TraceRequest {
            event_id: String::new(),
            domains: Vec::new(),
            since: None,
            tenant: None,
            timeout: Duration::ZERO,
        };
        let form = RawEvent { key: None, headers: Vec::new(), body: bytes::Bytes::new() };
        sendable(hub.domains()).await?;
        sendable(hub.resume_domain("")).await?;
        sendable(hub.list_dead_letters(&filter, None, 1)).await?;
        sendable(hub.show_dead_letter("", None)).await?;
        sendable(hub.dead_letter_stats(&filter, |_| {})).await?;
        sendable(hub.select_dead_letters(&filter, |_| {})).await?;
        sendable(hub.replay(&selected, false, |_, _| {})).await?;
        sendable(hub.discard(&selected, |_, _| {})).await?;
        sendable(hub.follow(&selected, Duration::ZERO, |_| {})).await?;
        sendable(hub.trace_event(&request)).await?;
        sendable(hub.publish(form, None)).await?;
        let outbox = sendable(admin.session()).await?;
        let (rows, limit) = (RowSelection::default(), Duration::ZERO);
        let course = || BatchRun::limited(limit, RowCursor::default());
        sendable(outbox.status()).await?;
        sendable(outbox.list(&rows, &RowCursor::default(), 1)).await?;
        sendable(outbox.read("", "")).await?;
        sendable(outbox.check_ids(&rows)).await?;
        sendable(outbox.retry_one("", "")).await?;
        sendable(outbox.discard_one("", "")).await?;
        sendable(outbox.retry(&rows, course())).await?;
        sendable(outbox.discard(&rows, course())).await?;
        sendable(outbox.cleanup(course())).await?;
        sendable(outbox.reconcile(course())).await?;
        Ok(())
    }
}
