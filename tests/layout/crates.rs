//! What each crate brings along.

use std::fs;

use super::assert_none;
use super::source::root;

/// The dependencies of a crate at any depth, from `cargo tree`.
fn tree_of(package: &str, features: &str) -> Vec<String> {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args(["tree", "--locked", "--offline", "-e", "normal", "--prefix", "none", "--format", "{p}"]);
    cargo.args(["-p", package, "--no-default-features", "--features", features]).current_dir(root());
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("text");
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_core_brings_nothing_that_acts() {
    let tree = tree_of("hub-domain", "");
    assert!(tree.contains(&"serde".to_owned()), "{tree:?}");
    let acting =
        ["tokio", "async-nats", "hyper", "reqwest", "axum", "sqlx", "rand", "tracing", "futures-util"];
    let broken: Vec<String> =
        acting.into_iter().filter(|name| tree.iter().any(|found| found == name)).map(str::to_owned).collect();
    assert_none(&broken, "the pure core depends on no runtime, client or source of randomness");
}

#[test]
fn a_producer_gets_the_outbox_alone() {
    for features in ["postgres", "sqlite", "postgres,sqlite,tls"] {
        let tree = tree_of("hub-outbox", features);
        assert!(tree.contains(&"sqlx".to_owned()), "{tree:?}");
        let foreign =
            ["async-nats", "axum", "hyper", "tonic", "reqwest", "clap", "redis", "lapin", "krafka", "utoipa"];
        let broken: Vec<String> = foreign
            .into_iter()
            .filter(|name| tree.iter().any(|found| found == name))
            .map(|name| format!("{features}: {name}"))
            .collect();
        assert_none(
            &broken,
            "a program that raises events brings no broker, no server and no command line along",
        );
    }
}

#[test]
fn a_broker_brings_its_own_client_only() {
    let brokers = [("", None), ("redis", Some("redis")), ("amqp", Some("lapin")), ("kafka", Some("krafka"))];
    for (feature, client) in brokers {
        let tree = tree_of("hub-sinks", feature);
        assert!(tree.contains(&"async-nats".to_owned()), "{tree:?}");
        let foreign = ["integration-hub", "sqlx", "axum", "hyper", "tonic", "reqwest", "clap", "utoipa"];
        let others = ["redis", "lapin", "krafka"].into_iter().filter(|name| Some(*name) != client);
        let broken: Vec<String> = foreign
            .into_iter()
            .chain(others)
            .filter(|name| tree.iter().any(|found| found == name))
            .map(|name| format!("{feature:?}: {name}"))
            .collect();
        assert_none(&broken, "a broker brings neither the client of another one nor anything of the hub");
        let brought = client.is_none_or(|client| tree.iter().any(|found| found == client));
        assert!(brought, "{feature}: {tree:?}");
    }
}

#[test]
fn the_endpoints_of_the_demo_need_no_crate_of_their_own() {
    let tree = tree_of("hub-testkit", "receiver,token-endpoint");
    assert!(tree.contains(&"hyper".to_owned()), "{tree:?}");
    let direct = ["base64", "bytes", "http-body-util", "hyper", "hyper-util"];
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest is readable");
    let dependencies = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let dependencies = dependencies.split("\n[").next().unwrap_or_default();
    let missing = |name: &&str| !dependencies.lines().any(|line| line.starts_with(&format!("{name} = ")));
    let mut broken: Vec<String> = direct.into_iter().filter(missing).map(str::to_owned).collect();
    let foreign = ["axum", "reqwest", "tokio-rustls", "rustls", "sqlx", "redis", "lapin", "krafka"];
    broken.extend(tree.into_iter().filter(|name| foreign.contains(&name.as_str())));
    assert_none(&broken, "the receiver and the token endpoint use crates that the hub needs anyway");
}

#[test]
fn the_models_need_the_checker_only() {
    let tree = tree_of("hub-model", "");
    assert!(tree.contains(&"stateright".to_owned()), "{tree:?}");
    let foreign = ["integration-hub", "hub-domain", "tokio", "async-nats"];
    let broken: Vec<String> = foreign
        .into_iter()
        .filter(|name| tree.iter().any(|found| found == name))
        .map(str::to_owned)
        .collect();
    assert_none(&broken, "a model is a description of its own, not the program");
    for manifest in ["Cargo.toml", "crates/harness/Cargo.toml", "crates/bench/Cargo.toml"] {
        let text = fs::read_to_string(root().join(manifest)).expect("the manifest is readable");
        assert!(!text.contains("hub-model = "), "{manifest}: no part of the product depends on the models");
    }
}

/// The README of the outbox shows the dependencies of an application that raises events.
#[test]
fn the_readme_of_the_outbox_shows_the_tree_of_an_application() {
    const DIRECT: [&str; 3] = ["serde_json", "sqlx", "tokio"];
    let folder = tempfile::tempdir().expect("a folder");
    let outbox = root().join("crates/outbox");
    let mut manifest = format!(
        "[package]\nname = \"your-application\"\nedition = \"2024\"\n[lib]\npath = \"lib.rs\"\n[workspace]\n\
         [dependencies]\nhub-outbox = {{ path = {outbox:?} }}\n"
    );
    for name in DIRECT {
        manifest.push_str(&format!("{name} = {{ version = \"*\", default-features = false }}\n"));
    }
    fs::write(folder.path().join("Cargo.toml"), manifest).expect("written");
    fs::write(folder.path().join("lib.rs"), "").expect("written");
    // The versions of the workspace, which are on this machine.
    fs::copy(root().join("Cargo.lock"), folder.path().join("Cargo.lock")).expect("copied");
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args([
        "tree",
        "--offline",
        "-e",
        "normal",
        "--depth",
        "2",
        "--prefix",
        "depth",
        "--format",
        " {p}",
    ]);
    let output = cargo.current_dir(folder.path()).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("text");
    let readme = fs::read_to_string(outbox.join("README.md")).expect("the README is readable");
    let shown = readme.split("```text\n").nth(1).and_then(|rest| rest.split("```").next());
    assert_eq!(shown.expect("a tree"), drawn(&tree, "hub-outbox"));
}

/// The lines `<depth> <name> <version>` as a tree of names, with the dependencies of one crate below it.
fn drawn(tree: &str, shown: &str) -> String {
    let (mut below, mut text) = ("", String::new());
    let lines: Vec<(&str, &str)> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?))
        })
        .filter(|(depth, name)| {
            below = if *depth == "1" { name } else { below };
            *depth != "2" || below == shown
        })
        .collect();
    for (at, (depth, name)) in lines.iter().enumerate() {
        // The last one of its depth, before one of a lower depth.
        let after = lines[at + 1..].iter().map(|(other, _)| other);
        let is_last = after.take_while(|other| *other >= depth).all(|other| other != depth);
        let branch = if is_last { "└── " } else { "├── " };
        text.push_str(match *depth {
            "0" => "",
            "1" => branch,
            _ => "│   ",
        });
        text.push_str(if *depth == "2" { branch } else { "" });
        text.push_str(name);
        text.push('\n');
    }
    text
}
