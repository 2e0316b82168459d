//! TLS of a subscription's own: one client for each set of roots and certificate, a few of them kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::{Certificate, Client, ClientBuilder, Identity};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use super::failure::{Broken, broken};
use super::{HttpConfig, builder};
use crate::domain::field_error::FieldError;
use crate::domain::outcome::Failure;
use crate::domain::subscription::{Secret, Tls};

/// Most clients kept, each with its connections; beyond, the one that was used longest ago goes.
const MOST_CLIENTS: usize = 512;

/// Identifies a client: another root, certificate or key is another one.
pub(super) type Key = [u8; 32];

/// The TLS half of a target, read. Cheap to clone.
#[derive(Clone)]
pub(super) struct TlsOptions {
    key: Key,
    roots: Option<Arc<[Certificate]>>,
    /// The system's roots count beside these.
    beside: bool,
    identity: Option<Identity>,
}

impl TlsOptions {
    /// `key`: the private key in PEM, opened. `Failure::Request` where one of them cannot be read.
    pub(super) fn new(tls: &Tls, key: Option<&SecretString>) -> Result<Self, Failure> {
        let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
        let ca = text(tls.ca.as_deref());
        let cert = text(tls.cert.as_deref());
        let key = SecretString::from(text(key.map(|key| key.expose_secret())));
        let mut digest = Sha256::new();
        for part in [ca.as_str(), &cert, key.expose_secret()] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        let roots = match &tls.ca {
            Some(ca) => {
                let roots = Certificate::from_pem_bundle(ca.as_bytes()).map_err(|_| Failure::Request)?;
                Some(Arc::from(roots))
                    .filter(|roots: &Arc<[_]>| !roots.is_empty())
                    .ok_or(Failure::Request)
                    .map(Some)?
            }
            None => None,
        };
        let identity = match &tls.cert {
            Some(cert) => {
                let pem = SecretString::from(format!("{cert}\n{}", key.expose_secret()));
                let identity = Identity::from_pem(pem.expose_secret().as_bytes());
                Some(identity.map_err(|_| Failure::Request)?)
            }
            None => None,
        };
        Ok(Self { key: digest.finalize().into(), roots, beside: false, identity })
    }

    /// The same for the token endpoint: it may be the subscriber's own, of the same private CA, or
    /// one of the public internet, so the roots count beside the system's there. The certificate
    /// is shown there too, if it is asked for: tokens may be bound to it (RFC 8705 section 3).
    pub(super) fn of_token_endpoint(&self) -> Self {
        // Without roots of its own it is the same client.
        if self.roots.is_none() {
            return self.clone();
        }
        let key = Sha256::new_with_prefix(b"beside the system's roots").chain_update(self.key).finalize();
        Self { key: key.into(), beside: true, ..self.clone() }
    }

    /// Tells one set of roots, certificate and key from another.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    fn apply(&self, mut builder: ClientBuilder) -> ClientBuilder {
        if let Some(roots) = &self.roots {
            let roots = roots.iter().cloned();
            builder =
                if self.beside { builder.tls_certs_merge(roots) } else { builder.tls_certs_only(roots) };
        }
        if let Some(identity) = &self.identity {
            builder = builder.identity(identity.clone());
        }
        builder
    }
}

/// Whether `tls` can be used, told before it is stored. Of a sealed key nothing can be said.
pub fn check(tls: &Tls) -> Result<(), FieldError> {
    let unusable = |field: &str, remedy: &str| {
        FieldError::new(field, format!("cannot be used for TLS; write {remedy}, in PEM"))
    };
    let usable = |tls: &Tls, key: Option<&SecretString>| {
        let Ok(options) = TlsOptions::new(tls, key) else { return false };
        // Without a root of its own none is needed here: nothing is connected to.
        let base = builder(&HttpConfig::default());
        options.apply(base.tls_certs_only([])).build().is_ok()
    };
    let alone = Tls { ca: tls.ca.clone(), cert: None, key: None };
    if !usable(&alone, None) {
        return Err(unusable("delivery.tls.ca", "the certificates of one or more roots"));
    }
    match &tls.key {
        Some(Secret::Plain(key)) if !usable(tls, Some(key)) => Err(unusable(
            "delivery.tls.cert",
            "the certificate in delivery.tls.cert and the unencrypted key that belongs to it in delivery.tls.key",
        )),
        _ => Ok(()),
    }
}

/// The clients of all subscriptions with TLS of their own.
#[derive(Default)]
pub(super) struct TlsClients {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// With the count at its last use.
    clients: HashMap<Key, (Client, u64)>,
    uses: u64,
}

impl TlsClients {
    pub(super) fn get(&self, config: &HttpConfig, options: &TlsOptions) -> Result<Client, Broken> {
        if let Some(client) = self.kept().used(&options.key) {
            return Ok(client);
        }
        // Made without the lock: others go on meanwhile. Where two make the same, the first is kept.
        let made = options.apply(builder(config)).build();
        let made = made.map_err(|error| Broken { failure: Failure::Request, ..broken(error) })?;
        let mut kept = self.kept();
        if let Some(client) = kept.used(&options.key) {
            return Ok(client);
        }
        if kept.clients.len() >= MOST_CLIENTS
            && let Some(oldest) = kept.clients.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key)
        {
            kept.clients.remove(&oldest);
        }
        let used = kept.uses;
        kept.clients.insert(options.key, (made.clone(), used));
        Ok(made)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn used(&mut self, key: &Key) -> Option<Client> {
        self.uses += 1;
        let (client, used) = self.clients.get_mut(key)?;
        *used = self.uses;
        Some(client.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_shared_and_bounded() {
        let (clients, config) = (TlsClients::default(), HttpConfig::default());
        let options = |number: usize| TlsOptions {
            key: Sha256::digest(number.to_be_bytes()).into(),
            roots: Some(Arc::default()),
            beside: false,
            identity: None,
        };
        let has = |number: usize| clients.kept().clients.contains_key(&options(number).key);
        for number in 0..MOST_CLIENTS {
            clients.get(&config, &options(number)).unwrap();
            clients.get(&config, &options(0)).unwrap();
        }
        assert_eq!(clients.kept().clients.len(), MOST_CLIENTS);
        clients.get(&config, &options(MOST_CLIENTS)).unwrap();
        assert_eq!(clients.kept().clients.len(), MOST_CLIENTS);
        assert!(has(0) && !has(1) && has(2) && has(MOST_CLIENTS), "the one used longest ago goes");
    }
}
