//! Lanes that have messages and that nobody reads.
//!
//! Anybody who may publish to an outbox can make up the name of a lane, and a late writer may use one whose consumer was
//! removed. Only a lane of a subscription that is known gets a consumer. What is in any other lane moves to the shared
//! lane: the body of an envelope names its owner, so the worker delivers it, or dead-letters it as `removed`. A message
//! that is not an envelope becomes a dead letter. While the registry is lost, nobody knows a subscription, and the messages
//! wait.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::DltRouterSettings;
use super::route::Router;
use crate::domain::subscription::{Identity, SubscriptionRef};
use crate::facts::{LaneNotCreated, LaneWithoutConsumer, UnreadLaneEmptied, UnreadLanesNotEmptied};
use crate::nats::definitions::StreamParameters;
use crate::nats::subjects::{
    SHARED_LANE, is_lane, is_strict_lane, lane_consumer, lane_of_consumer, subscription_of_lane,
};
use crate::nats::{NatsError, RegistryEntry, StoredMessage};

/// Most messages of such lanes in one pass over a domain.
const MOST_MESSAGES: usize = 4_000;
/// Most lanes without a consumer whose subscriptions are looked up in one pass over a domain. The order is random.
const MOST_LANES: usize = 256;
/// With a resolver, nobody knows which subscriptions exist. A strict lane then gets a consumer as long as the outbox has
/// fewer than this number of lanes. Beyond, it gets one if its first message is an envelope of its strict order.
const MOST_UNKNOWN: usize = 256;
/// The consumer of a lane is created after the first envelopes, within this time.
const NEW_FOR: Duration = Duration::from_secs(10);
/// With a resolver, messages of a strict lane beyond `MOST_UNKNOWN` are then taken out, up to the first envelope of its
/// strict order.
const MADE_UP_AFTER: Duration = Duration::from_secs(300);

pub(super) struct UnreadLanes {
    parameters: StreamParameters,
    has_registry: bool,
    /// Streams and lanes of which a failure is logged; at most those that have messages.
    logged: Mutex<HashSet<(String, String)>>,
    /// When strict lanes were first found without a consumer, by stream and lane.
    found: Mutex<HashMap<(String, String), Instant>>,
}

/// What became of the messages of a lane.
#[derive(Default)]
struct Emptied {
    moved: usize,
    dead_lettered: usize,
    /// An envelope of its strict order was found.
    has_order: bool,
    /// The server refuses its consumer.
    is_refused: bool,
}

/// Lanes whose messages are taken out.
#[derive(Default)]
struct Unread<'a> {
    /// All of these.
    lanes: HashSet<&'a str>,
    /// Those of known subscriptions, whose consumers the server refuses.
    refused: HashSet<&'a str>,
}

impl UnreadLanes {
    pub(super) fn new(settings: &DltRouterSettings) -> Self {
        let (parameters, has_registry) = (settings.stream_parameters.clone(), settings.has_registry);
        Self { parameters, has_registry, logged: Mutex::default(), found: Mutex::default() }
    }

