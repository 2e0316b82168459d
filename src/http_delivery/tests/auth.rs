//! Credentials, tokens and signatures, as a server sees them.

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;

use super::*;

async fn received(rest: &str) -> Received {
    let server = Server::start(ok).await;
    let attempt = local().attempt(&target(&server.url(), rest), &view(), 1).await;
    assert_eq!(attempt.outcome, answered(204), "{attempt:?}");
    server.got().remove(0)
}

#[tokio::test]
async fn each_kind_of_static_credential() {
    let got = received("").await;
    assert_eq!(got.header("authorization"), "");
    let got = received(r#","auth":{"type":"api_key","key":{"sealed":"sealed-k 1"}}"#).await;
    assert_eq!(got.header("x-api-key"), "k 1");
    let got = received(r#","auth":{"type":"api_key","header":"X-Key","key":"k1"}"#).await;
    assert_eq!(got.header("x-key"), "k1");
    let got = received(r#","auth":{"type":"api_key","query":"key","key":"k&1"}"#).await;
    assert_eq!(uri(&got), "/hook?key=k%261");
    assert_eq!(got.header("x-api-key"), "");
    // RFC 7617 section 2: the example's user and password.
    let got = received(r#","auth":{"type":"basic","username":"Aladdin","password":"open sesame"}"#).await;
    assert_eq!(got.header("authorization"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    let got = received(r#","auth":{"type":"bearer","token":{"sealed":"sealed-t1"}}"#).await;
    assert_eq!(got.header("authorization"), "Bearer t1");
}

#[tokio::test]
async fn a_signature_covers_what_was_sent() {
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    for mode in ["structured", "binary"] {
        let rest = format!(r#","content_mode":"{mode}","signing":{{"secret":"{secret}"}}"#);
        let got = received(&rest).await;
        let timestamp: u64 = got.header("webhook-timestamp").parse().unwrap();
        let key = super::signature::SigningKey::new(&SecretString::from(secret)).unwrap();
        let expected = key.sign(got.header("webhook-id"), timestamp, &got.body);
        assert_eq!(got.header("webhook-signature"), expected, "{mode}");
        assert_eq!(got.headers.contains_key("webhook-attributes-signature"), mode == "binary");
    }
}

#[test]
fn unusable_settings_are_refused_before_an_attempt() {
    let refused = |url: &str, rest: &str| {
        let attempt = prepared(url, rest).unwrap_err().attempt();
        (attempt.outcome, attempt.detail.unwrap_or_default())
    };
    for rest in
        [r#","auth":{"type":"bearer","token":{"sealed":"x"}}"#, r#","signing":{"secret":{"sealed":"x"}}"#]
    {
        let sealed = (Outcome::Failed(Failure::Sealed), String::new());
        assert_eq!(refused("https://crm.example/", rest), sealed);
    }
    // The text names the field, and no credential.
    let long = format!("https://crm.example/{}", "x".repeat(70_000));
    for (url, rest, field) in [
        ("https://crm.example/", r#","signing":{"secret":"hush"}"#, "delivery.signing"),
        ("https://crm.example/", r#","auth":{"type":"bearer","token":"hush\nb"}"#, "delivery.auth.token"),
        ("https://crm.example/", r#","headers":{"a b":"c"}"#, "delivery.headers"),
        ("https://crm.example/", r#","headers":{"Content-Length":"5"}"#, "delivery.headers"),
        ("ftp://crm.example/", "", "delivery.url"),
        (&long, "", "delivery.url: the URL is not valid in a request: "),
        ("https://crm{.example/?hush", "", "delivery.url: the URL is not valid in a request: "),
    ] {
        let (outcome, detail) = refused(url, rest);
        assert_eq!(outcome, Outcome::Failed(Failure::Request), "{field}");
        assert!(detail.starts_with(field) && !detail.contains("hush"), "{detail}");
        assert!(detail.len() < 200, "{detail}");
    }
}

#[test]
fn debug_shows_no_credential() {
    for auth in [
        r#"{"type":"api_key","query":"key","key":"hush"}"#,
        r#"{"type":"api_key","key":"hush"}"#,
        r#"{"type":"bearer","token":"hush"}"#,
        r#"{"type":"oauth2","token_url":"https://idp.example/","client_id":"c","client_secret":"hush"}"#,
    ] {
        let target = target("https://crm.example/", &format!(r#","auth":{auth}"#));
        let text = format!("{target:?}");
        assert!(text.contains("crm.example") && !text.contains("hush"), "{text}");
    }
}

/// Secrets in an error page that shows the request are not kept.
#[tokio::test]
async fn echoed_credentials_are_not_kept() {
    let server = Server::start(|got| {
        let body = format!("{} {} {}", uri(got), got.header("authorization"), "x".repeat(3000));
        text(400, body)
    })
    .await;
    let rest = r#","auth":{"type":"basic","username":"me","password":"hush"}"#;
    let attempt = local().attempt(&target(&server.url(), rest), &view(), 1).await;
    let excerpt = attempt.answer_excerpt.unwrap();
    assert!(excerpt.starts_with("/hook Basic *** xxx"), "{excerpt}");
    assert_eq!(excerpt.len(), 1024);
    let rest = r#","auth":{"type":"api_key","query":"key","key":"hush"}"#;
    let attempt = local().attempt(&target(&server.url(), rest), &view(), 1).await;
    assert!(attempt.answer_excerpt.unwrap().starts_with("/hook?key=***  xxx"));
}

/// Each kind of credential, in each spelling in the answer.
#[tokio::test]
async fn credentials_echoed_in_another_spelling_are_not_kept() {
    const SECRET: &str = "s3cr/t+Pass=word&more";
    let issuer = Server::start(|_| {
        let token = serde_json::json!({"access_token": SECRET, "token_type": "Bearer", "expires_in": 60});
        text(200, token.to_string())
    })
    .await;
    let auths = [
        format!(r#","auth":{{"type":"api_key","key":"{SECRET}"}}"#),
        format!(r#","auth":{{"type":"api_key","query":"key","key":"{SECRET}"}}"#),
        format!(r#","auth":{{"type":"basic","username":"someone","password":"{SECRET}"}}"#),
        format!(r#","auth":{{"type":"bearer","token":"{SECRET}"}}"#),
        format!(r#","secret_headers":{{"x-key":"{SECRET}"}}"#),
        oauth2(&issuer, ""),
    ];
    let pair = |user: &str| base64::Engine::encode(&STANDARD, format!("{user}:{SECRET}"));
    let spellings = [
        SECRET.to_owned(),
        "s3cr\\/t+Pass=word&more".to_owned(),
        "s3cr\\u002Ft\\u002bPass=word\\u0026more".to_owned(),
        "s3cr%2ft%2bPass%3dword%26more".to_owned(),
        "s3cr%2Ft+Pass%3Dword&more".to_owned(),
        "s3cr&#47;t&#x2B;Pass&equals;word&amp;more".to_owned(),
        pair("someone"),
        pair("another"),
        base64::Engine::encode(&STANDARD, SECRET),
        "s3cr/t+Pass\r\n\t=word&more".to_owned(),
        SECRET.bytes().map(|byte| format!("{byte:02X}")).collect(),
    ];
    for (rest, spelling) in
        auths.iter().flat_map(|rest| spellings.iter().map(move |spelling| (rest, spelling)))
    {
        let echoed = spelling.clone();
        let server =
            Server::start(move |_| text(400, format!("<p>denied: {echoed} </p>{}", " ".repeat(3000)))).await;
        let attempt = local().attempt(&target(&server.url(), rest), &view(), 1).await;
        let excerpt = attempt.answer_excerpt.unwrap();
        assert!(excerpt.starts_with("<p>denied: ***"), "{rest} {spelling}: {excerpt}");
        for part in ["Pass", "word", &spelling[4..12]] {
            assert!(!excerpt.contains(part), "{rest} {spelling}: {excerpt}");
        }
    }
}

#[tokio::test]
async fn a_compressed_answer_is_not_kept() {
    let server =
        Server::start(|_| with_headers(400, [("content-encoding", "gzip")], "\u{1f}\u{8b}hush")).await;
    let attempt = local().attempt(&target(&server.url(), ""), &view(), 1).await;
    assert_eq!(attempt.answer_excerpt.as_deref(), Some("(the body is compressed, and not kept)"));
}

/// A token endpoint that issues `token-1`, `token-2`, … with these further members.
async fn issuer(rest: &'static str) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        text(200, format!(r#"{{"access_token":"token-{number}","token_type":"Bearer"{rest}}}"#))
    })
    .await
}

fn oauth2(issuer: &Server, rest: &str) -> String {
    let url = issuer.url();
    format!(
        r#","auth":{{"type":"oauth2","token_url":"{url}","client_id":"hub: 1","client_secret":"s&p%r/t"{rest}}}"#
    )
}

#[tokio::test]
async fn the_client_authenticates_in_both_ways() {
    let issuer = issuer("").await;
    let server = Server::start(ok).await;
    let http = local();
    let rest = oauth2(&issuer, r#","scopes":["a","b"],"audience":"https://crm.example""#);
    http.attempt(&target(&server.url(), &rest), &view(), 1).await;
    let rest = oauth2(&issuer, r#","client_auth":"client_secret_post""#);
    http.attempt(&target(&server.url(), &rest), &view(), 1).await;

    let [basic, post] = &issuer.got()[..] else { panic!("{:?}", issuer.got()) };
    // `hub%3A+1:s%26p%25r%2Ft`
    assert_eq!(basic.header("authorization"), "Basic aHViJTNBKzE6cyUyNnAlMjVyJTJGdA==");
    assert_eq!(basic.body, "grant_type=client_credentials&scope=a+b&audience=https%3A%2F%2Fcrm.example");
    assert_eq!(basic.header("content-type"), "application/x-www-form-urlencoded");
    assert_eq!(post.header("authorization"), "");
    assert_eq!(post.body, "grant_type=client_credentials&client_id=hub%3A+1&client_secret=s%26p%25r%2Ft");
    let tokens: Vec<String> = server.got().iter().map(|got| got.header("authorization").to_owned()).collect();
    assert_eq!(tokens, ["Bearer token-1", "Bearer token-2"]);
}

#[tokio::test]
async fn fifty_deliveries_at_once_fetch_one_token() {
    let issuer = issuer(r#","expires_in":3600"#).await;
    let server = Server::start(ok).await;
    let (http, rest) = (local(), oauth2(&issuer, ""));
    // Two targets of one subscription share it too.
    let targets = [target(&server.url(), &rest), target(&server.url(), &rest)];
    let view = view();
    let attempts = (0..50).map(|number| http.attempt(&targets[number % 2], &view, 1));
    for attempt in join_all(attempts).await {
        assert_eq!(attempt.outcome, answered(204), "{attempt:?}");
    }
    assert_eq!(issuer.got().len(), 1);
    assert_eq!(server.got().len(), 50);
    assert!(server.got().iter().all(|got| got.header("authorization") == "Bearer token-1"));

    let other = oauth2(&issuer, r#","scopes":["more"]"#);
    http.attempt(&target(&server.url(), &other), &view, 1).await;
    assert_eq!(issuer.got().len(), 2, "another scope is another token");
}

/// A token without any lifetime is valid only for the deliveries that waited for it.
#[tokio::test]
async fn an_expired_token_is_not_used() {
    let issuer = issuer(r#","expires_in":0"#).await;
    let server = Server::start(ok).await;
    let http = local();
    let target = target(&server.url(), &oauth2(&issuer, ""));
    for expected in 1..=3 {
        http.attempt(&target, &view(), 1).await;
        assert_eq!(issuer.got().len(), expected);
    }
}

/// Also after a 403: the scopes of a token are fixed when it is issued.
#[tokio::test]
async fn a_revoked_token_is_replaced_within_the_attempt() {
    for refusal in [401, 403] {
        let issuer = issuer(r#","expires_in":3600"#).await;
        let server = Server::start(move |got| match got.header("authorization") {
            "Bearer token-1" => Behaviour::status(refusal),
            _ => Behaviour::ok(),
        })
        .await;
        let http = local();
        let target = target(&server.url(), &oauth2(&issuer, ""));
        let view = view();
        for attempt in join_all((0..20).map(|_| http.attempt(&target, &view, 3))).await {
            assert_eq!(attempt.outcome, answered(200), "{attempt:?}");
        }
        assert_eq!(issuer.got().len(), 2, "each {refusal} fetched a token of its own");
        assert!(server.got().iter().all(|got| got.header("webhook-attempt") == "3"));
    }
}

#[tokio::test]
async fn a_second_refusal_is_the_answer() {
    for refusal in [401, 403] {
        let issuer = issuer(r#","expires_in":3600"#).await;
        let server = Server::start(move |got| text(refusal, got.header("authorization").to_owned())).await;
        let attempt = local().attempt(&target(&server.url(), &oauth2(&issuer, "")), &view(), 1).await;
        assert_eq!(attempt.outcome, answered(refusal));
        assert_eq!(attempt.answer_excerpt.as_deref(), Some("Bearer ***"));
        assert_eq!((server.got().len(), issuer.got().len()), (2, 2));
    }
}

#[tokio::test]
async fn a_refusing_token_endpoint_gets_one_request_for_all_waiting_deliveries() {
    let issuer = Server::start(|got| {
        let body =
            format!(r#"{{"error":"invalid_client","error_description":"{}"}}"#, got.header("authorization"));
        text(401, body)
    })
    .await;
    let server = Server::start(ok).await;
    let http = local();
    let target = target(&server.url(), &oauth2(&issuer, ""));
    let view = view();
    for attempt in join_all((0..20).map(|_| http.attempt(&target, &view, 1))).await {
        assert_eq!(attempt.outcome, Outcome::Failed(Failure::Token));
        let said = "the token endpoint answered 401: invalid_client (Basic ***)";
        assert_eq!(attempt.detail.as_deref(), Some(said));
    }
    assert_eq!((issuer.got().len(), server.got().len()), (1, 0));

    http.attempt(&target, &view, 2).await;
    assert_eq!(issuer.got().len(), 2, "the next attempt sends another request");
}

#[tokio::test]
async fn answers_of_a_token_endpoint_without_a_token() {
    let server = Server::start(ok).await;
    for body in ["", "{}", "<html>", r#"{"access_token":"a\nb"}"#, r#"{"error":"no"}"#] {
        let issuer = Server::start(move |_| text(200, body)).await;
        let attempt = local().attempt(&target(&server.url(), &oauth2(&issuer, "")), &view(), 1).await;
        assert_eq!(attempt.outcome, Outcome::Failed(Failure::Token), "{body:?}");
    }
    for status in [500, 302] {
        let issuer = Server::start(move |_| text(status, "not s&p%r/t")).await;
        let attempt = local().attempt(&target(&server.url(), &oauth2(&issuer, "")), &view(), 1).await;
        assert_eq!(attempt.outcome, Outcome::Failed(Failure::Token));
        let said = format!("the token endpoint answered {status}: not ***");
        assert_eq!(attempt.detail, Some(said));
    }
    let issuer = Server::start(|_| text(200, "x".repeat(100_000))).await;
    let attempt = local().attempt(&target(&server.url(), &oauth2(&issuer, "")), &view(), 1).await;
    assert_eq!(attempt.detail.as_deref(), Some("the token endpoint's answer is larger than 65536 bytes"));
    assert!(server.got().is_empty());
}

#[tokio::test]
async fn an_unusual_token_is_sent_as_a_bearer_token() {
    for (answer, extra, expected) in [
        (r#"{"access_token":"a","expires_in":"NaN","token_type":"mac"}"#, "", answered(204)),
        (r#"{"access_token":"a","token_type":"BEARER"}"#, r#","token_type":"bearer""#, answered(204)),
        (
            r#"{"access_token":"a","token_type":"mac"}"#,
            r#","token_type":"bearer""#,
            Outcome::Failed(Failure::Token),
        ),
    ] {
        let issuer = Server::start(move |_| text(201, answer)).await;
        let server = Server::start(ok).await;
        let attempt = local().attempt(&target(&server.url(), &oauth2(&issuer, extra)), &view(), 1).await;
        assert_eq!(attempt.outcome, expected, "{answer}: {attempt:?}");
        assert!(server.got().iter().all(|got| got.header("authorization") == "Bearer a"), "{answer}");
    }
}
