//! The operations that the command line and the API share: limited to one tenant, and publishing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use integration_hub::domain::dead_letter::{DeadLetter, DeadLetterState};
use integration_hub::domain::last_words::LastWords;
use integration_hub::domain::outcome::{Fault, Reason};
use integration_hub::from_settings::connect_options;
use integration_hub::management::dead_letter_actions::Followed;
use integration_hub::management::dead_letters::DeadLetterQuery;
use integration_hub::management::publishing::{Published, RawEvent};
use integration_hub::management::traces::{TraceRequest, Traced};
use integration_hub::management::{Management, ManagementError};
use integration_hub::nats::JetStream;
use integration_hub::settings::Settings;
use serde_json::json;
use time::OffsetDateTime;

use crate::support::{Hub, TestBroker, TestSettings, eventually, register_owner};

const STEP: Duration = Duration::from_secs(30);

struct Stage {
    broker: TestBroker,
    hub: Management,
}

impl Stage {
    async fn set(settings: &TestSettings) -> Self {
        let broker = TestBroker::start().await;
        Hub::not_started(&broker.url(), settings).cli_ok(&["provision"]).await;
        let settings = settings.clone().with(|settings| settings.nats.url = Some(broker.url()));
        let settings = Settings::from_toml("test", &settings.to_toml());
        let settings = Arc::new(settings.expect("valid settings"));
        let js = JetStream::connect(&connect_options(&settings, "test")).await.expect("the broker answers");
        Self { broker, hub: Management::without_secrets(js, settings) }
    }

    /// Writes two dead letters of acme, one of globex and one that could not be read; no body is an envelope.
    async fn put_four(&self) {
        let letters = [("env_a", "acme"), ("env_b", "globex"), ("env_c", ""), ("env_d", "acme")];
        for (sequence, (id, tenant)) in (1..).zip(letters) {
            let letter = letter(id, tenant);
            let js = self.hub.jet_stream();
            if !tenant.is_empty() {
                register_owner(js, tenant, &letter.subscription).await;
            }
            let subject = js.names().outbox(&letter.domain, "shared", &letter.subscription);
            js.put_dead_letter(&subject, sequence, &letter, "x".into()).await.expect("the DLT stores it");
        }
    }

    async fn ids(&self, filter: &DeadLetterQuery) -> Vec<String> {
        let list = self.hub.list_dead_letters(filter, None, 100).await.expect("listed");
        list.entries.into_iter().map(|entry| entry.letter.id).collect()
    }

    async fn trace(&self, event: &str, tenant: Option<&str>) -> Vec<String> {
        let request = TraceRequest {
            event_id: event.to_owned(),
            domains: Vec::new(),
            since: None,
            tenant: tenant.map(str::to_owned),
            timeout: STEP,
        };
        let Traced { trace, complete } = self.hub.trace_event(&request).await.expect("traced");
        assert!(complete);
        trace.map_or(Vec::new(), |trace| {
            trace.timeline.iter().map(|step| step.what.as_str().to_owned()).collect()
        })
    }
}

fn letter(id: &str, tenant: &str) -> DeadLetter {
    DeadLetter {
        incarnation: Default::default(),
        id: id.to_owned(),
        domain: "policy-client".to_owned(),
        subscription: "crm".to_owned(),
        tenant: tenant.to_owned(),
        event_id: "e1".to_owned(),
        event_key: "policy.updated".to_owned(),
        reason: Reason::Exhausted,
        fault: Fault::Subscriber,
        state: DeadLetterState::Parked,
        attempts: 5,
        redrives: 0,
        last_status: Some(503),
        last_error: None,
        failed_at: OffsetDateTime::now_utc(),
        next_redrive_at: None,
    }
}

fn of(tenant: &str) -> DeadLetterQuery {
    DeadLetterQuery { tenant: Some(tenant.to_owned()), ..DeadLetterQuery::default() }
}