    /// Creates the missing consumers of lanes whose subscription is known, and empties the other lanes. `consumers`: those
    /// of the outbox.
    pub(super) async fn pass(
        &self,
        router: &Router,
        domain: &str,
        stream: &str,
        consumers: &[String],
    ) -> Result<(), NatsError> {
        let js = router.js();
        let filter = js.names().lane_filter(domain, "*");
        let subjects = js.stream_subjects(stream, &filter).await?;
        let lanes: HashSet<&str> =
            subjects.iter().filter_map(|(subject, _)| Some(js.names().parse_outbox(subject)?.lane)).collect();
        // A lane whose messages are gone is forgotten.
        self.logged().retain(|(of, lane)| of != stream || lanes.contains(lane.as_str()));
        let is_unread = |lane: &str| lanes.contains(lane) && !consumers.contains(&lane_consumer(lane));
        self.found().retain(|(of, lane), _| of != stream || is_unread(lane));
        let own = consumers.iter().filter(|name| lane_of_consumer(name).is_some()).count();
        let (mut unread, mut looked_up) = (Unread::default(), 0);
        for lane in &lanes {
            let lane = *lane;
            if !is_lane(lane) {
                unread.lanes.insert(lane);
                continue;
            }
            if consumers.contains(&lane_consumer(lane)) || looked_up >= MOST_LANES {
                continue;
            }
            looked_up += usize::from(lane != SHARED_LANE);
            // One that is newer than the list is found here.
            match js.consumer_info(stream, &lane_consumer(lane)).await {
                Ok(_) => continue,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
            match self.deserves_consumer(router, domain, stream, lane, own + looked_up).await {
                Ok(true) if self.is_new(stream, lane, NEW_FOR) => {}
                Ok(true) => {
                    let exists = self.create_consumer(router, domain, stream, lane).await;
                    // Its envelopes need not wait for a lane that the server refuses.
                    if !exists && !is_strict_lane(lane) && lane != SHARED_LANE {
                        unread.lanes.insert(lane);
                        unread.refused.insert(lane);
                    }
                }
                Ok(false)
                    if !self.has_registry
                        && is_strict_lane(lane)
                        && self.is_new(stream, lane, MADE_UP_AFTER) => {}
                Ok(false) => {
                    unread.lanes.insert(lane);
                }
                Err(error) if error.is_unreachable() => return Err(error),
                Err(error) => {
                    if self.logged().insert((stream.to_owned(), lane.to_owned())) {
                        LaneNotCreated { error: &error, stream, lane }.emit();
                    }
                }
            }
        }
        match self.empty(router, domain, stream, &unread).await {
            Err(error) if !error.is_unreachable() => {
                UnreadLanesNotEmptied { error: &error, stream }.emit();
                Ok(())
            }
            emptied => emptied,
        }
    }

    /// Whether a lane belongs to a subscription that is known, so that its number is bounded. Fails if the registry is lost.
    async fn deserves_consumer(
        &self,
        router: &Router,
        domain: &str,
        stream: &str,
        lane: &str,
        lanes: usize,
    ) -> Result<bool, NatsError> {
        if lane == SHARED_LANE {
            return Ok(true);
        }
        if !self.has_registry {
            // Only a strict lane needs one: its envelopes would lose their order in the shared lane.
            if !is_strict_lane(lane) || lanes < MOST_UNKNOWN {
                return Ok(is_strict_lane(lane));
            }
            let filter = router.js().names().lane_filter(domain, lane);
            let first = router.js().get_next(stream, 1, &filter).await?;
            return Ok(first.is_some_and(|first| is_in_order(router, &first, lane)));
        }
        match subscription_of_lane(lane).and_then(SubscriptionRef::from_token) {
            Some(name) => is_known(router, &name).await,
            None => Ok(false),
        }
    }

    /// Whether this lane of a subscription was first found without a consumer less than that time ago.
    fn is_new(&self, stream: &str, lane: &str, time: Duration) -> bool {
        lane != SHARED_LANE && {
            let key = (stream.to_owned(), lane.to_owned());
            self.found().entry(key).or_insert_with(Instant::now).elapsed() < time
        }
    }

    /// Logs a failure once until a consumer is created. Returns false if the server refuses it.
    async fn create_consumer(&self, router: &Router, domain: &str, stream: &str, lane: &str) -> bool {
        let key = (stream.to_owned(), lane.to_owned());
        let is_new = self.logged().insert(key.clone());
        if is_new {
            LaneWithoutConsumer { stream, lane }.emit();
        }
        match router.js().ensure_lane(&self.parameters, domain, lane).await {
            Ok(_) => {
                self.logged().remove(&key);
                true
            }
            // The other lanes get their consumers.
            Err(error) => {
                if is_new {
                    LaneNotCreated { error: &error, stream, lane }.emit();
                }
                error.api().is_none() || error.is_unavailable()
            }
        }
    }

    /// Takes the messages out of these lanes. The first failure ends it; the next pass continues.
    async fn empty(
        &self,
        router: &Router,
        domain: &str,
        stream: &str,
        unread: &Unread<'_>,
    ) -> Result<(), NatsError> {
        let mut emptied: HashMap<&str, Emptied> = HashMap::new();
        let done = self.empty_into(router, domain, stream, unread, &mut emptied).await;
        for (lane, Emptied { moved, dead_lettered, .. }) in emptied {
            UnreadLaneEmptied { stream, lane, moved, dead_lettered }.emit();
        }
        done
    }

    async fn empty_into<'a>(
        &self,
        router: &Router,
        domain: &str,
        stream: &str,
        unread: &Unread<'a>,
        emptied: &mut HashMap<&'a str, Emptied>,
    ) -> Result<(), NatsError> {
        let Unread { lanes, refused } = unread;
        let js = router.js();
        // A filter cannot select a lane whose name is a wildcard, or is not ASCII. For these all lanes are looked through.
        let (plain, other): (Vec<&str>, Vec<&str>) = lanes.iter().copied().partition(|lane| {
            lane.bytes().all(|byte| byte.is_ascii_graphic()) && !matches!(*lane, "*" | ">")
        });
        let mut filters: Vec<String> =
            plain.iter().map(|lane| js.names().lane_filter(domain, lane)).collect();
        if !other.is_empty() {
            filters.push(js.names().lane_filter(domain, "*"));
        }
        let mut left = MOST_MESSAGES;
        for filter in filters {
            let mut from = 1;
            while left > 0
                && let Some(message) = js.get_next(stream, from, &filter).await?
            {
                left -= 1;
                from = message.sequence + 1;
                let lane = js.names().parse_outbox(&message.subject).map(|subject| subject.lane);
                let Some(lane) = lane.and_then(|lane| lanes.get(lane).copied()) else { continue };
                let emptied = emptied.entry(lane).or_default();
                emptied.is_refused = refused.contains(lane);
                self.take_out(router, domain, stream, &message, lane, emptied).await?;
            }
        }
        emptied.retain(|_, lane| lane.moved + lane.dead_lettered > 0);
        Ok(())
    }

