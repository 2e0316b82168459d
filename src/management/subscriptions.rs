//! Lists, checks, seals and writes subscriptions. Writes fail if another writer changed the subscription in between.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use serde_json::Value;
use url::{Host, Url};

use super::subscription_quota::QuotaReservation;
use super::{Management, ManagementError, secrets, write_rules};
use crate::domain::access::Caller;
use crate::domain::address::AddressPolicy;
use crate::domain::category::Categories;
use crate::domain::field_error::FieldError;
use crate::domain::key::{EventKey, KeyPattern};
use crate::domain::subscription::{
    Auth, BrokerDelivery, EndpointTls, Incarnation, InvalidTenant, Secret, Subscription, SubscriptionId,
    SubscriptionLimits, SubscriptionRef, SubscriptionState,
};
use crate::http_delivery::tls;
use crate::nats::{NatsError, Registry, RegistryEntry, StoredSubscription};
use crate::settings::Settings;

/// Shown in place of a secret; if written back, the stored secret is kept.
const HIDDEN: &str = "***";
/// Maximum number of registry reads in progress.
const AT_ONCE: usize = 64;

/// Conditions on a subscription; all that are set must hold.
#[derive(Debug, Clone, Default)]
pub struct SubscriptionFilter {
    pub tenant: Option<String>,
    /// Subscriptions that match this event key.
    pub event: Option<EventKey>,
    pub state: Option<SubscriptionState>,
}

/// The effect of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteAction {
    Created,
    Updated,
    Unchanged,
    /// Another writer changed it in the meantime; nothing was written.
    Conflict,
}

impl WriteAction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
            Self::Conflict => "conflict",
        }
    }
}

/// A checked and sealed subscription that is ready to be written.
#[derive(Debug)]
pub struct PlannedWrite {
    pub subscription: Subscription,
    /// The revision it must have now; 0 for a new one.
    pub expected: u64,
    pub action: WriteAction,
    /// Held until the subscription is written.
    _room: QuotaReservation,
}

/// A page of subscriptions, sorted by id and tenant.
#[derive(Debug, Clone)]
pub struct SubscriptionPage {
    pub subscriptions: Vec<StoredSubscription>,
    /// The last one of this page, if more follow.
    pub next: Option<SubscriptionRef>,
}

/// Selects a subscription by id. Without a tenant it is that of the caller's tenant, or else the only one with this id.
#[derive(Debug, Clone)]
pub struct SubscriptionSelector {
    pub id: SubscriptionId,
    pub tenant: Option<String>,
}

impl fmt::Display for SubscriptionSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tenant {
            Some(tenant) => write!(f, "{tenant}/{}", self.id),
            None => self.id.fmt(f),
        }
    }
}

/// Parses and checks a subscription document: its fields, its certificates, and that its URLs may be reached. A secret
/// that is kept (`"***"`) becomes sealed and empty.
pub fn read_subscription(settings: &Settings, value: Value) -> Result<Subscription, Vec<FieldError>> {
    let mut subscription = Subscription::from_value(value).map_err(|error| vec![error])?;
    for secret in subscription.secrets_mut() {
        if matches!(secret, Secret::Plain(plain) if plain.expose_secret() == HIDDEN) {
            *secret = Secret::Sealed(String::new());
        }
    }
    let limits = SubscriptionLimits { max_timeout: settings.delivery.max_timeout };
    let mut errors = subscription.validate(&limits).err().unwrap_or_default();
    if !errors.iter().any(|error| error.field.starts_with("delivery.tls")) {
        errors.extend(subscription.delivery.endpoint().and_then(|to| tls::check(to.tls.as_ref()?).err()));
    }
    let policy = AddressPolicy { allow: settings.delivery.allow_networks.clone() };
    check_addresses(&subscription, &policy, &mut errors);
    check_broker(&subscription, settings, &mut errors);
    if errors.is_empty() { Ok(subscription) } else { Err(errors) }
}

/// The patterns of a subscription for which no domain accepts any event, so that they select nothing.
pub fn patterns_without_domain<'s>(
    categories: &Categories,
    subscription: &'s Subscription,
) -> Vec<&'s KeyPattern> {
    subscription.events.iter().filter(|pattern| !categories.accept_some_of(pattern)).collect()
}

impl Management {
    /// The subscriptions that match the filter, read from the bucket and sorted by id and tenant.
    pub async fn subscriptions(
        &self,
        filter: &SubscriptionFilter,
    ) -> Result<Vec<StoredSubscription>, ManagementError> {
        let mut found = self.js.subscriptions().await?;
        found.retain(|stored| filter.accepts_stored(stored));
        Ok(found)
    }

