//! What somebody meets who uses the hub for the first time: a command with other settings than the hub, names that do not
//! exist, settings that cannot work. Each answer says what is known, and names the field and the remedy.

use serde_json::json;

use crate::support::settings::Domain;
use crate::support::{Hub, TestBroker, TestSettings, print_output};

/// Runs a command that must exit with `code`; returns standard output and standard error.
async fn ends_with(hub: &Hub, code: i32, args: &[&str]) -> (String, String) {
    let output = hub.cli(args).await;
    assert_eq!(output.status.code(), Some(code), "`hub {}`: {}", args.join(" "), print_output(&output));
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_with_other_settings_than_the_hub_says_what_the_hub_does() {
    let broker = TestBroker::start().await;
    let billing =
        Domain { name: "billing".to_owned(), events: vec!["invoice.>".to_owned()], ..Domain::default() };
    let with_billing = TestSettings::default().with(|settings| settings.domains.push(billing));
    let mut hub = Hub::serve(&broker.url(), &with_billing, &[]);
    hub.ready().await;
    let other = Hub::not_started(&broker.url(), &TestSettings::default());

    let file = other.folder().join("one.json");
    let one = json!({
        "id": "books", "events": ["invoice.*", "user.>", "nobody.>"], "delivery": {"url": "https://a.example/"},
    });
    std::fs::write(&file, one.to_string()).expect("written");
    let apply = ["subscription", "apply", "-f", file.to_str().expect("UTF-8")];
    let (_, warnings) = ends_with(&other, 0, &apply).await;
    for pattern in ["invoice.*", "nobody.>"] {
        let expected =
            format!("subscription 1 (\"books\"): events: these settings have no domain for {pattern:?}");
        assert!(warnings.contains(&expected), "{warnings}");
    }
    assert!(!warnings.contains("user.>"), "{warnings}");
    // The hub with more domains has nothing to warn of but the pattern that it has no domain for.
    let (_, warnings) = ends_with(&hub, 0, &apply).await;
    assert!(warnings.contains("nobody.>") && !warnings.contains("invoice"), "{warnings}");

    const UNSURE: &str = "these settings have no domain for the key; the running hub decides by its own";
    // The hub accepts the event, whatever the command's settings are.
    let (stored, warning) = ends_with(&other, 0, &["publish", "invoice.paid", "{}"]).await;
    assert!(stored.starts_with("stored: HUB_EVENTS sequence 1, id HUB_EVENTS-1"), "{stored}");
    assert!(warning.contains(UNSURE) && !warning.contains("rejected"), "{warning}");
    let (matching, warning) = ends_with(&other, 0, &["subscription", "match", "invoice.paid"]).await;
    assert!(matching.contains("books") && warning.contains(UNSURE), "{matching}{warning}");
    // The hub rejects the event.
    let (stored, warning) = ends_with(&other, 1, &["publish", "unknown.key", "{}"]).await;
    assert!(stored.starts_with("stored: HUB_EVENTS sequence 2"), "{stored}");
    assert!(warning.contains(UNSURE) && warning.contains("the hub rejected the event: "), "{warning}");
    // A second time it is a duplicate, and rejected all the same, whatever the command's settings are.
    for (command, begin) in [(&other, "stored: "), (&other, "duplicate: "), (&hub, "duplicate: ")] {
        let (stored, warning) = ends_with(command, 1, &["publish", "unknown.key", "{}", "--id", "e-1"]).await;
        assert!(stored.starts_with(begin), "{stored}");
        assert!(warning.contains("e-1: the hub rejected the event: "), "{warning}");
        assert_eq!(warning.contains("publish it with another --id"), begin == "duplicate: ", "{warning}");
    }
    // The command's settings have the domain: only the publication is reported.
    let (stored, warning) = ends_with(&hub, 0, &["publish", "invoice.paid", "{}"]).await;
    assert!(stored.starts_with("stored: HUB_EVENTS sequence 4") && warning.is_empty(), "{stored}{warning}");
}

#[tokio::test]
async fn an_empty_list_of_a_name_that_does_not_exist_does_not_look_like_an_all_clear() {
    let broker = TestBroker::start().await;
    let hub = Hub::not_started(&broker.url(), &TestSettings::default());
    hub.cli_ok(&["provision"]).await;
    for (args, note) in [
        (&["--subscription", "nope"][..], "no subscription \"nope\" exists"),
        (&["--subscription", "acme/nope"], "no subscription \"nope\" of tenant \"acme\" exists"),
        (&["--tenant", "acme"], "no subscription of tenant \"acme\" exists"),
    ] {
        let args = [&["dlt", "list"], args].concat();
        let (list, found) = ends_with(&hub, 0, &args).await;
        assert!(list == "no dead letters\n" && found.contains(note), "{args:?}: {list}{found}");
        let (list, found) = ends_with(&hub, 0, &[&args[..], &["--output", "json"]].concat()).await;
        assert!(list == "[]\n" && found.contains(note), "{args:?}: {list}{found}");
    }
    let (_, found) = ends_with(&hub, 0, &["dlt", "list"]).await;
    assert_eq!(found, "");

    // A name that cannot exist is refused, and the option is named.
    for (args, option) in [
        (&["dlt", "list", "--tenant", "a b"][..], "--tenant"),
        (&["dlt", "list", "--subscription", "No Such"], "--subscription"),
        (&["dlt", "list", "--subscription", "a b/crm"], "--subscription"),
        (&["dlt", "replay", "--tenant", "a b"], "--tenant"),
        (&["dlt", "list", "--since", "1h", "--until", "2h"], "--until"),
        (&["subscription", "list", "--tenant", "a b"], "--tenant"),
        (&["subscription", "show", "crm", "--tenant", "a b"], "--tenant"),
        (&["subscription", "match", "user.created", "--tenant", "a b"], "--tenant"),
        (&["subscription", "match", "user.created", "--attribute", "foo"], "subject=u1"),
        (&["outbox", "list", "--broker", "No one"], "--broker"),
        (&["event", "trace", ""], "must not be empty"),
        (&["domain", "pause", "user-lifecycle", "--for", "36500d"], "--for: must be at most 3650d"),
    ] {
        let (_, error) = ends_with(&hub, 2, args).await;
        assert!(error.contains(option), "{args:?}: {error}");
    }
}

#[tokio::test]
async fn settings_that_cannot_work_are_reported_with_their_remedy() {
    let broker = TestBroker::start().await;
    let hub = Hub::not_started(&broker.url(), &TestSettings::default());
    for key in ["nats.credentials_file", "nats.tls_ca_file"] {
        let setting = format!("{key}=/nope");
        let (answer, warning) = ends_with(&hub, 0, &["config", "check", "--set", &setting]).await;
        assert!(answer.trim_end().ends_with("; 1 warning"), "{answer}");
        assert!(warning.starts_with(&format!("warning: {key}: /nope cannot be read")), "{warning}");
        let (_, error) = ends_with(&hub, 1, &["provision", "--set", &setting]).await;
        assert!(error.contains(&format!("error: {key}: cannot use /nope")), "{error}");
    }
    let (_, error) = ends_with(&hub, 1, &["config", "check", "--set", "outbox.database_url=foo"]).await;
    assert!(error.contains("outbox.database_url: "), "{error}");
    let (_, warning) = ends_with(&hub, 0, &["provision", "--set", "events.max_size=2MB"]).await;
    assert!(warning.contains("events.max_size: is ") && warning.contains("raise max_payload"), "{warning}");

    let url = broker.url().replace("nats://", "tls://");
    let (_, error) = ends_with(&hub, 1, &["provision", "--nats-url", &url]).await;
    assert!(error.contains("cannot use TLS with the NATS server at tls://"), "{error}");
    assert!(!error.contains("start nats-server"), "{error}");
}
