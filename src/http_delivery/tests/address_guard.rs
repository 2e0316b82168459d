//! Addresses that deliveries must not reach.

use super::*;

/// A server that must not be connected to.
async fn forbidden() -> (tokio::net::TcpListener, u16) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn nobody_connected(listener: tokio::net::TcpListener) {
    // The attempt is over, so a connection would be in the backlog.
    let accepted = futures_util::FutureExt::now_or_never(listener.accept());
    assert!(accepted.is_none(), "{accepted:?}");
}

#[tokio::test]
async fn loopback_is_refused_in_every_form() {
    let http = HttpDelivery::new(HttpConfig::default());
    for host in [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "0.0.0.0",
    ] {
        let (listener, port) = forbidden().await;
        let target = target(&format!("http://{host}:{port}/"), "");
        let attempt = http.attempt(&target, &view(), 1).await;
        assert_eq!(attempt.outcome, Outcome::Failed(Failure::AddressRefused), "{host}: {attempt:?}");
        assert!(attempt.detail.unwrap().contains("delivery.allow_networks"), "{host}");
        nobody_connected(listener).await;
    }
}

/// Calls the guard only: with a broken guard, an attempt would connect to these addresses.
#[test]
fn special_networks_are_refused() {
    let http = HttpDelivery::new(HttpConfig::default());
    for host in [
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[fe80::1]",
        "[fd00::1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ] {
        let refused = http.inner.check_literal(target(&format!("http://{host}/"), "").literal).unwrap_err();
        assert_eq!(refused.failure, Failure::AddressRefused, "{host}");
    }
}

/// A redirect of an endpoint or a token endpoint fails, and its address is not connected to.
#[tokio::test]
async fn a_redirect_to_a_private_address_is_not_followed() {
    let http = HttpDelivery::new(HttpConfig {
        addresses: AddressPolicy { allow: vec!["127.0.0.1/32".parse().unwrap()] },
        ..HttpConfig::default()
    });
    // On Linux, every address of this network belongs to this machine; this one is not allowed.
    let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let location = format!("http://{}/", listener.local_addr().unwrap());
    let redirecting = Server::start(move |_| with_headers(307, [("location", &location)], "")).await;
    let attempt = http.attempt(&target(&redirecting.url(), ""), &view(), 1).await;
    assert_eq!(attempt.outcome, answered(307), "{attempt:?}");
    let server = Server::start(ok).await;
    let token_url = redirecting.url();
    let rest = format!(
        r#","auth":{{"type":"oauth2","token_url":"{token_url}","client_id":"c","client_secret":"s"}}"#
    );
    let attempt = http.attempt(&target(&server.url(), &rest), &view(), 1).await;
    assert_eq!(attempt.outcome, Outcome::Failed(Failure::Token), "{attempt:?}");
    assert!(server.got().is_empty());
    nobody_connected(listener).await;
}

#[tokio::test]
async fn an_allowed_network_is_reached_by_address_and_by_name() {
    let server = Server::start(ok).await;
    let http = local();
    let by_name = format!("http://localhost:{}/", server.0.address().port());
    for url in [server.url(), by_name] {
        assert_eq!(http.attempt(&target(&url, ""), &view(), 1).await.outcome, answered(204), "{url}");
    }
}

#[tokio::test]
async fn the_token_endpoint_is_guarded_too() {
    let server = Server::start(ok).await;
    let one_host = HttpConfig {
        addresses: AddressPolicy { allow: vec!["127.0.0.1/32".parse().unwrap()] },
        ..HttpConfig::default()
    };
    let http = HttpDelivery::new(one_host);
    for token_url in ["http://127.0.0.2:1/", "http://2130706434:1/"] {
        let rest = format!(
            r#","auth":{{"type":"oauth2","token_url":"{token_url}","client_id":"c","client_secret":"s"}}"#
        );
        let attempt = http.attempt(&target(&server.url(), &rest), &view(), 1).await;
        assert_eq!(attempt.outcome, Outcome::Failed(Failure::AddressRefused), "{token_url}");
    }
    assert!(server.got().is_empty());

    // A name: the resolver refuses it, and the client's error has it as a source.
    let other = AddressPolicy { allow: vec!["127.0.0.2/32".parse().unwrap()] };
    let http = HttpDelivery::new(HttpConfig { addresses: other, ..HttpConfig::default() });
    let rest =
        r#","auth":{"type":"oauth2","token_url":"http://localhost:1/","client_id":"c","client_secret":"s"}"#;
    let attempt = http.attempt(&target("http://127.0.0.2:1/", rest), &view(), 1).await;
    assert_eq!(attempt.outcome, Outcome::Failed(Failure::AddressRefused));
    assert!(attempt.detail.unwrap().starts_with("token endpoint: "));
}
