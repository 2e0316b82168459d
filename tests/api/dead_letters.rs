//! Dead letters, bulk jobs and domains over HTTP, on a real hub.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use integration_hub::domain::dead_letter::{DeadLetter, DeadLetterState};
use integration_hub::domain::outcome::{Fault, Reason};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::{
    ApiClient, Behaviour, Direction, FaultProxy, Hub, Receiver, TestBroker, TestClient, TestSettings,
    eventually, ids, register_owner, subscription,
};

const STEP: Duration = Duration::from_secs(60);
const ALL: &str = "read,operate";

async fn serve(broker: &str, args: &[&str]) -> Hub {
    let mut hub = Hub::serve(broker, &TestSettings::quick(), args);
    hub.ready().await;
    hub
}

fn letter(id: &str) -> DeadLetter {
    DeadLetter {
        incarnation: Default::default(),
        id: id.to_owned(),
        domain: "policy-client".to_owned(),
        subscription: "crm".to_owned(),
        tenant: "acme".to_owned(),
        event_id: format!("event-{id}"),
        event_key: "policy.updated".to_owned(),
        reason: Reason::Exhausted,
        fault: Fault::Subscriber,
        state: DeadLetterState::Scheduled,
        attempts: 5,
        redrives: 0,
        last_status: Some(503),
        last_error: Some("503 Service Unavailable".to_owned()),
        failed_at: OffsetDateTime::now_utc().replace_nanosecond(0).expect("0 is a nanosecond"),
        next_redrive_at: None,
    }
}

/// Writes a dead letter as if its envelope had been at `sequence` of the outbox.
async fn put(client: &TestClient, sequence: u64, letter: &DeadLetter) {
    register_owner(&client.js, &letter.tenant, &letter.subscription).await;
    let subject = client.js.names().outbox(&letter.domain, "shared", &letter.subscription);
    let body = json!({
        "id": letter.id, "domain": letter.domain, "subscription": letter.subscription, "tenant": letter.tenant,
        "event_id": letter.event_id, "event_key": letter.event_key,
        "event": {"specversion": "1.0", "id": letter.event_id, "data": {"user_id": "u1"}},
        "delivery": {
            "url": "https://crm.example/hooks", "auth": {"type": "bearer", "token": {"sealed": "v1.k1.hush"}},
        },
    });
    let body = body.to_string().into();
    client.js.put_dead_letter(&subject, sequence, letter, body).await.expect("the DLT stores it");
}

/// Five of acme in two domains, one of globex.
async fn put_six(client: &TestClient) {
    let old = OffsetDateTime::now_utc() - time::Duration::hours(48);
    let six = [
        letter("a"),
        DeadLetter { state: DeadLetterState::Parked, reason: Reason::Permanent, ..letter("b") },
        DeadLetter { subscription: "audit".to_owned(), ..letter("c") },
        DeadLetter { failed_at: old, event_key: "consent.given".to_owned(), ..letter("d") },
        DeadLetter { tenant: "globex".to_owned(), ..letter("e") },
        DeadLetter {
            domain: "user-lifecycle".to_owned(),
            event_key: "user.created".to_owned(),
            ..letter("f")
        },
    ];
    for (sequence, letter) in (1..).zip(&six) {
        put(client, sequence, letter).await;
    }
}

async fn put_many(client: &TestClient, count: u64) {
    stream::iter(1..=count)
        .for_each_concurrent(256, |sequence| async move {
            put(client, sequence, &letter(&format!("env_{sequence}"))).await;
        })
        .await;
}

fn letters(page: &Value) -> Vec<String> {
    let list = page["dead_letters"].as_array().expect("a list");
    list.iter().map(|one| one["id"].as_str().expect("a string").to_owned()).collect()
}

async fn list(api: &ApiClient, query: &str) -> String {
    letters(&api.get(&format!("/v1/dead-letters?{query}")).await.expect(200)).join(" ")
}

/// Starts a bulk job and returns its path.
async fn place(api: &ApiClient, kind: &str, body: &Value) -> String {
    let answer = api.post(&format!("/v1/dead-letters/{kind}"), body).await;
    let order = answer.expect(202);
    assert_eq!((&order["kind"], &order["state"]), (&json!(kind), &json!("selecting")), "{order}");
    let path = answer.header("location").to_owned();
    assert_eq!(path, format!("/v1/orders/{}", order["id"].as_str().expect("an id")));
    path
}

