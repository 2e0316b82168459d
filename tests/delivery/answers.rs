//! The reaction of the hub to each answer of an endpoint: acknowledge, retry, hold, dead-letter, disable.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use integration_hub::nats::DeadLetterEntry;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, subscription,
};

const STEP: Duration = Duration::from_secs(30);
const DOMAIN: &str = "user-lifecycle";

async fn started(settings: &TestSettings) -> (TestBroker, Receiver, Hub, TestClient) {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    (broker, receiver, hub, client)
}

/// Waits for `count` dead letters of a subscription, and returns them.
async fn dead_letters(client: &TestClient, subscription: &str, count: usize) -> Vec<DeadLetterEntry> {
    eventually(STEP, &format!("{count} dead letters of {subscription}"), async || {
        let mut letters = client.dead_letters(DOMAIN).await;
        letters.retain(|entry| entry.letter.subscription == subscription);
        if letters.len() == count { Ok(letters) } else { Err(letters.len()) }
    })
    .await
}

/// An endpoint on a free port that reads a request's head and then calls `answer`.
async fn raw_endpoint<F, Fut>(answer: F) -> String
where
    F: Fn(tokio::net::TcpStream) -> Fut + Send + Sync + Copy + 'static,
    Fut: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("a bound address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if stream.read(&mut head).await.is_ok() {
                    answer(stream).await;
                }
            });
        }
    });
    format!("http://{address}/")
}

/// Sends the head of a 200 whose body never ends: one byte each second.
async fn drip(mut stream: tokio::net::TcpStream) {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n";
    let mut sent = stream.write_all(head).await;
    while sent.is_ok() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        sent = stream.write_all(b"x").await;
    }
}

/// Answers 200 with 100 MB.
async fn flood(mut stream: tokio::net::TcpStream) {
    let chunk = vec![b'x'; 1_000_000];
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n";
    let mut sent = stream.write_all(head).await;
    for _ in 0..100 {
        if sent.is_err() {
            break;
        }
        sent = stream.write_all(&chunk).await;
    }
}

#[tokio::test]
async fn endpoints_that_misbehave_fail_and_delay_no_other() {
    let (_broker, receiver, hub, client) = started(&TestSettings::quick()).await;
    receiver.set("/hang", Behaviour::Hang);
    receiver.set("/half", Behaviour::CloseMidAnswer);
    receiver.set(
        "/redirect",
        Behaviour::Answer {
            status: 307,
            headers: vec![("location", receiver.url("/private"))],
            body: Bytes::new(),
        },
    );
    let (drip, flood) = (raw_endpoint(drip).await, raw_endpoint(flood).await);
    let mut subscriptions = vec![
        subscription("good", &["user.>"], &receiver.url("/good")),
        subscription("hang", &["user.>"], &receiver.url("/hang")),
        subscription("half", &["user.>"], &receiver.url("/half")),
        subscription("redirect", &["user.>"], &receiver.url("/redirect")),
        subscription("drip", &["user.>"], &drip),
        subscription("flood", &["user.>"], &flood),
        // The cloud's metadata service: not in the allowed networks.
        subscription("private", &["user.>"], "http://169.254.169.254/latest"),
    ];
    for subscription in &mut subscriptions {
        subscription["delivery"]["timeout"] = "1s".into();
    }
    client.subscribe(subscriptions).await;
    client.publish("user.created", "e1").await;
    receiver.wait_accepted("/good", 1, STEP).await;

    for (id, reason, attempts, part, kind) in [
        ("hang", "exhausted", 3, "timed out", "timeout"),
        ("half", "exhausted", 3, "500", "server-error"),
        ("redirect", "exhausted", 3, "307", "redirect"),
        ("private", "permanent", 1, "not public", "address-refused"),
    ] {
        let letter = dead_letters(&client, id, 1).await.remove(0).letter;
        let error = letter.last_error.clone().unwrap_or_default();
        assert!(error.contains(part), "{id}: {error}");
        assert_eq!((letter.reason.as_str(), letter.attempts), (reason, attempts), "{id}");
        assert_eq!(letter.fault.as_str(), "subscriber", "{id}");
        let labels = [format!("kind=\"{kind}\""), "fault=\"subscriber\"".to_owned()];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        assert!(hub.metric("hub_failures_total", &labels).await >= f64::from(attempts), "{id}");
    }
    assert_eq!(receiver.count("/private"), 0, "a redirect is not followed");
    // A 200 with any body is a success: one byte each second, or 100 MB, of which the hub reads up to its limit.
    eventually(STEP, "nothing is pending", async || {
        let pending = client.stream("HUB_OUTBOX_USER_LIFECYCLE").await.state.messages;
        if pending == 0 { Ok(()) } else { Err(pending) }
    })
    .await;
    dead_letters(&client, "drip", 0).await;
    dead_letters(&client, "flood", 0).await;
    let list = hub.cli_ok(&["dlt", "list"]).await;
    assert!(list.lines().next().is_some_and(|head| head.contains("FAULT")), "{list}");
    assert_eq!(list.matches("subscriber").count(), 4, "{list}");
}

