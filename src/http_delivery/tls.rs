//! TLS options of a subscription: its own root certificates and its client certificate.

use std::sync::{Arc, OnceLock};

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::domain::field_error::FieldError;
use crate::domain::subscription::{Certificates, EndpointTls, Secret};
use crate::facts::NoCaCertificates;

/// Digest of one set of roots, certificate and key.
pub(super) type TlsKey = [u8; 32];

/// TLS options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the PEM text is invalid")]
    Certificates(#[source] rustls::pki_types::pem::Error),
    #[error("the PEM text holds no certificate")]
    NoCertificate,
    #[error("the root certificate is invalid")]
    Root(#[source] rustls::Error),
    /// Without its source, whose text may quote a part of the key.
    #[error("the private key is invalid")]
    PrivateKey,
    #[error("the client certificate does not fit its private key")]
    ClientCertificate(#[source] rustls::Error),
}

/// A client certificate with its chain, and its key.
struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// The parsed TLS options of a target. Cheap to clone.
#[derive(Clone)]
pub(super) struct TlsOptions {
    key: TlsKey,
    roots: Option<Arc<[CertificateDer<'static>]>>,
    /// True if the system's roots are trusted too.
    with_system_roots: bool,
    identity: Option<Arc<ClientIdentity>>,
}

impl TlsOptions {
    /// Parses TLS options.
    ///
    /// * `key`: the opened private key, in PEM
    pub(super) fn new(tls: &EndpointTls, key: Option<&SecretString>) -> Result<Self, TlsError> {
        let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
        let ca = text(tls.ca.as_ref().map(Certificates::as_str));
        let cert = text(tls.cert.as_ref().map(Certificates::as_str));
        let key = SecretString::from(text(key.map(|key| key.expose_secret())));
        let mut digest = Sha256::new();
        for part in [ca.as_str(), &cert, key.expose_secret()] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        let roots = match &tls.ca {
            Some(ca) => {
                let roots = certificates(ca.as_str())?;
                let mut usable = RootCertStore::empty();
                for root in &roots {
                    usable.add(root.clone()).map_err(TlsError::Root)?;
                }
                Some(Arc::from(roots))
            }
            None => None,
        };
        let identity = match &tls.cert {
            Some(cert) => {
                let key = PrivateKeyDer::from_pem_slice(key.expose_secret().as_bytes());
                let key = key.map_err(|_| TlsError::PrivateKey)?;
                Some(Arc::new(ClientIdentity { chain: certificates(cert.as_str())?, key }))
            }
            None => None,
        };
        Ok(Self { key: digest.finalize().into(), roots, with_system_roots: false, identity })
    }

    /// The same options for the token endpoint. It may be the subscriber's own, with the same private CA, or a public
    /// one, so the system's roots are trusted too. The client certificate is sent if the server requests it, because
    /// tokens may be bound to it (RFC 8705 section 3).
    pub(super) fn of_token_endpoint(&self) -> Self {
        // Without own roots, the options are the same.
        if self.roots.is_none() {
            return self.clone();
        }
        let key = Sha256::new_with_prefix(b"beside the system's roots").chain_update(self.key).finalize();
        Self { key: key.into(), with_system_roots: true, ..self.clone() }
    }

    pub(super) fn key(&self) -> &TlsKey {
        &self.key
    }

    /// Builds the client configuration. Fails if certificate and key do not belong together.
    pub(super) fn config(&self) -> Result<ClientConfig, TlsError> {
        let roots = match &self.roots {
            None => system_roots(),
            Some(own) => {
                let mut roots =
                    if self.with_system_roots { (*system_roots()).clone() } else { RootCertStore::empty() };
                for root in own.iter() {
                    roots.add(root.clone()).map_err(TlsError::Root)?;
                }
                Arc::new(roots)
            }
        };
        let builder = builder(roots);
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some(identity) => builder
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
                .map_err(TlsError::ClientCertificate),
        }
    }
}

/// The configuration for endpoints without own TLS options. Built once, so that all clients share TLS sessions.
pub(super) fn of_the_system() -> ClientConfig {
    static CONFIG: OnceLock<ClientConfig> = OnceLock::new();
    let made = || {
        let roots = system_roots();
        if roots.is_empty() {
            NoCaCertificates.emit();
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

/// The system's root certificates, read once. Unreadable ones are left out.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    };
    ROOTS.get_or_init(read).clone()
}

/// Parses one or more certificates in PEM.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read = read.map_err(TlsError::Certificates)?;
    if read.is_empty() { Err(TlsError::NoCertificate) } else { Ok(read) }
}

/// Checks TLS options before they are stored. A sealed key cannot be checked.
pub(crate) fn check(tls: &EndpointTls) -> Result<(), FieldError> {
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
