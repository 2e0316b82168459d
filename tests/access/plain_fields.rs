//! Fields that are stored and shown in plain text hold no credential: a new one is refused by API and command line, and
//! one that an older version stored is shown nowhere and goes with the next write.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{ApiClient, Ca, Hub, TestBroker, TestClient, TestSettings, print_output};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

struct Pem {
    cert: String,
    key: String,
}

impl Pem {
    fn new(folder: &Path) -> Self {
        let files = Ca::new("partner").issue(folder, "hub.example");
        let read = |path: &Path| std::fs::read_to_string(path).expect("the file is there");
        Self { cert: read(&files.cert), key: read(&files.key) }
    }

    fn combined(&self) -> String {
        format!("{}{}", self.cert, self.key)
    }

    /// The second line of the key.
    fn secret(&self) -> &str {
        self.key.lines().nth(1).expect("a key has lines")
    }
}

fn crm(tls: &Value) -> Value {
    json!({"id": "crm", "events": ["user.created"], "delivery": {"url": "https://crm.example/h", "tls": tls}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_key_beside_a_certificate_is_refused_and_never_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let pem = Pem::new(folder.path());
    let broker = TestBroker::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::default().with_key(KEY), &[]);
    hub.ready().await;
    let api = ApiClient::with_scopes(&hub, "admin", "read,manage", None).await;
    let file = folder.path().join("crm.json");
    for (tls, field) in [
        (json!({"ca": pem.combined()}), "delivery.tls.ca"),
        (json!({"cert": pem.combined(), "key": pem.key}), "delivery.tls.cert"),
        (json!({"cert": format!("{}{}", pem.key, pem.cert), "key": pem.key}), "delivery.tls.cert"),
    ] {
        let problem = api.post("/v1/subscriptions", &crm(&tls)).await.expect_field(400, field);
        assert!(problem.to_string().contains("delivery.tls.key"), "{problem}");
        assert!(!problem.to_string().contains(pem.secret()), "{problem}");
        std::fs::write(&file, crm(&tls).to_string()).expect("the file is written");
        let output = hub.cli(&["subscription", "apply", "-f", file.to_str().expect("UTF-8")]).await;
        let printed = print_output(&output);
        assert!(!output.status.success() && printed.contains(field), "{printed}");
        assert!(!printed.contains(pem.secret()), "{printed}");
    }

    // Comments are allowed, and dropped.
    let commented = format!("subject=CN = hub.example\n{}\n# end\n", pem.cert);
    let good = crm(&json!({"cert": commented, "key": pem.key}));
    let created = api.post("/v1/subscriptions", &good).await.expect(201);
    assert!(!created.to_string().contains("subject="), "{created}");
    api.post("/v1/subscriptions", &good).await.expect(200);

    // An entry of a version that stored the whole text.
    let client = TestClient::connect(&broker.url()).await;
    let bucket = client.context.get_key_value("hub-subscriptions").await.expect("the bucket");
    let stored = async || {
        let raw = bucket.get("crm").await.expect("readable").expect("there");
        serde_json::from_slice::<Value>(&raw).expect("JSON")
    };
    let old = async |pointer: &str, value: &str| {
        let mut entry = stored().await;
        *entry.pointer_mut(pointer).expect("the field") = json!(value);
        bucket.put("crm", entry.to_string().into()).await.expect("stored");
    };
    let any = [("if-match", "*")];
    old("/delivery/tls/cert", &pem.combined()).await;
    for path in ["/v1/subscriptions", "/v1/subscriptions/crm", "/v1/matches?event=user.created"] {
        let shown = api.get(path).await.expect(200).to_string();
        assert!(shown.contains("BEGIN CERTIFICATE") && !shown.contains(pem.secret()), "{path}: {shown}");
    }
    for args in [["subscription", "list"].as_slice(), &["subscription", "show", "crm"]] {
        let shown = hub.cli_json(args).await.to_string();
        assert!(!shown.contains(pem.secret()), "{args:?}: {shown}");
    }
    // The same subscription again is a change, because the stored text differs.
    api.put("/v1/subscriptions/crm", &any, &good).await.expect(200);
    assert!(!stored().await.to_string().contains(pem.secret()), "the key is stored still");
    old("/delivery/tls/cert", &pem.combined()).await;
    api.patch("/v1/subscriptions/crm", &any, &json!({"delivery": {"max_in_flight": 3}})).await.expect(200);
    assert!(!stored().await.to_string().contains(pem.secret()), "the key is stored still");
    old("/delivery/tls/cert", &pem.combined()).await;
    api.post("/v1/subscriptions/crm/pause", &json!({})).await.expect(200);
    assert!(!stored().await.to_string().contains(pem.secret()), "the key is stored still");

    // A credential in the query of a URL.
    old("/delivery/url", "https://crm.example/h?token=HUSH&a=b").await;
    let shown = api.get("/v1/subscriptions/crm").await.expect(200);
    assert_eq!(shown["delivery"]["url"], "https://crm.example/h?token=***&a=b");
    api.put("/v1/subscriptions/crm", &any, &shown).await.expect_field(400, "delivery.url");
}
