//! Somebody writes nonsense into the metadata in which the hub records its settings and the id of its registry: it is
//! reported with the command that mends it, and never taken for what was recorded.

use std::time::Duration;

use crate::support::{
    Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, http_client, ids, patient, print_output,
};

const STEP: Duration = Duration::from_secs(60);
const BUCKET: &str = "KV_hub-subscriptions";
const MENDED: &str = "recorded the settings and the registry of the hub again";

/// Writes a field of the metadata of a stream; `None` removes it.
async fn write(client: &TestClient, stream: &str, key: &str, value: Option<&str>) {
    let mut config = client.stream(stream).await.config;
    config.metadata.remove(key);
    config.metadata.extend(value.map(|value| (key.to_owned(), value.to_owned())));
    client.context.update_stream(&config).await.expect("updated");
}

async fn read(client: &TestClient, stream: &str, key: &str) -> String {
    client.stream(stream).await.config.metadata.get(key).cloned().unwrap_or_default()
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

/// Everything except a missing record, which is that of a new hub.
fn damages() -> Vec<String> {
    let names: Vec<String> = (0..2_000).map(|number| format!("d{number}")).collect();
    vec![
        String::new(),
        "something else".to_owned(),
        "[]".to_owned(),
        r#"{"by":"serve","settings":{"domains":7}}"#.to_owned(),
        r#"{"by":"serve","settings":{"domains":"user-lifecycle, a.*.> b"}}"#.to_owned(),
        format!(r#"{{"by":"serve","settings":{{"domains":"{}"}}}}"#, names.join(", ")),
        r#"{"format":2,"by":"serve","settings":["of a newer version"]}"#.to_owned(),
    ]
}

#[tokio::test]
async fn a_process_that_starts_waits_until_unreadable_settings_are_replaced() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("crm", &["user.>"], &receiver.url("/crm"))]).await;
    let recorded = read(&client, "HUB_EVENTS", "hub.settings").await;
    for (number, damage) in damages().into_iter().enumerate() {
        assert!(hub.terminate().await.success());
        write(&client, "HUB_EVENTS", "hub.settings", Some(&damage)).await;
        hub.start();
        unready(&hub, "`hub provision`").await;
        client.publish("user.created", &format!("event-{number}")).await;
        let log = hub.log();
        let line = log.lines().find(|line| line.contains("recorded settings are unreadable"));
        let line = line.unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains("hub.settings") && line.len() < 2_000, "{line}");
        assert!(!log.contains("panicked"), "{log}");
        assert_eq!(read(&client, "HUB_EVENTS", "hub.settings").await, damage, "nobody replaces it silently");
        let check = hub.cli(&["provision", "--check"]).await;
        assert_eq!(check.status.code(), Some(1), "{}", print_output(&check));
        let shown = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(shown.contains("the recorded settings are unreadable"), "{shown}");
        let mended = hub.cli(&["provision"]).await;
        assert!(mended.status.success(), "{}", print_output(&mended));
        assert!(print_output(&mended).contains("unreadable"), "{}", print_output(&mended));
        hub.ready().await;
        receiver.wait_accepted("/crm", number + 1, STEP).await;
        let now = read(&client, "HUB_EVENTS", "hub.settings").await;
        assert_eq!(now.replace("\"provision\"", "\"serve\""), recorded.replace("\"provision\"", "\"serve\""));
    }
}

#[tokio::test]
async fn a_process_at_work_mends_damage_and_stops_for_a_newer_version() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("crm", &["user.>"], &receiver.url("/crm"))]).await;
    hub.cli_ok(&["provision"]).await;
    let recorded = read(&client, "HUB_EVENTS", "hub.settings").await;
    assert!(recorded.contains("\"by\":\"provision\""), "{recorded}");
    // The process has seen who recorded them.
    let mut damages = damages();
    let newer = damages.pop().expect("the last one");
    for (number, damage) in damages.into_iter().map(Some).chain([None]).enumerate() {
        write(&client, "HUB_EVENTS", "hub.settings", damage.as_deref()).await;
        eventually(STEP, "the settings are recorded again", async || {
            let now = read(&client, "HUB_EVENTS", "hub.settings").await;
            let by_any = |text: &str| text.replace("\"provision\"", "\"serve\"");
            let lines = hub.log().matches(MENDED).count();
            if by_any(&now) == by_any(&recorded) && lines == number + 1 { Ok(()) } else { Err((now, lines)) }
        })
        .await;
        assert!(hub.readiness().await.0);
    }

    write(&client, "HUB_EVENTS", "hub.settings", Some(&newer)).await;
    unready(&hub, "of a newer version of the hub").await;
    client.publish_all("user.created", &ids("wait", 10)).await;
    assert_eq!(read(&client, "HUB_EVENTS", "hub.settings").await, newer);
    assert_eq!(receiver.count("/crm"), 0, "it takes no work");
    hub.cli_ok(&["provision"]).await;
    hub.ready().await;
    receiver.wait_accepted("/crm", 10, STEP).await;
}

#[tokio::test]
async fn a_damaged_id_of_the_registry_stops_the_hub_until_the_bucket_is_accepted() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::patient(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([patient("crm", &["user.>"], &receiver.url("/crm"))]).await;
    let id = read(&client, "HUB_EVENTS", "hub.registry").await;
    let huge = "9".repeat(50_000);
    for (number, damage) in ["", "nonsense", huge.as_str()].into_iter().enumerate() {
        // A process at work knows the bucket; one that starts does not. Also if the bucket says the same.
        assert!(hub.terminate().await.success());
        write(&client, BUCKET, "hub.registry", Some(damage)).await;
        write(&client, "HUB_EVENTS", "hub.registry", Some(damage)).await;
        hub.start();
        unready(&hub, "is damaged").await;
        client.publish("user.created", &format!("event-{number}")).await;
        for arguments in [&["provision"][..], &["provision", "--check"]] {
            let output = hub.cli(arguments).await;
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", print_output(&output));
            let shown = print_output(&output);
            assert!(shown.contains("`hub provision --create-registry`"), "{arguments:?}: {shown}");
        }
        assert_eq!(receiver.count("/crm"), number, "events wait");
        hub.cli_ok(&["provision", "--create-registry"]).await;
        hub.ready().await;
        receiver.wait_accepted("/crm", number + 1, STEP).await;
        for stream in ["HUB_EVENTS", BUCKET] {
            assert_eq!(read(&client, stream, "hub.registry").await, id, "{stream}");
        }
    }
    // The bucket is known by its creation, and the record by what the process has seen.
    for (stream, damage) in [(BUCKET, None), (BUCKET, Some("nonsense")), ("HUB_EVENTS", None)] {
        write(&client, stream, "hub.registry", damage).await;
        eventually(STEP, "the id is there again", async || {
            match read(&client, stream, "hub.registry").await {
                now if now == id => Ok(()),
                other => Err(other),
            }
        })
        .await;
        assert!(hub.readiness().await.0, "{stream}");
    }
    client.publish("user.created", "last").await;
    receiver.wait_accepted("/crm", 4, STEP).await;
}