/// Announces a body of 100 bytes, and closes the connection after ten.
async fn breaks_off(mut stream: tokio::net::TcpStream, head: &str) {
    let answer = format!("HTTP/1.1 {head}\r\ncontent-length: 100\r\n\r\nten bytes.");
    let _ = stream.write_all(answer.as_bytes()).await;
}

#[tokio::test]
async fn a_status_counts_although_its_body_breaks_off() {
    let (_broker, receiver, hub, client) = started(&TestSettings::quick()).await;
    let gone = raw_endpoint(|stream| breaks_off(stream, "410 Gone")).await;
    let bad = raw_endpoint(|stream| breaks_off(stream, "400 Bad Request")).await;
    let busy = raw_endpoint(|stream| breaks_off(stream, "429 Too Many\r\nretry-after: 1")).await;
    let strange = raw_endpoint(|stream| breaks_off(stream, "503 Busy\r\nx : y\r\n folded")).await;
    let good = raw_endpoint(|stream| breaks_off(stream, "200 OK")).await;
    let urls = [("gone", &gone), ("bad", &bad), ("busy", &busy), ("strange", &strange), ("good", &good)];
    client.subscribe(urls.map(|(id, url)| subscription(id, &["user.>"], url))).await;
    client.subscribe([subscription("other", &["user.>"], &receiver.url("/other"))]).await;
    client.publish("user.created", "e1").await;
    receiver.wait_accepted("/other", 1, STEP).await;
    for (id, reason, attempts, status) in [
        ("gone", "permanent", 1, 410),
        ("bad", "permanent", 1, 400),
        ("busy", "exhausted", 3, 429),
        ("strange", "exhausted", 3, 503),
    ] {
        let letter = dead_letters(&client, id, 1).await.remove(0).letter;
        assert_eq!(
            (letter.reason.as_str(), letter.attempts, letter.last_status),
            (reason, attempts, Some(status)),
            "{id}"
        );
        assert_eq!(
            hub.cli_json(&["dlt", "list", "--subscription", id]).await[0]["last_status"],
            status,
            "{id}"
        );
    }
    hub.wait_for_log("subscription disabled", STEP).await;
    let shown = hub.cli_json(&["subscription", "show", "gone"]).await;
    assert_eq!(
        (&shown["state"], &shown["disabled_reason"]),
        (&json!("disabled"), &json!("the endpoint answered 410 Gone"))
    );
    dead_letters(&client, "good", 0).await;
}

