//! Quotas of a tenant: events per second, and the number and size of its subscriptions.

use serde_json::{Value, json};

use crate::support::settings::Tenant;
use crate::support::{ApiClient, Hub, TestBroker, TestSettings, print_output, subscription};

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_publishes_within_its_rate_over_the_api_and_waits_its_turn_over_nats() {
    let broker = TestBroker::start().await;
    let tenant = Tenant { name: "acme".to_owned(), events_per_second: Some(1), ..Tenant::default() };
    let settings = TestSettings::default().with(|settings| settings.tenants.push(tenant));
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    hub.ready().await;
    let acme = ApiClient::with_scopes(&hub, "acme", "publish", Some("acme")).await;
    let other = ApiClient::with_scopes(&hub, "other", "publish", Some("other")).await;
    let operator = ApiClient::with_scopes(&hub, "operator", "publish", None).await;
    let event = |id: &str, tenant: &str| json!({"specversion": "1.0", "id": id, "source": "/idp", "type": "user.created", "tenant": tenant});
    let batch = async |api: &ApiClient, tenant: &str, from: usize, count: usize| {
        let events: Vec<Value> =
            (from..from + count).map(|number| event(&format!("{tenant}-{number}"), tenant)).collect();
        let headers = [("content-type", "application/cloudevents-batch+json")];
        api.send("POST", "/v1/events", &headers, Some(Value::from(events).to_string().into_bytes())).await
    };
    // The budget is ten seconds' worth; the next request gets the time to wait.
    batch(&acme, "acme", 0, 600).await.expect(202);
    let answer = batch(&acme, "acme", 600, 1).await;
    let problem = answer.expect(429);
    assert!(
        problem["detail"].as_str().expect("a text").contains("tenants[acme].events_per_second"),
        "{problem}"
    );
    assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 100), "{answer:?}");
    // Other tenants are not affected, and an operator may publish for this one.
    batch(&other, "other", 0, 600).await.expect(202);
    batch(&operator, "acme", 600, 600).await.expect(202);
    // The quota does not apply to NATS.
    let context = broker.jetstream().await;
    for number in 0..50 {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Hub-Tenant", "acme");
        let sent = context
            .publish_with_headers("hub.events.user.created", headers, format!("{number}").into())
            .await;
        sent.expect("sent").await.expect("stored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_no_more_subscriptions_than_its_quota() {
    let broker = TestBroker::start().await;
    let big = Tenant { name: "big".to_owned(), subscriptions: Some(3), ..Tenant::default() };
    let settings = TestSettings::default().with(|settings| {
        settings.quotas.subscriptions = Some(2);
        settings.tenants.push(big);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    hub.ready().await;
    let of = |tenant: &str, number: usize| {
        let mut one = subscription(&format!("{tenant}-{number}"), &["user.>"], "https://crm.example/hooks");
        one["tenant"] = tenant.into();
        one
    };
    for (tenant, limit, setting) in
        [("acme", 2, "quotas.subscriptions"), ("big", 3, "tenants[big].subscriptions")]
    {
        let api = ApiClient::with_scopes(&hub, tenant, "read,manage", Some(tenant)).await;
        for number in 0..limit {
            api.post("/v1/subscriptions", &of(tenant, number)).await.expect(201);
        }
        let problem = api.post("/v1/subscriptions", &of(tenant, limit)).await.expect(409);
        let detail = problem["detail"].as_str().expect("a text");
        assert!(detail.contains(&format!("{limit} subscriptions")) && detail.contains(setting), "{detail}");
        assert_eq!(problem["type"], "urn:integration-hub:problem:quota-exceeded");
        // Existing subscriptions may be replaced; the command line cannot exceed the quota either.
        api.post("/v1/subscriptions", &of(tenant, 0)).await.expect(200);
        let file = hub.folder().join("one.json");
        std::fs::write(&file, of(tenant, limit).to_string()).expect("written");
        let refused = hub.cli(&["subscription", "apply", "-f", &file.to_string_lossy()]).await;
        assert_ne!(refused.status.code(), Some(0));
        assert!(print_output(&refused).contains(setting), "{}", print_output(&refused));
        // A removal makes room for another one.
        api.delete(&format!("/v1/subscriptions/{tenant}-0"), &[]).await.expect(204);
        api.post("/v1/subscriptions", &of(tenant, limit)).await.expect(201);
    }
    // Concurrent requests do not exceed the quota.
    let api = ApiClient::with_scopes(&hub, "crowd", "read,manage", Some("crowd")).await;
    let all = futures_util::future::join_all((0..12).map(|number| {
        let (api, one) = (&api, of("crowd", number));
        async move { api.post("/v1/subscriptions", &one).await.status }
    }));
    let answers = all.await;
    let made = answers.iter().filter(|status| **status == 201).count();
    assert_eq!((made, answers.iter().filter(|status| **status == 409).count()), (2, 10), "{answers:?}");
    // Several in one file are counted together.
    let file = hub.folder().join("many.json");
    std::fs::write(&file, json!([of("new", 0), of("new", 1), of("new", 2)]).to_string()).expect("written");
    let refused = hub.cli(&["subscription", "apply", "-f", &file.to_string_lossy()]).await;
    assert_ne!(refused.status.code(), Some(0));
    assert!(print_output(&refused).contains("quotas.subscriptions"));
}

/// One subscription is limited, and all of a tenant together; a smaller replacement is always accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_subscriptions_are_bounded_in_bytes() {
    let broker = TestBroker::start().await;
    let settings =
        TestSettings::default().with(|settings| settings.quotas.subscriptions_size = Some(100_000));
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    hub.ready().await;
    let api = ApiClient::with_scopes(&hub, "acme", "read,manage", Some("acme")).await;
    let of = |id: &str, comparisons: usize, bytes: usize| {
        let mut one = subscription(id, &["user.>"], "https://crm.example/hooks");
        one["tenant"] = "acme".into();
        one["filter"] = json!([{"any": vec![json!({"exact": {"source": "x".repeat(bytes)}}); comparisons]}]);
        one
    };
    let problem = api.post("/v1/subscriptions", &of("huge", 256, 4_000)).await.expect(400);
    assert_eq!(problem["errors"][0]["field"], "filter", "{problem}");
    api.post("/v1/subscriptions", &of("first", 200, 200)).await.expect(201);
    api.post("/v1/subscriptions", &of("second", 200, 200)).await.expect(201);
    let problem = api.post("/v1/subscriptions", &of("third", 200, 200)).await.expect(409);
    assert!(
        problem["detail"].as_str().is_some_and(|text| text.contains("quotas.subscriptions_size")),
        "{problem}"
    );
    let put = async |one: Value| {
        let path = format!("/v1/subscriptions/{}", one["id"].as_str().expect("an id"));
        api.put(&path, &[("if-match", "*")], &one).await.status
    };
    assert_eq!(put(of("second", 200, 280)).await, 409, "it would grow beyond the quota");
    assert_eq!(put(of("second", 2, 20)).await, 200);
    api.post("/v1/subscriptions", &of("third", 200, 200)).await.expect(201);
}
