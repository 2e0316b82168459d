//! Subscriptions and tokens of the management API, over HTTP on a real hub.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{ApiClient, Behaviour, Hub, Receiver, TestBroker, TestSettings, eventually};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

async fn hub(broker: &TestBroker) -> Hub {
    let settings = TestSettings::default().with_key(KEY);
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    hub.ready().await;
    hub
}

fn plain(id: &str) -> Value {
    json!({"id": id, "events": ["user.created"], "delivery": {"url": "http://127.0.0.1:9/hooks"}})
}

fn ids(page: &Value) -> Vec<&str> {
    page["subscriptions"].as_array().expect("a list").iter().map(|one| one["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_created_read_replaced_patched_and_deleted() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let api = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;

    let created = api.post("/v1/subscriptions", &plain("crm")).await;
    assert_eq!(created.expect(201)["state"], "active");
    assert_eq!(created.header("location"), "/v1/subscriptions/crm");
    let tag = created.header("etag").to_owned();
    // The same subscription again is not created twice; a different one with the same id is refused.
    let again = api.post("/v1/subscriptions", &plain("crm")).await;
    again.expect(200);
    assert_eq!(again.header("etag"), tag);
    let mut other = plain("crm");
    other["events"] = json!(["role.*"]);
    api.post("/v1/subscriptions", &other).await.expect(409);

    let read = api.get("/v1/subscriptions/crm").await;
    assert_eq!(read.expect(200)["events"], json!(["user.created"]));
    assert_eq!(read.header("etag"), tag);

    // A replacement must name the version that it replaces.
    api.put("/v1/subscriptions/crm", &[], &other).await.expect(428);
    let replaced = api.put("/v1/subscriptions/crm", &[("if-match", &tag)], &other).await;
    assert_eq!(replaced.expect(200)["events"], json!(["role.*"]));
    let newer = replaced.header("etag").to_owned();
    assert_ne!(newer, tag);
    // A retry of the same write is not a conflict.
    api.put("/v1/subscriptions/crm", &[("if-match", &tag)], &other).await.expect(200);

    let patch = json!({"delivery": {"max_in_flight": 4, "headers": {"x-team": "billing"}}});
    api.patch("/v1/subscriptions/crm", &[], &patch).await.expect(428);
    api.patch("/v1/subscriptions/crm", &[("if-match", &tag)], &patch).await.expect(412);
    let patched = api.patch("/v1/subscriptions/crm", &[("if-match", &newer)], &patch).await;
    let body = patched.expect(200);
    assert_eq!((&body["delivery"]["max_in_flight"], &body["events"]), (&json!(4), &json!(["role.*"])));
    let taken = json!({"delivery": {"headers": null}});
    let patched = api.patch("/v1/subscriptions/crm", &[("if-match", "*")], &taken).await;
    assert!(patched.expect(200)["delivery"]["headers"].is_null());

    api.put("/v1/subscriptions/crm", &[("if-none-match", "*")], &plain("crm")).await.expect(412);
    let made = api.put("/v1/subscriptions/new", &[("if-none-match", "*")], &plain("new")).await;
    made.expect(201);
    api.put("/v1/subscriptions/new", &[], &plain("other")).await.expect_field(400, "id");

    api.delete("/v1/subscriptions/crm", &[("if-match", &tag)]).await.expect(412);
    api.delete("/v1/subscriptions/crm", &[]).await.expect(204);
    api.get("/v1/subscriptions/crm").await.expect(404);
    api.delete("/v1/subscriptions/crm", &[]).await.expect(404);
    // A deleted subscription can be created again.
    api.post("/v1/subscriptions", &plain("crm")).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_concurrent_writes_one_is_refused_with_412() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let api = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;
    let created = api.post("/v1/subscriptions", &plain("crm")).await;
    created.expect(201);
    let tag = created.header("etag").to_owned();

    for round in 0..20 {
        let tag = api.get("/v1/subscriptions/crm").await.header("etag").to_owned();
        let write = async |mark: String| {
            let patch = json!({"delivery": {"headers": {"x-mark": mark}}});
            api.patch("/v1/subscriptions/crm", &[("if-match", &tag)], &patch).await
        };
        let (one, other) = tokio::join!(write(format!("{round}a")), write(format!("{round}b")));
        let mut statuses = [one.status, other.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412], "{one:?} {other:?}");
        let winner = if one.status == 200 { &one } else { &other };
        let standing = api.get("/v1/subscriptions/crm").await;
        assert_eq!(standing.json(), winner.json());
        assert_eq!(standing.header("etag"), winner.header("etag"));
    }
    api.delete("/v1/subscriptions/crm", &[("if-match", &tag)]).await.expect(412);
    // Many requests create the same subscription at once: one creates it, and none fails.
    let body = plain("raced");
    let many = futures_util::future::join_all((0..8).map(|_| api.post("/v1/subscriptions", &body))).await;
    let mut statuses: Vec<u16> = many.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 200, 201]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_come_in_pages() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let api = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;
    for number in 0..7 {
        let mut body = plain(&format!("s{number}"));
        if number % 2 == 0 {
            body["tenant"] = json!("acme");
        }
        if number == 3 {
            body["events"] = json!(["policy.>"]);
        }
        api.post("/v1/subscriptions", &body).await.expect(201);
    }
    api.send("POST", "/v1/subscriptions/s5/pause", &[], None).await.expect(200);

    let mut seen = Vec::new();
    let mut path = "/v1/subscriptions?limit=3".to_owned();
    loop {
        let page = api.get(&path).await.expect(200);
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        match page["next"].as_str() {
            Some(next) => path = format!("/v1/subscriptions?limit=3&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ["s0", "s1", "s2", "s3", "s4", "s5", "s6"]);
    // If several tenants have the same id, a page continues after the one of the cursor's tenant.
    for tenant in ["acme", "a.b", "globex"] {
        let mut body = plain("s3");
        body["tenant"] = json!(tenant);
        api.post("/v1/subscriptions", &body).await.expect(201);
    }
    let (mut seen, mut path) = (Vec::new(), "/v1/subscriptions?event=user.created&limit=1".to_owned());
    loop {
        let page = api.get(&path).await.expect(200);
        let names = page["subscriptions"].as_array().expect("a list").iter();
        seen.extend(names.map(|one| format!("{}/{}", one["tenant"], one["id"]).replace('"', "")));
        match page["next"].as_str() {
            Some(next) => path = format!("/v1/subscriptions?event=user.created&limit=1&after={next}"),
            None => break,
        }
    }
    let all = [
        "acme/s0",
        "default/s1",
        "acme/s2",
        "a.b/s3",
        "acme/s3",
        "globex/s3",
        "acme/s4",
        "default/s5",
        "acme/s6",
    ];
    assert_eq!(seen, all);
    for tenant in ["acme", "a.b", "globex"] {
        api.delete(&format!("/v1/subscriptions/s3?tenant={tenant}"), &[]).await.expect(204);
    }
    api.get("/v1/subscriptions?after=s3").await.expect_field(400, "after");
    let list = async |query: &str| {
        let page = api.get(&format!("/v1/subscriptions?{query}")).await.expect(200);
        ids(&page).join(" ")
    };
    assert_eq!(list("tenant=acme").await, "s0 s2 s4 s6");
    assert_eq!(list("event=policy.updated").await, "s3");
    assert_eq!(list("state=paused").await, "s5");
    assert_eq!(list("tenant=acme&state=active&event=user.created&limit=2").await, "s0 s2");
    api.get("/v1/subscriptions?limit=0").await.expect_field(400, "limit");
    api.get("/v1/subscriptions?state=asleep").await.expect_field(400, "state");
    api.get("/v1/subscriptions?event=user").await.expect_field(400, "event");
    // Every problem of a query names the parameter.
    for (query, field) in [
        ("/v1/subscriptions?sort=id", "sort"),
        ("/v1/subscriptions?limit=abc", "limit"),
        ("/v1/subscriptions?limit=1&limit=2", "limit"),
        ("/v1/subscriptions?tenant=a%20b", "tenant"),
        ("/v1/subscriptions/s0?colour=red", "colour"),
        ("/v1/matches", "event"),
        ("/v1/matches?event=user", "event"),
        ("/v1/matches?event=user.created&event=user.updated", "event"),
        ("/v1/matches?event=user.created&tenant=a%20b", "tenant"),
        ("/v1/orders?limit=-1", "limit"),
        ("/v1/orders?sort=id", "sort"),
    ] {
        api.get(query).await.expect_field(400, field);
    }

    let matches = api.get("/v1/matches?event=user.created&tenant=acme").await.expect(200);
    assert_eq!(ids(&matches), ["s0", "s2", "s4", "s6"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn problems_of_a_subscription_name_their_field() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let api = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;
    let wrong: [(&str, Value); 8] = [
        ("delivery.url", json!({"delivery": {"url": "ftp://crm.example/"}})),
        ("delivery.url", json!({"delivery": {"url": "http://10.0.0.7/hooks"}})),
        (
            "delivery.auth.type",
            json!({"delivery": {"url": "https://crm.example/", "auth": {"type": "kerberos"}}}),
        ),
        ("filter[0]", json!({"filter": [{"like": {"source": "idp"}}]})),
        ("events[0]", json!({"events": ["user created"]})),
        ("id", json!({"id": "Not An Id"})),
        ("tenant", json!({"tenant": "a b"})),
        ("delivery.timeout", json!({"delivery": {"url": "https://crm.example/", "timeout": "1h"}})),
    ];
    for (field, part) in wrong {
        let mut body = plain("bad");
        for (name, value) in part.as_object().unwrap() {
            body[name] = value.clone();
        }
        let problem = api.post("/v1/subscriptions", &body).await.expect(400);
        let named = problem["errors"][0]["field"].as_str().unwrap_or_default().to_owned();
        assert!(named.starts_with(field), "{field}: {problem}");
    }
    let json = [("content-type", "application/json")];
    api.send("POST", "/v1/subscriptions", &json, Some(b"{".to_vec())).await.expect_field(400, "body");
    api.send("POST", "/v1/subscriptions", &[], Some(b"{}".to_vec())).await.expect(415);
    api.send("POST", "/v1/subscriptions", &json, Some(vec![b' '; 2 << 20])).await.expect(413);
    api.get("/v1/nothing").await.expect(404);
    api.send("PUT", "/v1/subscriptions", &json, Some(b"{}".to_vec())).await.expect(405);
    assert!(ids(&api.get("/v1/subscriptions").await.expect(200)).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_allows_what_its_scopes_say_until_it_is_revoked() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let admin = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;
    admin.post("/v1/subscriptions", &plain("crm")).await.expect(201);

    for client in [
        ApiClient::with_token(&hub, None),
        ApiClient::with_token(&hub, Some("hub_admin_guess")),
        ApiClient::with_token(&hub, Some("nonsense")),
    ] {
        let answer = client.get("/v1/subscriptions").await;
        answer.expect(401);
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{answer:?}");
    }
    let reader = ApiClient::with_scopes(&hub, "reader", "read", None).await;
    reader.get("/v1/subscriptions/crm").await.expect(200);
    assert!(
        reader.post("/v1/subscriptions", &plain("x")).await.expect(403)["detail"]
            .as_str()
            .unwrap()
            .contains("manage")
    );
    reader.delete("/v1/subscriptions/crm", &[]).await.expect(403);
    let publisher = ApiClient::with_scopes(&hub, "publisher", "publish", None).await;
    publisher.get("/v1/subscriptions").await.expect(403);

    // Only hashes are kept, and lists show none.
    let listed = hub.cli_ok(&["token", "list", "--output", "json"]).await;
    let secret = reader.token_secret();
    let stored = broker.dump().await;
    for (where_, text) in [("list", &listed), ("streams", &stored), ("log", &hub.log())] {
        assert!(text.contains("reader") || where_ == "log", "{where_}: {text}");
        assert!(!text.contains(secret), "{where_} holds the token");
    }
    hub.cli_ok(&["token", "revoke", "reader", "--yes"]).await;
    eventually(Duration::from_secs(5), "the token is refused", async || {
        match reader.get("/v1/subscriptions").await.status {
            401 => Ok(()),
            status => Err(status),
        }
    })
    .await;
    // Health and metrics require no token.
    let nobody = ApiClient::with_token(&hub, None);
    for path in ["/healthz", "/readyz", "/metrics", "/openapi.json"] {
        assert_eq!(nobody.get(path).await.status, 200, "{path}");
    }
    let expired = hub.cli_json(&["token", "create", "short", "--scope", "read", "--expires-in", "1ms"]).await;
    let expired = ApiClient::with_token(&hub, expired["token"].as_str());
    expired.get("/v1/subscriptions").await.expect(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_token_sees_and_touches_that_tenant_alone() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let admin = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;
    let acme = ApiClient::with_scopes(&hub, "acme", "read,manage", Some("acme")).await;
    let mut theirs = plain("theirs");
    theirs["tenant"] = json!("globex");
    admin.post("/v1/subscriptions", &theirs).await.expect(201);

    // Without a tenant in the body, the tenant of the token applies.
    assert_eq!(acme.post("/v1/subscriptions", &plain("ours")).await.expect(201)["tenant"], "acme");
    assert_eq!(ids(&acme.get("/v1/subscriptions").await.expect(200)), ["ours"]);
    acme.get("/v1/subscriptions?tenant=globex").await.expect_field(403, "tenant");
    acme.get("/v1/subscriptions/theirs").await.expect(404);
    acme.patch("/v1/subscriptions/theirs", &[("if-match", "*")], &json!({"events": ["user.*"]}))
        .await
        .expect(404);
    acme.delete("/v1/subscriptions/theirs", &[]).await.expect(404);
    for action in ["pause", "resume", "test", "rotate-secret"] {
        acme.send("POST", &format!("/v1/subscriptions/theirs/{action}"), &[], None).await.expect(404);
    }
    // A tenant can neither take over another tenant's subscription, create one for it, nor hand its own over.
    acme.put("/v1/subscriptions/theirs", &[("if-match", "*")], &plain("theirs")).await.expect(412);
    let mut foreign = plain("foreign");
    foreign["tenant"] = json!("globex");
    acme.post("/v1/subscriptions", &foreign).await.expect_field(400, "tenant");
    acme.patch("/v1/subscriptions/ours", &[("if-match", "*")], &json!({"tenant": "globex"}))
        .await
        .expect_field(400, "tenant");
    acme.get("/v1/matches?event=user.created&tenant=globex").await.expect_field(403, "tenant");
    assert_eq!(ids(&acme.get("/v1/matches?event=user.created").await.expect(200)), ["ours"]);
    assert_eq!(ids(&admin.get("/v1/subscriptions").await.expect(200)), ["ours", "theirs"]);
    assert_eq!(admin.get("/v1/subscriptions/theirs").await.expect(200)["tenant"], "globex");
    // The id is free in every other tenant, and reveals nothing of this one.
    let own = acme.post("/v1/subscriptions", &plain("theirs")).await;
    assert_eq!(own.expect(201)["tenant"], "acme");
    assert_eq!(own.header("location"), "/v1/subscriptions/theirs");
    assert_eq!(ids(&acme.get("/v1/subscriptions").await.expect(200)), ["ours", "theirs"]);
    acme.get("/v1/subscriptions/theirs?tenant=globex").await.expect_field(403, "tenant");
    acme.delete("/v1/subscriptions/theirs?tenant=globex", &[]).await.expect_field(403, "tenant");

    // A token without a tenant must name the tenant if several have the id.
    assert_eq!(ids(&admin.get("/v1/subscriptions").await.expect(200)), ["ours", "theirs", "theirs"]);
    let problem = admin.get("/v1/subscriptions/theirs").await.expect(409);
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("acme, globex")), "{problem}");
    admin.get("/v1/subscriptions/theirs?tenant=a%20b").await.expect_field(400, "tenant");
    admin.get("/v1/subscriptions/theirs?tenant=other").await.expect(404);
    let one = admin.get("/v1/subscriptions/theirs?tenant=globex").await;
    let one_tag = one.header("etag").to_owned();
    let (theirs, ours) = (one.expect(200), own.json());
    assert_eq!((&theirs["tenant"], &ours["tenant"]), (&json!("globex"), &json!("acme")));
    assert!(theirs["incarnation"].as_str().is_some_and(|text| text.len() == 32), "{theirs}");
    assert_ne!(theirs["incarnation"], ours["incarnation"]);
    // Only the hub sets the incarnation; the tenant cannot change.
    let patch = json!({"incarnation": ours["incarnation"], "events": ["user.*"]});
    let changed = admin
        .patch("/v1/subscriptions/theirs?tenant=globex", &[("if-match", &one_tag)], &patch)
        .await
        .expect(200);
    assert_eq!((&changed["incarnation"], &changed["events"]), (&theirs["incarnation"], &json!(["user.*"])));
    let patch = json!({"tenant": "acme"});
    admin
        .patch("/v1/subscriptions/theirs?tenant=globex", &[("if-match", "*")], &patch)
        .await
        .expect_field(400, "tenant");
    admin
        .put("/v1/subscriptions/theirs?tenant=globex", &[("if-match", "*")], &ours)
        .await
        .expect_field(400, "tenant");
    // A subscription that is created again has a new incarnation.
    admin.delete("/v1/subscriptions/theirs?tenant=globex", &[]).await.expect(204);
    let location = admin.post("/v1/subscriptions", &theirs).await;
    assert_eq!(location.header("location"), "/v1/subscriptions/theirs?tenant=globex");
    assert_ne!(location.expect(201)["incarnation"], theirs["incarnation"]);
    assert_eq!(acme.get("/v1/subscriptions/theirs").await.expect(200), ours);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_paused_tested_and_given_a_new_secret() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let receiver = Receiver::start().await;
    let api = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;
    let body = json!({
        "id": "crm", "events": ["user.*"],
        "delivery": {
            "url": receiver.url("/hooks"),
            "auth": {"type": "bearer", "token": "open-sesame"},
            "signing": {"secret": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}
        }
    });
    let created = api.post("/v1/subscriptions", &body).await;
    assert_eq!(created.expect(201)["delivery"]["auth"]["token"], "***");
    // The read subscription can be written back: `***` keeps the stored secret.
    let read = api.get("/v1/subscriptions/crm").await;
    let unchanged =
        api.put("/v1/subscriptions/crm", &[("if-match", read.header("etag"))], &read.json()).await;
    unchanged.expect(200);
    assert_eq!(unchanged.header("etag"), read.header("etag"));

    let paused = api.send("POST", "/v1/subscriptions/crm/pause", &[], None).await;
    assert_eq!(paused.expect(200)["state"], "paused");
    api.send("POST", "/v1/subscriptions/crm/resume", &[("if-match", "\"1\"")], None).await.expect(412);
    let resumed = api.send("POST", "/v1/subscriptions/crm/resume", &[], None).await;
    assert_eq!(resumed.expect(200)["state"], "active");

    let tested = api.send("POST", "/v1/subscriptions/crm/test", &[], None).await.expect(200);
    assert_eq!(tested["answer"]["status"], 200, "{tested}");
    assert_eq!(tested["a_delivery_would"], "be done");
    assert!(!tested.to_string().contains("open-sesame"), "{tested}");
    assert_eq!(receiver.received("/hooks")[0].header("authorization"), "Bearer open-sesame");
    receiver.set("/hooks", Behaviour::status(500));
    let tested = api.post("/v1/subscriptions/crm/test", &json!({"event": "user.deleted"})).await.expect(200);
    assert_eq!(
        (&tested["answer"]["status"], &tested["answer"]["fault"]),
        (&json!(500), &json!("subscriber"))
    );
    api.post("/v1/subscriptions/crm/test", &json!({"event": "nope"})).await.expect_field(400, "event");

    let rotated = api.post("/v1/subscriptions/crm/rotate-secret", &json!({"overlap": "1h"})).await;
    let new = rotated.expect(200);
    assert_eq!(rotated.header("cache-control"), "no-store");
    assert!(
        new["secret"].as_str().unwrap().starts_with("whsec_") && new["previous_until"].is_string(),
        "{new}"
    );
    let asymmetric = api.post("/v1/subscriptions/crm/rotate-secret", &json!({"algorithm": "ed25519"})).await;
    assert!(asymmetric.expect(200)["public_key"].as_str().unwrap().starts_with("whpk_"));
    api.post("/v1/subscriptions/crm/rotate-secret", &json!({"overlap": "2y"}))
        .await
        .expect_field(400, "overlap");
    receiver.set("/hooks", Behaviour::ok());
    api.send("POST", "/v1/subscriptions/crm/test", &[], None).await.expect(200);
    let signatures = receiver.received("/hooks").last().unwrap().header("webhook-signature").to_owned();
    assert!(signatures.contains("v1a,") && signatures.contains("v1,"), "{signatures}");
    let log = hub.log();
    assert!(
        log.contains("rotate-secret") && log.contains("caller=\"admin\""),
        "changes are logged with who made them"
    );
    assert!(
        !log.contains("open-sesame") && !log.contains(new["secret"].as_str().unwrap()),
        "a secret in the log"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_has_so_many_comparisons_on_all_its_levels() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker).await;
    let api = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;
    let filtered = |comparisons: usize| {
        let leaves = vec![json!({"exact": {"source": "x"}}); comparisons];
        let mut one = plain("filtered");
        one["filter"] = json!([{ "any": leaves }]);
        one
    };
    for comparisons in [257, 24_000] {
        let problem = api.post("/v1/subscriptions", &filtered(comparisons)).await.expect_field(400, "filter");
        let detail = problem["detail"].as_str().expect("a text");
        assert!(
            detail.contains(&format!("{comparisons} comparisons")) && detail.contains("at most 256"),
            "{detail}"
        );
    }
    api.post("/v1/subscriptions", &filtered(256)).await.expect(201);
    let file = hub.folder().join("filtered.json");
    std::fs::write(&file, filtered(24_000).to_string()).expect("written");
    let refused = hub.cli(&["subscription", "apply", "-f", &file.to_string_lossy()]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(crate::support::print_output(&refused).contains("filter: has 24000 comparisons"));
}
