//! TLS options of a subscription, against a real TLS server with generated certificates.

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

/// An endpoint that answers 204 over TLS; with `clients` it requires a certificate of that CA.
async fn endpoint(identity: &Identity, clients: Option<&Ca>) -> (String, JoinSet<()>) {
    tls_server(identity, clients, EVENT, "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await
}

/// A token endpoint over TLS.
async fn token_endpoint(identity: &Identity, clients: Option<&Ca>) -> (String, JoinSet<()>) {
    let token = r#"{"access_token":"of-the-private-ca","token_type":"Bearer","expires_in":3600}"#;
    let answer =
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{token}", token.len());
    tls_server(identity, clients, "grant_type=client_credentials", &answer).await
}

/// Answers a request whose body has this end.
async fn tls_server(
    identity: &Identity,
    clients: Option<&Ca>,
    body: &'static str,
    answer: &str,
) -> (String, JoinSet<()>) {
    let answer = answer.to_owned();
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
            // Some tests expect a failed handshake.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = Vec::new();
            while !request.ends_with(body.as_bytes()) {
                if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            if stream.write_all(answer.as_bytes()).await.is_ok() {
                let _ = stream.shutdown().await;
            }
        }
    });
    (format!("https://127.0.0.1:{port}/hook"), task)
}

/// A listener, and what accepts its connections with TLS and HTTP/2.
async fn http2_listener(ca: &Ca) -> (tokio::net::TcpListener, TlsAcceptor) {
    let identity = ca.issue("127.0.0.1", |_| {});
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.serialize_der()));
    let mut config = config.with_single_cert(vec![identity.der.clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener, TlsAcceptor::from(Arc::new(config)))
}

/// HTTP/2, with its version, its pseudo-headers and its frames.
#[tokio::test]
async fn http2_is_spoken_where_the_endpoint_offers_it() {
    let ca = Ca::new();
    let (listener, acceptor) = http2_listener(&ca).await;
    let url = format!("https://127.0.0.1:{}/hook?a=b", listener.local_addr().unwrap().port());
    let mut server = JoinSet::new();
    // Only one connection is accepted.
    server.spawn(async move {
        let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let service =
            hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                let (version, uri) = (request.version(), request.uri().clone());
                let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
                assert_eq!(body, EVENT);
                let said = format!("{version:?} {}", uri.path_and_query().unwrap());
                let answer = hyper::Response::builder().status(503).header("retry-after", "5");
                answer.body(Full::new(Bytes::from(said)))
            });
        let connection = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        connection.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await.unwrap();
    });
    let (http, target) = (local(), with_tls(&url, &json!({"ca": ca.pem()})));
    let view = view();
    let attempts = (0..20).map(|_| http.attempt(&target, &view, 1));
    for got in futures_util::future::join_all(attempts).await {
        let retry_after = Some(Duration::from_secs(5));
        assert_eq!(got.outcome, Outcome::Answered { status: 503, retry_after }, "{got:?}");
        assert_eq!(got.answer_excerpt.as_deref(), Some("HTTP/2.0 /hook?a=b"));
    }
}

