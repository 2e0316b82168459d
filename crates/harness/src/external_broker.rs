//! Shared parts of the tests of external brokers.

use std::path::PathBuf;
use std::time::Duration;

use integration_hub::sinks::{Broker, OutgoingMessage, PublishError, PublishedGroup, Timeouts};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use super::eventually;

/// Short enough for a test, long enough for a busy machine.
pub const SHORT: Timeouts =
    Timeouts { connect: Duration::from_secs(2), publish: Duration::from_millis(1500) };

/// A CA and its certificate for `localhost`, as files.
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    pub fn generate() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Not the default name of a certificate, or the certificate would seem to be its own issuer.
        ca.distinguished_name.push(DnType::CommonName, "the tests' CA");
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("a CA");
        let key = KeyPair::generate().expect("a key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).expect("names").signed_by(&key, &ca).expect("signs");
        for (name, text) in
            [("ca.pem", ca.pem()), ("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())]
        {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        Self { folder }
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn cert(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }
}

/// The message with number `n` of a key.
pub fn outgoing(stream: &str, key: &str, n: usize) -> OutgoingMessage {
    OutgoingMessage {
        id: format!("{key}-{n}"),
        stream: stream.to_owned(),
        key: key.to_owned(),
        body: format!(r#"{{"key":"{key}","n":{n}}}"#).into(),
        headers: vec![("traceparent".to_owned(), format!("00-{n:032x}-00f067aa0ba902b7-01"))],
    }
}

/// The messages of a key, by number.
pub fn group(stream: &str, key: &str, numbers: std::ops::Range<usize>) -> Vec<OutgoingMessage> {
    numbers.map(|n| outgoing(stream, key, n)).collect()
}

/// Asserts that all messages were acknowledged.
#[track_caller]
pub fn assert_all(published: PublishedGroup, count: usize) {
    assert_eq!(published, PublishedGroup { acknowledged: count, error: None });
}

/// Publishes until the broker is back, as the relay does, from the first message that was not acknowledged.
pub async fn publish_when_back(broker: &dyn Broker, group: &[OutgoingMessage]) {
    let mut left = group;
    eventually(Duration::from_secs(30), "publishing succeeds", async || {
        let published = broker.publish(left).await;
        left = &left[published.acknowledged..];
        match published.error {
            None => Ok(()),
            Some(error @ PublishError::Unavailable { .. }) => Err(error),
            Some(error) => panic!("not an unavailable broker: {error}"),
        }
    })
    .await;
}

/// Asserts that publishing to a broker that is down or silent fails as unavailable, and does not hang.
pub async fn assert_unavailable(broker: &dyn Broker, group: &[OutgoingMessage]) {
    // Much longer than the broker's own timeouts, which follow each other.
    let limit = (SHORT.connect + SHORT.publish) * 5;
    let published = tokio::time::timeout(limit, broker.publish(group)).await;
    let published = published.unwrap_or_else(|_| panic!("publishing hangs for {limit:?}"));
    assert!(matches!(published.error, Some(PublishError::Unavailable { .. })), "{published:?}");
}
