//! Processes whose wall clock is hours off, or jumps. What they decide about times that others read or wrote follows the
//! clock of the server, and every wait their monotonic clock.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use time::OffsetDateTime;

use crate::support::{
    Behaviour, Hub, Receiver, ShiftedClock, TestBroker, TestClient, TestSettings, eventually, ids, patient,
};

const STEP: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const SHIFT: i64 = 6 * 3600;
/// How far a time may be from the true one: far less than the shift, and more than a busy machine takes.
const NEAR: Duration = Duration::from_secs(600);

/// A hub with a clock that can be shifted, and its only subscription.
struct Stage {
    broker: TestBroker,
    receiver: Receiver,
    clock: Arc<ShiftedClock>,
    hub: Hub,
    client: TestClient,
}

impl Stage {
    /// `None` without a C compiler.
    async fn new(settings: &TestSettings, shift: i64) -> Option<Self> {
        let clock = Arc::new(ShiftedClock::build()?);
        clock.set(shift);
        let broker = TestBroker::start().await;
        let receiver = Receiver::start().await;
        let mut hub = Hub::not_started(&broker.url(), settings);
        hub.set_clock(clock.clone());
        hub.start();
        hub.ready().await;
        let client = TestClient::connect(&broker.url()).await;
        client.subscribe([patient("crm", &["user.>"], &receiver.url("/crm"))]).await;
        Some(Self { broker, receiver, clock, hub, client })
    }
}

fn assert_near(what: &str, at: OffsetDateTime, expected: OffsetDateTime) {
    assert!((at - expected).unsigned_abs() < NEAR, "{what}: {at} instead of about {expected}");
}

#[tokio::test]
async fn redrives_follow_the_clock_of_the_server() {
    const WAIT: Duration = Duration::from_secs(4);
    for shift in [SHIFT, -SHIFT] {
        let settings = TestSettings::patient().with_redrives([WAIT]);
        let Some(stage) = Stage::new(&settings, shift).await else { return };
        stage.receiver.set("/crm", Behaviour::failing_first(3, 503));
        let published = Instant::now();
        stage.client.publish("user.created", "one").await;
        stage.receiver.wait_accepted("/crm", 1, STEP).await;
        let received = stage.receiver.received("/crm");
        assert_eq!(received.len(), 4);
        let waited = received[3].arrived_at.duration_since(received[2].arrived_at).expect("in order");
        assert!(waited >= WAIT - Duration::from_millis(500), "{shift}: redriven after {waited:?}");
        assert!(published.elapsed() < STEP, "{shift}");
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
        let now = OffsetDateTime::now_utc;

        // Endpoints refuse a timestamp that is minutes off.
        stage.client.publish("user.created", "first").await;
        stage.receiver.wait_accepted("/crm", 1, STEP).await;
        let sent: i64 =
            stage.receiver.received("/crm")[0].header("webhook-timestamp").parse().expect("seconds");
        assert_near("timestamp", OffsetDateTime::from_unix_timestamp(sent).expect("a time"), now());

        // The server ends the pause, and the process that starts it is the command.
        let pause = ["domain", "pause", "user-lifecycle", "--for", "1h"];
        let paused = stage.hub.cli_json(&pause).await;
        assert_eq!(paused["paused"], true, "{paused}");
        let until = paused["paused_until"].as_str().expect("a time");
        let until = OffsetDateTime::parse(until, &time::format_description::well_known::Rfc3339);
        assert_near("end of the pause", until.expect("RFC 3339"), now() + HOUR);
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
            assert_near("failure", letter.failed_at, now());
            let redrive = letter.next_redrive_at.expect("it is redriven");
            assert_near("redrive", redrive, now() + HOUR);
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
            assert_near("first sequence", at, now());
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
    let started = SystemTime::now();
    stage.receiver.set("/crm", Behaviour::failing_first(12, 503));
    let events = ids("event", 10);
    stage.client.publish_all("user.created", &events).await;
    let jumps = async {
        for shift in [SHIFT, -SHIFT, 120, -120, 0].into_iter().cycle() {
            stage.clock.set(shift);
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    };
    let delivered = stage.receiver.wait_accepted("/crm", events.len(), STEP);
    tokio::select! {
        () = jumps => unreachable!("they do not end"),
        _ = delivered => {}
    }
    assert!(started.elapsed().is_ok_and(|took| took < STEP), "nothing waits for hours");
    stage.broker.nothing_pending_within(STEP).await;
    assert!(stage.receiver.doubles("/crm").is_empty());
}