/// It answers settings and pings on each connection; on the first one, it answers no request.
#[tokio::test]
async fn an_http2_connection_that_answers_no_request_is_replaced() {
    let ca = Ca::new();
    let (listener, acceptor) = http2_listener(&ca).await;
    let url = format!("https://127.0.0.1:{}/hook", listener.local_addr().unwrap().port());
    // The number of requests on each connection.
    let requests = Arc::new(Mutex::new(Vec::<usize>::new()));
    let seen = requests.clone();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            let number = {
                let mut seen = seen.lock().unwrap();
                seen.push(0);
                seen.len() - 1
            };
            let seen = seen.clone();
            open.spawn(async move {
                let service =
                    hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                        seen.lock().unwrap()[number] += 1;
                        async move {
                            http_body_util::BodyExt::collect(request.into_body()).await.unwrap();
                            if number == 0 {
                                std::future::pending::<()>().await;
                            }
                            Ok::<_, hyper::Error>(hyper::Response::new(Full::new(Bytes::new())))
                        }
                    });
                let connection =
                    hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                let _ = connection.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
            });
        }
    });
    let view = view();
    let prepare = |timeout: &str| {
        let json = json!({"url": url, "timeout": timeout, "tls": {"ca": ca.pem()}});
        Target::prepare(&super::identity(), &serde_json::from_value(json).unwrap(), &Opener).unwrap()
    };
    let (http, short, patient) = (local(), prepare("1s"), prepare("30s"));
    let first = (0..8).map(|_| http.attempt(&short, &view, 1));
    for got in futures_util::future::join_all(first).await {
        assert_eq!(got.outcome, Outcome::Failed(Failure::Timeout), "{got:?}");
    }
    let before = requests.lock().unwrap()[0];
    assert!(before > 0);
    for _ in 0..3 {
        assert_eq!(http.attempt(&patient, &view, 2).await.outcome, answered(200));
    }
    let further = (0..8).map(|_| http.attempt(&patient, &view, 2));
    for got in futures_util::future::join_all(further).await {
        assert_eq!(got.outcome, answered(200), "{got:?}");
    }
    let requests = requests.lock().unwrap().clone();
    assert_eq!(requests[0], before, "the first connection takes no further request: {requests:?}");
    let used = requests.iter().filter(|count| **count > 0).count();
    assert_eq!(used, 2, "a connection that answers is used again: {requests:?}");
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
async fn mutual_tls_sends_the_subscriptions_certificate() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let (url, _server) = endpoint(&ca.issue("127.0.0.1", |_| {}), Some(&clients)).await;
    let ours = clients.issue("hub.example", |_| {});
    let key = ours.key.serialize_pem();
    let got = attempt(&url, &json!({"ca": ca.pem(), "cert": ours.cert, "key": key})).await;
    assert_eq!(got.outcome, answered(204), "{got:?}");
    let sealed = json!({"sealed": format!("sealed-{key}")});
    let got = attempt(&url, &json!({"ca": ca.pem(), "cert": ours.cert, "key": sealed})).await;
    assert_eq!(got.outcome, answered(204), "{got:?}");

    // No certificate, and one of another CA.
    let got = attempt(&url, &json!({"ca": ca.pem()})).await;
    assert_eq!(got.outcome, Outcome::Failed(Failure::Tls), "{got:?}");
    let theirs = ca.issue("hub.example", |_| {});
    let key = theirs.key.serialize_pem();
    let got = attempt(&url, &json!({"ca": ca.pem(), "cert": theirs.cert, "key": key})).await;
    assert_eq!(got.outcome, Outcome::Failed(Failure::Tls), "{got:?}");
}

