//! The processes, connections and endpoints of a plan.

use std::sync::Arc;
use std::time::Duration;

use crate::accounts::Subscriber;
use crate::broker::Broker;
use crate::load::{path, subscribers, subscription, well};
use crate::plan::{Kind, Plan, Roles, Topology};
use crate::support::{
    FaultProxy, Hub, Receiver, ShiftedClock, TestClient, TestSettings, eventually, http_client,
};

/// Time limit until every process is ready, with restarts of those that have ended.
const READY: Duration = Duration::from_secs(120);
const ROLES: [&str; 4] = ["event-processor", "outbox-processor", "dlt-router", "dlt-processor"];
/// Room for some thirty envelopes.
const SMALL_OUTBOX: u64 = 40 * 1024;
const SMALL_EVENT: u64 = 16 * 1024;

pub(crate) struct Stage {
    pub(crate) broker: Broker,
    pub(crate) hubs: Hubs,
    /// The proxy of each process; none in a cluster, whose nodes announce their own addresses.
    pub(crate) proxies: Vec<FaultProxy>,
    /// The clock of each process; none if the plan has no jump, or there is no C compiler.
    pub(crate) clocks: Vec<Arc<ShiftedClock>>,
    /// For commands only.
    pub(crate) operator: Hub,
    pub(crate) client: TestClient,
    pub(crate) receiver: Receiver,
    pub(crate) subscribers: Vec<Subscriber>,
}

impl Stage {
    /// Starts everything, and writes the subscriptions.
    pub(crate) async fn set(plan: &Plan) -> Self {
        let broker = Broker::start(plan.topology).await;
        let url = broker.url();
        let settings = settings(plan);
        let roles: Vec<Vec<&str>> = match plan.roles {
            Roles::Together => vec![Vec::new(); 2],
            Roles::Apart => {
                ROLES.iter().flat_map(|role| [vec!["--role", *role], vec!["--role", *role]]).collect()
            }
        };
        let (mut hubs, mut proxies, mut clocks) = (Vec::new(), Vec::new(), Vec::new());
        for args in roles {
            let url = match plan.topology {
                Topology::Cluster => url.clone(),
                Topology::Single => {
                    let proxy = FaultProxy::start(&url).await;
                    let url = proxy.url("nats");
                    proxies.push(proxy);
                    url
                }
            };
            let mut hub = Hub::not_started(&url, &settings);
            hub.set_args(&args);
            if plan.has(Kind::ClockJump)
                && let Some(clock) = ShiftedClock::build().map(Arc::new)
            {
                hub.set_clock(clock.clone());
                clocks.push(clock);
            }
            hub.start();
            hubs.push(hub);
        }
        let mut hubs = Hubs { all: hubs, restarts: 0, http: http_client() };
        hubs.ready().await;
        let (operator, receiver) = (Hub::not_started(&url, &settings), Receiver::start().await);
        let subscribers = subscribers(plan.has(Kind::FullOutbox));
        receiver.set_default(well());
        let client = TestClient::connect(&url).await;
        client.subscribe(subscribers.iter().map(|one| subscription(one, &receiver.url(&path(one.id))))).await;
        Self { broker, hubs, proxies, clocks, operator, client, receiver, subscribers }
    }
}

/// Short waits, so that what a fault interrupts continues within seconds; dead letters come back by themselves.
fn settings(plan: &Plan) -> TestSettings {
    TestSettings::quick().with_redrives([Duration::from_secs(1); 8]).with(|settings| {
        settings.delivery.max_timeout = Some(Duration::from_secs(5));
        settings.delivery.ack_wait = Some(Duration::from_secs(8));
        if plan.topology == Topology::Cluster {
            settings.nats.replicas = Some(3);
        }
        if plan.has(Kind::FullOutbox) {
            settings.events.max_size = Some(SMALL_EVENT);
            settings.limits.outbox = Some(SMALL_OUTBOX);
        }
    })
}

/// The processes, and what a supervisor does for them.
pub(crate) struct Hubs {
    pub(crate) all: Vec<Hub>,
    /// Starts of processes that had ended by themselves.
    pub(crate) restarts: usize,
    http: reqwest::Client,
}

impl Hubs {
    /// Starts processes again that have ended by themselves, for example because they could not connect at their start.
    pub(crate) fn supervise(&mut self) {
        for hub in &mut self.all {
            if let Some(status) = hub.ended_by_itself() {
                println!("a process of the hub ended by itself ({status}) and is started again");
                self.restarts += 1;
                hub.start();
            }
        }
    }

    /// Waits until every process is ready, and supervises them meanwhile.
    ///
    /// # Panics
    ///
    /// After a time limit.
    pub(crate) async fn ready(&mut self) {
        eventually(READY, "every process of the hub is ready", async || self.are_ready().await).await;
    }

    /// True for `Ok`; otherwise the first process that is not ready, with its reason. Starts those that have ended.
    pub(crate) async fn are_ready(&mut self) -> Result<(), String> {
        self.supervise();
        for (index, hub) in self.all.iter().enumerate() {
            match self.http.get(hub.health_url("/readyz")).send().await {
                Ok(answer) if answer.status() == 200 => {}
                Ok(answer) => {
                    return Err(format!("process {index}: {}", answer.text().await.unwrap_or_default()));
                }
                Err(error) => return Err(format!("process {index}: {error}")),
            }
        }
        Ok(())
    }
}
