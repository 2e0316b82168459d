//! TLS of a subscription's own, against a real TLS server with certificates made here.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::*;

/// A private CA.
struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate of such a CA, with its key.
struct Identity {
    der: CertificateDer<'static>,
    cert: String,
    key: KeyPair,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "private CA");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity { der: certificate.der().clone(), cert: certificate.pem(), key }
    }
}

/// An endpoint that answers 204 over TLS; with `clients` it wants a certificate of that CA.
async fn endpoint(identity: &Identity, clients: Option<&Ca>) -> (String, JoinSet<()>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider.clone());
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.0.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            config.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.serialize_der()));
    let config = config.with_single_cert(vec![identity.der.clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut task = JoinSet::new();
    task.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A handshake that fails is what some of the tests want.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = Vec::new();
            while !request.ends_with(EVENT.as_bytes()) {
                if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
            if stream.write_all(answer).await.is_ok() {
                let _ = stream.shutdown().await;
            }
        }
    });
    (format!("https://127.0.0.1:{port}/hook"), task)
}

fn with_tls(url: &str, tls: &Value) -> Target {
    target(url, &format!(r#","tls":{tls}"#))
}

async fn attempt(url: &str, tls: &Value) -> Attempt {
    local().attempt(&with_tls(url, tls), &view(), 1).await
}

#[tokio::test]
async fn an_endpoint_of_a_private_ca_is_trusted_by_the_subscription_that_names_it() {
    let ca = Ca::new();
    let (url, _server) = endpoint(&ca.issue("127.0.0.1", |_| {}), None).await;
    let got = attempt(&url, &json!({"ca": ca.pem()})).await;
    assert_eq!(got.outcome, answered(204), "{got:?}");

    let another = Ca::new();
    for refused in [
        local().attempt(&target(&url, ""), &view(), 1).await,
        attempt(&url, &json!({"ca": another.pem()})).await,
    ] {
        assert_eq!(refused.outcome, Outcome::Failed(Failure::Tls), "{refused:?}");
    }
    let both = format!("{}{}", another.pem(), ca.pem());
    assert_eq!(attempt(&url, &json!({"ca": both})).await.outcome, answered(204));
}

#[tokio::test]
async fn an_expired_certificate_and_one_of_another_name_are_refused() {
    let ca = Ca::new();
    let expired = ca.issue("127.0.0.1", |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    for identity in [expired, ca.issue("another.example", |_| {})] {
        let (url, _server) = endpoint(&identity, None).await;
        let got = attempt(&url, &json!({"ca": ca.pem()})).await;
        assert_eq!(got.outcome, Outcome::Failed(Failure::Tls), "{got:?}");
        assert!(got.detail.is_some());
    }
}

#[tokio::test]
async fn mutual_tls_shows_the_subscriptions_certificate() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let (url, _server) = endpoint(&ca.issue("127.0.0.1", |_| {}), Some(&clients)).await;
    let ours = clients.issue("hub.example", |_| {});
    let key = ours.key.serialize_pem();
    let got = attempt(&url, &json!({"ca": ca.pem(), "cert": ours.cert, "key": key})).await;
    assert_eq!(got.outcome, answered(204), "{got:?}");
    let sealed = json!({"sealed": format!("sealed-{key}")});
    let got = attempt(&url, &json!({"ca": ca.pem(), "cert": ours.cert, "key": sealed})).await;
    assert_eq!(got.outcome, answered(204), "{got:?}");

    // None, and one of another CA.
    let got = attempt(&url, &json!({"ca": ca.pem()})).await;
    assert_eq!(got.outcome, Outcome::Failed(Failure::Tls), "{got:?}");
    let theirs = ca.issue("hub.example", |_| {});
    let key = theirs.key.serialize_pem();
    let got = attempt(&url, &json!({"ca": ca.pem(), "cert": theirs.cert, "key": key})).await;
    assert_eq!(got.outcome, Outcome::Failed(Failure::Tls), "{got:?}");
}

/// The guard stands before a client of a subscription's own as it does before the common one.
#[tokio::test]
async fn the_guard_holds_with_tls_of_a_subscriptions_own() {
    let ca = Ca::new();
    let (url, _server) = endpoint(&ca.issue("127.0.0.1", |_| {}), None).await;
    let guarded = HttpDelivery::new(HttpConfig::default());
    for url in [url.clone(), url.replace("127.0.0.1", "localhost")] {
        let got = guarded.attempt(&with_tls(&url, &json!({"ca": ca.pem()})), &view(), 1).await;
        assert_eq!(got.outcome, Outcome::Failed(Failure::AddressRefused), "{url}: {got:?}");
    }
}

#[test]
fn what_cannot_be_used_is_told_before_it_is_stored() {
    let (ca, other) = (Ca::new(), Ca::new());
    let ours = ca.issue("hub.example", |_| {});
    let key = ours.key.serialize_pem();
    let check = |tls: Value| {
        let tls: crate::domain::subscription::Tls = serde_json::from_value(tls).unwrap();
        crate::http_delivery::tls::check(&tls).map_err(|error| error.field)
    };
    assert_eq!(check(json!({"ca": ca.pem()})), Ok(()));
    assert_eq!(check(json!({"ca": ca.pem(), "cert": ours.cert, "key": key})), Ok(()));
    assert_eq!(check(json!({"cert": ours.cert, "key": key})), Ok(()));
    let not_a_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let (of_ca, of_cert) = (Err("delivery.tls.ca".to_owned()), Err("delivery.tls.cert".to_owned()));
    for bad in ["", not_a_certificate] {
        assert_eq!(check(json!({ "ca": bad })), of_ca, "{bad}");
    }
    assert_eq!(check(json!({"cert": not_a_certificate, "key": key})), of_cert);
    let another = other.issue("hub.example", |_| {}).key.serialize_pem();
    assert_eq!(check(json!({"cert": ours.cert, "key": another})), of_cert);
}
