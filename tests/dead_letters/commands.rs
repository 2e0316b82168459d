//! `hub dlt` on dead letters that the test writes: no role runs, so nothing changes by itself.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use integration_hub::domain::dead_letter::{DeadLetter, DeadLetterState};
use integration_hub::domain::last_words::LastWords;
use integration_hub::domain::outcome::{Fault, Reason};
use integration_hub::from_settings::connect_options;
use integration_hub::nats::JetStream;
use integration_hub::settings::Settings;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::{Hub, TestBroker, TestSettings, eventually, print_output, register_owner};

const LIMIT: Duration = Duration::from_secs(20);

struct Stage {
    _broker: TestBroker,
    hub: Hub,
    js: JetStream,
}

impl Stage {
    async fn set() -> Self {
        let broker = TestBroker::start().await;
        let hub = Hub::not_started(&broker.url(), &TestSettings::default());
        hub.cli_ok(&["provision"]).await;
        let settings = Settings::from_toml("test", &format!("nats.url = '{}'", broker.url()));
        let options = connect_options(&settings.expect("valid settings"), "test");
        let js = JetStream::connect(&options).await.expect("the test's broker answers");
        Self { _broker: broker, hub, js }
    }

    /// Writes a dead letter as if its envelope had been at `sequence` of the outbox.
    async fn put(&self, sequence: u64, letter: &DeadLetter) {
        register_owner(&self.js, &letter.tenant, &letter.subscription).await;
        let subject = self.js.names().outbox(&letter.domain, "shared", &letter.subscription);
        let body = envelope(letter);
        self.js.put_dead_letter(&subject, sequence, letter, body).await.expect("the DLT stores it");
    }

    /// Six dead letters in two domains.
    async fn put_six(&self) {
        let hour = |hours: i64| OffsetDateTime::now_utc() - time::Duration::hours(hours);
        let policy = letter("env_a", "policy-client", "crm");
        let parked = DeadLetter { state: DeadLetterState::Parked, next_redrive_at: None, ..policy.clone() };
        let six = [
            policy.clone(),
            DeadLetter { id: "env_b".into(), reason: Reason::Permanent, last_status: Some(410), ..parked },
            DeadLetter { id: "env_c".into(), subscription: "audit".into(), ..policy.clone() },
            DeadLetter { id: "env_d".into(), failed_at: hour(48), ..policy.clone() },
            DeadLetter { id: "env_e".into(), event_key: "consent.given".into(), ..policy },
            letter("env_f", "user-lifecycle", "crm"),
        ];
        for (sequence, letter) in (1..).zip(&six) {
            self.put(sequence, letter).await;
        }
    }

    async fn ids(&self, args: &[&str]) -> Vec<String> {
        let list = self.hub.cli_json(&[&["dlt", "list"], args].concat()).await;
        let id = |one: &Value| one["id"].as_str().expect("a string").trim_start_matches("env_").to_owned();
        list.as_array().expect("a list").iter().map(id).collect()
    }

    /// The orders in the redrive stream: `<domain>/<sequence> <order>`.
    async fn orders(&self) -> Vec<String> {
        let mut orders = Vec::new();
        let mut from = 1;
        while let Some(message) =
            self.js.get_next("HUB_REDRIVE", from, "hub.redrive.>").await.expect("answers")
        {
            from = message.sequence + 1;
            if let Some((domain, sequence)) = self.js.names().parse_redrive_due(&message.subject) {
                orders
                    .push(format!("{domain}/{sequence} {}", message.header("Hub-Order").unwrap_or_default()));
            }
        }
        orders
    }

    /// The sequence of the newest order.
    async fn last_order(&self) -> u64 {
        self.js.stream_info("HUB_REDRIVE").await.expect("provisioned").state.last_seq
    }

    /// Waits until `count` orders came after that one; a repeated order replaces the one before.
    async fn ordered_since(&self, before: u64, count: u64) {
        eventually(LIMIT, "the orders are there", async || match self.last_order().await - before {
            came if came >= count => Ok(()),
            fewer => Err(fewer),
        })
        .await;
    }

