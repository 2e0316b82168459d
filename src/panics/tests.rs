//! Each role, with a part that panics on one input, on a real server: the input is set aside with its
//! original bytes, and the others are worked on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::backlog::BacklogLimits;
use crate::domain::category::Categories;
use crate::domain::dead_letter::{DeadLetter, DeadLetterState};
use crate::domain::envelope::Envelope;
use crate::domain::outcome::{Fault, Reason};
use crate::domain::subscription::{Identity, Subscription};
use crate::facts::Metrics;
use crate::from_settings;
use crate::health::Readiness;
use crate::http_delivery::{HttpDelivery, OpenSecret, SecretNotOpened};
use crate::nats::{DeadLetterEntry, DeadLetterQuery, JetStream, Registry, provision};
use crate::printable::kept::KeptLog;
use crate::roles::dlt_processor::{DltProcessor, DltProcessorSettings, RedriveQuota};
use crate::roles::dlt_router::{DltRouter, DltRouterSettings};
use crate::roles::event_processor::{EventProcessor, EventProcessorSettings, Resolver};
use crate::roles::outbox_processor::{
    DomainSettings, OutboxProcessor, OutboxProcessorSettings, Subscriptions,
};
use crate::settings::Settings;
use crate::tasks::TaskError;
use hub_testkit::broker_process::{BrokerOptions, BrokerProcess, find_or_fetch};

const STEP: Duration = Duration::from_secs(60);
const DOMAIN: &str = "user-lifecycle";
const OUTBOX: &str = "HUB_OUTBOX_USER_LIFECYCLE";
/// What makes the test's parts panic, and their message.
const BOOM: &str = "boom";

/// A provisioned server, a role's surroundings, and the role.
struct Stage {
    _broker: BrokerProcess,
    js: JetStream,
    settings: Settings,
    registry: Registry,
    stop: CancellationToken,
}

impl Stage {
    async fn new() -> Self {
        let server = find_or_fetch(None, &|line| eprintln!("{line}")).expect("a nats-server");
        let broker = BrokerProcess::start(BrokerOptions::new(server)).await.expect("it starts");
        let text = format!("[nats]\nurl = \"{}\"\n[sweep]\ninterval = \"1h\"\n", broker.url());
        let settings = Settings::from_toml("hub.toml", &text).expect("the settings are good");
        let js =
            JetStream::connect(&from_settings::connect_options(&settings, "test")).await.expect("connected");
        provision::apply(&js, &from_settings::stream_parameters(&settings)).await.expect("provisioned");
        let (registry, follower) = Registry::new(&js, Readiness::default());
        tokio::spawn(follower.run());
        registry.wait_until_loaded().await;
        Self { _broker: broker, js, settings, registry, stop: CancellationToken::new() }
    }

    async fn subscribe(&self, subscription: Value) {
        let subscription = Subscription::from_value(subscription).expect("a subscription");
        self.js.put_subscription(&subscription, None).await.expect("written");
        self.registry.catch_up(&self.js).await.expect("followed");
    }

    async fn dead_letters(&self) -> Vec<DeadLetterEntry> {
        let page = self.js.dead_letters(DOMAIN, &DeadLetterQuery::default(), 1, usize::MAX).await;
        page.expect("readable").entries
    }

    /// The dead letter that was set aside, when it is there.
    async fn set_aside(&self) -> DeadLetterEntry {
        eventually("the input is set aside", async || {
            let mut letters = self.dead_letters().await;
            letters.retain(|entry| entry.letter.reason == Reason::InternalError);
            letters.pop()
        })
        .await
    }

    async fn body(&self, entry: &DeadLetterEntry) -> Bytes {
        let message = self.js.get(&self.js.names().dlt_stream(DOMAIN), entry.sequence).await;
        message.expect("readable").expect("it is there").payload
    }