/// Waits until a bulk job has finished, and returns it.
async fn over(api: &ApiClient, path: &str) -> Value {
    eventually(STEP, "the order is over", async || {
        let order = api.get(path).await.expect(200);
        match order["state"].as_str() {
            Some("selecting" | "running") => Err(order),
            _ => Ok(order),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_by_each_condition_shown_and_counted() {
    let broker = TestBroker::start().await;
    let hub = serve(&broker.url(), &["--role", "api"]).await;
    let client = TestClient::connect(&broker.url()).await;
    put_six(&client).await;
    let api = ApiClient::with_scopes(&hub, "reader", "read", None).await;

    // The settings' order of domains, the oldest first.
    assert_eq!(list(&api, "").await, "f a b c d e");
    assert_eq!(list(&api, "domain=policy-client").await, "a b c d e");
    assert_eq!(list(&api, "domain=policy-client,user-lifecycle").await, "f a b c d e");
    assert_eq!(list(&api, "domain=user-lifecycle&domain=organization").await, "f");
    assert_eq!(list(&api, "tenant=globex").await, "e");
    assert_eq!(list(&api, "subscription=audit").await, "c");
    assert_eq!(list(&api, "reason=permanent").await, "b");
    assert_eq!(list(&api, "state=parked").await, "b");
    assert_eq!(list(&api, "event_key=user.created").await, "f");
    let yesterday = (OffsetDateTime::now_utc() - time::Duration::days(1)).format(&Rfc3339).expect("a time");
    assert_eq!(list(&api, &format!("until={yesterday}")).await, "d");
    assert_eq!(list(&api, &format!("since={yesterday}&domain=policy-client")).await, "a b c e");
    assert_eq!(
        list(&api, "tenant=acme&state=scheduled&subscription=crm&event_key=policy.updated").await,
        "a"
    );

    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/v1/dead-letters?limit=2{after}")).await.expect(200);
        seen.push(letters(&page).join(" "));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(seen, ["f a", "b c", "d e"]);

    let shown = api.get("/v1/dead-letters/a").await.expect(200);
    assert_eq!(
        (&shown["domain"], &shown["reason"], &shown["last_status"]),
        (&json!("policy-client"), &json!("exhausted"), &json!(503))
    );
    assert_eq!(shown["event"]["data"]["user_id"], "u1");
    assert_eq!(shown["delivery"]["auth"]["token"], "***");
    assert!(!shown.to_string().contains("hush"), "{shown}");
    api.get("/v1/dead-letters/nope").await.expect(404);

    let stats = api.get("/v1/dead-letters/stats").await.expect(200);
    assert_eq!(stats["total"], 6);
    // The same id in another tenant is another subscription.
    let most = &stats["by_subscription"][0];
    assert_eq!(
        (&most["tenant"], &most["subscription"], &most["count"]),
        (&json!("acme"), &json!("crm"), &json!(4))
    );
    assert_eq!(api.get("/v1/dead-letters/stats?domain=user-lifecycle").await.expect(200)["total"], 1);

    for (query, field) in [
        ("domain=nope", "domain"),
        ("tenant=a%20b", "tenant"),
        ("subscription=*", "subscription"),
        ("reason=bad", "reason"),
        ("state=gone", "state"),
        ("event_key=nope", "event_key"),
        ("since=yesterday", "since"),
        ("until=2026-13-01T00:00:00Z", "until"),
        ("since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "until"),
        ("state=parked&state=scheduled", "state"),
        ("limit=0", "limit"),
        ("limit=many", "limit"),
        ("after=7", "after"),
        ("after=organization/1&domain=policy-client", "after"),
        ("colour=red", "colour"),
    ] {
        api.get(&format!("/v1/dead-letters?{query}")).await.expect_field(400, field);
    }
    api.get("/v1/dead-letters/stats?limit=1").await.expect_field(400, "limit");
    // Changes need another scope.
    for (method, path) in [
        ("POST", "/v1/dead-letters/a/replay"),
        ("DELETE", "/v1/dead-letters/a"),
        ("DELETE", "/v1/orders/ord_0"),
    ] {
        api.send(method, path, &[], None).await.expect(403);
    }
    api.post("/v1/dead-letters/discard", &json!({"all": true})).await.expect(403);
    assert_eq!(list(&api, "limit=1000").await, "f a b c d e");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_job_requires_a_selection_and_names_invalid_fields() {
    let broker = TestBroker::start().await;
    let hub = serve(&broker.url(), &["--role", "api"]).await;
    let client = TestClient::connect(&broker.url()).await;
    put_six(&client).await;
    let api = ApiClient::with_scopes(&hub, "ops", ALL, None).await;

    for (body, field) in [
        (json!({}), "body"),
        (json!({"force": true}), "body"),
        (json!([]), "body"),
        (json!({"all": false}), "body"),
        (json!({"all": "yes"}), "all"),
        (json!({"all": true, "reason": "permanent"}), "all"),
        (json!({"all": true, "force": 1}), "force"),
        (json!({"domain": ["nope"]}), "domain"),
        (json!({"domain": "policy-client"}), "domain"),
        (json!({"state": "gone"}), "state"),
        (json!({"since": "2h"}), "since"),
        (json!({"colour": "red"}), "colour"),
    ] {
        api.post("/v1/dead-letters/replay", &body).await.expect_field(400, field);
    }
    api.post("/v1/dead-letters/discard", &json!({"all": true, "force": true}))
        .await
        .expect_field(400, "force");
    assert_eq!(api.get("/v1/orders").await.expect(200)["orders"], json!([]));

    // Each filter has the same meaning as in the list.
    let order = over(&api, &place(&api, "discard", &json!({"reason": "permanent"})).await).await;
    assert_eq!((&order["state"], &order["total"], &order["done"]), (&json!("done"), &json!(1), &json!(1)));
    assert_eq!((&order["by"], &order["tenant"]), (&json!("ops"), &Value::Null), "{order}");
    assert!(order["ended_at"].is_string() && order["error"].is_null(), "{order}");
    assert_eq!(list(&api, "").await, "f a c d e");
    let tomorrow = (OffsetDateTime::now_utc() + time::Duration::days(1)).format(&Rfc3339).expect("a time");
    let body =
        json!({"domain": ["policy-client"], "subscription": "crm", "tenant": "acme", "until": tomorrow});
    over(&api, &place(&api, "discard", &body).await).await;
    assert_eq!(list(&api, "").await, "f c e");
    // A job without dead letters succeeds: they may be resolved before it begins.
    let order = over(&api, &place(&api, "discard", &json!({"state": "parked"})).await).await;
    assert_eq!((&order["state"], &order["total"]), (&json!("done"), &json!(0)));

    // Cancelling a finished job changes nothing.
    let path = format!("/v1/orders/{}", order["id"].as_str().expect("an id"));
    assert_eq!(api.delete(&path, &[]).await.expect(200)["state"], "done");
    api.get("/v1/orders/nope").await.expect(404);
    api.delete("/v1/orders/ord_00000000000000000000000000000000", &[]).await.expect(404);
    let newest = api.get("/v1/orders?limit=2").await.expect(200);
    assert_eq!(newest["orders"].as_array().map(Vec::len), Some(2));
    assert_eq!(newest["orders"][0], order);
    api.get("/v1/orders?limit=0").await.expect_field(400, "limit");

    api.delete("/v1/dead-letters/e", &[]).await.expect(204);
    api.delete("/v1/dead-letters/e", &[]).await.expect(404);
    api.send("POST", "/v1/dead-letters/e/replay", &[], None).await.expect(404);
    api.post("/v1/dead-letters/c/replay", &json!({"force": "no"})).await.expect_field(400, "force");
    assert_eq!(list(&api, "").await, "f c");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_token_sees_and_orders_its_own_alone() {
    let broker = TestBroker::start().await;
    let hub = serve(&broker.url(), &["--role", "api"]).await;
    let client = TestClient::connect(&broker.url()).await;
    put_six(&client).await;
    let ops = ApiClient::with_scopes(&hub, "ops", ALL, None).await;
    let acme = ApiClient::with_scopes(&hub, "acme", ALL, Some("acme")).await;
    let globex = ApiClient::with_scopes(&hub, "globex", ALL, Some("globex")).await;

    assert_eq!(list(&acme, "").await, "f a b c d");
    assert_eq!(list(&globex, "").await, "e");
    let count = async |query: &str| {
        globex.get(&format!("/v1/dead-letters/stats{query}")).await.expect(200)["total"].clone()
    };
    assert_eq!((count("").await, count("?tenant=globex").await), (json!(1), json!(1)));
    globex.get("/v1/dead-letters/a").await.expect(404);
    globex.send("POST", "/v1/dead-letters/a/replay", &[], None).await.expect(404);
    globex.delete("/v1/dead-letters/a", &[]).await.expect(404);
    globex.post("/v1/dead-letters/discard", &json!({"tenant": "acme"})).await.expect_field(403, "tenant");

    let theirs = place(&ops, "replay", &json!({"tenant": "acme", "reason": "permanent"})).await;
    let whole = place(&ops, "replay", &json!({"reason": "permanent"})).await;
    let own = place(&globex, "discard", &json!({"all": true})).await;
    assert_eq!(over(&globex, &own).await["done"], 1, "all of its tenant");
    assert_eq!(list(&ops, "").await, "f a b c d");
    for path in [&theirs, &whole] {
        globex.get(path).await.expect(404);
        globex.delete(path, &[]).await.expect(404);
        assert_eq!(over(&ops, path).await["done"], 1);
    }
    let paths = async |api: &ApiClient| {
        let orders = api.get("/v1/orders").await.expect(200)["orders"].clone();
        let path = |order: &Value| format!("/v1/orders/{}", order["id"].as_str().expect("an id"));
        orders.as_array().expect("a list").iter().map(path).collect::<Vec<_>>()
    };
    assert_eq!(paths(&globex).await, std::slice::from_ref(&own));
    assert_eq!(paths(&acme).await, std::slice::from_ref(&theirs));
    assert_eq!(paths(&ops).await, [own, whole, theirs]);

    // Domains belong to the whole hub.
    for (method, path) in [
        ("GET", "/v1/domains"),
        ("GET", "/v1/domains/organization"),
        ("POST", "/v1/domains/organization/pause"),
        ("POST", "/v1/domains/organization/resume"),
    ] {
        acme.send(method, path, &[], None).await.expect(403);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_replayed_is_delivered_and_a_paused_domain_holds() {
    let broker = TestBroker::start().await;
    let hub = serve(&broker.url(), &[]).await;
    let receiver = Receiver::start().await;
    receiver.set("/hooks", Behaviour::status(500));
    let client = TestClient::connect(&broker.url()).await;
    client.subscribe([subscription("crm", &["policy.>"], &receiver.url("/hooks"))]).await;
    client.publish_all("policy.updated", &ids("event", 12)).await;
    let api = ApiClient::with_scopes(&hub, "ops", ALL, None).await;
    let count = async |wanted: usize| {
        eventually(STEP, "the dead letters are stored", async || {
            let found = letters(&api.get("/v1/dead-letters").await.expect(200));
            if found.len() == wanted { Ok(found) } else { Err(found.len()) }
        })
        .await
    };
    let standing = count(12).await;

    receiver.set("/hooks", Behaviour::ok());
    let one =
        api.send("POST", &format!("/v1/dead-letters/{}/replay", standing[0]), &[], None).await.expect(202);
    assert_eq!(
        one,
        json!({"id": standing[0], "domain": "policy-client", "ordered": true, "already_replaying": false})
    );
    receiver.wait_accepted("/hooks", 1, STEP).await;
    assert!(receiver.accepted("/hooks").contains(&standing[0]));
    count(11).await;

    // A paused domain holds replayed dead letters, and the list shows it.
    let paused = api.post("/v1/domains/policy-client/pause", &json!({"for": "2h"})).await.expect(200);
    assert_eq!((&paused["name"], &paused["paused"]), (&json!("policy-client"), &json!(true)));
    assert!(paused["paused_until"].is_string(), "{paused}");
    let order = over(&api, &place(&api, "replay", &json!({"subscription": "crm"})).await).await;
    assert_eq!((&order["state"], &order["done"]), (&json!("done"), &json!(11)), "{order}");
    eventually(STEP, "all are on their way", async || {
        match letters(&api.get("/v1/dead-letters?state=replaying").await.expect(200)).len() {
            11 => Ok(()),
            fewer => Err(fewer),
        }
    })
    .await;
    let again = over(&api, &place(&api, "replay", &json!({"all": true})).await).await;
    assert_eq!(
        (&again["total"], &again["done"], &again["already_replaying"]),
        (&json!(11), &json!(0), &json!(11))
    );
    let one =
        api.send("POST", &format!("/v1/dead-letters/{}/replay", standing[1]), &[], None).await.expect(202);
    assert_eq!((&one["ordered"], &one["already_replaying"]), (&json!(false), &json!(true)));
    assert_eq!(receiver.accepted("/hooks").len(), 1, "nothing was delivered while paused");
    let resumed = api.send("POST", "/v1/domains/policy-client/resume", &[], None).await.expect(200);
    assert_eq!((&resumed["paused"], &resumed["paused_until"]), (&json!(false), &Value::Null));
    receiver.wait_accepted("/hooks", 12, STEP).await;
    count(0).await;

    let domains = api.get("/v1/domains").await.expect(200);
    let names: Vec<&str> = domains["domains"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(names, ["user-lifecycle", "access-session", "policy-client", "organization"]);
    assert_eq!(api.get("/v1/domains/organization").await.expect(200)["paused"], false);
    // Without a body the pause lasts until it is resumed.
    let paused = api.send("POST", "/v1/domains/organization/pause", &[], None).await.expect(200);
    assert_eq!((&paused["paused"], &paused["paused_until"]), (&json!(true), &Value::Null));
    for (body, field) in
        [(json!({"for": "soon"}), "for"), (json!({"for": "0s"}), "for"), (json!({"until": "2h"}), "until")]
    {
        api.post("/v1/domains/organization/pause", &body).await.expect_field(400, field);
    }
    for (method, path) in [("GET", ""), ("POST", "/pause"), ("POST", "/resume")] {
        api.send(method, &format!("/v1/domains/nope{path}"), &[], None).await.expect(404);
    }
    let reader = ApiClient::with_scopes(&hub, "reader", "read", None).await;
    reader.send("POST", "/v1/domains/organization/resume", &[], None).await.expect(403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_job_is_cancelled_through_any_replica_and_a_stop_interrupts_it() {
    const MANY: u64 = 12_000;
    let broker = TestBroker::start().await;
    let mut hub = serve(&broker.url(), &["--role", "api"]).await;
    let other = serve(&broker.url(), &["--role", "api"]).await;
    let client = TestClient::connect(&broker.url()).await;
    put_many(&client, MANY).await;
    let api = ApiClient::with_scopes(&hub, "ops", ALL, None).await;
    let second = ApiClient::with_token(&other, Some(api.token()));

    // The maximum number of concurrent jobs; each runs longer than this test needs to request another one.
    let all = json!({"all": true});
    let six = futures_util::future::join_all((0..6).map(|_| api.post("/v1/dead-letters/replay", &all))).await;
    let (taken, refused): (Vec<_>, Vec<_>) = six.iter().partition(|answer| answer.status == 202);
    assert_eq!((taken.len(), refused.len()), (4, 2), "{six:?}");
    for answer in refused {
        answer.expect(503);
        assert_eq!(answer.header("retry-after"), "5");
    }
    for answer in taken {
        let path = answer.header("location");
        let asked = second.delete(path, &[]).await.expect(202);
        assert_eq!(asked["cancelling"], true, "{asked}");
    }
    for order in second.get("/v1/orders").await.expect(200)["orders"].as_array().expect("a list") {
        let path = format!("/v1/orders/{}", order["id"].as_str().expect("an id"));
        let order = over(&second, &path).await;
        assert_eq!(order["state"], "cancelled", "{order}");
        assert!(order["done"].as_u64() < Some(MANY), "{order}");
    }

    let path = place(&api, "discard", &all).await;
    assert!(hub.terminate().await.success());
    let order = second.get(&path).await.expect(200);
    assert_eq!(order["state"], "interrupted", "it is marked before the process ends: {order}");
    let left = client.dead_letters("policy-client").await.len() as u64;
    assert!(left > 0 && order["done"].as_u64() == Some(MANY - left), "{left} are left: {order}");
    // The same job again does the rest.
    let order = over(&second, &place(&second, "discard", &all).await).await;
    assert_eq!((&order["state"], &order["done"]), (&json!("done"), &json!(left)), "{order}");
    assert_eq!(broker.messages("HUB_OUTBOX_POLICY_CLIENT_DLT").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_a_killed_process_shows_as_interrupted() {
    let broker = TestBroker::start().await;
    let proxy = FaultProxy::start(&broker.url()).await;
    let mut hub = serve(&proxy.url("nats"), &["--role", "api"]).await;
    let other = serve(&broker.url(), &["--role", "api"]).await;
    let client = TestClient::connect(&broker.url()).await;
    put_six(&client).await;
    let api = ApiClient::with_scopes(&other, "ops", ALL, None).await;
    let doomed = ApiClient::with_token(&hub, Some(api.token()));

    // It is in the middle of it when it is killed.
    let held = proxy.cut_before(Direction::ToServer, "hub.redrive.due.");
    let path = place(&doomed, "replay", &json!({"all": true})).await;
    held.fired(STEP).await;
    hub.kill().await;
    let order = api.get(&path).await.expect(200);
    assert!(matches!(order["state"].as_str(), Some("selecting" | "running")), "{order}");
    let order = over(&api, &path).await;
    assert_eq!(order["state"], "interrupted", "{order}");
    assert_eq!(order["ended_at"], order["updated_at"]);
    assert_eq!(api.get("/v1/orders").await.expect(200)["orders"][0]["state"], "interrupted");
    assert_eq!(api.delete(&path, &[]).await.expect(200)["state"], "interrupted");
}
