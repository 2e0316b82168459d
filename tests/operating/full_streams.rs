//! What an operator sees before a stream is full, while it is full, and afterwards: at `/readyz`, in the metrics and in the
//! log.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    Behaviour, Hub, Receiver, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(90);
const EVENTS: &str = "HUB_EVENTS";
const OUTBOX: &str = "HUB_OUTBOX_POLICY_CLIENT";
const DLT: &str = "HUB_OUTBOX_POLICY_CLIENT_DLT";
const NEARLY: &str = " stream is nearly full ";
const FULL: &str = " stream is full ";
const ROOM: &str = " stream has room again ";

struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    hub: Hub,
    client: TestClient,
}

impl Stage {
    async fn new(settings: &TestSettings, args: &[&str]) -> Self {
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let mut hub = Hub::serve(&broker.url(), settings, args);
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        Self { broker, receiver, hub, client }
    }

    /// Sets the limit of a stream, so that this percentage of it is used.
    async fn fill(&self, stream: &str, percent: u64) {
        let info = self.client.js.stream_info(stream).await.expect("it exists");
        let mut config = info.config;
        config.insert("max_bytes".to_owned(), json!(info.state.bytes * 100 / percent));
        let subject = format!("$JS.API.STREAM.UPDATE.{stream}");
        let request = serde_json::to_vec(&config).expect("JSON");
        let client = self.broker.client().await;
        let answer = client.request(subject, request.into()).await.expect("answered");
        let answer = String::from_utf8_lossy(&answer.payload).into_owned();
        assert!(!answer.contains("\"error\""), "{answer}");
    }

    /// Waits until the stream is shown with this level.
    async fn is_shown(&self, stream: &str, level: &str) {
        eventually(STEP, &format!("{stream} is shown as {level}"), async || {
            let (ready, text) = self.hub.readiness().await;
            let says = |what: &str| text.contains(&format!("warning: {stream} is {what}"));
            let shown = match (says("nearly full ("), says("full since ")) {
                (false, false) => "room",
                (true, false) => "nearly",
                (false, true) => "full",
                (true, true) => "both",
            };
            let label = format!("stream=\"{stream}\"");
            let used = self.hub.metric("hub_stream_used_percent", &[&label]).await;
            let full = self.hub.metric("hub_stream_full", &[&label]).await > 0.5;
            let is =
                ready && shown == level && full == (level == "full") && (level == "room") == (used < 80.0);
            if is { Ok(()) } else { Err((ready, shown, used, full, text)) }
        })
        .await;
    }

    fn lines(&self, sentence: &str, stream: &str) -> usize {
        let log = self.hub.log();
        log.lines()
            .filter(|line| line.contains(sentence) && line.contains(&format!("stream=\"{stream}\"")))
            .count()
    }
}

fn settings() -> TestSettings {
    TestSettings::patient().with(|settings| {
        settings.log.level = Some("info".to_owned());
        settings.log.repeat_interval = Some(Duration::from_secs(3_600));
    })
}

/// Each stream that rejects messages when it is full: before, while it is full, and afterwards.
#[tokio::test]
async fn a_stream_is_shown_before_it_is_full_and_while_it_is_full() {
    let stage = Stage::new(&settings(), &["--role", "api"]).await;
    let filling = vec![b'x'; 1_000];
    for (stream, subject, consequence, remedy) in [
        (EVENTS, "hub.events.policy.updated", "publications are rejected", "limits.events"),
        (OUTBOX, "hub.outbox.policy-client.shared.none", "wait in the events stream", "limits.outbox"),
        (
            DLT,
            "hub.outbox.policy-client.shared.none.DLT",
            "stay in the outbox",
            "hub dlt replay --all --drain",
        ),
    ] {
        stage.is_shown(stream, "room").await;
        for _ in 0..100 {
            let publishing = stage.client.context.publish(subject, filling.clone().into()).await;
            publishing.expect("sent").await.expect("stored");
        }
        stage.is_shown(stream, "room").await;
        stage.fill(stream, 85).await;
        stage.is_shown(stream, "nearly").await;
        let (_, text) = stage.hub.readiness().await;
        assert!(text.contains(consequence) && text.contains(remedy), "{text}");
        stage.fill(stream, 100).await;
        stage.is_shown(stream, "full").await;
        let (_, text) = stage.hub.readiness().await;
        let note = text.lines().find(|line| line.contains(&format!("{stream} is full"))).expect("a warning");
        assert!(note.contains(consequence) && note.contains(remedy), "{note}");
        stage.fill(stream, 50).await;
        stage.is_shown(stream, "room").await;
        let lines = [NEARLY, FULL, ROOM].map(|sentence| stage.lines(sentence, stream));
        assert_eq!(lines, [1, 1, 1], "{stream}");
    }
    assert!(stage.broker.messages(EVENTS).await > 0);
}

