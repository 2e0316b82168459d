use std::collections::BTreeMap;
use std::ffi::OsString;

use secrecy::ExposeSecret;

use super::*;

fn strings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn layered(
    file: &str,
    environment: &[(&str, &str)],
    overrides: &[(&str, &str)],
) -> Result<Settings, SettingsError> {
    let variables = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Settings::from_layers(
        Some(("hub.toml".to_owned(), file.to_owned())),
        layers::environment(variables)?,
        &strings(overrides),
    )
}

#[test]
fn the_defaults_are_the_contract() {
    let settings = Settings::defaults();
    assert_eq!(settings.nats.url, "nats://127.0.0.1:4222");
    assert_eq!(settings.nats.prefix, "hub");
    assert!(settings.nats.password.is_none());
    let names: Vec<&str> = settings.domains.iter().map(|domain| domain.name.as_str()).collect();
    assert_eq!(names, ["user-lifecycle", "access-session", "policy-client", "organization"]);
    let policy: Vec<&str> = settings.domains[2].events.iter().map(|pattern| pattern.as_str()).collect();
    assert_eq!(policy, ["client.>", "policy.>", "consent.>", "grant.>", "permission.>", "scope.>"]);
    assert_eq!(settings.delivery.max_deliver, 5);
    assert_eq!(settings.delivery.retry, [1, 5, 15, 30].map(Duration::from_secs));
    assert_eq!(settings.redrive.schedule.len(), 6);
    assert_eq!(settings.events.max_size.as_u64(), 900_000);
    assert_eq!(settings.api.listen.port(), 8080);
}

/// Each file under `tests/fixtures/settings` starts with a comment that holds the whole error.
#[test]
fn each_bad_file_is_refused_with_its_error() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/settings");
    let mut seen = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("# ")).collect();
        assert!(!expected.is_empty(), "{name} names no expected error");
        let error = Settings::from_toml(&name, &text).expect_err(&name);
        if error.to_string() != expected.join("\n") {
            wrong.push(error.to_string());
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "not as the fixtures say:\n{}", wrong.join("\n"));
    assert!(seen >= 15, "only {seen} fixtures found");
}

#[test]
fn later_layers_win_and_lists_come_from_the_environment_in_both_forms() {
    let settings = layered(
        "[delivery]\nmax_deliver = 7\nretry = [\"2s\"]\n[nats]\nprefix = \"file\"",
        &[
            ("HUB__DELIVERY__RETRY", "3s, 4s"),
            ("HUB__DELIVERY__ALLOW_NETWORKS", r#"["10.0.0.0/8", "127.0.0.1"]"#),
            ("HUB__DELIVERY__HELD", "2048"),
            ("HUB__NATS__PREFIX", "env"),
            ("HUB__NATS__TLS_REQUIRED", "true"),
            ("HUB__NATS__USER", "me"),
            ("HUB__NATS__PASSWORD", "12345"),
            ("HUB_CONFIG", "not a setting"),
            ("HUB_PORT_8080_TCP", "as Kubernetes sets it"),
        ],
        &[("nats.prefix", "flag")],
    )
    .unwrap();
    assert_eq!(settings.delivery.max_deliver, 7);
    assert_eq!(settings.delivery.retry, [3, 4].map(Duration::from_secs));
    assert_eq!(settings.delivery.held, 2048);
    let networks: Vec<String> = settings.delivery.allow_networks.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "127.0.0.1/32"]);
    assert_eq!(settings.nats.prefix, "flag");
    assert!(settings.nats.tls_required);
    assert_eq!(settings.nats.password.unwrap().expose_secret(), "12345");
}