    /// Up to `limit` subscriptions after `after` that match the filter, selected from the registry index after it has
    /// caught up with the bucket.
    pub async fn subscription_page(
        &self,
        registry: &Registry,
        filter: &SubscriptionFilter,
        after: Option<&SubscriptionRef>,
        limit: usize,
    ) -> Result<SubscriptionPage, ManagementError> {
        registry.catch_up(&self.js).await?;
        let mut names: Vec<SubscriptionRef> = registry
            .read()
            .iter()
            .map(|entry| &entry.subscription)
            .filter(|one| after.is_none_or(|after| one.reference > *after))
            .filter(|one| {
                let wants = |key: &EventKey| one.events.iter().any(|pattern| pattern.matches(key));
                filter.accepts(one.tenant(), one.state, wants)
            })
            .map(|one| one.reference.clone())
            .collect();
        names.sort_unstable();
        let more = names.len() > limit;
        names.truncate(limit);
        let next = if more { names.last().cloned() } else { None };
        // The index does not hold every field, for example why a subscription was disabled.
        let found: Vec<Option<StoredSubscription>> =
            stream::iter(names).map(|name| self.stored(name)).buffered(AT_ONCE).try_collect().await?;
        Ok(SubscriptionPage { subscriptions: found.into_iter().flatten().collect(), next })
    }

    async fn stored(&self, name: SubscriptionRef) -> Result<Option<StoredSubscription>, NatsError> {
        self.js.subscription(&name).await
    }

    /// The subscription and its revision, if the caller may see its tenant. A caller bound to a tenant learns nothing about
    /// other tenants. That there is none is confirmed by a leader.
    pub async fn subscription(
        &self,
        caller: &Caller,
        naming: &SubscriptionSelector,
    ) -> Result<StoredSubscription, ManagementError> {
        let SubscriptionSelector { id, tenant } = naming;
        let nothing = |name: String| ManagementError::NoSubscription { id: name };
        if let Some(tenant) = tenant.as_deref().or(caller.tenant()) {
            if !caller.reaches(tenant) {
                return Err(nothing(id.to_string()));
            }
            let name = SubscriptionRef::new(tenant, id).map_err(|error| invalid_tenant(&error))?;
            let found = self.js.subscription(&name).await?;
            if found.is_none() {
                self.js.confirm_registry_leader().await?;
            }
            return found.ok_or_else(|| nothing(name.to_string()));
        }
        let names = match &self.index {
            Some(index) => {
                index.catch_up(&self.js).await?;
                index.names_of_id(id)
            }
            None => self.js.names_of_id(id).await?,
        };
        let mut found = self.js.subscriptions_named(&names).await?;
        match (found.pop(), found.is_empty()) {
            (None, _) => {
                self.js.confirm_registry_leader().await?;
                Err(nothing(id.to_string()))
            }
            (Some(only), true) => Ok(only),
            (Some(last), false) => Err(ManagementError::AmbiguousSubscription {
                id: id.to_string(),
                tenants: found.into_iter().chain([last]).map(|one| one.subscription.tenant).collect(),
            }),
        }
    }

    /// Compares with the stored subscription and resolves the secrets, without writing. A new subscription gets a new
    /// incarnation; an existing one keeps its own.
    pub async fn plan_write(
        &self,
        caller: &Caller,
        mut subscription: Subscription,
    ) -> Result<PlannedWrite, ManagementError> {
        let id = subscription.id.to_string();
        if !caller.reaches(&subscription.tenant) {
            let own = caller.tenant().unwrap_or_default();
            return Err(ManagementError::Invalid(vec![FieldError::new(
                "tenant",
                format!(
                    "is {:?}, but this token is bound to {own:?}; write that, or omit it",
                    subscription.tenant
                ),
            )]));
        }
        let name = reference(&subscription)?;
        let RegistryEntry { revision: expected, subscription: stored, unreadable } =
            self.js.registry_entry(&name).await?;
        let stored = stored.map(|(stored, _)| stored);
        subscription.incarnation = match &stored {
            Some(stored) => stored.incarnation,
            None => Incarnation::new(rand::random()),
        };
        write_rules::check(caller, &mut subscription, stored.as_ref())?;
        secrets::resolve(&mut subscription, stored.as_ref(), self.sealer(), caller.is_operator())?;
        if subscription.secrets_mut().iter().any(|secret| matches!(secret, Secret::Plain(_))) {
            return Err(ManagementError::NoMasterKey { id });
        }
        let room = self.reserve_quota(&subscription, stored.as_ref()).await?;
        let action = match &stored {
            None => WriteAction::Created,
            // Writing the same again repairs an unreadable entry.
            Some(stored) if unreadable.is_none() && same(stored, &subscription) => WriteAction::Unchanged,
            Some(_) => WriteAction::Updated,
        };
        Ok(PlannedWrite { subscription, expected, action, _room: room })
    }