#[tokio::test]
async fn a_tenant_sees_and_touches_its_own_dead_letters_alone() {
    let stage = Stage::set(&TestSettings::default()).await;
    let hub = &stage.hub;
    stage.put_four().await;
    assert_eq!(stage.ids(&DeadLetterQuery::default()).await, ["env_a", "env_b", "env_c", "env_d"]);
    assert_eq!(stage.ids(&of("acme")).await, ["env_a", "env_d"]);
    assert_eq!(stage.ids(&of("nobody")).await, Vec::<String>::new());

    let first = hub.list_dead_letters(&of("acme"), None, 1).await.expect("listed");
    let next = first.next.expect("there is more");
    assert_eq!(next.to_string(), "policy-client/4", "data of other tenants is not reported");
    let rest = hub.list_dead_letters(&of("acme"), Some(&next), 1).await.expect("listed");
    assert_eq!((rest.entries[0].letter.id.as_str(), rest.next), ("env_d", None));
    let elsewhere = DeadLetterQuery { domains: vec!["organization".to_owned()], ..of("acme") };
    let error = hub.list_dead_letters(&elsewhere, Some(&next), 1).await.expect_err("another domain's");
    assert!(matches!(error, ManagementError::ForeignCursor { .. }), "{error}");

    assert_eq!(hub.show_dead_letter("env_a", Some("acme")).await.expect("its own").entry.sequence, 1);
    for (id, tenant) in [("env_b", "acme"), ("env_c", "acme"), ("env_c", "default"), ("env_a", "globex")] {
        let error = hub.show_dead_letter(id, Some(tenant)).await.expect_err("not its own");
        assert!(matches!(error, ManagementError::NoDeadLetter { .. }), "{id} {tenant}: {error}");
    }

    let mut counted = 0;
    let stats = hub.dead_letter_stats(&of("acme"), |seen| counted = seen).await.expect("counted");
    assert_eq!((stats.total, counted, stats.by_subscription.len()), (2, 2, 1));

    // Naming another tenant's dead letter is the same as naming a missing one, and changes nothing.
    let named = DeadLetterQuery { ids: ["env_a".to_owned(), "env_b".to_owned()].into(), ..of("acme") };
    match hub.select_dead_letters(&named, |_| {}).await {
        Err(ManagementError::NoneSelected { ids }) => assert_eq!(ids, ["env_b"]),
        other => panic!("{other:?}"),
    }
    let selected = hub.select_dead_letters(&of("acme"), |_| {}).await.expect("two");
    let mut steps = Vec::new();
    let replayed = hub.replay(&selected, false, |done, total| steps.push((done, total))).await;
    assert_eq!(replayed.expect("ordered").ordered, 2);
    assert_eq!(steps, [(0, 2), (1, 2), (2, 2)]);
    hub.discard(&selected, |_, _| {}).await.expect("discarded");
    assert_eq!(stage.ids(&DeadLetterQuery::default()).await, ["env_b", "env_c"]);
    let mut looks = Vec::new();
    let followed = hub.follow(&selected, STEP, |now| looks.push(now)).await.expect("followed");
    assert_eq!(followed, Followed { discarded: 2, ..Followed::default() });
    assert_eq!(looks, [followed]);
}

