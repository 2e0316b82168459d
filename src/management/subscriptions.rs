//! Subscriptions: checked, sealed and written on the condition that nobody else wrote meanwhile.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use serde_json::Value;
use url::{Host, Url};

use super::subscription_quota::Room;
use super::{Management, ManagementError, secrets};
use crate::domain::access::Caller;
use crate::domain::address::AddressPolicy;
use crate::domain::category::Categories;
use crate::domain::field_error::FieldError;
use crate::domain::key::EventKey;
use crate::domain::subscription::{
    Auth, BrokerDelivery, Incarnation, InvalidTenant, Secret, Subscription, SubscriptionId,
    SubscriptionLimits, SubscriptionRef, SubscriptionState,
};
use crate::http_delivery::tls;
use crate::nats::{NatsError, Registry, Slot, Stored};
use crate::settings::Settings;

/// What lists and `show` print for a secret; given back, it keeps the one that is stored.
const HIDDEN: &str = "***";
/// Reads of the registry under way at once.
const AT_ONCE: usize = 64;

/// Which subscriptions; all given conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct SubscriptionFilter {
    pub tenant: Option<String>,
    /// Those that want this event key.
    pub event: Option<EventKey>,
    pub state: Option<SubscriptionState>,
}

/// What a write does, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteAction {
    Created,
    Updated,
    Unchanged,
    /// Someone else wrote meanwhile; nothing was changed.
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

/// A checked and sealed subscription, and what it replaces.
#[derive(Debug)]
pub struct PlannedWrite {
    pub subscription: Subscription,
    /// The revision it must have now; 0 for none yet.
    pub expected: u64,
    pub action: WriteAction,
    /// Kept until it is written.
    _room: Room,
}

/// Some subscriptions in order of their ids and tenants.
#[derive(Debug, Clone)]
pub struct SubscriptionPage {
    pub subscriptions: Vec<Stored>,
    /// The last one, where more follow.
    pub next: Option<SubscriptionRef>,
}

/// Which subscription a caller means. Without a tenant: the caller's, or else the only one of that id.
#[derive(Debug, Clone)]
pub struct Naming {
    pub id: SubscriptionId,
    pub tenant: Option<String>,
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tenant {
            Some(tenant) => write!(f, "{tenant}/{}", self.id),
            None => self.id.fmt(f),
        }
    }
}

/// Reads and checks one subscription that came from outside: its form, its fields, its
/// certificates, and that its URLs may be reached. A secret that is to be kept (`"***"`) comes
/// out sealed and empty.
pub fn read_subscription(settings: &Settings, value: Value) -> Result<Subscription, Vec<FieldError>> {
    let mut subscription = Subscription::from_value(value).map_err(|error| vec![error])?;
    for secret in subscription.secrets_mut() {
        if matches!(secret, Secret::Plain(plain) if plain.expose_secret() == HIDDEN) {
            *secret = Secret::Sealed(String::new());
        }
    }
    let limits = SubscriptionLimits { max_timeout: settings.delivery.max_timeout };
    let mut errors = subscription.validate(&limits).err().unwrap_or_default();
    errors.extend(subscription.delivery.endpoint().and_then(|to| tls::check(to.tls.as_ref()?).err()));
    let policy = AddressPolicy { allow: settings.delivery.allow_networks.clone() };
    check_addresses(&subscription, &policy, &mut errors);
    check_broker(&subscription, settings, &mut errors);
    if errors.is_empty() { Ok(subscription) } else { Err(errors) }
}

/// The event keys it asks for, word by word, that no domain takes: events of them are rejected,
/// so it waits for them in vain. What a pattern with wildcards may match cannot be told so simply.
pub fn keys_without_domain(categories: &Categories, subscription: &Subscription) -> Vec<EventKey> {
    let keys = subscription.events.iter().filter_map(|pattern| pattern.as_str().parse::<EventKey>().ok());
    keys.filter(|key| categories.domain_of(key).is_none()).collect()
}

impl Management {
    /// The subscriptions that the filter leaves, in order of their ids and tenants, read from the bucket.
    pub async fn subscriptions(&self, filter: &SubscriptionFilter) -> Result<Vec<Stored>, ManagementError> {
        let mut found = self.js.subscriptions().await?;
        found.retain(|stored| filter.leaves(stored));
        Ok(found)
    }