    async fn depth(&self, stream: &str) -> u64 {
        self.js.stream_info(stream).await.expect("provisioned").state.messages
    }

    async fn refused(&self, code: i32, args: &[&str]) -> String {
        let output = self.hub.cli(args).await;
        assert_eq!(output.status.code(), Some(code), "`hub {}`: {}", args.join(" "), print_output(&output));
        String::from_utf8(output.stderr).expect("UTF-8")
    }
}

fn letter(id: &str, domain: &str, subscription: &str) -> DeadLetter {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("0 is a nanosecond");
    DeadLetter {
        incarnation: Default::default(),
        id: id.to_owned(),
        domain: domain.to_owned(),
        subscription: subscription.to_owned(),
        tenant: "acme".to_owned(),
        event_id: format!("event of {id}"),
        event_key: "policy.updated".to_owned(),
        reason: Reason::Exhausted,
        fault: Fault::Subscriber,
        state: DeadLetterState::Scheduled,
        attempts: 5,
        redrives: 0,
        last_status: Some(503),
        last_error: Some("503 Service Unavailable".to_owned()),
        failed_at: now,
        next_redrive_at: Some(now + time::Duration::minutes(5)),
    }
}

fn envelope(letter: &DeadLetter) -> Bytes {
    let envelope = json!({
        "id": letter.id, "domain": letter.domain, "subscription": letter.subscription, "tenant": letter.tenant,
        "event_id": letter.event_id, "event_key": letter.event_key,
        "event": {"specversion": "1.0", "id": letter.event_id, "data": {"user_id": "u1"}},
        "delivery": {"url": "https://crm.example/hooks", "auth": {"type": "bearer", "token": {"sealed": "v1.k1.hush"}}},
    });
    envelope.to_string().into()
}

