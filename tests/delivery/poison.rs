//! A bad publication stops no other one: each valid event is delivered at once, and each invalid publication is stored
//! with its reason and its original bytes.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use integration_hub::nats::StoredMessage;
use serde_json::Value;

use crate::support::{
    Hub, RawPublisher, Receiver, TestBroker, TestClient, TestSettings, eventually, subscription,
};

const STEP: Duration = Duration::from_secs(60);
const CREATED: &[u8] = b"hub.events.user.created";

/// Header blocks that look like a status of the server. Newer servers remove the status when they store
/// the message, which is then an ordinary event; older ones deliver it unchanged.
const STATUSES: [&[u8]; 8] = [
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1000000\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    b"NATS/1.0 200\r\n\r\n",
    b"NATS/1.0 soon\r\n\r\n",
];

/// Header blocks that cannot be parsed.
fn blocks() -> Vec<Vec<u8>> {
    let mut blocks: Vec<Vec<u8>> = [
        &b"NATS/1.0\r\nHub-Source:M\xfcller\r\n\r\n"[..],
        b"NATS/1.0\r\nM\xfcller: x\r\n\r\n",
        "NATS/1.0\r\nMüller: x\r\n\r\n".as_bytes(),
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\nA blank: x\r\n\r\n",
        b"NATS/1.0\r\nA\x00: x\r\n\r\n",
        b"NATS/1.0\r\nA: x\ry\r\n\r\n",
        b"NATS/1.0\r\n folded: first\r\n\r\n",
        b"NATS/2.0\r\nA: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"x",
        b"\x00\x00\x00\x00",
        b"NATS/1",
        b"\xff\xfe\xff\xfe",
    ]
    .iter()
    .map(|block| block.to_vec())
    .collect();
    // As many header bytes as a stream accepts: in base64, they do not fit into a message together with the reason.
    blocks.push([&b"NATS/1.0\r\nA: "[..], &vec![0xfe; 65_000], b"\r\n\r\n"].concat());
    blocks
}

struct Bad {
    subject: Vec<u8>,
    block: Option<Vec<u8>>,
    body: Vec<u8>,
    reason: &'static str,
}

fn bad(subject: &[u8], block: Option<&[u8]>, body: impl AsRef<[u8]>, reason: &'static str) -> Bad {
    Bad { subject: subject.to_vec(), block: block.map(<[u8]>::to_vec), body: body.as_ref().to_vec(), reason }
}