#[tokio::test]
async fn gone_disables_the_subscription_until_it_is_resumed() {
    let (broker, receiver, hub, client) = started(&TestSettings::quick()).await;
    receiver.set("/gone", Behaviour::Slow(Duration::from_millis(300), Box::new(Behaviour::status(410))));
    let mut gone = subscription("gone", &["user.>"], &receiver.url("/gone"));
    gone["delivery"]["max_in_flight"] = 1.into();
    client.subscribe([gone, subscription("stays", &["user.>"], &receiver.url("/stays"))]).await;
    // The first is answered 410 while the others are queued.
    let events = ids("e", 4);
    client.publish_all("user.created", &events).await;
    receiver.wait_accepted("/stays", 4, STEP).await;
    let letters = dead_letters(&client, "gone", 4).await;
    let (permanent, disabled): (Vec<_>, Vec<_>) =
        letters.iter().map(|entry| &entry.letter).partition(|letter| letter.reason.as_str() == "permanent");
    assert_eq!(permanent.len(), receiver.count("/gone"));
    assert!(!permanent.is_empty() && !disabled.is_empty(), "{letters:?}");
    for letter in &disabled {
        assert_eq!((letter.reason.as_str(), letter.state.as_str()), ("disabled", "parked"));
        assert_eq!(letter.attempts, 0);
        assert!(letter.last_error.as_ref().is_some_and(|error| error.contains("410 Gone")), "{letter:?}");
    }

    hub.wait_for_log("subscription disabled", STEP).await;
    let shown = hub.cli_json(&["subscription", "show", "gone"]).await;
    assert_eq!(shown["state"], "disabled");
    assert_eq!(shown["disabled_reason"], "the endpoint answered 410 Gone");
    assert!(shown["disabled_at"].is_string());
    let list = hub.cli_ok(&["subscription", "list", "--state", "disabled"]).await;
    assert!(list.contains("410 Gone") && !list.contains("stays"), "{list}");

    // The hub creates no more envelopes for it.
    let before = receiver.count("/gone");
    client.publish("user.created", "after").await;
    receiver.wait_accepted("/stays", 5, STEP).await;
    broker.nothing_pending_within(STEP).await;
    dead_letters(&client, "gone", 4).await;
    assert_eq!(receiver.count("/gone"), before);

    receiver.set("/gone", Behaviour::ok());
    hub.cli_ok(&["subscription", "resume", "gone"]).await;
    let shown = hub.cli_json(&["subscription", "show", "gone"]).await;
    assert_eq!((&shown["state"], &shown["disabled_reason"]), (&json!("active"), &Value::Null));
    client.publish("user.created", "again").await;
    receiver.wait_accepted("/gone", 1, STEP).await;
}

/// Answers the first request for `slow` with a refusal, and publishes 20 events in its domain and one in another
/// after the hub has read that answer. Returns when the refused request arrived.
async fn refuse_the_first(stage: &(TestBroker, Receiver, Hub, TestClient), refusal: Behaviour) -> SystemTime {
    let (_, receiver, hub, client) = stage;
    client
        .subscribe([
            subscription("slow", &["user.>", "login.>"], &receiver.url("/slow")),
            subscription("other", &["user.>"], &receiver.url("/other")),
        ])
        .await;
    receiver.set("/slow", Behaviour::First(1, Box::new(refusal), Box::new(Behaviour::ok())));
    client.publish("user.created", "first").await;
    let refused = receiver.wait_for("/slow", 1, STEP).await[0].arrived_at;
    hub.metric_above("hub_failures_total", &["fault=\"subscriber\""], 0.0, STEP).await;
    client.publish_all("user.created", &ids("more", 20)).await;
    client.publish("login.succeeded", "elsewhere").await;
    receiver.wait_accepted("/other", 21, STEP).await;
    refused
}

/// A hold that lasts longer than the test: nothing of the subscription is sent, in its domain or in another.
#[tokio::test]
async fn a_hold_stops_the_whole_subscription_and_no_other() {
    let stage = started(&TestSettings::quick()).await;
    refuse_the_first(&stage, Behaviour::retry_after(429, 3_000)).await;
    let (_broker, receiver, hub, client) = &stage;
    for (domain, waiting) in [("user-lifecycle", 20.0), ("access-session", 1.0)] {
        let domain = format!("domain=\"{domain}\"");
        hub.metric_above("hub_envelopes_spilled_total", &[&domain], waiting - 0.5, STEP).await;
    }
    assert_eq!((receiver.count("/slow"), receiver.count("/other")), (1, 21));
    assert_eq!(client.dead_letters(DOMAIN).await.len(), 0);
}