    /// Writes a planned subscription if nobody changed it in between. Returns the current revision and the effect.
    pub async fn write_subscription(
        &self,
        write: &PlannedWrite,
    ) -> Result<(u64, WriteAction), ManagementError> {
        if write.action == WriteAction::Unchanged {
            return Ok((write.expected, WriteAction::Unchanged));
        }
        match self.js.put_subscription(&write.subscription, Some(write.expected)).await {
            Ok(revision) => Ok((revision, write.action)),
            Err(error) if error.is_wrong_last_sequence() => Ok((write.expected, WriteAction::Conflict)),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a changed subscription if its revision is still the same. Returns the new revision.
    pub(super) async fn put_changed(&self, changed: &StoredSubscription) -> Result<u64, ManagementError> {
        let id = changed.subscription.id.as_str();
        let written = self.js.put_subscription(&changed.subscription, Some(changed.revision)).await;
        written.map_err(|error| conflict(id, error))
    }

    /// Pauses or resumes a subscription. To resume one also probes its endpoint at once, if its circuit is open, and ends
    /// its hold.
    pub async fn set_state(
        &self,
        mut stored: StoredSubscription,
        state: SubscriptionState,
    ) -> Result<StateSet, ManagementError> {
        let changed = stored.subscription.state != state;
        let resumes = state == SubscriptionState::Active;
        let hold_ended = resumes && self.hold(&stored).await?.is_some();
        if changed {
            stored.subscription.set_state(state);
            stored.revision = self.put_changed(&stored).await?;
        }
        if resumes {
            self.probe_now(&stored).await?;
            self.end_hold(&stored).await?;
        }
        Ok(StateSet { stored, changed, hold_ended })
    }

    /// Removes a subscription if its revision is still the same.
    pub async fn remove_subscription(&self, stored: &StoredSubscription) -> Result<(), ManagementError> {
        let name = reference(&stored.subscription)?;
        let removed = self.js.remove_subscription(&name, Some(stored.revision)).await;
        removed.map(drop).map_err(|error| conflict(name.id(), error))
    }

    /// Removes the entry under a name, even if it is unreadable.
    pub async fn remove_unreadable(&self, naming: &SubscriptionSelector) -> Result<(), ManagementError> {
        let SubscriptionSelector { id, tenant } = naming;
        let tenant = tenant.as_deref().ok_or_else(|| {
            ManagementError::Invalid(vec![FieldError::new(
                "tenant",
                "is required to remove an unreadable entry",
            )])
        })?;
        let name = SubscriptionRef::new(tenant, id).map_err(|error| invalid_tenant(&error))?;
        self.js.remove_subscription(&name, None).await?;
        Ok(())
    }
}

/// What pausing or resuming a subscription did.
#[derive(Debug)]
pub struct StateSet {
    /// The subscription as it is now.
    pub stored: StoredSubscription,
    /// Its state was another one.
    pub changed: bool,
    /// It was held.
    pub hold_ended: bool,
}

impl SubscriptionFilter {
    pub(super) fn accepts_stored(&self, stored: &StoredSubscription) -> bool {
        let Subscription { tenant, state, events, .. } = &stored.subscription;
        self.accepts(tenant, *state, |key| events.iter().any(|pattern| pattern.matches(key)))
    }

    fn accepts(&self, tenant: &str, state: SubscriptionState, wants: impl Fn(&EventKey) -> bool) -> bool {
        self.tenant.as_ref().is_none_or(|wanted| wanted == tenant)
            && self.state.is_none_or(|wanted| wanted == state)
            && self.event.as_ref().is_none_or(wants)
    }
}

/// The tenant and id of a subscription document.
pub(super) fn reference(subscription: &Subscription) -> Result<SubscriptionRef, ManagementError> {
    subscription.reference().map_err(|error| invalid_tenant(&error))
}

fn invalid_tenant(error: &InvalidTenant) -> ManagementError {
    ManagementError::Invalid(vec![FieldError::new("tenant", error.to_string())])
}

/// Maps a wrong revision to [`ManagementError::Conflict`].
fn conflict(id: &str, error: NatsError) -> ManagementError {
    if error.is_wrong_last_sequence() {
        ManagementError::Conflict { id: id.to_owned() }
    } else {
        error.into()
    }
}

/// Rejects IP addresses that every delivery would reject. Host names are checked when they are resolved, except for
/// `localhost`, which is always this machine (RFC 6761).
fn check_addresses(subscription: &Subscription, policy: &AddressPolicy, errors: &mut Vec<FieldError>) {
    let mut check = |field: &str, url: &Url| {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(name)) if name == "localhost" || name.ends_with(".localhost") => {
                IpAddr::V4(Ipv4Addr::LOCALHOST)
            }
            _ => return,
        };
        if !policy.permits(address) {
            errors.push(FieldError::new(
                field,
                format!(
                    "{address} is not a public address; write a public one, or add its network to \
                     delivery.allow_networks, for example [\"{address}\"]"
                ),
            ));
        }
    };
    let Some(endpoint) = subscription.delivery.endpoint() else { return };
    check("delivery.url", &endpoint.url);
    if let Auth::Oauth2 { token_url, .. } = &endpoint.auth {
        check("delivery.auth.token_url", token_url);
    }
}

