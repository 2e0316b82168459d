//! HTTP clients: one per tenant and set of TLS options. Tenants share no connection, so that one tenant's endpoint cannot
//! send the answer to another tenant's request.
//!
//! All clients together hold at most half of the files that the process may open. A connection above that limit closes
//! the idle connections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::HttpConfig;
use super::client::Client;
use super::tls::{self, TlsError, TlsOptions};
use crate::facts::IdleConnectionsClosed;
use crate::open_files;

/// Maximum number of clients, each with its connections; above it, the least recently used client is dropped.
const MOST_CLIENTS: usize = 2048;
/// Minimum time between two closings of idle connections.
const CLOSE_EVERY: Duration = Duration::from_secs(1);

/// Digest that identifies a client by tenant, roots, certificate and key.
pub(super) type ClientKey = [u8; 32];

/// Computes the key of the client for a tenant and its TLS options.
pub(super) fn key(tenant: &str, tls: Option<&TlsOptions>) -> ClientKey {
    let mut digest = Sha256::new();
    digest.update((tenant.len() as u64).to_be_bytes());
    digest.update(tenant);
    if let Some(tls) = tls {
        digest.update(tls.key());
    }
    digest.finalize().into()
}

#[derive(Default)]
pub(super) struct Clients {
    kept: Mutex<Kept>,
    /// Number of open connections of all clients.
    open: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Kept {
    /// Each client with the value of `uses` at its last use.
    clients: HashMap<ClientKey, (Client, u64)>,
    uses: u64,
    closed_at: Option<Instant>,
}

impl Clients {
    /// Returns the client of `key`, or makes it.
    ///
    /// * `tls`: the options that the key was computed from
    pub(super) fn get(
        &self,
        config: &HttpConfig,
        key: &ClientKey,
        tls: Option<&TlsOptions>,
    ) -> Result<Client, TlsError> {
        let open = self.open.load(Ordering::Relaxed);
        if let Some(client) = self.kept().used(key, open, open_files::limit() / 2) {
            return Ok(client);
        }
        // Built without the lock, so that others continue. If two tasks build the same client, the first one is kept.
        let tls = match tls {
            None => tls::of_the_system(),
            Some(tls) => tls.config()?,
        };
        let made = Client::new(config, tls, &self.open);
        let mut kept = self.kept();
        if let Some(client) = kept.used(key, 0, usize::MAX) {
            return Ok(client);
        }
        if kept.clients.len() >= MOST_CLIENTS
            && let Some(oldest) = kept.clients.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key)
        {
            kept.clients.remove(&oldest);
        }
        let used = kept.uses;
        kept.clients.insert(*key, (made.clone(), used));
        Ok(made)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Returns a kept client. If more than `most` connections are open, drops all clients and so their idle connections;
    /// connections in use close after their answers.
    fn used(&mut self, key: &ClientKey, open: usize, most: usize) -> Option<Client> {
        self.uses += 1;
        if open > most && self.closed_at.is_none_or(|at| at.elapsed() >= CLOSE_EVERY) {
            self.closed_at = Some(Instant::now());
            self.clients.clear();
            IdleConnectionsClosed { open, limit: most }.emit();
        }
        let (client, used) = self.clients.get_mut(key)?;
        *used = self.uses;
        Some(client.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_shared_within_a_tenant_and_bounded() {
        let (clients, config) = (Clients::default(), HttpConfig::default());
        let of = |number: usize| key(&format!("tenant-{number}"), None);
        let has = |number: usize| clients.kept().clients.contains_key(&of(number));
        assert_ne!(of(1), of(2));
        for number in 0..MOST_CLIENTS {
            clients.get(&config, &of(number), None).unwrap();
            clients.get(&config, &of(0), None).unwrap();
        }
        assert_eq!(clients.kept().clients.len(), MOST_CLIENTS);
        clients.get(&config, &of(MOST_CLIENTS), None).unwrap();
        assert_eq!(clients.kept().clients.len(), MOST_CLIENTS);
        assert!(has(0) && !has(1) && has(2) && has(MOST_CLIENTS), "the one used longest ago goes");
    }

    #[test]
    fn too_many_connections_close_the_idle_ones() {
        let (clients, config) = (Clients::default(), HttpConfig::default());
        clients.get(&config, &key("acme", None), None).unwrap();
        clients.open.store(usize::MAX, Ordering::Relaxed);
        clients.get(&config, &key("globex", None), None).unwrap();
        assert_eq!(clients.kept().clients.len(), 1, "that of acme is gone");
        clients.get(&config, &key("acme", None), None).unwrap();
        assert_eq!(clients.kept().clients.len(), 2, "not again within a second");
    }
}