fn with_tls_and_token(url: &str, tls: &Value, token_url: &str) -> Target {
    let auth = json!({"type": "oauth2", "token_url": token_url, "client_id": "c", "client_secret": "s"});
    target(url, &format!(r#","tls":{tls},"auth":{auth}"#))
}

#[tokio::test]
async fn a_token_endpoint_of_the_private_ca_is_trusted_too() {
    let (ca, another) = (Ca::new(), Ca::new());
    let (url, _server) = endpoint(&ca.issue("127.0.0.1", |_| {}), None).await;
    let (token_url, _issuer) = token_endpoint(&ca.issue("127.0.0.1", |_| {}), None).await;
    let tls = json!({"ca": ca.pem()});
    let got = local().attempt(&with_tls_and_token(&url, &tls, &token_url), &view(), 1).await;
    assert_eq!(got.outcome, answered(204), "{got:?}");

    // The subscription does not trust a certificate of another CA or for another name.
    for identity in [another.issue("127.0.0.1", |_| {}), ca.issue("another.example", |_| {})] {
        let (token_url, _issuer) = token_endpoint(&identity, None).await;
        let got = local().attempt(&with_tls_and_token(&url, &tls, &token_url), &view(), 1).await;
        assert_eq!(got.outcome, Outcome::Failed(Failure::Token), "{got:?}");
        assert!(got.detail.is_some_and(|detail| detail.starts_with("token endpoint: ")));
    }
}

/// For a token endpoint, the subscription's roots are trusted in addition to the system's. Here the "system" is a file with
/// a public CA.
#[test]
fn a_public_token_endpoint_stays_trusted_with_a_private_ca() {
    const CHILD: &str = "HUB_TEST_PUBLIC_CA_KEY";
    if std::env::var_os(CHILD).is_none() {
        let folder = tempfile::tempdir().unwrap();
        let public = Ca::new();
        let identity = public.issue("127.0.0.1", |_| {});
        let file = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .env("SSL_CERT_FILE", file("roots.pem", public.pem()))
            .env("SSL_CERT_DIR", file("no-folder", String::new()))
            .env(CHILD, file("key.pem", format!("{}{}", identity.key.serialize_pem(), identity.cert)))
            .args(["a_public_token_endpoint_stays_trusted"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    use rustls::pki_types::pem::PemObject as _;
    let file = std::env::var_os(CHILD).unwrap();
    let identity = Identity {
        der: CertificateDer::from_pem_file(&file).unwrap(),
        cert: String::new(),
        key: KeyPair::from_pem(&std::fs::read_to_string(&file).unwrap()).unwrap(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let private = Ca::new();
        let (url, _server) = endpoint(&private.issue("127.0.0.1", |_| {}), None).await;
        let (token_url, _issuer) = token_endpoint(&identity, None).await;
        let tls = json!({"ca": private.pem()});
        let got = local().attempt(&with_tls_and_token(&url, &tls, &token_url), &view(), 1).await;
        assert_eq!(got.outcome, answered(204), "{got:?}");
        // The public CA did not issue the endpoint's certificate.
        let (of_public, _server) = endpoint(&identity, None).await;
        let got = attempt(&of_public, &tls).await;
        assert_eq!(got.outcome, Outcome::Failed(Failure::Tls), "{got:?}");
    });
}

#[tokio::test]
async fn a_token_endpoint_that_requires_a_certificate_gets_the_subscriptions() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let server = ca.issue("127.0.0.1", |_| {});
    let (url, _server) = endpoint(&server, Some(&clients)).await;
    let (token_url, _issuer) = token_endpoint(&server, Some(&clients)).await;
    let ours = clients.issue("hub.example", |_| {});
    let tls = json!({"ca": ca.pem(), "cert": ours.cert, "key": ours.key.serialize_pem()});
    let got = local().attempt(&with_tls_and_token(&url, &tls, &token_url), &view(), 1).await;
    assert_eq!(got.outcome, answered(204), "{got:?}");
    let tls = json!({"ca": ca.pem()});
    let got = local().attempt(&with_tls_and_token(&url, &tls, &token_url), &view(), 1).await;
    assert_eq!(got.outcome, Outcome::Failed(Failure::Token), "{got:?}");
}

/// The address guard also applies to a client with TLS options.
#[tokio::test]
async fn the_guard_applies_with_tls_options() {
    let ca = Ca::new();
    let (url, _server) = endpoint(&ca.issue("127.0.0.1", |_| {}), None).await;
    let guarded = HttpDelivery::new(HttpConfig::default());
    for url in [url.clone(), url.replace("127.0.0.1", "localhost")] {
        let got = guarded.attempt(&with_tls(&url, &json!({"ca": ca.pem()})), &view(), 1).await;
        assert_eq!(got.outcome, Outcome::Failed(Failure::AddressRefused), "{url}: {got:?}");
        // The token is fetched first; the endpoint's name cannot be resolved.
        let endpoint = format!("https://{}.invalid/", "a".repeat(64));
        let target = with_tls_and_token(&endpoint, &json!({"ca": ca.pem()}), &url);
        let got = guarded.attempt(&target, &view(), 1).await;
        assert_eq!(got.outcome, Outcome::Failed(Failure::AddressRefused), "token from {url}: {got:?}");
    }
}

#[test]
fn unusable_options_are_refused_before_they_are_stored() {
    let (ca, other) = (Ca::new(), Ca::new());
    let ours = ca.issue("hub.example", |_| {});
    let key = ours.key.serialize_pem();
    let check = |tls: Value| {
        let tls: crate::domain::subscription::EndpointTls = serde_json::from_value(tls).unwrap();
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
