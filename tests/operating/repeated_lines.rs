//! How many lines a running hub writes about what tenants, endpoints and outages repeat: few, with the number of those
//! left out, which are complete at the end.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::time::Duration;

use async_nats::HeaderMap;
use rustix::process::Signal;
use serde_json::json;

use crate::support::{
    Behaviour, FaultProxy, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids,
    subscription, ticks_during,
};

const STEP: Duration = Duration::from_secs(90);
const TENANTS: [&str; 2] = ["acme", "globex"];
const EVENTS: usize = 60;
const LINE: &str = " dead-lettered ";
const SUMMARY: &str = " lines left out ";
/// Lines about a minute of silence: that the server does not answer, at the start and after a minute; two about the
/// connection; and one for each of the four domains about work that was in progress.
const MOST_LINES: usize = 8;

/// The value of a field of a text line.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {name}="))?;
    Some(rest.split(' ').next()?.trim_matches('"'))
}

/// A hub with a subscription of each tenant, whose endpoint rejects all that is sent.
struct Stage {
    hub: Hub,
    client: TestClient,
    _broker: TestBroker,
    _receiver: Receiver,
}

impl Stage {
    async fn set(level: &str, repeat_interval: Duration) -> Self {
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        receiver.set_default(Behaviour::status(400));
        let settings = TestSettings::quick().with(|settings| {
            settings.log.level = Some(level.to_owned());
            settings.log.repeat_interval = Some(repeat_interval);
        });
        let mut hub = Hub::serve(&broker.url(), &settings, &[]);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        let of_tenants = TENANTS.map(|tenant| {
            let mut one = subscription("crm", &["user.>"], &receiver.url("/crm"));
            one["tenant"] = json!(tenant);
            one
        });
        client.subscribe(of_tenants).await;
        Self { hub, client, _broker: broker, _receiver: receiver }
    }

    async fn publish(&self, tenant: &str, id: &str) {
        let mut headers = HeaderMap::new();
        headers.insert("Hub-Tenant", tenant);
        headers.insert("Nats-Msg-Id", id);
        let sent = self.client.context.publish_with_headers("hub.events.user.created", headers, "{}".into());
        sent.await.expect("sent").await.expect("stored");
    }

    /// Publishes events of each tenant, and waits until each is a dead letter.
    async fn fail_all(&self) {
        for tenant in TENANTS {
            for number in 0..EVENTS {
                self.publish(tenant, &format!("{tenant}-{number}")).await;
            }
        }
        let all = (TENANTS.len() * EVENTS) as f64;
        eventually(STEP, "each is a dead letter, and counted", async || {
            let counted = self.hub.metric("hub_dead_lettered_total", &["reason=\"permanent\""]).await;
            if counted == all { Ok(()) } else { Err(counted) }
        })
        .await;
    }

    /// Of each tenant: lines about its dead letters, and dead letters that these account for.
    fn accounted(&self) -> BTreeMap<String, (usize, usize)> {
        let mut found = BTreeMap::<String, (usize, usize)>::new();
        for line in self.hub.log().lines() {
            let is_summary = line.contains(SUMMARY) && field(line, "line") == Some("dead-lettered");
            if !is_summary && !line.contains(LINE) {
                continue;
            }
            let tenant = field(line, "tenant").unwrap_or_else(|| panic!("no tenant: {line}"));
            assert_eq!(field(line, "subscription"), Some("crm"), "{line}");
            let left_out =
                field(line, "repeated").map_or(0, |number| number.parse::<usize>().expect("a number"));
            let (lines, letters) = found.entry(tenant.to_owned()).or_default();
            *lines += 1;
            *letters += left_out + usize::from(!is_summary);
        }
        found
    }
}