    async fn ends_well(self, role: JoinHandle<Result<(), TaskError>>) {
        self.stop.cancel();
        let ended = tokio::time::timeout(STEP, role).await.expect("it ends");
        ended.expect("the role did not panic").expect("the role did not fail");
    }
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + STEP;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        if Instant::now() >= deadline {
            panic!("not within {STEP:?}: {what}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn letter(id: &str) -> DeadLetter {
    let json = json!({
        "id": id, "domain": DOMAIN, "subscription": "crm", "tenant": "default", "event_id": "e1",
        "event_key": "user.created", "reason": "exhausted", "fault": "subscriber", "state": "scheduled",
        "attempts": 5, "redrives": 0, "last_status": 503, "last_error": "503",
        "failed_at": "2026-01-01T00:00:00Z", "next_redrive_at": "2100-01-01T00:00:00Z",
    });
    serde_json::from_value(json).expect("a dead letter")
}

/// A subscription, three events that it wants, and the role. The body of the second event contains [`BOOM`].
async fn event_processor(stage: &Stage) -> EventProcessor {
    let (js, settings) = (&stage.js, &stage.settings);
    let delivery = json!({"url": "https://crm.example/"});
    stage.subscribe(json!({"id": "crm", "events": [">"], "delivery": delivery})).await;
    for body in [r#"{"n":1}"#, r#"{"n":"boom"}"#, r#"{"n":2}"#] {
        js.publish(&js.names().event("user.created"), body.into(), &[]).await.expect("taken");
    }
    let rules = settings.domains.iter().map(|domain| (domain.name.clone(), domain.events.clone()));
    EventProcessor::new(
        js.clone(),
        Resolver::Registry(stage.registry.clone()),
        Arc::new(Categories::new(rules.collect())),
        EventProcessorSettings {
            max_size: 10_000,
            held: 100,
            held_bytes: 1_000_000,
            batch: 100,
            outbox_size: 1_000_000_000,
            backlog: BacklogLimits::default(),
            schedule: Vec::new(),
            stream_parameters: from_settings::stream_parameters(settings),
        },
        Metrics::new(),
        Readiness::default().part("role"),
    )
}

/// Runs the role until the second event is rejected and the others are in the outbox.
async fn assert_that_the_second_event_is_rejected(stage: Stage, role: EventProcessor) {
    let js = stage.js.clone();
    let role = tokio::spawn(role.run(stage.stop.clone()));
    let kept =
        eventually("it is rejected", async || js.get("HUB_REJECTED", 1).await.expect("readable")).await;
    assert_eq!(kept.subject, "hub.rejected.internal-error");
    assert_eq!(kept.payload, r#"{"n":"boom"}"#);
    assert!(kept.header("Hub-Error").is_some_and(|error| error.contains("boom 7")), "{kept:?}");
    eventually("the events are done with", async || {
        (js.stream_info("HUB_EVENTS").await.expect("there").state.messages == 0).then_some(())
    })
    .await;
    assert_eq!(js.stream_info(OUTBOX).await.expect("there").state.messages, 2, "the others are planned");
    stage.ends_well(role).await;
}

fn panic_on_boom(body: &[u8]) {
    assert!(!body.windows(4).any(|four| four == BOOM.as_bytes()), "{BOOM} {}", 7);
}

#[tokio::test]
async fn an_event_that_panics_is_rejected_and_the_others_go_on() {
    let stage = Stage::new().await;
    let role = event_processor(&stage).await.decoding(|publication| {
        panic_on_boom(publication.body);
        publication.decode()
    });
    assert_that_the_second_event_is_rejected(stage, role).await;
}

/// The others may be in the same batch.
#[tokio::test]
async fn an_event_whose_commit_panics_is_rejected_and_the_others_go_on() {
    let stage = Stage::new().await;
    let role = event_processor(&stage).await.before_write(|envelopes| {
        envelopes.iter().for_each(|envelope| panic_on_boom(&envelope.payload.to_bytes()));
    });
    assert_that_the_second_event_is_rejected(stage, role).await;
}

/// Opens nothing: it panics.
struct Boom;

impl OpenSecret for Boom {
    fn open(&self, _: &Identity, _: &str, _: &str) -> Result<SecretString, SecretNotOpened> {
        panic!("{BOOM}")
    }
}

#[tokio::test]
async fn an_envelope_that_panics_is_dead_lettered_as_internal_error() {
    let stage = Stage::new().await;
    let (js, settings) = (stage.js.clone(), stage.settings.clone());
    let auth = json!({"type": "bearer", "token": {"sealed": "v1:k:AAAA"}});
    let delivery = json!({"url": "https://crm.example/", "auth": auth});
    let sealed = json!({"id": "crm", "events": [">"], "delivery": delivery});
    stage.subscribe(sealed).await;
    let envelope = json!({
        "id": "env_1", "domain": DOMAIN, "subscription": "crm", "tenant": "default", "event_id": "e1",
        "event_key": "user.created", "event": {"id": "e1"}, "delivery": {"url": "https://crm.example/"},
    });
    let body = Bytes::from(envelope.to_string());
    js.publish(&js.names().outbox(DOMAIN, "shared", "crm"), body.clone(), &[]).await.expect("taken");
    let delivery = &settings.delivery;
    let outbox = OutboxProcessorSettings {
        domains: vec![DomainSettings { name: DOMAIN.to_owned(), concurrency: 4 }],
        retry: from_settings::retry_policy(&settings),
        circuit: from_settings::circuit_policy(&settings),
        held: delivery.held,
        held_bytes: 1_000_000,
        queue_per_subscription: delivery.queue_per_subscription,
        ack_wait: delivery.ack_wait,
        max_age: None,
        grace: Duration::from_secs(1),
        schedule: Vec::new(),
        log: delivery.log,
        stream_parameters: from_settings::stream_parameters(&settings),
    };
    let role = OutboxProcessor::new(
        js.clone(),
        Subscriptions::Registry(stage.registry.clone()),
        HttpDelivery::new(from_settings::http_config(&settings)),
        Vec::new(),
        Arc::new(Boom),
        outbox,
        Metrics::new(),
        &Readiness::default(),
    );
    let role = tokio::spawn(role.run(stage.stop.clone()));
    let aside = stage.set_aside().await;
    let DeadLetter { id, fault, state, event_id, last_error, .. } = &aside.letter;
    assert_eq!(
        (id.as_str(), *fault, *state, event_id.as_str()),
        ("env_1", Fault::Hub, DeadLetterState::Parked, "e1")
    );
    assert!(last_error.as_deref().is_some_and(|error| error.contains(BOOM)), "{last_error:?}");
    assert_eq!(stage.body(&aside).await, body);
    eventually("the outbox is empty", async || {
        (js.stream_info(OUTBOX).await.expect("there").state.messages == 0).then_some(())
    })
    .await;
    stage.ends_well(role).await;
}

#[tokio::test]
async fn an_envelope_that_the_router_panics_on_is_dead_lettered_unread() {
    let stage = Stage::new().await;
    let js = stage.js.clone();
    for body in [BOOM, "not an envelope"] {
        let taken = js.publish(&js.names().outbox(DOMAIN, "shared", "crm"), body.into(), &[]).await;
        let sequence = taken.expect("taken").seq;
        let advisory = json!({
            "type": "io.nats.jetstream.advisory.v1.max_deliver", "stream": OUTBOX, "consumer": "lane-shared",
            "stream_seq": sequence, "deliveries": 5,
        });
        let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{OUTBOX}.lane-shared");
        js.publish(&subject, advisory.to_string().into(), &[]).await.expect("kept");
    }
    let settings = router_settings(&stage, Duration::from_secs(3_600));
    let ready = Readiness::default().part("role");
    let role = DltRouter::reading(js.clone(), settings, Metrics::new(), ready, |body| {
        assert!(body != BOOM.as_bytes(), "{BOOM}");
        Envelope::read(body)
    });
    let role = tokio::spawn(role.run(stage.stop.clone()));
    let aside = stage.set_aside().await;
    assert_eq!((aside.letter.subscription.as_str(), aside.letter.fault), ("crm", Fault::Hub));
    assert!(aside.letter.last_error.as_deref().is_some_and(|error| error.contains(BOOM)), "{aside:?}");
    assert_eq!(stage.body(&aside).await, BOOM);
    let letters = stage.dead_letters().await;
    assert!(letters.iter().any(|entry| entry.letter.reason == Reason::Undecodable), "{letters:?}");
    eventually("the advisories are done with", async || {
        let left = js.stream_info("HUB_ADVISORIES").await.expect("there").state.messages;
        (left == 0 && js.stream_info(OUTBOX).await.expect("there").state.messages == 0).then_some(())
    })
    .await;
    stage.ends_well(role).await;
}

fn router_settings(stage: &Stage, sweep_interval: Duration) -> DltRouterSettings {
    DltRouterSettings {
        schedule: Vec::new(),
        sweep_interval,
        stream_parameters: from_settings::stream_parameters(&stage.settings),
        has_registry: true,
    }
}

async fn failure(role: JoinHandle<Result<(), TaskError>>) -> String {
    let ended = tokio::time::timeout(STEP, role).await.expect("the role ends by itself");
    ended.expect("the role did not panic itself").expect_err("it failed").to_string()
}

/// The sweep goes on, whatever becomes of the reader: that must not hide its end.
#[tokio::test]
async fn a_router_whose_reader_fails_ends_and_says_so() {
    let stage = Stage::new().await;
    let settings = router_settings(&stage, Duration::from_millis(50));
    let readiness = Readiness::default();
    let role = DltRouter::new(stage.js.clone(), settings, Metrics::new(), readiness.part("dlt-router"));
    let role = tokio::spawn(role.run(stage.stop.clone()));
    // Before it reads, the reader waits for its consumer, whatever happens.
    eventually("it reads", async || readiness.missing().is_empty().then_some(())).await;
    stage.js.close().await;
    let failure = failure(role).await;
    assert!(failure.starts_with("the reader of the advisories: "), "{failure}");
    assert!(!stage.stop.is_cancelled(), "the process decides for itself");
}

/// An interval of nothing is refused by the settings, and panics where it gets past them.
#[tokio::test]
async fn a_pass_that_panics_ends_its_role_and_is_told_as_a_panic() {
    let stage = Stage::new().await;
    let domains = vec![DOMAIN.to_owned()];
    let settings = DltProcessorSettings {
        all_domains: domains.clone(),
        domains,
        reconcile_interval: Duration::ZERO,
        quota: RedriveQuota::default(),
    };
    let role = DltProcessor::new(stage.js.clone(), settings, Metrics::new(), &Readiness::default());
    let told = failure(tokio::spawn(role.run(stage.stop.clone()))).await;
    assert!(
        told.starts_with("the search for overdue dead letters panicked: ") && told.contains("period"),
        "{told}"
    );
    let ready = Readiness::default().part("dlt-router");
    let settings = router_settings(&stage, Duration::ZERO);
    let role = DltRouter::new(stage.js.clone(), settings, Metrics::new(), ready);
    let told = failure(tokio::spawn(role.run(stage.stop.clone()))).await;
    assert!(told.starts_with("the sweep panicked: "), "{told}");
}

/// Other domains are searched meanwhile, and the same one again after the interval.
#[tokio::test]
async fn a_search_that_panics_is_reported_as_a_panic_and_comes_again() {
    const OTHER: &str = "policy-client";
    static PANICS: AtomicBool = AtomicBool::new(true);
    let log = KeptLog::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone()).finish();
    // Its tasks run on the thread of the test.
    let _logging = tracing::subscriber::set_default(subscriber);
    let stage = Stage::new().await;
    let js = stage.js.clone();
    for domain in [DOMAIN, OTHER] {
        let letter = DeadLetter { domain: domain.to_owned(), ..letter("env_1") };
        let subject = js.names().outbox(domain, "shared", "crm");
        js.put_dead_letter(&subject, 1, &letter, "env_1".into()).await.expect("taken");
    }
    let domains = vec![DOMAIN.to_owned(), OTHER.to_owned()];
    let settings = DltProcessorSettings {
        all_domains: domains.clone(),
        domains,
        reconcile_interval: Duration::from_millis(50),
        quota: RedriveQuota::default(),
    };
    let metrics = Metrics::new();
    let role = DltProcessor::new(js.clone(), settings, metrics.clone(), &Readiness::default());
    let role = role.before_search(|domain| {
        assert!(domain != DOMAIN || !PANICS.load(Ordering::Relaxed), "{BOOM} {}", 7);
    });
    let role = tokio::spawn(role.run(stage.stop.clone()));
    // A search counts the dead letters of its domain.
    let counted = |domain: &str| {
        let letters = format!("hub_dlt_letters{{domain=\"{domain}\",state=\"scheduled\"}} 1\n");
        metrics.encode().expect("encoded").contains(&letters)
    };
    eventually("the other domain is searched", async || counted(OTHER).then_some(())).await;
    assert!(!counted(DOMAIN), "its search has panicked");
    let line = "search for overdue dead letters panicked, will retry";
    let records: Vec<_> = log.records().into_iter().filter(|record| record.contains(line)).collect();
    let [record] = &records[..] else { panic!("one line in an interval of the log: {records:#?}") };
    for part in ["ERROR", "panic=\"boom 7\"", "domain=\"user-lifecycle\"", "retry_in=50ms"] {
        assert!(record.contains(part), "no {part} in {record}");
    }
    PANICS.store(false, Ordering::Relaxed);
    eventually("it is searched again", async || counted(DOMAIN).then_some(())).await;
    eventually("the readers work as well", async || {
        let pending = js.redrive_pending(DOMAIN).await.expect("readable");
        pending.contains(&1).then_some(())
    })
    .await;
    stage.ends_well(role).await;
}

#[tokio::test]
async fn a_dead_letter_that_panics_is_filed_anew_and_the_others_get_their_timers() {
    let stage = Stage::new().await;
    let js = stage.js.clone();
    let subject = js.names().outbox(DOMAIN, "shared", "crm");
    for (sequence, id) in [(1, BOOM), (2, "env_2")] {
        js.put_dead_letter(&subject, sequence, &letter(id), id.into()).await.expect("taken");
    }
    let settings = DltProcessorSettings {
        domains: vec![DOMAIN.to_owned()],
        all_domains: vec![DOMAIN.to_owned()],
        reconcile_interval: Duration::from_secs(3600),
        quota: RedriveQuota::default(),
    };
    let role = DltProcessor::reading(js.clone(), settings, Metrics::new(), &Readiness::default(), |header| {
        // What is set aside keeps its id: it panics again, and is left alone.
        assert!(header("Hub-Id") != Some(BOOM), "{BOOM}");
        DeadLetter::from_headers(header)
    });
    let role = tokio::spawn(role.run(stage.stop.clone()));
    let aside = stage.set_aside().await;
    assert_eq!((aside.letter.id.as_str(), aside.letter.state), (BOOM, DeadLetterState::Parked));
    assert_eq!((aside.letter.attempts, aside.letter.last_status), (5, Some(503)));
    assert_eq!(stage.body(&aside).await, BOOM);
    eventually("the other has its timer", async || {
        let pending = js.redrive_pending(DOMAIN).await.expect("readable");
        pending.contains(&2).then_some(())
    })
    .await;
    let consumer = js.names().dlt_stream(DOMAIN);
    eventually("nothing comes again", async || {
        let info = js.consumer_info(&consumer, "dlt-processor").await.expect("there");
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    let ids: Vec<String> = stage.dead_letters().await.into_iter().map(|entry| entry.letter.id).collect();
    assert_eq!(ids, ["env_2", BOOM], "one of each: the first was dead-lettered again, once");
    stage.ends_well(role).await;
}