/// Checks that the subscription's broker is configured and accepts its stream name.
fn check_broker(subscription: &Subscription, settings: &Settings, errors: &mut Vec<FieldError>) {
    let Some(BrokerDelivery { broker, stream, .. }) = subscription.delivery.broker() else { return };
    let has_error = |errors: &[FieldError], field: &str| errors.iter().any(|error| error.field == field);
    if let Some(entry) = settings.external_brokers.iter().find(|entry| entry.name == *broker) {
        if let Err(error) = entry.check_name(stream)
            && !has_error(errors, "delivery.stream")
        {
            errors.push(FieldError::new("delivery.stream", error.problem));
        }
        return;
    }
    if has_error(errors, "delivery.broker") {
        return;
    }
    let known: Vec<&str> = settings.external_brokers.iter().map(|entry| entry.name.as_str()).collect();
    let remedy = if known.is_empty() {
        "no external broker is configured; add it to [[external_brokers]]".to_owned()
    } else {
        format!(
            "configured brokers: {}; write one of them, or add it to [[external_brokers]]",
            known.join(", ")
        )
    };
    errors.push(FieldError::new("delivery.broker", format!("unknown broker {broker:?}; {remedy}")));
}

/// Whether both have the same stored text. A plain secret is new and never the same. An entry of an older version with
/// more than certificates in `delivery.tls` is never the same, so that writing it again removes the rest.
fn same(stored: &Subscription, new: &Subscription) -> bool {
    let tls = stored.delivery.endpoint().and_then(|endpoint| endpoint.tls.as_ref());
    if tls.is_some_and(EndpointTls::has_dropped_text) {
        return false;
    }
    match (serde_json::to_value(stored), serde_json::to_value(new)) {
        (Ok(stored), Ok(new)) => stored == new,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_broker_must_be_configured_and_accept_the_stream_name() {
        let check = |toml: &str, broker: &str, stream: &str| {
            let settings = Settings::from_toml("hub.toml", toml).unwrap();
            let delivery = json!({"broker": broker, "stream": stream});
            let document = json!({"id": "a", "events": ["user.>"], "delivery": delivery});
            let errors = read_subscription(&settings, document).err().unwrap_or_default();
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let entry = |name: &str, provider: &str, url: &str| {
            format!("[[external_brokers]]\nname = \"{name}\"\nprovider = \"{provider}\"\nurl = \"{url}\"\n")
        };
        let two =
            entry("partner_events", "redis", "redis://127.0.0.1:1") + &entry("other", "kafka", "127.0.0.1:1");
        assert_eq!(check(&two, "partner_events", "crm::orders"), "");
        assert_eq!(check(&two, "other", "crm.orders"), "");
        let error = check(&two, "other", "crm::orders");
        assert!(error.starts_with("delivery.stream: ") && error.contains("ASCII letters"), "{error}");
        assert_eq!(check(&two, "other", "crm orders").lines().count(), 1, "one error for each field");
        let error = check(&two, "partner", "orders");
        assert!(error.starts_with("delivery.broker: ") && error.contains("partner_events"), "{error}");
        let error = check("", "partner_events", "orders");
        assert!(error.starts_with("delivery.broker: ") && error.contains("[[external_brokers]]"), "{error}");
        assert_eq!(check("", "Partner", "orders").lines().count(), 1, "one error for each field");
    }
}