#[tokio::test]
async fn a_failing_subscription_has_a_line_per_interval_and_the_numbers_are_complete() {
    let interval = Duration::from_secs(3);
    let stage = Stage::set("info", interval).await;
    let all_accounted = async {
        stage.fail_all().await;
        eventually(STEP, "the lines account for each dead letter after they stop", async || {
            let accounted = stage.accounted();
            let complete =
                TENANTS.iter().all(|tenant| accounted.get(*tenant).is_some_and(|(_, all)| *all == EVENTS));
            if complete { Ok(()) } else { Err(accounted) }
        })
        .await;
    };
    let ((), ended) = ticks_during(interval, all_accounted).await;
    for (tenant, (lines, _)) in stage.accounted() {
        assert!(lines <= ended + 1, "{tenant}: {lines} lines, {ended} intervals have ended");
    }
}

#[tokio::test]
async fn numbers_of_lines_left_out_are_written_at_the_stop() {
    let mut stage = Stage::set("info", Duration::from_secs(3_600)).await;
    stage.fail_all().await;
    let before = stage.accounted();
    assert!(before.values().all(|found| *found == (1, 1)), "one line each: {before:?}");
    assert!(stage.hub.terminate().await.success());
    let after = stage.accounted();
    assert!(after.len() == 2 && after.values().all(|found| *found == (2, EVENTS)), "{after:?}");
}

#[tokio::test]
async fn the_level_debug_has_every_line() {
    let mut stage =
        Stage::set("info,integration_hub::facts::dead_letters=debug", Duration::from_secs(3_600)).await;
    stage.fail_all().await;
    assert!(stage.hub.terminate().await.success());
    let log = stage.hub.log();
    let [warnings, debug] = ["WARN", "DEBUG"]
        .map(|level| log.lines().filter(|line| line.contains(LINE) && line.contains(level)).count());
    assert_eq!((warnings, debug), (TENANTS.len(), TENANTS.len() * (EVENTS - 1)), "{log}");
}

/// At night, without a restart: every line, and back to the level of the settings.
#[tokio::test]
async fn signals_change_the_level_of_the_log() {
    let mut stage = Stage::set("error", Duration::from_secs(3_600)).await;
    let changes = async |count: usize| {
        eventually(STEP, "the level changes", async || {
            let found = stage.hub.log().matches("log level changed").count();
            if found == count { Ok(()) } else { Err(found) }
        })
        .await;
    };
    let dead_lettered = || stage.hub.log().lines().filter(|line| line.contains(LINE)).count();
    stage.hub.signal(Signal::USR1);
    changes(1).await;
    stage.fail_all().await;
    let all = TENANTS.len() * EVENTS;
    eventually(STEP, "each dead letter has a line", async || {
        let found = dead_lettered();
        if found == all { Ok(()) } else { Err(found) }
    })
    .await;
    stage.hub.signal(Signal::USR2);
    changes(2).await;
    stage.publish("acme", "after").await;
    eventually(STEP, "one more dead letter is counted", async || {
        let counted = stage.hub.metric("hub_dead_lettered_total", &["reason=\"permanent\""]).await;
        if counted > all as f64 { Ok(()) } else { Err(counted) }
    })
    .await;
    assert!(stage.hub.terminate().await.success());
    let log = stage.hub.log();
    assert_eq!(log.lines().filter(|line| line.contains(LINE)).count(), all, "{log}");
}

