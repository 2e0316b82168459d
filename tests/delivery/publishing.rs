//! Publishing with the real `nats` command line, in every form that is an event; and its `--config` with each
//! stream and consumer definition.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::support::{
    Hub, Received, Receiver, TestBroker, TestClient, TestSettings, nats_cli, print_output, require_tool,
    subscription,
};

const STEP: Duration = Duration::from_secs(30);

/// The `nats` command with its own home folder.
struct NatsCli {
    binary: PathBuf,
    url: String,
    home: tempfile::TempDir,
}

impl NatsCli {
    fn find(broker: &TestBroker) -> Option<Self> {
        let binary = require_tool("nats", nats_cli())?;
        Some(Self { binary, url: broker.url(), home: tempfile::tempdir().expect("temporary folder") })
    }

    /// Runs a command that must succeed.
    async fn run(&self, args: &[&str]) {
        let mut command = tokio::process::Command::new(&self.binary);
        command.args(["--server", &self.url]).args(args);
        command.env("HOME", self.home.path()).env_remove("XDG_CONFIG_HOME").kill_on_drop(true);
        let output =
            tokio::time::timeout(STEP, command.output()).await.expect("nats ends").expect("nats runs");
        assert!(output.status.success(), "`nats {}`: {}", args.join(" "), print_output(&output));
    }
}

async fn one(receiver: &Receiver, path: &str, count: usize) -> Received {
    receiver.wait_for(path, count, STEP).await.remove(count - 1)
}

