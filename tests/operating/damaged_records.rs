//! Somebody damages the records of the settings and of the registry together, while the hub works or before it starts:
//! a hub that knows them goes on, makes again what a person deletes, and records them again. No damage makes another
//! bucket the registry.

use std::time::Duration;

use async_nats::jetstream::stream;
use hub_testkit::broker_process::BrokerOptions;

use crate::support::{
    Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, http_client, ids, nats_server, patient,
    print_output,
};

const STEP: Duration = Duration::from_secs(60);
const EVENTS: &str = "HUB_EVENTS";
const BUCKET: &str = "KV_hub-subscriptions";
const SETTINGS: &str = "hub.settings";
const ID: &str = "hub.registry";
const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";
const MENDED: &str = "recorded the settings and the registry of the hub again";
const NOT_MENDED: &str = "records of the hub are damaged and cannot be written";

/// Writes fields of the metadata of a stream in one update; `None` removes one.
async fn write(context: &async_nats::jetstream::Context, stream: &str, fields: &[(&str, Option<&str>)]) {
    let mut config = context.get_stream(stream).await.expect("there").cached_info().config.clone();
    for (key, value) in fields {
        config.metadata.remove(*key);
        config.metadata.extend(value.map(|value| ((*key).to_owned(), value.to_owned())));
    }
    context.update_stream(&config).await.expect("updated");
}

/// The recorded settings, by whomever, and the recorded ids.
async fn records(context: &async_nats::jetstream::Context) -> [String; 3] {
    let mut found = Vec::new();
    for (stream, key) in [(EVENTS, SETTINGS), (EVENTS, ID), (BUCKET, ID)] {
        let config = context.get_stream(stream).await.expect("there").cached_info().config.clone();
        found.push(config.metadata.get(key).cloned().unwrap_or_default());
    }
    let [settings, id, in_bucket]: [String; 3] = found.try_into().expect("three");
    [settings.replace("\"provision\"", "\"serve\""), id, in_bucket]
}

async fn unready(hub: &Hub, text: &str) {
    eventually(STEP, &format!("the hub is not ready: {text}"), async || {
        // It may not listen yet.
        let answer = http_client().get(hub.health_url("/readyz")).send().await.map_err(|e| e.to_string())?;
        let status = answer.status();
        let body = answer.text().await.unwrap_or_default();
        if status == 503 && body.contains(text) { Ok(()) } else { Err(format!("{status} {body}")) }
    })
    .await;
}

fn made(hubs: &[Hub], label: &str) -> usize {
    let quoted = format!("\"{label}\"");
    let lines = |hub: &Hub| {
        hub.log().lines().filter(|line| line.contains("created it again") && line.contains(&quoted)).count()
    };
    hubs.iter().map(lines).sum()
}

async fn served(broker: &TestBroker, number: usize) -> Vec<Hub> {
    let mut hubs: Vec<Hub> =
        (0..number).map(|_| Hub::serve(&broker.url(), &TestSettings::patient(), &[])).collect();
    for hub in &mut hubs {
        hub.ready().await;
    }
    hubs
}

/// Missing, empty, no text of a hub, wrong JSON, JSON of another shape, huge.
fn damages_of_settings() -> Vec<Option<String>> {
    vec![
        None,
        Some(String::new()),
        Some("\u{fffd}\u{1}".to_owned()),
        Some("{\"by\":".to_owned()),
        Some(r#"{"by":"serve","settings":{}}"#.to_owned()),
        Some(format!("\"{}\"", "x".repeat(50_000))),
    ]
}

/// The same, and the id of another registry.
fn damages_of_id() -> Vec<Option<String>> {
    vec![
        None,
        Some(String::new()),
        Some("\u{fffd}\u{1}".to_owned()),
        Some("{}".to_owned()),
        Some("9".repeat(50_000)),
        Some("2020-01-15T08:00:00Z".to_owned()),
    ]
}

async fn goes_on_with(processes: usize) {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hubs = served(&broker, processes).await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("crm", &["user.>"], &receiver.url("/crm"))]).await;
    let recorded = records(&client.context).await;
    let [settings, ids_] = [damages_of_settings(), damages_of_id()];
    for number in 0..settings.len() {
        // Each damage of one with another of the other one, together.
        let (settings, id) = (settings[number].as_deref(), ids_[(number + 1) % ids_.len()].as_deref());
        write(&client.context, BUCKET, &[(ID, id.or(Some("nonsense")))]).await;
        write(&client.context, EVENTS, &[(SETTINGS, settings), (ID, id)]).await;
        let labels = [format!("consumer {OUTBOX}/lane-shared"), "stream HUB_ATTEMPTS".to_owned()];
        let before = labels.each_ref().map(|label| made(&hubs, label));
        let outbox = client.context.get_stream(OUTBOX).await.expect("there");
        outbox.delete_consumer("lane-shared").await.expect("deleted");
        client.context.delete_stream("HUB_ATTEMPTS").await.expect("deleted");
        for (label, before) in labels.iter().zip(before) {
            eventually(STEP, &format!("{label} is made again"), async || {
                let lines = made(&hubs, label);
                // Two processes may make the same consumer at the same moment.
                if lines == before + 1 || (processes > 1 && lines > before) { Ok(()) } else { Err(lines) }
            })
            .await;
        }
        eventually(STEP, &format!("{settings:?} and {id:?} are mended"), async || {
            let now = records(&client.context).await;
            if now == recorded { Ok(()) } else { Err(now) }
        })
        .await;
        client.publish("user.created", &format!("event-{number}")).await;
        receiver.wait_accepted("/crm", number + 1, STEP).await;
        for hub in &mut hubs {
            hub.ready().await;
        }
    }
    let log: String = hubs.iter().map(Hub::log).collect();
    assert!(log.contains(MENDED), "{log}");
    assert!(!log.contains("registry is lost") && !log.contains("takes no work"), "{log}");
    assert!(log.lines().all(|line| line.len() < 4_000));
}