#[test]
fn a_bad_value_from_the_environment_names_the_variable() {
    let error = layered("", &[("HUB__DELIVERY__GRACE", "soon")], &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "delivery.grace: invalid duration \"soon\"; write a number and a unit, like \"15s\", \"250ms\" or \"2h\" (environment HUB__DELIVERY__GRACE)"
    );
    let error = layered("", &[("HUB__DELIVERY__HOLD", "1")], &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "delivery.hold: unknown setting (environment HUB__DELIVERY__HOLD); did you mean delivery.held?"
    );
    for (name, text) in
        [("HUB__DOMAINS", "[{name = "), ("HUB__DOMAINS", "["), ("HUB__DELIVERY__RETRY", "[1s")]
    {
        let error = layered("", &[(name, text)], &[]).unwrap_err().to_string();
        let key = name[5..].to_lowercase().replace("__", ".");
        assert!(error.starts_with(&format!("{key}: is not a list: ")), "{error}");
        assert!(
            error.ends_with(&format!("(environment {name})")) && error.contains("write it as ["),
            "{error}"
        );
    }
    let error = layered("", &[], &[("delivery.allow_networks", "[127.0.0.1")]).unwrap_err().to_string();
    assert!(
        error.starts_with("delivery.allow_networks: is not a list: ") && error.ends_with("(flag)"),
        "{error}"
    );
    let error = layered("", &[("HUB__NATS", "x")], &[]).unwrap_err().to_string();
    assert_eq!(error, "nats: is a section; write [nats] and its settings below (environment HUB__NATS)");
    let error = layered("", &[], &[("max_deliver", "3")]).unwrap_err().to_string();
    assert_eq!(error, "max_deliver: unknown setting (flag); did you mean delivery.max_deliver?");
}

/// A suggestion is near by edit distance; otherwise the remedy is the list of settings.
#[test]
fn a_misspelt_setting_gets_the_nearest_known_one_and_a_foreign_one_gets_none() {
    for (key, suggestion) in [
        ("nats.ulr", Some("nats.url")),
        ("outbox.pool", Some("outbox.pooler")),
        ("delivery.max_deliveries", Some("delivery.max_deliver")),
        ("url", Some("nats.url")),
        ("natz", Some("nats")),
        ("nats.foo", None),
        ("foo", None),
        ("telemetry.endpoint", None),
        ("nats.x", None),
    ] {
        let error = layered("", &[], &[(key, "1")]).unwrap_err().to_string();
        let remedy = match suggestion {
            Some(known) => format!("did you mean {known}?"),
            None => "remove it, or use a setting that `hub config show` lists".to_owned(),
        };
        let unknown = if suggestion.is_none() { error.contains("unknown setting (flag)") } else { true };
        assert!(unknown && error.ends_with(&remedy), "{key}: {error}");
    }
    let error = layered("[[tenants]]\nname = \"a\"\nsubs = 1", &[], &[]).unwrap_err().to_string();
    assert!(error.ends_with("that `hub config show` lists"), "{error}");
}

/// Every problem that the validation finds names the layer of its value.
#[test]
fn a_problem_names_the_layer_of_its_value() {
    let file = |events: &str| format!("[[domains]]\nname = \"billing\"\nevents = [\"{events}\"]");
    let error = layered(&file("invoice"), &[], &[]).unwrap_err().to_string();
    assert!(error.starts_with("domains[billing].events[0]: ") && error.ends_with("(hub.toml)"), "{error}");
    let error = layered("", &[("HUB__OUTBOX__POOLER", "session")], &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "outbox.pooler: is \"session\"; must be \"none\" (no pooler, or one in session mode) or \"transaction\" (environment HUB__OUTBOX__POOLER)"
    );
    let settings = layered(&file("invoice.>"), &[], &[]).expect("valid");
    for (key, layer) in [
        ("domains[billing].events[0]", "hub.toml"),
        ("domains[billing]", "hub.toml"),
        ("nats.url", "defaults"),
        ("nats", "defaults"),
        ("unheard.of", "defaults"),
    ] {
        assert_eq!(settings.problem(key, "x").layer, layer, "{key}");
    }
}