#[tokio::test]
async fn each_form_of_a_publication_is_delivered_as_the_event_it_is() {
    let broker = TestBroker::start().await;
    let Some(nats) = NatsCli::find(&broker) else { return };
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    let mut acme = subscription("acme", &["user.>"], &receiver.url("/acme"));
    acme["tenant"] = json!("acme");
    client.subscribe([subscription("crm", &["user.>"], &receiver.url("/crm")), acme]).await;

    // The simplest form: the subject is the key, the stream sequence is the id.
    nats.run(&["pub", "hub.events.user.created", r#"{"user_id":"u1"}"#]).await;
    let event = one(&receiver, "/crm", 1).await.json();
    assert_eq!(
        (&event["id"], &event["type"], &event["source"], &event["tenant"], &event["data"]),
        (
            &json!("HUB_EVENTS-1"),
            &json!("user.created"),
            &json!("nats"),
            &json!("default"),
            &json!({"user_id": "u1"})
        )
    );

    // With headers: the publisher's own id, and a tenant.
    let headers = ["-H", "Nats-Msg-Id:order 1.*", "-H", "Hub-Tenant:acme"];
    nats.run(&[&["pub", "hub.events.user.created", "{}"], &headers[..]].concat()).await;
    let event = one(&receiver, "/acme", 1).await.json();
    assert_eq!((&event["id"], &event["tenant"]), (&json!("order 1.*"), &json!("acme")));

    // CloudEvents in binary mode: the type is the key, not the subject.
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let ce =
        ["ce-specversion:1.0", "ce-id:c-1", "ce-source:/idp", "ce-type:user.deleted", "ce-correlationid:k"];
    let mut args = vec!["pub", "hub.events.whatever", r#"{"user_id":"u2"}"#];
    ce.iter().for_each(|header| args.extend(["-H", header]));
    let traceparent = format!("ce-traceparent:{trace}");
    args.extend(["-H", &traceparent]);
    nats.run(&args).await;
    let request = one(&receiver, "/crm", 2).await;
    let event = request.json();
    assert_eq!(
        (&event["id"], &event["type"], &event["source"], &event["correlationid"], &event["data"]),
        (&json!("c-1"), &json!("user.deleted"), &json!("/idp"), &json!("k"), &json!({"user_id": "u2"}))
    );
    assert!(
        request.header("traceparent").contains("0af7651916cd43dd8448eb211c80319c"),
        "the event's own trace"
    );

    // Structured mode: the whole event is the body.
    let structured = json!({
        "specversion": "1.0", "id": "s-1", "source": "/idp", "type": "user.renamed", "tenant": "acme",
        "time": "2026-01-31T12:00:00Z", "data": {"user_id": "u3"},
    });
    let content = ["-H", "Content-Type:application/cloudevents+json"];
    nats.run(&[&["pub", "hub.events.user.created", &structured.to_string()], &content[..]].concat()).await;
    let event = one(&receiver, "/acme", 2).await.json();
    for (name, value) in structured.as_object().expect("an object") {
        assert_eq!(&event[name], value, "{name}");
    }
    broker.nothing_pending_within(STEP).await;
    assert_eq!((receiver.count("/crm"), receiver.count("/acme")), (2, 2), "each to its tenant alone");
}

#[tokio::test]
async fn an_id_that_is_published_twice_is_delivered_once() {
    let broker = TestBroker::start().await;
    let Some(nats) = NatsCli::find(&broker) else { return };
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick(), &[]);
    hub.ready().await;
    let client = TestClient::connect(&broker.url()).await;
    client
        .subscribe(["/a", "/b"].map(|path| subscription(&path[1..], &["user.>"], &receiver.url(path))))
        .await;
    let publish = async |source: &str, id: &str| {
        let headers = [
            "ce-specversion:1.0",
            "ce-type:user.created",
            &format!("ce-source:{source}"),
            &format!("ce-id:{id}"),
        ];
        let mut args = vec!["pub", "hub.events.user.created", "{}"];
        headers.iter().for_each(|header| args.extend(["-H", header]));
        nats.run(&args).await;
    };
    publish("/idp", "c-1").await;
    broker.nothing_pending_within(STEP).await;
    publish("/idp", "c-1").await;
    // Another source's event of the same id is another event (CloudEvents 1.0 section 3.1.1).
    publish("/hr", "c-1").await;
    for _ in 0..2 {
        nats.run(&["pub", "hub.events.user.created", "{}", "-H", "Nats-Msg-Id:bare-1"]).await;
    }
    for path in ["/a", "/b"] {
        receiver.wait_accepted(path, 3, STEP).await;
    }
    broker.nothing_pending_within(STEP).await;
    for path in ["/a", "/b"] {
        let mut seen: Vec<(String, String)> = receiver
            .received(path)
            .iter()
            .map(|request| request.json())
            .map(|event| (event["source"].to_string(), event["id"].to_string()))
            .collect();
        seen.sort();
        let expected = [("\"/hr\"", "\"c-1\""), ("\"/idp\"", "\"c-1\""), ("\"nats\"", "\"bare-1\"")];
        assert_eq!(seen, expected.map(|(source, id)| (source.to_owned(), id.to_owned())), "{path}");
    }
    assert_eq!(client.stream("HUB_EVENTS").await.state.last_sequence, 5, "the outboxes drop repetitions");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    files
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|stem| stem.to_str()).expect("a name in UTF-8")
}

#[tokio::test]
async fn the_nats_command_takes_each_definition_and_the_hub_finds_no_drift() {
    let broker = TestBroker::start().await;
    let Some(nats) = NatsCli::find(&broker) else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("nats");
    let (mut streams, mut consumers) = (0, 0);
    for file in files(&root.join("streams")) {
        nats.run(&["stream", "add", stem(&file), "--config", file.to_str().expect("UTF-8")]).await;
        streams += 1;
    }
    for folder in files(&root.join("consumers")) {
        for file in files(&folder) {
            let path = file.to_str().expect("UTF-8");
            let stream = folder.file_name().and_then(|name| name.to_str()).expect("UTF-8");
            nats.run(&["consumer", "add", stream, stem(&file), "--config", path]).await;
            consumers += 1;
        }
    }
    assert_eq!((streams, consumers), (18, 11), "streams and consumers");
    let hub = Hub::not_started(&broker.url(), &TestSettings::default());
    let check = hub.cli(&["provision", "--check"]).await;
    assert!(check.status.success(), "no drift: {}", print_output(&check));
    // The check finds a missing definition.
    let client = TestClient::connect(&broker.url()).await;
    client.context.delete_stream("HUB_REJECTED").await.expect("deleted");
    let check = hub.cli(&["provision", "--check"]).await;
    assert_eq!(check.status.code(), Some(1), "{}", print_output(&check));
    assert!(String::from_utf8_lossy(&check.stdout).contains("HUB_REJECTED"), "{}", print_output(&check));
}