/// With traffic and many tasks that need the server.
#[tokio::test]
async fn a_server_that_is_silent_for_a_minute_has_a_few_lines() {
    const SILENCE: Duration = Duration::from_secs(60);
    let broker = TestBroker::start().await;
    let proxy = FaultProxy::start(&broker.url()).await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&proxy.url("nats"), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let failing = (0..20).map(|number| {
        let path = format!("/failing-{number}");
        receiver.set(&path, Behaviour::status(503));
        subscription(&format!("failing-{number}"), &["user.>", "client.>", "org.>"], &receiver.url(&path))
    });
    let well = subscription("well", &["user.>", "client.>", "org.>", "login.>"], &receiver.url("/well"));
    client.subscribe(failing.chain([well])).await;
    for key in ["user.created", "client.created", "org.created", "login.failed"] {
        client.publish_all(key, &ids(key, 50)).await;
    }
    receiver.wait_for("/well", 1, STEP).await;

    let before = hub.log().lines().count();
    proxy.freeze();
    let silent = tokio::time::Instant::now();
    while silent.elapsed() < SILENCE {
        client.publish("user.created", &format!("during-{}", silent.elapsed().as_millis())).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let during: Vec<String> = hub.log().lines().skip(before).map(str::to_owned).collect();
    println!("{} lines:\n{}", during.len(), during.join("\n"));
    proxy.thaw();
    eventually(STEP, "the end is logged", async || {
        let log = hub.log();
        match log.lines().skip(before).any(|line| line.contains("connected to the NATS server")) {
            true => Ok(()),
            false => Err(log.lines().last().unwrap_or_default().to_owned()),
        }
    })
    .await;
    hub.ready().await;
    client.publish("login.failed", "after").await;
    eventually(STEP, "deliveries continue", async || {
        let received = receiver.received("/well");
        if received.iter().any(|request| request.json()["id"] == "after") {
            Ok(())
        } else {
            Err(received.len())
        }
    })
    .await;
    let all: Vec<String> = hub.log().lines().skip(before).map(str::to_owned).collect();
    println!("and at the end {} lines:\n{}", all.len() - during.len(), all[during.len()..].join("\n"));
    let with = |text: &str| during.iter().filter(|line| line.contains(text)).count();
    assert_eq!(with("lost the connection to the NATS server"), 1, "{during:#?}");
    assert!(with("no answer from the server") + with("no answer from the NATS server") <= 2, "{during:#?}");
    assert!(during.len() <= MOST_LINES, "{} lines: {during:#?}", during.len());
    // Afterwards, each failing endpoint has its lines again, about itself.
    let of_endpoints = |line: &str| {
        ["endpoint keeps failing, circuit opened", "probe failed, circuit open again", " dead-lettered "]
            .iter()
            .any(|sentence| line.contains(sentence))
    };
    // The others are at most one per sentence and domain, however many subscriptions and events there are.
    let mut seen = HashSet::new();
    for line in all.iter().filter(|line| !of_endpoints(line) && !line.contains(" lines left out ")) {
        let text = line.split_once(' ').map_or("", |(_, text)| text);
        let sentence_and_domain: String = text.split('"').take(2).collect();
        assert!(seen.insert(sentence_and_domain), "again: {line}; {all:#?}");
    }
}

/// The circuits of many subscriptions of one tenant open, and their probes fail.
#[tokio::test]
async fn lines_about_circuits_are_limited_for_a_tenant() {
    const SUBSCRIPTIONS: usize = 60;
    /// Of one kind in an interval, for one tenant.
    const MOST: usize = 10;
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    receiver.set_default(Behaviour::status(503));
    let settings = TestSettings::quick().with(|settings| {
        settings.delivery.max_deliver = Some(50);
        settings.circuit.failures = Some(2);
        settings.circuit.failing_for = Some(Duration::ZERO);
        settings.circuit.first_pause = Some(Duration::from_secs(1));
        settings.circuit.longest_pause = Some(Duration::from_secs(2));
        settings.log.repeat_interval = Some(Duration::from_secs(3_600));
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let all = ids("crm", SUBSCRIPTIONS);
    client.subscribe(all.iter().map(|id| subscription(id, &["user.>"], &receiver.url("/crm")))).await;
    client.publish_all("user.created", &ids("event", 4)).await;
    // Each opens, is probed, and opens again.
    for (to, least) in [("half-open", SUBSCRIPTIONS), ("open", 2 * SUBSCRIPTIONS)] {
        let label = format!("to=\"{to}\"");
        hub.metric_above("hub_circuit_transitions_total", &[&label], least as f64 - 0.5, STEP).await;
    }
    receiver.set_default(Behaviour::ok());
    hub.metric_above("hub_circuit_transitions_total", &["to=\"closed\""], SUBSCRIPTIONS as f64 - 0.5, STEP)
        .await;
    let log = hub.log();
    for line in [
        "endpoint keeps failing, circuit opened",
        "circuit half-open, sending a probe",
        "probe failed, circuit open again",
        "circuit closed",
    ] {
        let found = log.lines().filter(|text| text.contains(line) && !text.contains(SUMMARY)).count();
        assert!((1..=MOST).contains(&found), "{found} lines {line:?}");
    }
}