#[test]
fn domains_are_merged_by_name() {
    let settings = layered(
        r#"
        [[domains]]
        name = "billing"
        events = ["invoice.>"]
        [[domains]]
        name = "policy-client"
        concurrency = 8
        [[domains]]
        name = "urgent"
        events = ["policy.revoked"]
        concurrency = 2
        "#,
        &[("HUB__DOMAINS", r#"[{name = "audit", events = ["audit.>"]}]"#)],
        &[],
    )
    .unwrap();
    let domains: Vec<(&str, usize, usize)> = settings
        .domains
        .iter()
        .map(|domain| (domain.name.as_str(), domain.events.len(), domain.concurrency))
        .collect();
    assert_eq!(
        domains,
        [
            ("audit", 1, 64),
            ("billing", 1, 64),
            ("urgent", 1, 2),
            ("user-lifecycle", 7, 64),
            ("access-session", 5, 64),
            ("policy-client", 6, 8),
            ("organization", 4, 64),
        ]
    );
    let shown = settings.show();
    assert!(shown.contains(
        "name = \"policy-client\"  # hub.toml\nconcurrency = 8  # hub.toml\nevents = [\"client.>\", "
    ));
    assert!(shown.contains("name = \"audit\"  # environment HUB__DOMAINS"));
}

#[test]
fn what_is_shown_reads_back_and_holds_no_secret() {
    let secrets = BTreeMap::from([
        ("HUB__NATS__PASSWORD", "pass-secret"),
        ("HUB__NATS__USER", "me"),
        ("HUB__SECRETS__MASTER_KEY", "master-secret"),
        ("HUB__SECRETS__PREVIOUS_KEYS", "k0:old-secret,k00:older-secret"),
    ]);
    let pairs: Vec<(&str, &str)> = secrets.into_iter().collect();
    let settings = layered("[log]\nformat = \"json\"", &pairs, &[]).unwrap();
    let shown = settings.show();
    assert!(!shown.contains("secret\""), "{shown}");
    assert!(!format!("{settings:?}").contains("-secret"));
    assert!(shown.contains("password = \"***\"  # environment HUB__NATS__PASSWORD"));
    assert!(shown.contains("token = \"\"  # defaults"));
    assert!(shown.contains("previous_keys = [\"k0:***\", \"k00:***\"]  # environment"), "{shown}");
    assert!(shown.contains("format = \"json\"  # hub.toml"));
    let again = Settings::from_toml("shown", &shown).unwrap();
    assert_eq!(again.domains, settings.domains);
    assert_eq!(again.delivery.retry, settings.delivery.retry);
}

#[test]
fn external_brokers_are_merged_by_name_and_hide_their_secrets() {
    assert!(Settings::defaults().external_brokers.is_empty());
    let settings = layered(
        r#"
        [outbox]
        database_url = "postgres://hub:url-secret@db/app"
        [[external_brokers]]
        name = "partner_events"
        provider = "redis"
        url = "rediss://redis.example:6380"
        max_len = 1000
        "#,
        &[("HUB__EXTERNAL_BROKERS", r#"[{name = "partner_events", password = "env-secret"}, {name = "other", provider = "kafka", url = "k1:9092, k2:9092", user = "u", password = "other-secret", outbox = false}]"#)],
        &[],
    )
    .unwrap();
    let [other, partner] = &settings.external_brokers[..] else { panic!("{:?}", settings.external_brokers) };
    let of_outbox: Vec<&str> = settings.outbox_brokers().map(|broker| broker.name.as_str()).collect();
    assert_eq!(of_outbox, ["partner_events"]);
    assert_eq!((other.name.as_str(), other.provider, other.jetstream), ("other", Provider::Kafka, true));
    assert_eq!((partner.url.as_str(), partner.max_len), ("rediss://redis.example:6380", Some(1000)));
    assert_eq!(partner.password.as_ref().unwrap().expose_secret(), "env-secret");
    assert_eq!(settings.outbox.retry_policy().max_attempts, 10);
    let shown = settings.show();
    assert!(!shown.contains("-secret") && !format!("{settings:?}").contains("-secret"), "{shown}");
    assert!(shown.contains("password = \"***\"  # environment HUB__EXTERNAL_BROKERS"), "{shown}");
    assert!(shown.contains("database_url = \"***\"  # hub.toml"), "{shown}");
    assert_eq!(Settings::from_toml("shown", &shown).unwrap().external_brokers.len(), 2);
}

/// A syntax error quotes nothing of the line, which may hold a secret.
#[test]
fn a_syntax_error_does_not_show_the_line() {
    let error = Settings::from_toml("hub.toml", "[nats]\npassword = \"tell-nobody\n").unwrap_err();
    assert!(matches!(error, SettingsError::Syntax { line: 2, .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("tell-nobody"), "{error}");
}

#[test]
fn a_named_file_must_exist() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.toml");
    assert!(matches!(Settings::load(Some(&path), &[]), Err(SettingsError::Read { .. })));
    std::fs::write(&path, "[nats]\nprefix = \"from-file\"\n").unwrap();
    assert_eq!(Settings::load(Some(&path), &[]).unwrap().nats.prefix, "from-file");
}

/// Nothing is converted: not in a file, not in a list's entry, and not the text of a variable beyond its kind.
#[test]
fn a_value_of_another_kind_is_refused_and_not_converted() {
    for (file, key, problem) in [
        ("[api]\nanonymous = 2", "api.anonymous", "must be true or false"),
        ("[api]\nanonymous = 1.5", "api.anonymous", "must be true or false"),
        ("[api]\nanonymous = \"true\"", "api.anonymous", "must be true or false"),
        ("[api]\nconnections = true", "api.connections", "must be a whole number"),
        ("[delivery]\nmax_deliver = 5.7", "delivery.max_deliver", "must be a whole number"),
        ("[delivery]\nmax_deliver = \"5\"", "delivery.max_deliver", "must be a whole number"),
        ("[delivery]\ngrace = 5", "delivery.grace", "must be text"),
        ("[delivery]\ngrace = 2026-01-01", "delivery.grace", "must be text"),
        ("[nats]\npassword = 12345", "nats.password", "must be text"),
        ("[delivery]\nretry = \"1s\"", "delivery.retry", "must be a list"),
        ("[delivery]\nretry = [1]", "delivery.retry", "must be a list of texts"),
        (
            "[[domains]]\nname = \"x\"\nevents = [\"x.>\"]\nconcurrency = \"64\"",
            "domains[x].concurrency",
            "whole number",
        ),
        ("[[tenants]]\nname = \"x\"\ntraces = 1.5", "tenants[x].traces", "must be a whole number"),
        (
            "[[external_brokers]]\nname = \"x\"\noutbox = 1",
            "external_brokers[x].outbox",
            "must be true or false",
        ),
    ] {
        let error = layered(file, &[], &[]).expect_err(file).to_string();
        assert!(error.starts_with(&format!("{key}: ")) && error.contains(problem), "{file}: {error}");
        assert!(!error.contains("12345"), "{error}");
    }
    for (name, text, problem) in [
        ("HUB__API__ANONYMOUS", "1", "api.anonymous: must be true or false"),
        ("HUB__API__ANONYMOUS", "yes", "api.anonymous: must be true or false"),
        ("HUB__DELIVERY__HELD", "1e3", "delivery.held: must be a whole number"),
    ] {
        let error = layered("", &[(name, text)], &[]).unwrap_err().to_string();
        assert!(error.starts_with(problem) && error.ends_with(&format!("(environment {name})")), "{error}");
    }
    assert!(layered("", &[("HUB__API__ANONYMOUS", "false")], &[("delivery.held", " 2048 ")]).is_ok());
}

#[test]
fn a_variable_with_one_underscore_for_two_is_told_what_is_read() {
    let names =
        ["HUB_NATS_URL", "HUB_API_REQUESTS_PER_TENANT", "HUB_CONFIG", "HUB_PORT_8080_TCP", "HUB__NATS__URL"];
    let found = layers::with_one_underscore(names.into_iter().map(OsString::from));
    assert_eq!(
        found,
        strings(&[
            ("HUB_API_REQUESTS_PER_TENANT", "HUB__API__REQUESTS_PER_TENANT"),
            ("HUB_NATS_URL", "HUB__NATS__URL"),
        ])
    );
}