fn bad_publications() -> Vec<Bad> {
    let good_headers = Some(&b"NATS/1.0\r\nHub-Source: idp\r\n\r\n"[..]);
    let mut all: Vec<Bad> =
        blocks().iter().map(|block| bad(CREATED, Some(block), br#"{"a":1}"#, "malformed-headers")).collect();
    let long = |token: &[u8], count| [b"hub.events.", &token.repeat(count)[..], b".x"].concat();
    for subject in [&b"hub.events.user.\xff"[..], b"hub.events.\xed\xa0\x80.x", b"hub.events.user.%FF\xfe"] {
        all.push(bad(subject, None, "{}", "malformed-subject"));
        all.push(bad(subject, good_headers, "{}", "malformed-subject"));
        all.push(bad(subject, Some(b"NATS/1.0\r\n\xff\r\n\r\n"), "{}", "malformed-subject"));
    }
    for subject in [
        "hub.events.user.a\u{a0}b".as_bytes(),
        "hub.events.user.\u{2028}".as_bytes(),
        "hub.events.user.\u{202e}\u{85}".as_bytes(),
        b"hub.events.user.\x01\x0b\x0c\x1b\x7f",
        b"hub.events.user.\x00",
        b"hub.events.*",
        b"hub.events.>",
        b"hub.events.user.*",
        b"hub.events.user",
        &long(b"x", 3_900),
        &long(b"x.x", 1_200),
    ] {
        all.push(bad(subject, None, "{}", "invalid-key"));
        all.push(bad(subject, good_headers, "{}", "invalid-key"));
    }
    let structured = Some(&b"NATS/1.0\r\nContent-Type: application/cloudevents+json\r\n\r\n"[..]);
    let binary = Some(&b"NATS/1.0\r\nce-id: 1\r\nce-source: a\r\nce-specversion: 1.0\r\nce-type: user.created\r\nce-b\xc3\xbc: x\r\n\r\n"[..]);
    for body in [
        vec![b'['; 100_000],
        br#"{"a":"#.repeat(100_000),
        vec![0; 1000],
        b"\xff".to_vec(),
        b"{} {}".to_vec(),
        b"NaN".to_vec(),
        Vec::new(),
    ] {
        all.push(bad(CREATED, None, &body, "malformed"));
        all.push(bad(CREATED, structured, &body, "malformed"));
    }
    let nested = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let extension =
        [br#"{"specversion":"1.0","id":"1","source":"a","type":"user.created","x":"#, &nested[..], b"}"];
    all.push(bad(CREATED, structured, extension.concat(), "malformed"));
    all.push(bad(CREATED, structured, &nested, "malformed"));
    all.push(bad(CREATED, binary, "{}", "malformed-headers"));
    // As many headers as a stream accepts; the original does not fit into a message together with its reason.
    let headers: String = (0..4_000).map(|n| format!("h{n}: {n}\r\n")).collect();
    let many = format!("NATS/1.0\r\n{headers}\r\n");
    all.push(bad(CREATED, Some(many.as_bytes()), "no JSON", "malformed"));
    // Headers with names of the hub.
    let forged = b"NATS/1.0\r\nHub-Reason: fine\r\nHub-Part: 9/9\r\nHub-Original-Headers: eA==\r\nNats-Sequence: 1\r\n\r\n";
    all.push(bad(CREATED, Some(forged), "no JSON", "malformed"));
    // The largest payload that the server accepts.
    all.push(bad(CREATED, None, vec![b'x'; 1_048_576], "too-large"));
    all.push(bad(
        CREATED,
        Some(b"NATS/1.0\r\n\xff\r\n\r\n"),
        vec![b'x'; 1_048_576 - 15],
        "malformed-headers",
    ));
    all
}

/// Unusual but valid events: their data is delivered unchanged.
fn odd_events() -> Vec<Vec<u8>> {
    let nested = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    vec![
        nested,
        [br#"{"a":"#.repeat(50_000), b"1".to_vec(), vec![b'}'; 50_000]].concat(),
        br#"{"a":1,"a":2,"a":{"a":1,"a":2}}"#.to_vec(),
        br#"{"a":"\ud800"}"#.to_vec(),
        br#"[1e999, -1e999, 1e-999, 123456789012345678901234567890]"#.to_vec(),
        b"\"\\u0000\"".to_vec(),
        b"null".to_vec(),
    ]
}

/// The kept bytes of one publication, joined from its parts.
struct Kept {
    first: StoredMessage,
    body: Vec<u8>,
    block: Vec<u8>,
    subject: Vec<u8>,
}

async fn kept(client: &TestClient, sequences: std::ops::RangeInclusive<u64>) -> Vec<Kept> {
    let mut all: Vec<Kept> = Vec::new();
    for sequence in sequences {
        let message = client.js.get("HUB_REJECTED", sequence).await.expect("readable").expect("kept");
        assert_eq!(message.malformed(), None);
        let decode = |name: &str| message.header(name).map(|text| STANDARD.decode(text).expect("base64"));
        let later = message.header("Hub-Part").is_some_and(|part| !part.starts_with("1/"));
        if !later {
            let subject = message.header("Hub-Subject").unwrap_or_default().as_bytes().to_vec();
            all.push(Kept {
                body: Vec::new(),
                block: decode("Hub-Original-Headers").unwrap_or_default(),
                subject: decode("Hub-Original-Subject").unwrap_or(subject),
                first: message.clone(),
            });
        }
        let part = all
            .iter_mut()
            .rev()
            .find(|kept| kept.first.header("Hub-Sequence") == message.header("Hub-Sequence"));
        let part = part.expect("the first part comes first");
        match message.header("Hub-Part-Of") {
            None => part.body.extend_from_slice(&message.payload),
            Some("headers") => part.block.extend_from_slice(&message.payload),
            Some("subject") => part.subject = message.payload.to_vec(),
            Some(other) => panic!("{other}"),
        }
    }
    all
}

async fn ready(hub: &Hub) -> bool {
    let answer =
        crate::support::http_client().get(hub.api_url("/readyz")).send().await.expect("the hub answers");
    answer.status() == 200
}

/// Disconnects and reconnects of the hub, according to its log.
fn reconnects(hub: &Hub) -> usize {
    hub.log().matches("lost the connection to the NATS server").count()
}

#[tokio::test]
async fn whatever_is_published_costs_no_other_event_more_than_a_moment() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("all", &[">"], &receiver.url("/all"))]).await;
    let mut raw = RawPublisher::connect(&broker.url()).await;
    let (all, odd) = (bad_publications(), odd_events());
    let mut good = 0;
    for (number, bad) in all.iter().enumerate() {
        raw.publish(&bad.subject, bad.block.as_deref(), &bad.body).await;
        client.publish("user.created", &format!("good-{number}")).await;
        good += 1;
    }
    for body in &odd {
        raw.publish(CREATED, None, body).await;
    }
    for (number, block) in STATUSES.iter().enumerate() {
        raw.publish(CREATED, Some(block), format!("{{\"status\":{number}}}").as_bytes()).await;
    }
    receiver.wait_accepted("/all", good + odd.len(), STEP).await;
    let last = eventually(STEP, "all publications are processed", async || {
        let left = client.stream("HUB_EVENTS").await.state.messages;
        if left == 0 { Ok(client.stream("HUB_REJECTED").await.state.last_sequence) } else { Err(left) }
    })
    .await;
    assert!(ready(&hub).await);
    assert_eq!(reconnects(&hub), 0, "{}", hub.log());
    let kept = kept(&client, 1..=last).await;
    let status_of = |body: &[u8]| serde_json::from_slice::<Value>(body).ok()?["status"].as_u64();
    let (refused, mut kept): (Vec<Kept>, Vec<Kept>) =
        kept.into_iter().partition(|kept| status_of(&kept.body).is_some());
    assert_eq!(kept.len(), all.len());
    for bad in &all {
        let what = || {
            format!(
                "{:?} {:?} {} bytes",
                String::from_utf8_lossy(&bad.subject).chars().take(60).collect::<String>(),
                bad.block.as_deref().map(|block| String::from_utf8_lossy(&block[..block.len().min(60)])),
                bad.body.len()
            )
        };
        let unreadable =
            bad.reason == "malformed-headers" || bad.block.as_ref().is_some_and(|b| b.contains(&0xff));
        let at = kept.iter().position(|kept| {
            kept.body == bad.body
                && kept.subject == bad.subject
                && (!unreadable || Some(&kept.block) == bad.block.as_ref())
                && kept.first.header("Hub-Reason") == Some(bad.reason)
        });
        let found = kept.remove(at.unwrap_or_else(|| panic!("{}: is not kept as {}", what(), bad.reason)));
        assert_eq!(found.first.subject, format!("hub.rejected.{}", bad.reason), "{}", what());
        assert!(found.first.header("Hub-Error").is_some_and(|error| !error.is_empty()), "{}", what());
    }
    // Each publication with a status was delivered without it or is kept with it; none was taken for a server status.
    let expected = good + odd.len() + STATUSES.len() - refused.len();
    receiver.wait_accepted("/all", expected, STEP).await;
    for kept in &refused {
        let number = status_of(&kept.body).and_then(|number| usize::try_from(number).ok());
        assert_eq!(kept.first.header("Hub-Reason"), Some("malformed-headers"));
        assert_eq!(kept.block, STATUSES[number.expect("one of them")]);
    }
    // The unusual events reached their receiver unchanged.
    let bodies: Vec<Vec<u8>> =
        receiver.received("/all").iter().map(|request| request.body.to_vec()).collect();
    for body in odd {
        assert!(bodies.iter().any(|sent| sent.windows(body.len()).any(|part| part == body)));
    }
    let trace = hub.cli_json(&["event", "trace", "good-0"]).await;
    assert!(trace.to_string().contains("delivered"), "{trace}");
    let forged = client.js.get("HUB_REJECTED", 1).await.expect("readable").expect("kept");
    let id = format!("HUB_EVENTS-{}", forged.header("Hub-Sequence").expect("it is there"));
    let trace = hub.cli_json(&["event", "trace", &id]).await;
    assert!(trace.to_string().contains("malformed-headers"), "{trace}");
}

#[tokio::test]
async fn good_events_behind_a_bad_one_are_delivered_by_a_hub_that_finds_it() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("all", &[">"], &receiver.url("/all"))]).await;
    hub.terminate().await;
    let mut raw = RawPublisher::connect(&broker.url()).await;
    raw.publish(CREATED, Some(b"NATS/1.0\r\nHub-Source:M\xfcller\r\n\r\n"), b"{}").await;
    for block in blocks().iter().map(Vec::as_slice).chain(STATUSES) {
        raw.publish(CREATED, Some(block), b"{}").await;
    }
    let ids = crate::support::ids("good", 200);
    client.publish_all("user.created", &ids).await;
    // Before anything is rejected, a trace skips all of it.
    let trace = hub.cli_json(&["event", "trace", "good-0"]).await;
    assert!(trace.to_string().contains("good-0"), "{trace}");
    hub.start();
    receiver.wait_accepted("/all", ids.len(), STEP).await;
    broker.nothing_pending_within(STEP).await;
    assert_eq!(reconnects(&hub), 0, "{}", hub.log());
}

