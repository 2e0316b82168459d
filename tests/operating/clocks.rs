//! Processes whose wall clock is hours off, or jumps. What they decide about times that others read or wrote follows the
//! clock of the server, and every wait their monotonic clock.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use integration_hub::domain::dead_letter::DeadLetter;
use time::OffsetDateTime;

use crate::support::{
    Behaviour, Hub, Receiver, ShiftedClock, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const SHIFT: i64 = 6 * 3600;
/// How far a reading of the server's clock may be wrong: half of the time that the answer takes.
const PRECISION: Duration = Duration::from_secs(60);

/// A hub with a clock that can be shifted, and its only subscription.
struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    clock: Arc<ShiftedClock>,
    hub: Hub,
    client: TestClient,
    /// By the true clock.
    started: OffsetDateTime,
}

impl Stage {
    /// `None` without a C compiler.
    async fn new(settings: &TestSettings, shift: i64) -> Option<Self> {
        let clock = Arc::new(ShiftedClock::build()?);
        let started = OffsetDateTime::now_utc();
        clock.set(shift);
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let mut hub = Hub::not_started(&broker.url(), settings);
        hub.set_clock(clock.clone());
        hub.start();
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        client.subscribe([patient("crm", &["user.>"], &receiver.url("/crm"))]).await;
        Some(Self { broker, receiver, clock, hub, client, started })
    }

    /// Asserts that a time is one from the start of the test to now, by the true clock.
    fn assert_true(&self, what: &str, at: OffsetDateTime) {
        let (started, now) = (self.started, OffsetDateTime::now_utc());
        let is_true = started - PRECISION <= at && at <= now + PRECISION;
        assert!(is_true, "{what}: {at} is not from {started} to {now}");
    }
}

#[tokio::test]
async fn redrives_follow_the_clock_of_the_server() {
    const WAIT: Duration = Duration::from_secs(4);
    for shift in [SHIFT, -SHIFT] {
        let settings = TestSettings::patient().with_redrives([WAIT]);
        let Some(stage) = Stage::new(&settings, shift).await else { return };
        stage.receiver.set("/crm", Behaviour::failing_first(3, 503));
        let nats = stage.client.context.client();
        let mut letters = nats.subscribe("hub.outbox.user-lifecycle.*.*.DLT").await.expect("subscribed");
        nats.flush().await.expect("flushed");
        stage.client.publish("user.created", "one").await;
        // A timer of the wrong clock is due in hours, or at once.
        stage.receiver.wait_accepted("/crm", 1, STEP).await;
        let letter = tokio::time::timeout(STEP, letters.next()).await.expect("heard").expect("a dead letter");
        let headers = letter.headers.expect("a dead letter has headers");
        let letter = DeadLetter::from_headers(|name| headers.get(name).map(|value| value.as_str()));
        let letter = letter.expect("readable");
        stage.assert_true("failure", letter.failed_at);
        let redrive = letter.next_redrive_at.expect("it is redriven");
        assert_eq!(redrive - letter.failed_at, WAIT);
        let received = stage.receiver.received("/crm");
        assert_eq!(received.len(), 4);
        assert!(received[3].arrived_at >= redrive, "{shift}: redriven before {redrive}");
        stage.broker.nothing_pending_within(STEP).await;
    }
}

#[tokio::test]
async fn what_others_read_is_by_the_clock_of_the_server() {
    for shift in [SHIFT, -SHIFT] {
        let settings = TestSettings::patient().with_redrives([HOUR]).with(|settings| {
            settings.delivery.max_backlog = Some(1);
        });
        let Some(stage) = Stage::new(&settings, shift).await else { return };
        // Endpoints refuse a timestamp that is minutes off.
        stage.client.publish("user.created", "first").await;
        stage.receiver.wait_accepted("/crm", 1, STEP).await;
        let sent: i64 =
            stage.receiver.received("/crm")[0].header("webhook-timestamp").parse().expect("seconds");
        stage.assert_true("timestamp", OffsetDateTime::from_unix_timestamp(sent).expect("a time"));

        // The server ends the pause, and the process that starts it is the command.
        let pause = ["domain", "pause", "user-lifecycle", "--for", "1h"];
        let paused = stage.hub.cli_json(&pause).await;
        assert_eq!(paused["paused"], true, "{paused}");
        let until = paused["paused_until"].as_str().expect("a time");
        let until = OffsetDateTime::parse(until, &time::format_description::well_known::Rfc3339);
        stage.assert_true("start of the pause", until.expect("RFC 3339") - HOUR);
        stage.hub.cli_ok(&["domain", "resume", "user-lifecycle"]).await;

        // The server keeps the timer of the redrive.
        let (_open, gate) = Behaviour::gate();
        stage.receiver.set("/crm", gate);
        stage.client.publish_all("user.created", &ids("event", 20)).await;
        let letters = eventually(STEP, "an envelope is over quota", async || {
            let letters = stage.client.dead_letters("user-lifecycle").await;
            if letters.is_empty() { Err(()) } else { Ok(letters) }
        })
        .await;
        for entry in letters {
            let letter = entry.letter;
            assert_eq!(letter.reason.as_str(), "over-quota");
            stage.assert_true("failure", letter.failed_at);
            let redrive = letter.next_redrive_at.expect("it is redriven");
            assert_eq!(redrive - letter.failed_at, HOUR);
        }

        // Sequences of a stream that is made again are above those of its predecessors, whichever process made these.
        stage.client.context.delete_stream("HUB_ADVISORIES").await.expect("deleted");
        let first = eventually(STEP, "the stream is made again", async || {
            let stream = stage.client.context.get_stream("HUB_ADVISORIES").await;
            stream.map(|stream| stream.cached_info().state.first_sequence).map_err(|error| error.to_string())
        })
        .await;
        // Processes that have just been provisioned begin with 1.
        if first > 1 {
            let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(first) * 1_000).expect("a time");
            stage.assert_true("first sequence", at);
        }
    }
}

#[tokio::test]
async fn no_wait_depends_on_a_clock_that_jumps() {
    let settings = TestSettings::patient().with_redrives([Duration::from_secs(1)]).with(|settings| {
        settings.delivery.max_deliver = Some(10);
        settings.delivery.retry = Some(vec![Duration::from_secs(1)]);
    });
    let Some(stage) = Stage::new(&settings, 0).await else { return };
    stage.receiver.set("/crm", Behaviour::failing_first(12, 503));
    let events = ids("event", 10);
    stage.client.publish_all("user.created", &events).await;
    let jumps = async {
        for shift in [SHIFT, -SHIFT, 120, -120, 0].into_iter().cycle() {
            stage.clock.set(shift);
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    };
    // Nothing waits for the hours by which the clock jumps.
    let delivered = stage.receiver.wait_accepted("/crm", events.len(), STEP);
    tokio::select! {
        () = jumps => unreachable!("they do not end"),
        _ = delivered => {}
    }
    stage.broker.nothing_pending_within(STEP).await;
    assert!(stage.receiver.doubles("/crm").is_empty());
}