#[tokio::test]
async fn a_tenant_can_trace_only_its_own_events() {
    let stage = Stage::set(&TestSettings::quick()).await;
    stage.put_four().await;
    let words = LastWords {
        attempt: 5,
        status: Some(503),
        error: "503".to_owned(),
        fault: Fault::Subscriber,
        latency_ms: 1,
        answer: None,
    };
    let js = stage.hub.jet_stream();
    let body = |id: &str, tenant: &str| {
        json!({
            "id": id, "domain": "policy-client", "subscription": "crm", "tenant": tenant, "event_id": "e1",
            "event_key": "policy.updated", "event": {}, "delivery": {},
        })
        .to_string()
    };
    for (id, tenant) in [("env_a", "acme"), ("env_b", "globex")] {
        let body = body(id, tenant);
        let envelope = serde_json::from_str(&body).expect("an envelope");
        js.put_final_attempt("policy-client", &envelope, &words).await.expect("kept");
    }
    let everything = stage.trace("e1", None).await;
    assert_eq!(everything.iter().filter(|what| *what == "attempt").count(), 2, "{everything:?}");
    assert_eq!(everything.iter().filter(|what| *what == "dead-lettered").count(), 4, "{everything:?}");
    let count = async |tenant| {
        let trace_steps = stage.trace("e1", Some(tenant)).await;
        ["attempt", "dead-lettered"].map(|what| trace_steps.iter().filter(|other| *other == what).count())
    };
    assert_eq!(count("acme").await, [1, 2]);
    assert_eq!(count("globex").await, [1, 1]);
    assert_eq!(count("default").await, [0, 0]);

    // Waiting and rejected events: an invalid body names its tenant in its headers or not at all.
    let publish = async |key: &str, id: &str, tenant: Option<&str>, body: &'static str| {
        let headers: Vec<(&str, &str)> =
            [("Nats-Msg-Id", id)].into_iter().chain(tenant.map(|tenant| ("Hub-Tenant", tenant))).collect();
        js.publish(&js.names().event(key), body.into(), &headers).await.expect("taken");
    };
    publish("policy.updated", "w", Some("acme"), "{}").await;
    publish("weather.changed", "n", Some("acme"), "{}").await;
    publish("policy.updated", "m", Some("acme"), "{").await;
    publish("policy.updated", "nobody", None, "{").await;
    assert_eq!(stage.trace("w", Some("acme")).await, ["waiting"]);
    assert_eq!(stage.trace("w", Some("globex")).await, Vec::<String>::new());
    let mut serving = Hub::serve(&stage.broker.url(), &TestSettings::quick(), &["--role", "event-processor"]);
    serving.ready().await;
    eventually(STEP, "all events are processed", async || {
        match js.stream_info("HUB_EVENTS").await.expect("provisioned").state.messages {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
    for id in ["n", "m"] {
        assert_eq!(stage.trace(id, Some("acme")).await, ["rejected"], "{id}");
        assert_eq!(stage.trace(id, Some("default")).await, Vec::<String>::new(), "{id}");
    }
    assert_eq!(stage.trace("nobody", None).await, ["rejected"]);
    assert_eq!(stage.trace("nobody", Some("default")).await, Vec::<String>::new());
    assert!(serving.terminate().await.success());
}

fn structured(event: &serde_json::Value) -> RawEvent<'static> {
    let headers = vec![("content-type", "application/cloudevents+json")];
    RawEvent { key: None, headers, body: event.to_string().into() }
}

#[tokio::test]
async fn only_what_will_be_taken_in_is_published() {
    let narrow = TestSettings::default().with(|settings| {
        settings.limits.events = Some(1_000_000);
        settings.events.max_size = Some(900_000);
    });
    let stage = Stage::set(&narrow).await;
    let hub = &stage.hub;
    let event = json!({"specversion": "1.0", "id": "e 1", "source": "/idp", "type": "user.created"});
    let with = |name: &str, value: serde_json::Value| {
        let mut event = event.clone();
        event[name] = value;
        structured(&event)
    };
    let first = hub.publish(structured(&event), None).await.expect("published");
    let expected = Published { stream: "HUB_EVENTS".into(), sequence: 1, id: "e 1".into(), duplicate: false };
    assert_eq!(first, expected);
    let again = hub.publish(structured(&event), None).await.expect("published");
    assert_eq!(again, Published { duplicate: true, ..expected });

    // The tenant's own event, although another tenant has one with the same source and id.
    let mine = hub.publish(structured(&event), Some("acme")).await.expect("published");
    assert_eq!((mine.duplicate, mine.sequence), (false, 2));
    let stored = hub.jet_stream().get("HUB_EVENTS", 2).await.expect("answers").expect("stored");
    assert_eq!(
        (stored.subject.as_str(), stored.header("Hub-Tenant")),
        ("hub.events.user.created", Some("acme"))
    );

    let field = async |form: RawEvent<'_>, tenant: Option<&str>| match hub.publish(form, tenant).await {
        Err(ManagementError::Invalid(problems)) => problems[0].field.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(field(with("tenant", json!("globex")), Some("acme")).await, "tenant");
    assert_eq!(field(with("tenant", json!("a b")), None).await, "tenant");
    assert_eq!(field(with("time", json!("yesterday")), None).await, "time");
    assert_eq!(field(with("type", json!("user")), None).await, "type");
    assert_eq!(field(with("type", json!("weather.changed")), None).await, "type");
    assert_eq!(field(with("id", json!(null)), None).await, "id");
    assert_eq!(field(with("data_base64", json!("?")), None).await, "data_base64");
    let mut twice = structured(&event);
    twice.headers.extend([("Hub-Tenant", "acme"), ("hub-tenant", "globex")]);
    assert_eq!(field(twice, Some("acme")).await, "hub-tenant");

    let not_json = RawEvent { body: Bytes::from_static(b"{"), ..structured(&event) };
    let error = hub.publish(not_json, None).await.expect_err("no JSON");
    assert!(matches!(error, ManagementError::EventRejected(_)), "{error:?}");
    let error = hub.publish(with("data", json!("x".repeat(900_000))), None).await.expect_err("too large");
    assert!(matches!(error, ManagementError::TooLarge(_)), "{error:?}");
    assert_eq!(hub.jet_stream().stream_info("HUB_EVENTS").await.expect("provisioned").state.messages, 2);

    let large = |id: &str| {
        let mut event = event.clone();
        (event["id"], event["data"]) = (json!(id), json!("x".repeat(700_000)));
        structured(&event)
    };
    hub.publish(large("large"), None).await.expect("there is room for one");
    let error = hub.publish(large("larger"), None).await.expect_err("there is no room for two");
    assert!(matches!(error, ManagementError::Full { .. }), "{error:?}");
}