/// A hung endpoint fills the dead letters and then the outbox, so that events wait.
#[tokio::test]
async fn dead_letters_and_outbox_that_are_both_full_are_shown() {
    let small = settings().with(|settings| {
        settings.events.max_size = Some(10_000);
        settings.limits.dlt = Some(60_000);
        settings.limits.outbox = Some(200_000);
    });
    let stage = Stage::new(&small, &[]).await;
    let mut stuck = patient("stuck", &["policy.>"], &stage.receiver.url("/stuck"));
    stuck["delivery"]["max_backlog"] = json!(20);
    stage.client.subscribe([stuck]).await;
    let (open, gate) = Behaviour::gate();
    stage.receiver.set("/stuck", gate);
    let events = ids("event", 600);
    stage.client.publish_all("policy.updated", &events).await;
    const BOTH: &str = "warning: outbox and dead letters of policy-client are both full";
    const LINE: &str = "outbox and dead letters of the domain are both full";
    stage.hub.wait_for_log(LINE, STEP).await;
    let (ready, text) = stage.hub.readiness().await;
    assert!(ready && text.contains(BOTH) && text.contains("HUB_EVENTS"), "{text}");
    assert!(text.contains("warning: dead letters of policy-client cannot be stored"), "{text}");
    assert!(text.contains(&format!("warning: {OUTBOX} is")), "{text}");
    assert!(!text.contains(&format!("warning: {DLT} is full")), "one warning for each part: {text}");

    open.send_replace(true);
    stage.hub.wait_for_log("outbox or dead letters of the domain have room again", STEP).await;
    stage.hub.cli_ok(&["dlt", "replay", "--all", "--drain"]).await;
    stage.receiver.wait_accepted("/stuck", events.len(), STEP).await;
    stage.broker.nothing_pending_within(STEP).await;
    eventually(STEP, "no warning is left", async || {
        let (_, text) = stage.hub.readiness().await;
        if text.contains("warning") { Err(text) } else { Ok(()) }
    })
    .await;
    let log = stage.hub.log();
    assert_eq!(log.lines().filter(|line| line.contains(LINE)).count(), 1);
}

/// Deletes a stream, and makes it impossible to create it again, so that nobody can read it.
async fn make_unreadable(stage: &Stage, stream: &str) {
    let subjects = stage.client.stream(stream).await.config.subjects;
    stage.hub.freeze();
    stage.client.context.delete_stream(stream).await.expect("deleted");
    let name = format!("IN_PLACE_OF_{stream}");
    let other = async_nats::jetstream::stream::Config { name, subjects, ..Default::default() };
    stage.client.context.create_stream(other).await.expect("created");
    stage.hub.thaw();
}

#[tokio::test]
async fn a_stream_that_cannot_be_read_hides_no_other_and_is_not_shown_as_it_was() {
    let stage = Stage::new(&settings(), &["--role", "api"]).await;
    // The streams of the first domain are read before the others.
    make_unreadable(&stage, "HUB_OUTBOX_USER_LIFECYCLE").await;
    make_unreadable(&stage, "HUB_OUTBOX_USER_LIFECYCLE_DLT").await;
    for _ in 0..100 {
        let subject = "hub.outbox.policy-client.shared.none";
        let publishing = stage.client.context.publish(subject, vec![b'x'; 1_000].into()).await;
        publishing.expect("sent").await.expect("stored");
    }
    stage.fill(OUTBOX, 100).await;
    stage.is_shown(OUTBOX, "full").await;
    stage.fill(OUTBOX, 50).await;
    stage.is_shown(OUTBOX, "room").await;
    stage.fill(OUTBOX, 100).await;
    stage.is_shown(OUTBOX, "full").await;

    make_unreadable(&stage, OUTBOX).await;
    let unknown = format!("warning: {OUTBOX} was full at ");
    eventually(STEP, "it is not known how full it is", async || {
        let (_, text) = stage.hub.readiness().await;
        let metrics = stage.hub.metrics().await;
        let label = format!("{{stream=\"{OUTBOX}\"}}");
        let is_measured =
            metrics.lines().any(|line| line.starts_with("hub_stream_") && line.contains(&label));
        let is_unknown = text.contains(&unknown) && text.contains("could not be read since");
        if is_unknown && !is_measured && !text.contains(&format!("{OUTBOX} is")) { Ok(()) } else { Err(text) }
    })
    .await;
    stage.is_shown(DLT, "room").await;
}

/// A level that swings has a line per sentence and interval.
#[tokio::test]
async fn a_stream_that_swings_between_two_levels_has_few_lines() {
    const SWINGS: usize = 4;
    let mut stage = Stage::new(&settings(), &["--role", "api"]).await;
    for _ in 0..100 {
        let subject = "hub.outbox.policy-client.shared.none";
        let publishing = stage.client.context.publish(subject, vec![b'x'; 1_000].into()).await;
        publishing.expect("sent").await.expect("stored");
    }
    for _ in 0..SWINGS {
        stage.fill(OUTBOX, 85).await;
        stage.is_shown(OUTBOX, "nearly").await;
        stage.fill(OUTBOX, 70).await;
        stage.is_shown(OUTBOX, "room").await;
    }
    assert!(stage.hub.terminate().await.success());
    for sentence in [NEARLY, ROOM] {
        assert_eq!(stage.lines(sentence, OUTBOX), 1, "{sentence}");
        let log = stage.hub.log();
        let left_out: usize = log
            .lines()
            .filter(|line| line.contains(" lines left out ") && line.contains(sentence.trim()))
            .filter_map(|line| line.split_once(" repeated=")?.1.split(' ').next()?.parse::<usize>().ok())
            .sum();
        assert_eq!(left_out, SWINGS - 1, "{sentence}");
    }
}