#[tokio::test]
async fn dead_letters_are_listed_by_every_condition_and_page_by_page() {
    let stage = Stage::set().await;
    assert_eq!(stage.ids(&[]).await, Vec::<String>::new());
    assert!(stage.hub.cli_ok(&["dlt", "list"]).await.contains("no dead letters"));
    stage.put_six().await;

    // By domain in the order of the settings, oldest entry first.
    assert_eq!(stage.ids(&[]).await, ["f", "a", "b", "c", "d", "e"]);
    assert_eq!(stage.ids(&["--domain", "policy-client"]).await, ["a", "b", "c", "d", "e"]);
    assert_eq!(
        stage.ids(&["--domain", "policy-client,user-lifecycle", "--subscription", "crm"]).await.len(),
        5
    );
    assert_eq!(stage.ids(&["--subscription", "audit"]).await, ["c"]);
    assert_eq!(stage.ids(&["--reason", "permanent"]).await, ["b"]);
    assert_eq!(stage.ids(&["--state", "parked"]).await, ["b"]);
    assert_eq!(stage.ids(&["--event-key", "consent.given"]).await, ["e"]);
    assert_eq!(stage.ids(&["--until", "24h"]).await, ["d"]);
    assert_eq!(stage.ids(&["--since", "24h"]).await, ["f", "a", "b", "c", "e"]);
    assert_eq!(
        stage.ids(&["--since", "2000-01-01T00:00:00Z", "--until", "2001-01-01T00:00:00Z"]).await.len(),
        0
    );

    let all = stage.hub.cli_json(&["dlt", "list", "--subscription", "crm", "--reason", "permanent"]).await;
    for (field, value) in [
        ("domain", json!("policy-client")),
        ("subscription", json!("crm")),
        ("event_id", json!("event of env_a")),
        ("event_key", json!("policy.updated")),
        ("reason", json!("permanent")),
        ("fault", json!("subscriber")),
        ("state", json!("parked")),
        ("attempts", json!(5)),
        ("last_status", json!(410)),
        ("last_error", json!("503 Service Unavailable")),
        ("next_redrive_at", Value::Null),
    ] {
        assert_eq!(all[0][field], value, "{field}");
    }

    // Pages: with JSON, the cursor is on standard error; in the table, it is the last line.
    let (mut pages, mut after) = (Vec::new(), None::<String>);
    loop {
        let mut args = vec!["dlt", "list", "--limit", "2", "--output", "json"];
        args.extend(after.iter().flat_map(|cursor| ["--after", cursor]));
        let output = stage.hub.cli(&args).await;
        assert!(output.status.success(), "{}", print_output(&output));
        let page: Vec<Value> = serde_json::from_slice(&output.stdout).expect("an array");
        pages.push(page.iter().map(|one| one["id"].to_string()).collect::<Vec<_>>().join(" "));
        after =
            String::from_utf8_lossy(&output.stderr).trim().strip_prefix("more: --after ").map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, [r#""env_f" "env_a""#, r#""env_b" "env_c""#, r#""env_d" "env_e""#]);
    let table = stage.hub.cli_ok(&["dlt", "list", "--limit", "1"]).await;
    assert_eq!(table.lines().last(), Some("more: --after policy-client/1"), "{table}");

    assert!(stage.refused(1, &["dlt", "list", "--domain", "billing"]).await.contains("policy-client"));
    for bad in [
        ["--reason", "magic"],
        ["--state", "asleep"],
        ["--since", "soon"],
        ["--after", "x"],
        ["--limit", "0"],
    ] {
        stage.refused(2, &["dlt", "list", bad[0], bad[1]]).await;
    }
}

#[tokio::test]
async fn one_dead_letter_is_shown_with_its_event_and_without_its_secret() {
    let stage = Stage::set().await;
    stage.put_six().await;
    let words = LastWords {
        attempt: 5,
        status: Some(503),
        error: "503 Service Unavailable".to_owned(),
        fault: Fault::Subscriber,
        latency_ms: 12,
        answer: Some("closed for today".to_owned()),
    };
    stage.js.put_last_words("policy-client", "crm", "env_a", &words).await.expect("kept");
    let shown = stage.hub.cli_json(&["dlt", "show", "env_a"]).await;
    assert_eq!(shown["event"]["data"], json!({"user_id": "u1"}));
    assert_eq!(shown["delivery"]["auth"], json!({"type": "bearer", "token": "***"}));
    assert_eq!(shown["last_attempt"]["answer"], "closed for today");
    assert_eq!((&shown["sequence"], &shown["stream"]), (&json!(1), &json!("HUB_OUTBOX_POLICY_CLIENT_DLT")));
    let table = stage.hub.cli_ok(&["dlt", "show", "env_a"]).await;
    assert!(table.contains("closed for today") && table.contains("\"user_id\": \"u1\""), "{table}");
    assert!(!table.contains("v1.k1") && !shown.to_string().contains("v1.k1"), "{table}");

    let undecodable = DeadLetter { reason: Reason::Undecodable, ..letter("env_x", "organization", "crm") };
    let subject = stage.js.names().outbox("organization", "shared", "crm");
    stage.js.put_dead_letter(&subject, 9, &undecodable, "not an envelope".into()).await.expect("taken");
    let shown = stage.hub.cli_json(&["dlt", "show", "env_x"]).await;
    assert_eq!((&shown["event"], &shown["body"]), (&Value::Null, &json!("not an envelope")));

    assert!(stage.refused(1, &["dlt", "show", "env_none"]).await.contains("env_none"));
}

#[tokio::test]
async fn a_replay_orders_what_was_selected_and_nothing_else() {
    let stage = Stage::set().await;
    stage.put_six().await;
    let replay = async |args: &[&str]| stage.hub.cli_json(&[&["dlt", "replay"], args].concat()).await;

    assert!(stage.refused(2, &["dlt", "replay"]).await.contains("--all"));
    stage.refused(2, &["dlt", "replay", "--all", "--subscription", "crm"]).await;
    assert!(stage.refused(1, &["dlt", "replay", "env_a", "env_none"]).await.contains("env_none"));
    stage.refused(1, &["dlt", "replay", "--reason", "stranded"]).await;
    assert_eq!(stage.orders().await, Vec::<String>::new(), "a rejected command orders nothing");

    assert_eq!(
        replay(&["env_b"]).await,
        json!({"selected": 1, "ordered": 1, "already_replaying": 0, "removed": 0})
    );
    assert_eq!(stage.orders().await, ["policy-client/2 operator"]);
    assert_eq!(replay(&["--subscription", "audit", "--domain", "policy-client"]).await["ordered"], 1);
    assert_eq!(stage.orders().await, ["policy-client/2 operator", "policy-client/3 operator"]);

    // A dead letter that is already being redriven is ordered again only with `--force`.
    stage.js.mark_replaying("policy-client", 1).await.expect("marked");
    assert_eq!(stage.ids(&["--state", "replaying"]).await, ["a"]);
    assert_eq!(
        replay(&["env_a"]).await,
        json!({"selected": 1, "ordered": 0, "already_replaying": 1, "removed": 0})
    );
    assert_eq!(replay(&["env_a", "--force"]).await["ordered"], 1);
    assert!(stage.orders().await.contains(&"policy-client/1 operator-force".to_owned()));
    assert_eq!(
        replay(&["--all"]).await,
        json!({"selected": 6, "ordered": 5, "already_replaying": 1, "removed": 0})
    );
    let domains: HashSet<String> = stage
        .orders()
        .await
        .iter()
        .map(|order| order.split('/').next().expect("a domain").to_owned())
        .collect();
    assert_eq!(domains.len(), 2);
}

#[tokio::test]
async fn a_waiting_replay_reports_the_result_of_each() {
    let stage = Stage::set().await;
    stage.put_six().await;
    let waiting = ["dlt", "replay", "env_a", "env_b", "env_c", "--wait", "--output", "json", "--timeout"];
    let outcome = |output: &std::process::Output| {
        let shown: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", print_output(output)));
        let counts =
            ["delivered", "failed", "on_their_way"].map(|name| shown[name].as_u64().expect("a count"));
        (output.status.code(), counts)
    };
    let output = stage.hub.cli(&[&waiting[..], &["0s"]].concat()).await;
    assert_eq!(outcome(&output), (Some(1), [0, 0, 3]), "{}", print_output(&output));

    // While it waits: one is delivered, one fails again, one stays where it is.
    let before = stage.last_order().await;
    let play = async {
        stage.ordered_since(before, 3).await;
        stage.js.delete_dead_letter("policy-client", 1).await.expect("delivered");
        let again = DeadLetter { id: "env_b".into(), attempts: 10, ..letter("", "policy-client", "crm") };
        stage.put(77, &again).await;
        stage.js.delete_dead_letter("policy-client", 2).await.expect("replaced");
    };
    let args = [&waiting[..], &["3s"]].concat();
    let (output, ()) = tokio::join!(stage.hub.cli(&args), play);
    assert_eq!(outcome(&output), (Some(1), [1, 1, 1]), "{}", print_output(&output));

    let before = stage.last_order().await;
    let play = async {
        stage.ordered_since(before, 1).await;
        stage.js.delete_dead_letter("policy-client", 3).await.expect("delivered");
    };
    let args = ["dlt", "replay", "env_c", "--wait", "--output", "json"];
    let (output, ()) = tokio::join!(stage.hub.cli(&args), play);
    assert_eq!(outcome(&output), (Some(0), [1, 0, 0]), "{}", print_output(&output));
}

#[tokio::test]
async fn a_discard_needs_a_yes_and_leaves_the_rest() {
    let stage = Stage::set().await;
    stage.put_six().await;
    assert!(stage.refused(2, &["dlt", "discard", "--all"]).await.contains("--yes"));
    stage.refused(2, &["dlt", "discard", "--yes"]).await;
    assert_eq!(stage.ids(&[]).await.len(), 6);
    let discarded = stage.hub.cli_json(&["dlt", "discard", "--reason", "permanent", "--yes"]).await;
    assert_eq!(discarded, json!({"discarded": 1}));
    stage.hub.cli_ok(&["dlt", "discard", "env_e", "env_f", "--yes"]).await;
    assert_eq!(stage.ids(&[]).await, ["a", "c", "d"]);
    stage.hub.cli_ok(&["dlt", "discard", "--all", "--yes"]).await;
    assert_eq!(stage.depth("HUB_OUTBOX_POLICY_CLIENT_DLT").await, 0);
}

#[tokio::test]
async fn statistics_count_by_domain_reason_and_state_and_by_subscription() {
    let stage = Stage::set().await;
    assert_eq!(stage.hub.cli_json(&["dlt", "stats"]).await["oldest"], Value::Null);
    stage.put_six().await;
    let stats = stage.hub.cli_json(&["dlt", "stats"]).await;
    assert_eq!(stats["total"], 6);
    let rows: Vec<String> = stats["by_domain"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| {
            format!("{} {} {} {}", row["domain"], row["reason"], row["state"], row["count"]).replace('"', "")
        })
        .collect();
    assert_eq!(
        rows,
        [
            "policy-client exhausted scheduled 4",
            "policy-client permanent parked 1",
            "user-lifecycle exhausted scheduled 1"
        ]
    );
    assert_eq!(
        (&stats["by_subscription"][0]["subscription"], &stats["by_subscription"][0]["count"]),
        (&json!("crm"), &json!(5))
    );
    assert_eq!(stats["oldest"], stage.hub.cli_json(&["dlt", "list", "--until", "24h"]).await[0]["failed_at"]);
    assert_eq!(stage.hub.cli_json(&["dlt", "stats", "--domain", "user-lifecycle"]).await["total"], 1);
    assert!(stage.hub.cli_ok(&["dlt", "stats"]).await.contains("6 in total"));
}

#[tokio::test]
async fn a_hundred_thousand_dead_letters_are_listed_counted_replayed_and_discarded() {
    const MANY: u64 = 100_000;
    let stage = Stage::set().await;
    for number in 0..10 {
        register_owner(&stage.js, "acme", &format!("s{number}")).await;
    }
    let putting = stream::iter(1..=MANY).map(|number| {
        let subscription = format!("s{}", number % 10);
        let letter = letter(&format!("env_{number}"), "policy-client", &subscription);
        let (subject, body) =
            (stage.js.names().outbox("policy-client", "shared", &subscription), envelope(&letter));
        let js = &stage.js;
        async move { js.put_dead_letter(&subject, number, &letter, body).await }
    });
    putting.buffered(512).try_collect::<()>().await.expect("the DLT takes them");
    assert_eq!(stage.depth("HUB_OUTBOX_POLICY_CLIENT_DLT").await, MANY);
    let first = stage.hub.cli_ok(&["dlt", "list"]).await;
    assert_eq!(first.lines().count(), 52, "a head, fifty, and the cursor");
    let all = stage.hub.cli_ok(&["dlt", "list", "--all", "--output", "json"]).await;
    let all: Vec<Value> = serde_json::from_str(&all).expect("an array");
    let ids: HashSet<&str> = all.iter().filter_map(|one| one["id"].as_str()).collect();
    assert_eq!((all.len(), ids.len()), (MANY as usize, MANY as usize));
    let page = stage
        .hub
        .cli_ok(&["dlt", "list", "--limit", "7", "--after", "policy-client/99990", "--output", "json"])
        .await;
    let page: Vec<Value> = serde_json::from_str(&page).expect("an array");
    assert_eq!(page, all[99_989..99_996]);
    let one = stage.hub.cli_ok(&["dlt", "list", "--subscription", "s3", "--all", "--output", "json"]).await;
    assert_eq!(serde_json::from_str::<Vec<Value>>(&one).expect("an array").len(), MANY as usize / 10);
    let stats: Value =
        serde_json::from_str(&stage.hub.cli_ok(&["dlt", "stats", "--output", "json"]).await).expect("JSON");
    assert_eq!((&stats["total"], &stats["by_domain"][0]["count"]), (&json!(MANY), &json!(MANY)));
    let shown = stage.hub.cli_ok(&["dlt", "show", "env_100000", "--output", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&shown).expect("JSON")["event_id"], "event of env_100000");

    stage.hub.cli_ok(&["dlt", "replay", "--all"]).await;
    assert_eq!(stage.js.redrive_pending("policy-client").await.expect("answers").len(), MANY as usize);
    stage.hub.cli_ok(&["dlt", "discard", "--subscription", "s3", "--yes"]).await;
    assert_eq!(stage.depth("HUB_OUTBOX_POLICY_CLIENT_DLT").await, MANY - MANY / 10);
}