    async fn take_out(
        &self,
        router: &Router,
        domain: &str,
        stream: &str,
        message: &StoredMessage,
        lane: &str,
        emptied: &mut Emptied,
    ) -> Result<(), NatsError> {
        // The rest of such a lane keeps its order, until the next pass creates the consumer.
        if emptied.has_order {
            return Ok(());
        }
        if !self.has_registry && is_in_order(router, message, lane) {
            emptied.has_order = true;
            return Ok(());
        }
        if let Some(Identity { subscription, .. }) = router.owner(message)
            && !emptied.is_refused
            && is_lane(lane)
            && subscription_of_lane(lane) == Some(&*subscription.token())
            && self.has_registry
            && is_known(router, &subscription).await?
        {
            // It was created after the look-up of the lane, which gets its consumer at the next pass.
            return Ok(());
        }
        if router.move_to_shared_lane(domain, stream, message).await? {
            emptied.moved += 1;
        } else {
            router.dead_letter_stranded(stream, message.sequence).await?;
            emptied.dead_lettered += 1;
        }
        Ok(())
    }

    fn found(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Instant>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn logged(&self) -> std::sync::MutexGuard<'_, HashSet<(String, String)>> {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a message is an envelope of the strict order of its lane, as its delivery from the resolver says.
fn is_in_order(router: &Router, message: &StoredMessage, lane: &str) -> bool {
    let owner = router.owner_in_order(message).map(|owner| owner.subscription);
    is_strict_lane(lane) && owner.is_some_and(|owner| subscription_of_lane(lane) == Some(&*owner.token()))
}

/// Whether the registry has a subscription of this name, also an unreadable one. The answer is that of the bucket's
/// leader. Fails if the registry is lost.
async fn is_known(router: &Router, name: &SubscriptionRef) -> Result<bool, NatsError> {
    match router.js().registry_entry(name).await {
        Ok(RegistryEntry { subscription, unreadable, .. }) => {
            Ok(subscription.is_some() || unreadable.is_some_and(|entry| !entry.is_no_subscription()))
        }
        // An older version stored another tenant's subscription under this key; `hub provision` moves it.
        Err(NatsError::MisplacedEntry { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}