#[tokio::test]
async fn a_process_at_work_makes_parts_again_and_mends_both_records() {
    goes_on_with(1).await;
}

#[tokio::test]
async fn two_processes_at_work_do_the_same_together() {
    goes_on_with(2).await;
}

#[tokio::test]
async fn a_process_that_starts_reports_both_and_waits_for_one_that_knows_them() {
    let broker = TestBroker::start().await;
    let hubs = served(&broker, 1).await;
    let client = TestClient::connect(&broker.url()).await;
    let recorded = records(&client.context).await;
    hubs[0].freeze();
    write(&client.context, EVENTS, &[(SETTINGS, Some("[]")), (ID, Some("nonsense"))]).await;
    let mut second = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    for text in ["registry of the hub", "settings of the hub", "hub.settings", "hub.registry", "is damaged"] {
        unready(&second, text).await;
    }
    let log = second.log();
    for line in [
        "settings are unreadable, this process takes no work",
        "the recorded id of the subscription registry is damaged",
    ] {
        assert_eq!(log.matches(line).count(), 1, "{line} in {log}");
    }
    assert_ne!(records(&client.context).await, recorded, "who does not know it records nothing");
    hubs[0].thaw();
    second.ready().await;
    assert_eq!(records(&client.context).await, recorded);
}