    /// Up to `limit` of them behind `after`, chosen from the index of a process that follows the
    /// bucket, once it holds every write that the bucket holds now.
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
        // The index has not all of it: why one was disabled, say.
        let found: Vec<Option<Stored>> =
            stream::iter(names).map(|name| self.stored(name)).buffered(AT_ONCE).try_collect().await?;
        Ok(SubscriptionPage { subscriptions: found.into_iter().flatten().collect(), next })
    }

    async fn stored(&self, name: SubscriptionRef) -> Result<Option<Stored>, NatsError> {
        self.js.subscription(&name).await
    }

    /// The subscription and its revision, if the caller reaches its tenant. A caller that is bound to
    /// a tenant learns nothing of others.
    pub async fn subscription(&self, caller: &Caller, naming: &Naming) -> Result<Stored, ManagementError> {
        let Naming { id, tenant } = naming;
        let nothing = |name: String| ManagementError::NoSubscription { id: name };
        if let Some(tenant) = tenant.as_deref().or(caller.tenant()) {
            if !caller.reaches(tenant) {
                return Err(nothing(id.to_string()));
            }
            let name = SubscriptionRef::new(tenant, id).map_err(|error| invalid_tenant(&error))?;
            return self.js.subscription(&name).await?.ok_or_else(|| nothing(name.to_string()));
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
            (None, _) => Err(nothing(id.to_string())),
            (Some(only), true) => Ok(only),
            (Some(last), false) => Err(ManagementError::AmbiguousSubscription {
                id: id.to_string(),
                tenants: found.into_iter().chain([last]).map(|one| one.subscription.tenant).collect(),
            }),
        }
    }

    /// Compares with what is stored and settles the secrets; nothing is written. What is not there yet
    /// gets its incarnation; what is there keeps it.
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
                    "is {:?}, and this token is bound to {own:?}; write that, or leave it out",
                    subscription.tenant
                ),
            )]));
        }
        let name = reference(&subscription)?;
        let Slot { revision: expected, subscription: stored, unreadable } =
            self.js.subscription_slot(&name).await?;
        let stored = stored.map(|(stored, _)| stored);
        subscription.incarnation = match &stored {
            Some(stored) => stored.incarnation,
            None => Incarnation::new(rand::random()),
        };
        if opens_a_broker(caller.tenant(), &subscription, stored.as_ref()) {
            return Err(ManagementError::Invalid(vec![FieldError::new(
                "delivery.broker",
                "is for a token that is not bound to a tenant, since the broker is the operator's; write url, or \
                 have an operator write it",
            )]));
        }
        secrets::settle(&mut subscription, stored.as_ref(), self.sealer(), caller.is_operator())?;
        if subscription.secrets_mut().iter().any(|secret| matches!(secret, Secret::Plain(_))) {
            return Err(ManagementError::NoMasterKey { id });
        }
        let room = self.room_for(&subscription, stored.as_ref()).await?;
        let action = match &stored {
            None => WriteAction::Created,
            // What is unreadable is repaired by the same again.
            Some(stored) if unreadable.is_none() && same(stored, &subscription) => WriteAction::Unchanged,
            Some(_) => WriteAction::Updated,
        };
        Ok(PlannedWrite { subscription, expected, action, _room: room })
    }

    /// Writes what was planned, if nobody else wrote meanwhile. Returns the revision that now stands
    /// and what was done.
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

    /// Writes a change of what was read, on the condition that it still is the same. Returns the new
    /// revision.
    pub(super) async fn put_changed(&self, changed: &Stored) -> Result<u64, ManagementError> {
        let id = changed.subscription.id.as_str();
        let written = self.js.put_subscription(&changed.subscription, Some(changed.revision)).await;
        written.map_err(|error| conflict(id, error))
    }

    /// Pauses or resumes. Returns it as it is now, and whether that is a change.
    pub async fn set_state(
        &self,
        mut stored: Stored,
        state: SubscriptionState,
    ) -> Result<(Stored, bool), ManagementError> {
        let changed = stored.subscription.state != state;
        if changed {
            stored.subscription.set_state(state);
            stored.revision = self.put_changed(&stored).await?;
        }
        Ok((stored, changed))
    }

    /// Removes a subscription if it still is as it was read.
    pub async fn remove_subscription(&self, stored: &Stored) -> Result<(), ManagementError> {
        let name = reference(&stored.subscription)?;
        let removed = self.js.remove_subscription(&name, Some(stored.revision)).await;
        removed.map(drop).map_err(|error| conflict(name.id(), error))
    }

    /// Removes whatever is stored under that name, be it unreadable.
    pub async fn remove_unreadable(&self, naming: &Naming) -> Result<(), ManagementError> {
        let Naming { id, tenant } = naming;
        let tenant = tenant.as_deref().ok_or_else(|| {
            ManagementError::Invalid(vec![FieldError::new(
                "tenant",
                "is needed for what cannot be read; name it",
            )])
        })?;
        let name = SubscriptionRef::new(tenant, id).map_err(|error| invalid_tenant(&error))?;
        self.js.remove_subscription(&name, None).await?;
        Ok(())
    }
}

