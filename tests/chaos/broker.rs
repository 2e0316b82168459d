//! The servers of a plan, and their faults.

use std::time::Duration;

use async_nats::jetstream;
use hub_testkit::broker_process::{BrokerCluster, BrokerOptions, BrokerProcess};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::load::KEYS;
use crate::plan::{Fault, Kind, Topology};
use crate::support::nats_server;

/// Size above which a server with a full disk cannot write to a file. Every file of a stream with messages is larger soon.
const FULL: u64 = 4 * 1024;

pub(crate) enum Broker {
    Single(Box<BrokerProcess>),
    Cluster(BrokerCluster),
}

impl Broker {
    pub(crate) async fn start(topology: Topology) -> Self {
        let options =
            BrokerOptions { server_name: Some("node".to_owned()), ..BrokerOptions::new(nats_server()) };
        let started = match topology {
            Topology::Single => {
                BrokerProcess::start(options).await.map(|server| Self::Single(Box::new(server)))
            }
            Topology::Cluster => BrokerCluster::start(3, &options).await.map(Self::Cluster),
        };
        started.unwrap_or_else(|error| panic!("cannot start the servers of the plan: {error}"))
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Single(server) => server.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    fn server(&mut self, index: usize) -> &mut BrokerProcess {
        match self {
            Self::Single(server) => server,
            Self::Cluster(cluster) => {
                let count = cluster.servers().len();
                cluster.server(index % count).expect("the index is below the number of nodes")
            }
        }
    }

    /// Carries a fault out, and returns when the server serves again.
    pub(crate) async fn fault(&mut self, fault: Fault, context: &jetstream::Context) {
        let Fault { kind, lasts, target, .. } = fault;
        match kind {
            Kind::KillBroker => self.down(target, lasts).await,
            Kind::LoseLeader => {
                let (.., outbox) = KEYS[target % KEYS.len()];
                let node = self.leader(context, outbox).await.unwrap_or(target);
                self.down(node, lasts).await;
            }
            Kind::FreezeBroker => {
                // The other nodes of a cluster continue, so one of them may be silent for long.
                let lasts = if matches!(self, Self::Cluster(_)) { lasts * 5 } else { lasts };
                signal(self.server(target), Signal::STOP);
                tokio::time::sleep(lasts).await;
                signal(self.server(target), Signal::CONT);
            }
            Kind::FullDisk => self.full_disk(target, lasts).await,
            other => unreachable!("unexpected fault of a server: {}", other.name()),
        }
        if let Self::Cluster(cluster) = self {
            cluster.wait_for_leader().await.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    async fn down(&mut self, node: usize, lasts: Duration) {
        self.server(node).kill().await.expect("the server is killed");
        tokio::time::sleep(lasts).await;
        self.server(node).restart().await.expect("the server starts on the same port");
    }

    /// Every write beyond a small size fails, as on a full disk. A server that could not write serves a stream again only
    /// after a restart, which an operator does after making room.
    async fn full_disk(&mut self, node: usize, lasts: Duration) {
        let pid = process(self.server(node));
        let full = Rlimit { current: Some(FULL), maximum: None };
        let before = prlimit(Some(pid), Resource::Fsize, full).expect("the limit is set");
        tokio::time::sleep(lasts).await;
        // It may have ended when a write failed.
        let _ = prlimit(Some(pid), Resource::Fsize, before);
        let _ = self.server(node).kill().await;
        self.server(node).restart().await.expect("the server starts with room on its disk");
    }

    /// The node that leads a stream; `None` on a single server, or while there is no leader.
    async fn leader(&self, context: &jetstream::Context, stream: &str) -> Option<usize> {
        let stream = context.get_stream(stream).await.ok()?;
        let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
        // `node-1` is the first.
        leader.rsplit('-').next()?.parse::<usize>().ok()?.checked_sub(1)
    }
}

fn process(server: &BrokerProcess) -> Pid {
    let pid = server.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    pid.expect("the server runs")
}

fn signal(server: &BrokerProcess, signal: Signal) {
    kill_process(process(server), signal).expect("signalled");
}