/// A 429 for the first request, then 200. `named` gives the moment that the refusal names, at the earliest.
async fn throttled(refusal: Behaviour, named: impl FnOnce(SystemTime) -> SystemTime) {
    let stage =
        started(&TestSettings::quick().with(|settings| settings.delivery.max_deliver = Some(2))).await;
    let named = named(refuse_the_first(&stage, refusal).await);
    let (broker, receiver, _hub, client) = &stage;
    receiver.wait_accepted("/slow", 22, STEP).await;
    let received = receiver.received("/slow");
    let early = received[1..].iter().filter(|request| request.arrived_at < named).count();
    assert_eq!(early, 0, "requests before the moment that the endpoint named");
    // None of those that waited used up an attempt: each came once, except for the first.
    assert_eq!(received.len(), 23);
    broker.nothing_pending_within(STEP).await;
    assert_eq!(client.dead_letters(DOMAIN).await.len(), 0);
}

#[tokio::test]
async fn retry_after_in_seconds_holds_the_whole_subscription() {
    throttled(Behaviour::retry_after(429, 3), |refused| refused + Duration::from_secs(3)).await;
}

#[tokio::test]
async fn retry_after_as_a_date_holds_the_whole_subscription() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(5));
    let named = httpdate::parse_http_date(&date).expect("a date");
    let headers = vec![("retry-after", date)];
    throttled(Behaviour::Answer { status: 429, headers, body: Bytes::new() }, |_| named).await;
}

#[tokio::test]
async fn a_long_hold_moves_what_waits_to_a_lane_of_its_own() {
    let stage = started(&TestSettings::quick()).await;
    let refused = refuse_the_first(&stage, Behaviour::retry_after(503, 14)).await;
    let (_broker, receiver, hub, _client) = &stage;
    hub.metric_above("hub_envelopes_spilled_total", &[], 0.0, STEP).await;
    receiver.wait_accepted("/slow", 22, Duration::from_secs(60)).await;
    let named = refused + Duration::from_secs(14);
    let received = receiver.received("/slow");
    let early = received[1..].iter().filter(|request| request.arrived_at < named).count();
    assert_eq!(early, 0, "requests before the moment that the endpoint named");
}

#[tokio::test]
async fn a_retry_after_counts_up_to_the_bound_of_the_settings() {
    let bound = Some(Duration::from_secs(1));
    let settings = TestSettings::quick().with(|settings| settings.delivery.max_retry_after = bound);
    let (broker, receiver, _hub, client) = started(&settings).await;
    client.subscribe([subscription("slow", &["user.>"], &receiver.url("/slow"))]).await;
    let refusal = Box::new(Behaviour::retry_after(429, 100_000));
    receiver.set("/slow", Behaviour::First(1, refusal, Box::new(Behaviour::ok())));
    client.publish("user.created", "first").await;
    let requests = receiver.wait_for("/slow", 2, STEP).await;
    let bound = requests[0].arrived_at + Duration::from_secs(1);
    assert!(requests[1].arrived_at >= bound, "it came again before max_retry_after had passed");
    // The subscription is not held any longer.
    client.publish("user.created", "second").await;
    receiver.wait_accepted("/slow", 2, STEP).await;
    broker.nothing_pending_within(STEP).await;
}

