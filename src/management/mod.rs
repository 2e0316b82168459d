//! What an operator may ask of a hub, whoever asks: the command line and the HTTP API are two
//! faces of it. Each operation goes through the adapters and answers with values; nothing here
//! prints, and nothing here knows HTTP.

pub mod dead_letters;
pub mod domains;
mod error;
mod one_at_a_time;
mod order_desk;
pub mod orders;
pub mod outbox;
pub mod publishing;
mod rotation;
mod samples;
mod secrets;
mod subscription_quota;
mod subscriptions;
pub mod traces;
mod unreadable;

use std::collections::HashMap;
use std::sync::Arc;

pub use error::ManagementError;
pub use order_desk::{BulkOrder, MOST_ORDERS, OrderDesk, OrderRunner};
pub use rotation::{Before, LONGEST_OVERLAP, Rotated, VerifyWith};
pub use samples::{Sample, SampleAttempt};
pub use subscriptions::{
    Naming, PlannedWrite, SubscriptionFilter, SubscriptionPage, WriteAction, keys_without_domain,
    read_subscription,
};

/// Of the adapters, what this layer's own values hold.
pub use crate::http_delivery::signature::Algorithm;
pub use crate::nats::{Registry, Stored};

use tokio::sync::OnceCell;

use self::one_at_a_time::OneAtATime;
use crate::domain::access::{StoredToken, TokenId};
use crate::domain::category::Categories;
use crate::domain::message_id::MessageIds;
use crate::from_settings;
use crate::nats::{JetStream, NatsError};
use crate::seal::{MasterKeyError, Sealer};
use crate::settings::{Domain, Settings};

/// A hub to operate: its broker, its settings, its master key. Cheap to clone.
#[derive(Clone)]
pub struct Management {
    js: JetStream,
    settings: Arc<Settings>,
    /// `None`: no master key in the settings, so no credential can be stored or used.
    sealer: Option<Arc<Sealer>>,
    message_ids: Arc<OnceCell<MessageIds>>,
    /// The publications under way, by message id: the second of two that are the same is known then.
    publishing: Arc<OneAtATime>,
    /// The creations of subscriptions under way, by tenant.
    creations: Arc<OneAtATime>,
    /// The index that this process follows, if it does.
    index: Option<Registry>,
    /// Without an index: how many subscriptions each tenant has, read once, and with those that are planned since.
    counted: Arc<tokio::sync::Mutex<Option<HashMap<String, subscription_quota::Used>>>>,
}

impl Management {
    pub fn new(js: JetStream, settings: Arc<Settings>) -> Result<Self, MasterKeyError> {
        let sealer = Sealer::from_settings(&settings.secrets)?.map(Arc::new);
        Ok(Self { sealer, ..Self::without_secrets(js, settings) })
    }

    /// A hub of which no credential is touched: the master key is not even read.
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

    /// Asked of the broker at most once.
    async fn message_ids(&self) -> Result<&MessageIds, NatsError> {
        self.message_ids.get_or_try_init(|| from_settings::message_ids(&self.js, self.sealer())).await
    }

    /// With the index that this process follows, in which subscriptions are counted.
    #[must_use]
    pub fn with_index(self, index: Registry) -> Self {
        Self { index: Some(index), ..self }
    }

    pub fn jet_stream(&self) -> &JetStream {
        &self.js
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The API's token of that name, as it is now.
    pub async fn token(&self, id: &TokenId) -> Result<Option<StoredToken>, ManagementError> {
        Ok(self.js.token(id).await?)
    }

    fn sealer(&self) -> Option<&Sealer> {
        self.sealer.as_deref()
    }

    pub fn categories(&self) -> Categories {
        categories(&self.settings)
    }

    /// The domain of that name.
    pub fn domain(&self, name: &str) -> Result<&Domain, ManagementError> {
        find_domain(&self.settings, name)
    }

    /// The names of the chosen domains, all where none is named, in the order of the settings.
    pub fn domain_names(&self, chosen: &[String]) -> Result<Vec<String>, ManagementError> {
        domain_names(&self.settings, chosen)
    }
}

/// The domain of that name, for whoever asks before there is a hub to ask.
pub fn find_domain<'s>(settings: &'s Settings, name: &str) -> Result<&'s Domain, ManagementError> {
    settings.domains.iter().find(|domain| domain.name == name).ok_or_else(|| ManagementError::UnknownDomain {
        name: name.to_owned(),
        known: settings.domains.iter().map(|domain| domain.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}

/// The names of the chosen domains, all where none is named, in the order of the settings.
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
    use dead_letters::DeadLetterQuery;
    use orders::Selected;
    use outbox::{Course, OutboxDesk, RowCursor, RowSelection};
    use publishing::EventForm;
    use traces::TraceRequest;

    fn sendable<T: Send>(operation: T) -> T {
        operation
    }

    /// Checked by the compiler: a server runs each operation as a task of its own.
    #[expect(dead_code, reason = "it is compiled, and not called")]
    async fn every_operation_may_be_spawned(
        hub: Management,
        desk: OutboxDesk,
    ) -> Result<(), ManagementError> {
        let (filter, selected) = (DeadLetterQuery::default(), Vec::<Selected>::new());
        let request = TraceRequest {
            event_id: String::new(),
            domains: Vec::new(),
            since: None,
            tenant: None,
            timeout: Duration::ZERO,
        };
        let form = EventForm { key: None, headers: Vec::new(), body: bytes::Bytes::new() };
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
        let outbox = sendable(desk.turn()).await?;
        let (rows, limit) = (RowSelection::default(), Duration::ZERO);
        let course = || Course::within(limit, RowCursor::default());
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