/// Invalid bytes on subjects that only the hub should publish to.
#[tokio::test]
async fn bad_bytes_in_every_other_stream_stop_no_reader() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut raw = RawPublisher::connect(&broker.url()).await;
    let advisory =
        b"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.HUB_OUTBOX_USER_LIFECYCLE.lane-shared".to_vec();
    let long = "x".repeat(3_800);
    let mut subjects: Vec<Vec<u8>> = [
        "hub.outbox.user-lifecycle.shared.all",
        "hub.outbox.user-lifecycle.shared.*",
        "hub.outbox.user-lifecycle.*.all",
        "hub.outbox.user-lifecycle.shared.all.DLT",
        "hub.redrive.due.user-lifecycle.1",
        "hub.redrive.due.user-lifecycle.x",
        "hub.redrive.at.user-lifecycle.1",
        "hub.redrive.replaying.user-lifecycle.1",
        "hub.attempts.user-lifecycle.all",
        "hub.attempts.user-lifecycle.all.env_1",
        "hub.rejected.malformed",
        "$KV.hub-subscriptions.bad",
        "$KV.hub-tokens.bad",
        "$KV.hub-orders.bad",
        "hub.redrive.held.all",
    ]
    .iter()
    .map(|subject| subject.as_bytes().to_vec())
    .collect();
    subjects.push(advisory);
    for prefix in [
        "hub.outbox.user-lifecycle.shared.",
        "hub.redrive.due.",
        "hub.attempts.user-lifecycle.",
        "hub.rejected.",
        "$KV.hub-subscriptions.",
        "$KV.hub-tokens.",
        "$KV.hub-orders.",
        "hub.redrive.held.",
    ] {
        let tail = if prefix == "hub.redrive.due." { &b".1"[..] } else { b"" };
        subjects.push([prefix.as_bytes(), b"\xff", tail].concat());
        subjects.push([prefix.as_bytes(), long.as_bytes(), tail].concat());
    }
    let bodies = [&b"{}"[..], b"", b"\xff\xff", &[b'['; 20_000]];
    for subject in &subjects {
        for (number, block) in blocks().iter().enumerate() {
            raw.publish(subject, Some(block), bodies[number % bodies.len()]).await;
        }
        raw.publish(subject, None, b"[[[[").await;
    }
    client.subscribe([subscription("all", &[">"], &receiver.url("/all"))]).await;
    let ids = crate::support::ids("good", 50);
    client.publish_all("user.created", &ids).await;
    receiver.wait_accepted("/all", ids.len(), STEP).await;
    // Each invalid envelope is a dead letter with its bytes; invalid timers and advisories are removed.
    broker_settles(&client).await;
    // Of each of the four outbox subjects that a lane reads, of one in a lane that no worker reads, which the sweep
    // finds, and of the dead-letter subject.
    let each = blocks().len() + 1;
    let letters = eventually(STEP, "each is a dead letter", async || {
        let letters = client.dead_letters("user-lifecycle").await;
        if letters.len() >= 6 * each { Ok(letters) } else { Err(letters.len()) }
    })
    .await;
    let undecodable = |entry: &&integration_hub::nats::DeadLetterEntry| {
        entry.letter.reason.as_str() == "undecodable" && entry.letter.state.as_str() == "parked"
    };
    assert_eq!(letters.iter().filter(undecodable).count(), letters.len(), "{letters:?}");
    assert_eq!(letters.len(), 6 * each);
    for list in [&["subscription", "list"][..], &["token", "list"], &["dlt", "list"], &["domain", "list"]] {
        hub.cli_json(list).await;
    }
    let trace = hub.cli_json(&["event", "trace", "good-0"]).await;
    assert!(trace.to_string().contains("delivered"), "{trace}");
    assert!(ready(&hub).await);
    assert_eq!(reconnects(&hub), 0, "{}", hub.log());
    // Tokens can still be created and revoked, and a subscription overwritten.
    hub.cli_ok(&["token", "create", "fine", "--scope", "read"]).await;
    let tokens = hub.cli_json(&["token", "list"]).await.to_string();
    assert!(tokens.contains("fine"), "{tokens}");
}

/// Waits until each outbox, the advisories and the redrive orders are processed, except for lanes without a reader.
async fn broker_settles(client: &TestClient) {
    eventually(STEP, "the streams are worked off", async || {
        let outbox = client.consumer("HUB_OUTBOX_USER_LIFECYCLE", "lane-shared").await;
        let advisories = client.stream("HUB_ADVISORIES").await.state.messages;
        let redrive = client.consumer("HUB_REDRIVE", "dlt-processor").await;
        let dlt = client.consumer("HUB_OUTBOX_USER_LIFECYCLE_DLT", "dlt-processor").await;
        let left = [&outbox, &redrive, &dlt].map(|info| info.num_pending + info.num_ack_pending as u64);
        if advisories == 0 && left == [0, 0, 0] { Ok(()) } else { Err((advisories, left)) }
    })
    .await;
}
