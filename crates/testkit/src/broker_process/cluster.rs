//! A JetStream cluster of several nats-servers.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::time::Instant;

use super::error::BrokerProcessError;
use super::options::{BrokerOptions, ClusterMember, Data};
use super::server::BrokerProcess;

/// Time limit until every server has joined and a meta leader is elected.
const LEADER_LIMIT: Duration = Duration::from_secs(30);
/// Polling interval: only the monitoring port reports the election.
const POLL: Duration = Duration::from_millis(50);
/// Attempts with new ports: the cluster ports are chosen before the first server starts, so another process may take one.
const TRIES: usize = 3;

/// Connected servers on loopback, with JetStream ready.
#[derive(Debug)]
pub struct BrokerCluster {
    servers: Vec<BrokerProcess>,
}

impl BrokerCluster {
    /// Starts `size` servers with these options, each with its own name and free ports. Returns once JetStream has a meta
    /// leader, and each server is up to date and known to the leader.
    ///
    /// With [`Data::Lasting`], each server has a folder of its own in it, with its name.
    ///
    /// # Errors
    ///
    /// As [`BrokerProcess::start`], or no meta leader within 30 s.
    pub async fn start(size: usize, options: &BrokerOptions) -> Result<Self, BrokerProcessError> {
        let mut tried = 0;
        let servers = loop {
            tried += 1;
            match start_servers(size, options).await {
                Ok(servers) => break servers,
                Err(BrokerProcessError::Exited { .. }) if tried < TRIES => {}
                Err(error) => return Err(error),
            }
        };
        let cluster = Self { servers };
        cluster.wait_for_leader().await?;
        Ok(cluster)
    }

    /// The URLs of all servers, separated by commas, for the client.
    pub fn url(&self) -> String {
        let urls: Vec<_> = self.servers.iter().map(BrokerProcess::url).collect();
        urls.join(",")
    }

    /// The servers, in the order of their names (`<name>-1` first).
    pub fn servers(&self) -> &[BrokerProcess] {
        &self.servers
    }

    /// The server at `index`, to kill or restart it.
    pub fn server(&mut self, index: usize) -> Option<&mut BrokerProcess> {
        self.servers.get_mut(index)
    }

    /// Waits at most 30 s until each running server is up to date, has a meta leader, and is known to it.
    ///
    /// # Errors
    ///
    /// [`BrokerProcessError::NoMetaLeader`] with the last report of each server.
    pub async fn wait_for_leader(&self) -> Result<(), BrokerProcessError> {
        let deadline = Instant::now() + LEADER_LIMIT;
        let running: Vec<_> = self.servers.iter().filter(|server| server.pid().is_some()).collect();
        loop {
            let health = join_all(running.iter().map(|server| server.health())).await;
            let ready = health.iter().all(|answer| {
                answer.as_ref().is_ok_and(|health| health.healthy && health.meta_leader.is_some())
            });
            // A leader that has not heard of a server yet refuses streams with a replica there.
            let online = health.iter().flatten().map(|health| health.online_peers).max();
            if ready && online.is_some_and(|online| online + 1 >= running.len()) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(BrokerProcessError::NoMetaLeader {
                    waited: LEADER_LIMIT,
                    state: format!("{health:?}"),
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops every running server (SIGTERM).
    ///
    /// # Errors
    ///
    /// The first failure, after all have been tried.
    pub async fn stop(&mut self) -> Result<(), BrokerProcessError> {
        let running = self.servers.iter_mut().filter(|server| server.pid().is_some());
        join_all(running.map(BrokerProcess::stop)).await.into_iter().collect()
    }
}

async fn start_servers(
    size: usize,
    options: &BrokerOptions,
) -> Result<Vec<BrokerProcess>, BrokerProcessError> {
    let routes = free_ports(size).map_err(BrokerProcessError::NoPort)?;
    let name = options.server_name.as_deref().unwrap_or("hub");
    let starts = routes.iter().enumerate().map(|(index, port)| {
        let server_name = format!("{name}-{}", index + 1);
        let data = match &options.data {
            Data::Temporary => Data::Temporary,
            Data::Lasting(folder) => Data::Lasting(folder.join(&server_name)),
        };
        let cluster = ClusterMember { name: name.to_owned(), port: *port, routes: routes.clone() };
        BrokerProcess::start(BrokerOptions {
            data,
            port: None,
            server_name: Some(server_name),
            cluster: Some(cluster),
            ..options.clone()
        })
    });
    try_join_all(starts).await
}

/// Distinct ports that are free at this moment.
fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
