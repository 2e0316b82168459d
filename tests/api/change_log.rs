//! The log shows who changed what through the API, and a tenant that changes much does not decide its length.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{ApiClient, Hub, TestBroker, TestSettings, subscription};

const LINE: &str = " API request ";
const REFUSED: &str = " API request refused ";
const STEP: Duration = Duration::from_secs(60);

/// The value of a field of a text line.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {name}="))?;
    Some(rest.split(' ').next()?.trim_matches('"'))
}

fn lines(log: &str, caller: &str) -> Vec<String> {
    let is =
        |line: &&str| line.contains(LINE) && !line.contains(REFUSED) && field(line, "caller") == Some(caller);
    log.lines().filter(is).map(str::to_owned).collect()
}

async fn hub(broker: &TestBroker, interval: Duration) -> Hub {
    let settings = TestSettings::default().with(|settings| {
        settings.log.level = Some("info".to_owned());
        settings.log.repeat_interval = Some(interval);
    });
    let mut hub = Hub::serve(&broker.url(), &settings, &["--role", "api"]);
    hub.ready().await;
    hub
}

fn plain(id: &str) -> Value {
    subscription(id, &["user.*"], "http://127.0.0.1:9/hooks")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_has_a_line_with_tenant_caller_method_route_and_path() {
    let broker = TestBroker::start().await;
    let hub = hub(&broker, Duration::from_secs(3_600)).await;
    let admin = ApiClient::with_scopes(&hub, "admin", "read,manage,operate", None).await;
    let acme = ApiClient::with_scopes(&hub, "acme-ci", "read,manage", Some("acme")).await;
    let mut globex = plain("crm");
    globex["tenant"] = json!("globex");
    admin.post("/v1/subscriptions", &globex).await.expect(201);
    acme.post("/v1/subscriptions", &plain("crm")).await.expect(201);
    let any = [("if-match", "*")];
    acme.patch("/v1/subscriptions/crm", &any, &json!({"events": ["user.created"]})).await.expect(200);
    admin.send("POST", "/v1/subscriptions/crm/pause?tenant=globex", &[], None).await.expect(200);
    admin.send("POST", "/v1/domains/user-lifecycle/pause", &[], None).await.expect(200);
    admin.delete("/v1/subscriptions/crm?tenant=globex", &[]).await.expect(204);
    // Reads, and what is refused, change nothing.
    acme.get("/v1/subscriptions").await.expect(200);
    acme.delete("/v1/subscriptions/none", &[]).await.expect(404);
    let shown = |caller: &str| -> Vec<String> {
        let names = ["method", "route", "path", "created", "tenant"];
        let line = |line: &String| names.map(|name| field(line, name).unwrap_or("-").to_owned()).join(" ");
        lines(&hub.log(), caller).iter().map(line).collect()
    };
    hub.wait_for_log("DELETE", STEP).await;
    assert_eq!(
        shown("acme-ci"),
        [
            "POST /v1/subscriptions /v1/subscriptions /v1/subscriptions/crm acme",
            "PATCH /v1/subscriptions/{id} /v1/subscriptions/crm - acme",
        ]
    );
    assert_eq!(
        shown("admin"),
        [
            "POST /v1/subscriptions /v1/subscriptions /v1/subscriptions/crm?tenant=globex globex",
            "POST /v1/subscriptions/{id}/pause /v1/subscriptions/crm/pause - globex",
            "POST /v1/domains/{name}/pause /v1/domains/user-lifecycle/pause - -",
            "DELETE /v1/subscriptions/{id} /v1/subscriptions/crm - globex",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_changes_much_has_a_bounded_number_of_lines() {
    const CHANGES: usize = 300;
    const MOST: usize = 100;
    let broker = TestBroker::start().await;
    let mut hub = hub(&broker, Duration::from_secs(3_600)).await;
    let acme = ApiClient::with_scopes(&hub, "acme-ci", "read,manage", Some("acme")).await;
    let second = ApiClient::with_scopes(&hub, "acme-web", "read,manage", Some("acme")).await;
    let globex = ApiClient::with_scopes(&hub, "globex-ci", "read,manage", Some("globex")).await;
    acme.post("/v1/subscriptions", &plain("crm")).await.expect(201);
    for number in 1..CHANGES {
        let caller = if number % 3 == 0 { &second } else { &acme };
        let change = json!({"delivery": {"max_in_flight": 1 + number}});
        caller.patch("/v1/subscriptions/crm", &[("if-match", "*")], &change).await.expect(200);
    }
    globex.post("/v1/subscriptions", &plain("crm")).await.expect(201);
    hub.terminate().await;
    let log = hub.log();
    let written = lines(&log, "acme-ci").len() + lines(&log, "acme-web").len();
    assert_eq!(written, MOST);
    assert_eq!(lines(&log, "globex-ci").len(), 1, "another tenant has its line");
    let left_out: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(" lines left out ") && line.contains("API request"))
        .collect();
    let mut callers: Vec<&str> = left_out.iter().filter_map(|line| field(line, "caller")).collect();
    callers.sort_unstable();
    assert_eq!(callers, ["acme-ci", "acme-web"], "{left_out:?}");
    let repeated: usize =
        left_out.iter().filter_map(|line| field(line, "repeated")?.parse::<usize>().ok()).sum();
    assert_eq!(written + repeated, CHANGES);
    for line in left_out {
        let names = ["tenant", "method", "route"].map(|name| field(line, name).unwrap_or("-"));
        assert_eq!(names, ["acme", "PATCH", "/v1/subscriptions/{id}"], "{line}");
    }
}

/// A portal has one token for all tenants.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_hides_no_change_of_another_one_behind_a_token_that_they_share() {
    const CHANGES: usize = 150;
    const MOST: usize = 100;
    let broker = TestBroker::start().await;
    let mut hub = hub(&broker, Duration::from_secs(3_600)).await;
    let portal = ApiClient::with_scopes(&hub, "portal", "read,manage", None).await;
    for tenant in ["acme", "globex"] {
        let mut one = plain("crm");
        one["tenant"] = json!(tenant);
        portal.post("/v1/subscriptions", &one).await.expect(201);
        let changes = if tenant == "acme" { CHANGES } else { 2 };
        for number in 1..changes {
            let change = json!({"delivery": {"max_in_flight": 1 + number}});
            let path = format!("/v1/subscriptions/crm?tenant={tenant}");
            portal.patch(&path, &[("if-match", "*")], &change).await.expect(200);
        }
    }
    hub.terminate().await;
    let written = lines(&hub.log(), "portal");
    let of = |tenant: &str| written.iter().filter(|line| field(line, "tenant") == Some(tenant)).count();
    assert_eq!((of("acme"), of("globex")), (MOST, 2));
}