#[tokio::test]
async fn a_failure_of_the_hub_itself_is_the_hubs_fault_everywhere() {
    // Sealed with a key that this hub does not have.
    let (broker, receiver, hub, client) = started(&TestSettings::quick()).await;
    let mut sealed = subscription("sealed", &["user.>"], &receiver.url("/sealed"));
    sealed["delivery"]["auth"] = json!({"type": "bearer", "token": {"sealed": "v1.k1.AAAA"}});
    let refusing = subscription("refusing", &["user.>"], &receiver.url("/refusing"));
    client.subscribe([sealed, refusing]).await;
    receiver.set("/refusing", Behaviour::status(503));
    client.publish("user.created", "e1").await;
    for (id, fault, kind) in [("sealed", "hub", "sealed"), ("refusing", "subscriber", "server-error")] {
        let letter = dead_letters(&client, id, 1).await.remove(0).letter;
        assert_eq!((letter.reason.as_str(), letter.attempts), ("exhausted", 3), "{id}");
        assert_eq!(letter.fault.as_str(), fault, "{id}: the dead letter");
        let listed = hub.cli_json(&["dlt", "list", "--subscription", id]).await;
        assert_eq!(listed[0]["fault"], fault, "{id}: the list: {listed}");
        let labels = [format!("kind=\"{kind}\""), format!("fault=\"{fault}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        assert_eq!(hub.metric("hub_failures_total", &labels).await, 3.0, "{id}: the metrics");
        eventually(STEP, &format!("the attempts of {id} are logged with their fault"), async || {
            let trace = hub.cli_json(&["event", "trace", "e1"]).await;
            let steps = trace["timeline"].as_array().cloned().unwrap_or_default();
            let faults: Vec<Value> = steps
                .into_iter()
                .filter(|step| step["subscription"] == id && step["what"] == "attempt")
                .map(|step| step["fault"].clone())
                .collect();
            if faults == [json!(fault), json!(fault), json!(fault)] { Ok(()) } else { Err(faults) }
        })
        .await;
    }
    assert_eq!(hub.metric("hub_failures_total", &[]).await, 6.0, "no other kind and no other fault");
    assert_eq!(receiver.count("/sealed"), 0, "nothing is sent without its credential");
    broker.nothing_pending_within(STEP).await;
}

#[tokio::test]
async fn a_subscription_may_give_statuses_another_meaning() {
    let (broker, receiver, hub, client) = started(&TestSettings::quick()).await;
    receiver.set("/patient", Behaviour::failing_first(2, 400));
    receiver.set("/strict", Behaviour::status(404));
    receiver.set("/gone", Behaviour::failing_first(1, 410));
    let own = |id: &str, statuses: Value| {
        let mut value = subscription(id, &["user.>"], &receiver.url(&format!("/{id}")));
        value["delivery"]["statuses"] = statuses;
        value
    };
    client
        .subscribe([
            own("patient", json!({"retry": ["4xx"]})),
            own("strict", json!({"permanent": [404]})),
            own("gone", json!({"retry": [410]})),
        ])
        .await;
    client.publish("user.created", "e1").await;
    receiver.wait_accepted("/patient", 1, STEP).await;
    receiver.wait_accepted("/gone", 1, STEP).await;
    let letter = dead_letters(&client, "strict", 1).await.remove(0).letter;
    assert_eq!((letter.reason.as_str(), letter.attempts), ("permanent", 1));
    assert_eq!((receiver.count("/patient"), receiver.count("/strict"), receiver.count("/gone")), (3, 1, 2));
    broker.nothing_pending_within(STEP).await;
    let shown = hub.cli_json(&["subscription", "show", "gone"]).await;
    assert_eq!(
        (&shown["state"], &shown["delivery"]["statuses"]),
        (&json!("active"), &json!({"retry": [410]}))
    );
}

#[tokio::test]
async fn a_bad_subscription_is_refused_with_its_field() {
    // The command checks its input before it connects.
    let hub = Hub::not_started("nats://127.0.0.1:9", &TestSettings::quick());
    let good = || subscription("s", &["user.>"], "https://crm.example/hooks");
    let with = |pointer: &str, value: Value| {
        let mut bad = good();
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        bad.pointer_mut(parent).expect("it is there")[name] = value;
        bad
    };
    for (bad, field) in [
        (with("/delivery/url", json!("crm.example/hooks")), "delivery.url"),
        (with("/delivery/url", json!("ftp://crm.example/")), "delivery.url"),
        (with("/delivery/url", json!("http://10.1.2.3/hooks")), "delivery.url"),
        (with("/delivery/url", json!("http://[::ffff:10.1.2.3]/hooks")), "delivery.url"),
        (with("/delivery/url", json!("http://169.254.169.254/")), "delivery.url"),
        (with("/delivery/auth", json!({"type": "kerberos"})), "delivery.auth.type"),
        (with("/filter", json!([{"exactly": {"source": "idp"}}])), "filter[0]"),
        (with("/events", json!(["user created.now"])), "events[0]"),
        (with("/delivery/statuses", json!({"retry": [200]})), "delivery.statuses.retry[0]"),
        (with("/delivery/statuses", json!({"retry": ["6xx"]})), "delivery.statuses.retry[0]"),
        (
            with("/delivery/statuses", json!({"retry": [404], "permanent": [404]})),
            "delivery.statuses.permanent[0]",
        ),
        (with("/disabled_reason", json!("because")), "disabled_reason"),
    ] {
        let file = hub.folder().join("bad.json");
        std::fs::write(&file, bad.to_string()).expect("the file is written");
        let output = hub.cli(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
        let stderr_text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{bad}");
        assert!(stderr_text.contains(&format!("{field}: ")), "{field} is not named: {stderr_text}");
    }
}

#[tokio::test]
async fn test_shows_request_and_answer_and_match_says_who_would_get_an_event() {
    let settings = TestSettings::quick().with_key(&format!("{}=", "A".repeat(43)));
    let (broker, receiver, hub, client) = started(&settings).await;
    let mut secretive = subscription("secretive", &["user.*"], &receiver.url("/secretive"));
    secretive["delivery"]["auth"] = json!({"type": "bearer", "token": "hush-hush-token"});
    let mut picky = subscription("picky", &["user.>"], &receiver.url("/picky"));
    picky["filter"] = json!([{"exact": {"source": "idp"}}]);
    let mut paused = subscription("paused", &["user.>"], &receiver.url("/paused"));
    paused["state"] = "paused".into();
    let mut acme = subscription("acme", &["user.>"], &receiver.url("/acme"));
    acme["tenant"] = "acme".into();
    let file = hub.folder().join("subscriptions.json");
    std::fs::write(&file, json!([secretive, picky, paused, acme]).to_string()).expect("the file is written");
    hub.cli_ok(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;

    let shown = hub.cli_json(&["subscription", "test", "secretive"]).await;
    let request = receiver.received("/secretive").remove(0);
    assert_eq!(request.header("authorization"), "Bearer hush-hush-token");
    assert_eq!(request.json()["type"], "user.test");
    assert_eq!(shown["request"]["headers"]["authorization"], "***");
    assert_eq!(shown["request"]["headers"]["webhook-id"], request.webhook_id());
    assert_eq!(shown["request"]["body"], String::from_utf8_lossy(&request.body).into_owned());
    assert_eq!((&shown["answer"]["status"], &shown["a_delivery_would"]), (&json!(200), &json!("be done")));
    assert!(!shown.to_string().contains("hush"), "{shown}");

    // An endpoint that answers 410: the test reports it, and disables nothing.
    let answer =
        Behaviour::Answer { status: 410, headers: Vec::new(), body: "no more of hush-hush-token".into() };
    receiver.set("/secretive", answer);
    let output =
        hub.cli(&["subscription", "test", "secretive", "--event", "user.created", "--output", "json"]).await;
    assert_eq!(output.status.code(), Some(1));
    let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(shown["event_key"], "user.created");
    assert_eq!(shown["answer"]["error"], "410 Gone");
    assert_eq!(shown["answer"]["fault"], "subscriber");
    assert_eq!(shown["answer"]["body"], "no more of ***");
    assert_eq!(shown["a_delivery_would"], "be dead-lettered, and the subscription disabled");
    assert_eq!(hub.cli_json(&["subscription", "show", "secretive"]).await["state"], "active");
    broker.nothing_pending_within(STEP).await;
    assert_eq!(client.dead_letters(DOMAIN).await.len(), 0);

    let who = async |args: &[&str]| -> Vec<String> {
        let output = hub.cli(&[&["subscription", "match", "--output", "json"], args].concat()).await;
        let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let ids: Vec<String> = found
            .as_array()
            .expect("a list")
            .iter()
            .map(|one| one["id"].as_str().expect("an id").to_owned())
            .collect();
        assert_eq!(output.status.code(), Some(i32::from(ids.is_empty())), "{args:?}");
        ids
    };
    assert_eq!(who(&["user.created"]).await, ["secretive"]);
    assert_eq!(who(&["user.created", "--source", "idp"]).await, ["picky", "secretive"]);
    assert_eq!(who(&["user.created.twice", "--source", "idp"]).await, ["picky"]);
    assert_eq!(who(&["user.created", "--tenant", "acme"]).await, ["acme"]);
    assert_eq!(who(&["login.failed"]).await, Vec::<String>::new());
}
