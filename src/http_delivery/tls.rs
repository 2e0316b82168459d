//! TLS of a subscription's own.

use std::sync::{Arc, OnceLock};

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::domain::field_error::FieldError;
use crate::domain::outcome::Failure;
use crate::domain::subscription::{EndpointTls, Secret};

/// Identifies a client: another root, certificate or key is another one.
pub(super) type Key = [u8; 32];

/// A certificate with those that lead to its root, and its key.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// The TLS half of a target, read. Cheap to clone.
#[derive(Clone)]
pub(super) struct TlsOptions {
    key: Key,
    roots: Option<Arc<[CertificateDer<'static>]>>,
    /// The system's roots count beside these.
    beside: bool,
    identity: Option<Arc<Identity>>,
}

impl TlsOptions {
    /// `key`: the private key in PEM, opened. `Failure::Request` where one of them cannot be read.
    pub(super) fn new(tls: &EndpointTls, key: Option<&SecretString>) -> Result<Self, Failure> {
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
                let roots = certificates(ca)?;
                let mut usable = RootCertStore::empty();
                for root in &roots {
                    usable.add(root.clone()).map_err(|_| Failure::Request)?;
                }
                Some(Arc::from(roots))
            }
            None => None,
        };
        let identity = match &tls.cert {
            Some(cert) => {
                let key = PrivateKeyDer::from_pem_slice(key.expose_secret().as_bytes());
                let key = key.map_err(|_| Failure::Request)?;
                Some(Arc::new(Identity { chain: certificates(cert)?, key }))
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

    /// `Failure::Request` where certificate and key do not belong together.
    pub(super) fn config(&self) -> Result<ClientConfig, Failure> {
        let roots = match &self.roots {
            None => system_roots(),
            Some(own) => {
                let mut roots = if self.beside { (*system_roots()).clone() } else { RootCertStore::empty() };
                for root in own.iter() {
                    roots.add(root.clone()).map_err(|_| Failure::Request)?;
                }
                Arc::new(roots)
            }
        };
        let builder = builder(roots);
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some(identity) => builder
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
                .map_err(|_| Failure::Request),
        }
    }
}

/// Of endpoints of the public internet. Made once, so that all clients resume each other's TLS sessions.
pub(super) fn of_the_system() -> ClientConfig {
    static CONFIG: OnceLock<ClientConfig> = OnceLock::new();
    let made = || {
        let roots = system_roots();
        if roots.is_empty() {
            tracing::warn!(
                "https endpoints will be refused: install the system's CA certificates, or name a file of them in SSL_CERT_FILE"
            );
        }
        builder(roots).with_no_client_auth()
    };
    CONFIG.get_or_init(made).clone()
}

fn builder(roots: Arc<RootCertStore>) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has a cipher suite for each protocol version")
        .with_root_certificates(roots)
}

/// Read once: all clients share them. Those that cannot be read are left out.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    };
    ROOTS.get_or_init(read).clone()
}

/// One or more, in PEM.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    read.ok().filter(|read| !read.is_empty()).ok_or(Failure::Request)
}

/// Whether `tls` can be used, told before it is stored. Of a sealed key nothing can be said.
pub fn check(tls: &EndpointTls) -> Result<(), FieldError> {
    let unusable = |field: &str, remedy: &str| {
        FieldError::new(field, format!("cannot be used for TLS; write {remedy}, in PEM"))
    };
    let usable = |tls: &EndpointTls, key: Option<&SecretString>| {
        TlsOptions::new(tls, key).and_then(|options| options.config()).is_ok()
    };
    let alone = EndpointTls { ca: tls.ca.clone(), cert: None, key: None };
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
