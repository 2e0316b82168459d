//! The circuits of a subscription: one for each domain, stored at the broker.

use serde::Serialize;
use time::OffsetDateTime;

use super::holds::HoldRow;
use super::subscriptions::reference;
use super::{Management, ManagementError};
use crate::nats::subjects::{lane_consumer, own_lane};
use crate::nats::{ConsumerInfo, StoredSubscription};

/// The state of a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CircuitState {
    /// Envelopes are delivered.
    Closed,
    /// The endpoint keeps failing: envelopes wait.
    Open,
    /// The next envelope is the probe.
    HalfOpen,
}

impl CircuitState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// The circuit of a subscription in a domain.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = Circuit)]
pub struct CircuitRow {
    pub domain: String,
    pub state: CircuitState,
    /// When it opened; null if it is closed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    /// When the next probe is sent; null if the circuit is not open, or if the domain is paused.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_probe: Option<OffsetDateTime>,
    /// The last failure; null if it is closed.
    pub last_error: Option<String>,
    /// Envelopes of the subscription in the domain outbox, which are not delivered yet: in the shared lane and in all of its
    /// own lanes, with those that are being delivered or wait for a retry.
    pub waiting: u64,
    /// The hold of the subscription, the same in each domain; null if it is not held.
    pub hold: Option<HoldRow>,
}

impl CircuitRow {
    fn new(
        domain: &str,
        stored: &StoredSubscription,
        info: Option<&ConsumerInfo>,
        waiting: u64,
        hold: Option<HoldRow>,
    ) -> Self {
        let incarnation = stored.subscription.incarnation;
        let circuit = info.and_then(|info| Some((info, info.circuit()?)));
        // The circuit of an earlier subscription of this name ends within seconds.
        match circuit.filter(|(_, circuit)| circuit.subscription.incarnation == incarnation) {
            Some((info, circuit)) => Self {
                domain: domain.to_owned(),
                state: if info.paused { CircuitState::Open } else { CircuitState::HalfOpen },
                since: Some(circuit.since),
                next_probe: info.is_paused_by_circuit().then_some(circuit.probe_at),
                last_error: Some(circuit.error),
                waiting,
                hold,
            },
            None => Self {
                domain: domain.to_owned(),
                state: CircuitState::Closed,
                since: None,
                next_probe: None,
                last_error: None,
                waiting,
                hold,
            },
        }
    }
}

impl Management {
    /// The circuits of a subscription with its hold, in the order of the domains.
    pub async fn circuits(&self, stored: &StoredSubscription) -> Result<Vec<CircuitRow>, ManagementError> {
        let hold = self.hold(stored).await?;
        let mut rows = Vec::new();
        for domain in &self.settings.domains {
            let info = self.own_lane(&domain.name, stored).await?;
            let waiting = self.waiting(&domain.name, stored).await?;
            rows.push(CircuitRow::new(&domain.name, stored, info.as_ref(), waiting, hold.clone()));
        }
        Ok(rows)
    }

    /// The circuit of a subscription in a domain, without its hold and what waits.
    pub(super) async fn circuit(
        &self,
        domain: &str,
        stored: &StoredSubscription,
    ) -> Result<CircuitRow, ManagementError> {
        let info = self.own_lane(domain, stored).await?;
        Ok(CircuitRow::new(domain, stored, info.as_ref(), 0, None))
    }

    /// The envelopes of the subscription in a domain outbox, whatever their lanes.
    async fn waiting(&self, domain: &str, stored: &StoredSubscription) -> Result<u64, ManagementError> {
        let token = reference(&stored.subscription)?.token().into_owned();
        match self.js.backlogs(domain, Some(&token)).await {
            Ok(look) => Ok(look.backlogs.iter().map(|backlog| backlog.own + backlog.shared).sum()),
            Err(error) if error.is_not_found() => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the pauses of the subscription's open circuits, so that a probe follows at once. Pauses of domains stay.
    pub(super) async fn probe_now(&self, stored: &StoredSubscription) -> Result<(), ManagementError> {
        for domain in &self.settings.domains {
            let Some(info) = self.own_lane(&domain.name, stored).await? else { continue };
            if info.is_paused_by_circuit() {
                let outbox = self.js.names().outbox_stream(&domain.name);
                self.js.end_circuit_pause(&outbox, &info.name).await?;
            }
        }
        Ok(())
    }

    /// The durable of the subscription's own lane in a domain; `None` if it has none.
    async fn own_lane(
        &self,
        domain: &str,
        stored: &StoredSubscription,
    ) -> Result<Option<ConsumerInfo>, ManagementError> {
        let lane = own_lane(&reference(&stored.subscription)?.token());
        let outbox = self.js.names().outbox_stream(domain);
        match self.js.consumer_info(&outbox, &lane_consumer(&lane)).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