impl SubscriptionFilter {
    pub(super) fn leaves(&self, stored: &Stored) -> bool {
        let Subscription { tenant, state, events, .. } = &stored.subscription;
        self.accepts(tenant, *state, |key| events.iter().any(|pattern| pattern.matches(key)))
    }

    fn accepts(&self, tenant: &str, state: SubscriptionState, wants: impl Fn(&EventKey) -> bool) -> bool {
        self.tenant.as_ref().is_none_or(|wanted| wanted == tenant)
            && self.state.is_none_or(|wanted| wanted == state)
            && self.event.as_ref().is_none_or(wants)
    }
}

/// The name of a subscription that came from outside.
fn reference(subscription: &Subscription) -> Result<SubscriptionRef, ManagementError> {
    subscription.reference().map_err(|error| invalid_tenant(&error))
}

fn invalid_tenant(error: &InvalidTenant) -> ManagementError {
    ManagementError::Invalid(vec![FieldError::new("tenant", error.to_string())])
}

/// A write that expected another revision than there is.
fn conflict(id: &str, error: NatsError) -> ManagementError {
    if error.is_wrong_last_sequence() {
        ManagementError::Conflict { id: id.to_owned() }
    } else {
        error.into()
    }
}

/// Refuses at the write what every delivery would refuse. A name is judged when it is resolved,
/// but for `localhost`, which is always this machine (RFC 6761).
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
                    "{address} is not a public address, and deliveries may not reach it; write a public one, or add \
                     its network to delivery.allow_networks in the settings, such as [\"{address}\"]"
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

/// A broker that a subscription names has to be one of the settings, and take names like the stream's.
fn check_broker(subscription: &Subscription, settings: &Settings, errors: &mut Vec<FieldError>) {
    let Some(BrokerDelivery { broker, stream, .. }) = subscription.delivery.broker() else { return };
    let told = |errors: &[FieldError], field: &str| errors.iter().any(|error| error.field == field);
    if let Some(entry) = settings.external_brokers.iter().find(|entry| entry.name == *broker) {
        if let Err(error) = entry.check_name(stream)
            && !told(errors, "delivery.stream")
        {
            errors.push(FieldError::new("delivery.stream", error.problem));
        }
        return;
    }
    if told(errors, "delivery.broker") {
        return;
    }
    let known: Vec<&str> = settings.external_brokers.iter().map(|entry| entry.name.as_str()).collect();
    let remedy = if known.is_empty() {
        "the settings have no external broker; add it to [[external_brokers]]".to_owned()
    } else {
        format!(
            "the settings have {}; write one of them, or add it to [[external_brokers]]",
            known.join(", ")
        )
    };
    errors.push(FieldError::new("delivery.broker", format!("is {broker:?}, and {remedy}")));
}

/// Whether a caller that is bound to a tenant would have the hub write, with the operator's own
/// credentials, where no operator has let it: one that is unbound names brokers and their streams.
fn opens_a_broker(bound_to: Option<&str>, new: &Subscription, stored: Option<&Subscription>) -> bool {
    let to = |subscription: &Subscription| {
        let broker = subscription.delivery.broker()?;
        Some((broker.broker.clone(), broker.stream.clone()))
    };
    let new = to(new);
    bound_to.is_some() && new.is_some() && new != stored.and_then(to)
}

/// Whether both are stored as the same text. A plain secret is never the same: it is new.
fn same(stored: &Subscription, new: &Subscription) -> bool {
    match (serde_json::to_value(stored), serde_json::to_value(new)) {
        (Ok(stored), Ok(new)) => stored == new,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn subscription(tenant: &str, delivery: Value) -> Subscription {
        let document = json!({"id": "a", "tenant": tenant, "events": ["user.>"], "delivery": delivery});
        Subscription::from_value(document).unwrap()
    }

    #[test]
    fn a_broker_has_to_be_one_of_the_settings_and_to_take_the_name() {
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

    #[test]
    fn a_tenant_keeps_to_the_broker_that_an_operator_gave_it() {
        let to = |stream: &str| subscription("acme", json!({"broker": "partner_events", "stream": stream}));
        let endpoint = subscription("acme", json!({"url": "https://a.example/"}));
        let tenant = Some("acme");
        assert!(!opens_a_broker(None, &to("orders"), None));
        assert!(opens_a_broker(tenant, &to("orders"), None));
        assert!(opens_a_broker(tenant, &to("orders"), Some(&endpoint)));
        assert!(opens_a_broker(tenant, &to("others"), Some(&to("orders"))));
        assert!(!opens_a_broker(tenant, &to("orders"), Some(&to("orders"))));
        assert!(!opens_a_broker(tenant, &endpoint, Some(&to("orders"))));
    }
}
