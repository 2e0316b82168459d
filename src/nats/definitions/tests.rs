use super::*;

pub(in crate::nats) fn parameters() -> StreamParameters {
    StreamParameters {
        prefix: "hub".to_owned(),
        domains: ["user-lifecycle", "access-session", "policy-client", "organization"]
            .map(str::to_owned)
            .to_vec(),
        replicas: 1,
        max_deliver: 5,
        ack_wait: Duration::from_secs(75),
        duplicate_window: Duration::from_secs(120),
        limits: StreamLimits {
            events: 1_000_000_000,
            outbox: 2_000_000_000,
            dlt: 512_000_000,
            attempts: 512_000_000,
            rejected: 256_000_000,
            advisories: 64_000_000,
            attempts_max_age: Duration::from_secs(7 * 24 * 3600),
            rejected_max_age: Duration::from_secs(30 * 24 * 3600),
        },
    }
}

/// The files under `nats/` are what the default settings render, each and no other.
#[test]
fn the_default_shape_renders_exactly_the_files() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("nats");
    let mut seen = 0;
    for stream in render(&parameters()) {
        let file = root.join("streams").join(format!("{}.json", stream.name));
        let written: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(Value::Object(stream.config), written, "{}", file.display());
        seen += 1;
        for consumer in stream.consumers {
            let file = root.join("consumers").join(&stream.name).join(format!("{}.json", consumer.name));
            let written: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
            assert_eq!(Value::Object(consumer.config), written, "{}", file.display());
            seen += 1;
        }
    }
    let count = |folder: &std::path::Path| std::fs::read_dir(folder).unwrap().count();
    let consumers: usize =
        std::fs::read_dir(root.join("consumers")).unwrap().map(|folder| count(&folder.unwrap().path())).sum();
    assert_eq!(seen, count(&root.join("streams")) + consumers, "a file is not rendered by anything");
}

/// Messages that were handed back, because a stream of one domain is full, say, count as pending.
#[test]
fn what_waits_for_one_domain_leaves_places_for_others() {
    for consumer in render(&parameters()).into_iter().flat_map(|stream| stream.consumers) {
        let most = consumer.config["max_ack_pending"].as_u64().unwrap();
        assert!(most >= 100_000, "{}: {most}", consumer.name);
    }
}

#[test]
fn an_added_domain_and_another_prefix_reach_every_name() {
    let mut parameters = parameters();
    parameters.prefix = "acme".to_owned();
    parameters.domains = vec!["audit-trail".to_owned()];
    let streams = render(&parameters);
    let whole = streams
        .iter()
        .map(|stream| serde_json::to_string(&stream.config).unwrap())
        .chain(
            streams
                .iter()
                .flat_map(|s| s.consumers.iter().map(|c| serde_json::to_string(&c.config).unwrap())),
        )
        .collect::<String>();
    for foreign in ["HUB_", "\"hub.o", "\"hub.e", "user-lifecycle", "USER_LIFECYCLE", "hub-subscriptions"] {
        assert!(!whole.contains(foreign), "{foreign} is left");
    }
    assert!(streams.iter().any(|stream| stream.name == "ACME_OUTBOX_AUDIT_TRAIL_DLT"));
    assert!(streams.iter().any(|stream| stream.name == "KV_acme-subscriptions"));
}