/// Users of single roles may not change streams.
#[tokio::test]
async fn without_the_permission_the_hub_goes_on_and_the_log_names_the_command_that_mends_them() {
    let accounts = r#"
accounts {
  HUB {
    jetstream: enabled
    users: [
      { user: admin, password: admin }
      { user: role, password: role, permissions: { publish: { deny: ["$JS.API.STREAM.UPDATE.>"] } } }
    ]
  }
}"#;
    let options = BrokerOptions { extra_config: accounts.to_owned(), ..BrokerOptions::new(nats_server()) };
    let broker = TestBroker::start_with(options).await;
    let receiver = Receiver::start().await;
    let as_user = |name: &str| {
        TestSettings::patient().with(|settings| {
            settings.nats.user = Some(name.to_owned());
            settings.nats.password = Some(name.to_owned());
        })
    };
    let admin = Hub::not_started(&broker.url(), &as_user("admin"));
    admin.cli_ok(&["provision"]).await;
    let mut hub = Hub::serve(&broker.url(), &as_user("role"), &[]);
    hub.ready().await;
    let file = admin.folder().join("crm.json");
    std::fs::write(&file, patient("crm", &["user.>"], &receiver.url("/crm")).to_string()).expect("written");
    admin.cli_ok(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
    let login = async_nats::ConnectOptions::with_user_and_password("admin".to_owned(), "admin".to_owned());
    let context = async_nats::jetstream::new(login.connect(broker.url()).await.expect("connected"));
    let recorded = records(&context).await;
    write(&context, EVENTS, &[(SETTINGS, Some("[]")), (ID, Some("nonsense"))]).await;
    hub.wait_for_log(NOT_MENDED, STEP).await;
    let (ready, text) = hub.readiness().await;
    assert!(ready && text.contains("warning: the records of the hub"), "{text}");
    for part in ["hub.settings", "hub.registry", "`hub provision --create-registry`"] {
        assert!(text.contains(part) && hub.log().contains(part), "{part} in {text}");
    }
    let outbox = context.get_stream(OUTBOX).await.expect("there");
    outbox.delete_consumer("lane-shared").await.expect("deleted");
    hub.wait_for_log("created it again", STEP).await;
    admin.cli_ok(&["publish", "user.created", "{\"user_id\":\"u1\"}"]).await;
    receiver.wait_accepted("/crm", 1, STEP).await;

    admin.cli_ok(&["provision", "--create-registry"]).await;
    assert_eq!(records(&context).await, recorded);
    hub.wait_for_log("records of the hub are right again", STEP).await;
    let (ready, text) = hub.readiness().await;
    assert!(ready && !text.contains("warning"), "{text}");
    assert_eq!(hub.log().matches(NOT_MENDED).count(), 1, "{}", hub.log());
}

fn plain_bucket() -> stream::Config {
    stream::Config {
        name: BUCKET.to_owned(),
        subjects: vec!["$KV.hub-subscriptions.>".to_owned()],
        ..stream::Config::default()
    }
}

#[tokio::test]
async fn a_removed_record_makes_no_other_bucket_the_registry() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hubs = served(&broker, 1).await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("crm", &["user.>"], &receiver.url("/crm"))]).await;
    let recorded = records(&client.context).await;

    // The events stream is never without its records, so that a process that starts now finds them.
    client.context.delete_stream(EVENTS).await.expect("deleted");
    eventually(STEP, "the events stream is made again", async || {
        client.context.get_stream(EVENTS).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    let [settings, id, _] = &recorded;
    let now = records(&client.context).await;
    assert_eq!((&now[0], &now[1]), (settings, id));

    // While it runs: the bucket is another one, and both records are removed.
    client.context.delete_stream(BUCKET).await.expect("deleted");
    client.context.create_stream(plain_bucket()).await.expect("created");
    write(&client.context, EVENTS, &[(SETTINGS, None), (ID, None)]).await;
    unready(&hubs[0], "was deleted and created again").await;
    eventually(STEP, "the record names the registry that was lost", async || {
        let now = records(&client.context).await;
        if now[..2] == recorded[..2] { Ok(()) } else { Err(now) }
    })
    .await;
    client.publish_all("user.created", &ids("waits", 5)).await;

    // Before it starts: only an operator knows.
    assert!(hubs[0].terminate().await.success());
    for id in [None, Some("nonsense")] {
        write(&client.context, EVENTS, &[(ID, id)]).await;
        hubs[0].start();
        unready(&hubs[0], "is damaged or was removed").await;
        let refused = hubs[0].cli(&["provision"]).await;
        assert_eq!(refused.status.code(), Some(1), "{}", print_output(&refused));
        assert!(hubs[0].terminate().await.success());
    }
    assert_eq!(client.stream(EVENTS).await.state.messages, 5, "events wait");

    hubs[0].start();
    hubs[0].cli_ok(&["provision", "--create-registry"]).await;
    hubs[0].ready().await;
    client.subscribe([patient("crm", &["user.>"], &receiver.url("/crm"))]).await;
    client.publish("user.created", "after").await;
    receiver.wait_accepted("/crm", 1, STEP).await;
}

/// The bucket itself shows that it was accepted.
#[tokio::test]
async fn a_process_that_starts_records_the_id_again_if_it_was_removed() {
    let broker = TestBroker::start().await;
    let mut hubs = served(&broker, 1).await;
    let client = TestClient::connect(&broker.url()).await;
    let recorded = records(&client.context).await;
    assert!(hubs[0].terminate().await.success());
    write(&client.context, EVENTS, &[(ID, None)]).await;
    hubs[0].start();
    hubs[0].ready().await;
    assert_eq!(records(&client.context).await, recorded);
}

/// Processes with the previous settings mend the records at the moment at which an operator replaces them.
#[tokio::test]
async fn settings_that_are_applied_while_the_records_are_mended_stay() {
    const ROUNDS: usize = 6;
    let broker = TestBroker::start().await;
    let mut hubs = served(&broker, 2).await;
    let client = TestClient::connect(&broker.url()).await;
    let applied = |deliveries: u32, events: u64| {
        let settings = TestSettings::patient().with(|settings| {
            settings.delivery.max_deliver = Some(deliveries);
            settings.limits.events = Some(events);
        });
        Hub::not_started(&broker.url(), &settings)
    };
    let before = Hub::not_started(&broker.url(), &TestSettings::patient());
    let recorded = records(&client.context).await;
    let mut newer = recorded.clone();
    for round in 0..ROUNDS {
        let events = 50_000_000 + round as u64;
        let other = applied(4 + round as u32, events);
        write(&client.context, EVENTS, &[(SETTINGS, Some("[]")), (ID, None)]).await;
        other.cli_ok(&["provision"]).await;
        let there = records(&client.context).await;
        assert_ne!(there[0], newer[0], "the settings of this round");
        newer = there;
        for hub in &hubs {
            unready(hub, "settings of the hub").await;
        }
        assert_eq!(records(&client.context).await, newer, "round {round}");
        assert_eq!(client.stream(EVENTS).await.config.max_bytes, events as i64, "round {round}");
        before.cli_ok(&["provision"]).await;
        for hub in &mut hubs {
            hub.ready().await;
        }
        assert_eq!(records(&client.context).await, recorded, "round {round}");
    }
}
