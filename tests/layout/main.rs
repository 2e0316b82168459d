//! Rules of the source: imports, the place where subjects are built, the length of files, and the files of the image.

mod contract;
mod crates;
mod facts;
mod names;
mod source;
mod wall_clock;

use std::collections::BTreeSet;
use std::fs;

use integration_hub::domain::outcome::Reason;

use source::{Source, below, root, sources};

const MOST_LINES: usize = 500;
/// What an item is called by its first word, and names that say nothing about it.
const ITEMS: [&str; 6] = ["enum", "fn", "mod", "struct", "trait", "type"];
const EMPTY_NAMES: [&str; 8] = ["Form", "To", "Way", "bare", "configured", "journal", "shell", "signs"];
/// The external brokers, a crate of their own.
const BROKERS: &str = "crates/sinks/src";
/// Each client library of the external brokers and the module that may import it.
const BROKER_CLIENTS: [(&str, &[&str]); 4] = [
    // External NATS servers have their own connections with their own options.
    ("async_nats", &["nats"]),
    ("redis", &["redis"]),
    ("lapin", &["amqp"]),
    ("krafka", &["kafka"]),
];
/// Each client library of the hub and the modules that may import it.
const CLIENTS: [(&str, &[&str]); 13] = [
    ("async_nats", &["nats"]),
    ("ring", &["http_delivery"]),
    ("axum", &["api"]),
    ("hyper", &["api", "http_delivery"]),
    ("hyper_util", &["api", "http_delivery"]),
    ("utoipa_axum", &["api"]),
    ("tonic", &["subscriptions_grpc"]),
    ("tonic_prost", &["subscriptions_grpc"]),
    ("chacha20poly1305", &["seal"]),
    ("prometheus_client", &["facts"]),
    ("comfy_table", &["cli"]),
    ("indicatif", &["cli"]),
    ("console", &["cli"]),
];
/// `sinks` is the crate of the external brokers by its name in the hub.
const ADAPTERS: [&str; 6] = ["nats", "http_delivery", "seal", "sinks", "subscriptions_grpc", "api"];
/// Modules with test data inside.
const TEST_DATA: [&str; 2] = ["bench", "panics"];
/// Modules that use the adapters; no adapter imports them.
const ABOVE: [&str; 7] = ["roles", "management", "serve", "cli", "dev", "demo", "hub_testkit"];

fn assert_none(broken: &[String], rule: &str) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

/// `Cargo.toml` and `.clippy.toml` of the core forbid clocks, I/O and random values. No setting forbids `async`.
#[test]
fn the_core_is_pure() {
    let core = below("crates/domain/src");
    assert!(core.len() > 30, "only {} files found", core.len());
    let mut broken = Vec::new();
    for source in core.iter().filter(|source| !source.is_test()) {
        let words = ["async ", ".await", "clippy::disallowed"];
        let impure = words.iter().filter(|word| source.code.contains(**word));
        broken.extend(impure.map(|word| format!("{}: {word:?}", source.path)));
    }
    assert_none(&broken, "crates/domain does not wait, and makes no exception from .clippy.toml");
    let settings = fs::read_to_string(root().join("crates/domain/.clippy.toml")).expect("it is readable");
    for forbidden in
        ["std::time::Instant::now", "std::time::SystemTime::now", "time::OffsetDateTime::now_utc"]
    {
        assert!(settings.contains(&format!("path = \"{forbidden}\"")), "{forbidden}");
    }
}

#[test]
fn endpoints_and_proxies_share_one_accept_loop() {
    let mut found = Vec::new();
    for folder in ["crates/testkit/src", "crates/harness/src", "crates/bench/src", "src/demo"] {
        let accepting = below(folder).into_iter().filter(|source| source.code.contains(".accept()"));
        found.extend(accepting.map(|source| format!("{folder}/{}", source.path)));
    }
    assert_eq!(found, ["crates/testkit/src/connections.rs"]);
}

#[test]
fn each_client_library_has_one_importer() {
    assert_imported_by_their_homes(&sources(), &CLIENTS);
    assert_imported_by_their_homes(&below(BROKERS), &BROKER_CLIENTS);
}

fn assert_imported_by_their_homes(sources: &[Source], clients: &[(&str, &[&str])]) {
    let (mut broken, mut found) = (Vec::new(), BTreeSet::<&str>::new());
    for source in sources.iter().filter(|source| !source.is_test()) {
        for (library, homes) in clients {
            if source.names(library) {
                if homes.contains(&source.module()) {
                    found.insert(library);
                } else {
                    broken.push(format!("{}: {library} belongs to {homes:?}", source.path));
                }
            }
        }
    }
    assert_none(&broken, "one place imports a client library");
    assert_eq!(found.len(), clients.len(), "each is imported by its home: {found:?}");
}

#[test]
fn adapters_do_not_know_each_other_nor_what_is_built_on_them() {
    let mut broken = Vec::new();
    for source in sources() {
        let module = source.module().to_owned();
        if !ADAPTERS.contains(&module.as_str()) {
            continue;
        }
        // The API uses the operations, like the command line, and tests the test kit.
        let theirs = |other: &str| {
            other == module
                || (module == "api" && other == "management")
                || (source.is_test() && other == "hub_testkit")
        };
        for other in ADAPTERS.iter().chain(&ABOVE).filter(|other| !theirs(other)) {
            let found = [format!("crate::{other}::"), format!("crate::{other};"), format!("use {other}::")];
            if found.iter().any(|text| source.code.contains(text)) {
                broken.push(format!("{}: crate::{other}", source.path));
            }
        }
    }
    assert_none(&broken, "adapters import neither each other nor modules that use them");
}

#[test]
fn one_module_starts_processes() {
    let starting = |folder: &str| -> Vec<String> {
        let sources = below(folder).into_iter();
        let starting = sources.filter(|source| !source.is_test() && source.code.contains("Command::new("));
        starting.map(|source| format!("{folder}/{}", source.path)).collect()
    };
    let all = [starting("src"), starting("crates/testkit/src"), starting("crates/bench/src")].concat();
    let (home, broken): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|path| path == "crates/testkit/src/owned_process/mod.rs");
    assert_none(
        &broken,
        "only owned_process of the test kit starts processes: without the hub's secrets, and ending with it",
    );
    assert_eq!(home.len(), 1, "the home is found");
}

#[test]
fn roles_meet_only_on_streams() {
    let sources = sources();
    let mut roles: Vec<&str> = sources.iter().filter_map(Source::role).collect();
    roles.sort_unstable();
    roles.dedup();
    assert!(roles.contains(&"event_processor") && roles.contains(&"dlt_router"), "{roles:?}");
    let mut broken = Vec::new();
    for source in &sources {
        let Some(role) = source.role() else { continue };
        let top = source.path.matches('/').count() == 1;
        for other in roles.iter().filter(|other| **other != role) {
            let up = if top { format!("super::{other}") } else { format!("super::super::{other}") };
            if source.code.contains(&format!("roles::{other}")) || source.code.contains(&up) {
                broken.push(format!("{}: {other}", source.path));
            }
        }
        let above = ["serve", "cli", "settings", "dev", "management"]
            .iter()
            .filter(|name| source.code.contains(&format!("crate::{name}::")));
        broken.extend(above.map(|name| format!("{}: crate::{name}", source.path)));
    }
    assert_none(&broken, "a role imports no other role, and no module that starts roles");
}

#[test]
fn tasks_are_started_by_name_in_one_file() {
    const HOME: &str = "tasks.rs";
    // The writer of queued text is a thread, because it outlives the runtime.
    const THREADS: [&str; 1] = ["queued_writer.rs"];
    let starting =
        ["tokio::spawn(", "task::spawn(", "Handle::current()", "JoinSet", "JoinHandle", "OnDropHandle"];
    let threads = ["thread::spawn", "thread::Builder", "thread::scope"];
    let (mut broken, mut at_home) = (Vec::new(), 0);
    for source in sources().iter().chain(&below(BROKERS)).filter(|source| !source.is_test()) {
        let threads = threads.iter().filter(|_| !THREADS.contains(&source.path.as_str()));
        for word in starting.iter().chain(threads).filter(|word| source.code.contains(**word)) {
            if source.path == HOME {
                at_home += 1;
            } else {
                broken.push(format!("{}: {word}", source.path));
            }
        }
    }
    assert_none(&broken, "a task is started by name in src/tasks.rs, which reports its panic");
    assert!(at_home >= 3, "{at_home} words are found where they belong");
}

#[test]
fn facts_are_logged_and_counted_in_one_module_of_each_crate() {
    let (mut broken, mut facts, mut at_home) = (Vec::new(), 0, 0);
    let elsewhere = [
        ("a fact logs", &["trace!(", "debug!(", "info!(", "warn!(", "error!(", "event!(", "limited!("][..]),
        ("a fact counts", &[".inc()", ".inc_by(", ".observe(", "get_or_create("][..]),
    ];
    for source in sources().iter().chain(&below(BROKERS)).filter(|source| !source.is_test()) {
        facts += usize::from(source.code.contains(".emit("));
        for (rule, words) in elsewhere {
            for word in words.iter().filter(|word| source.code.contains(**word)) {
                if source.module() == "facts" {
                    at_home += 1;
                    // `?field` and `field = ?value` show the program's own notation.
                    let debug = source.code.contains("= ?")
                        || source.code.contains(" ?")
                        || source.code.contains("(?");
                    broken.extend(debug.then(|| format!("{}: a field in its Debug form", source.path)));
                } else {
                    broken.push(format!("{}: {word} ({rule})", source.path));
                }
            }
        }
    }
    assert_none(&broken, "src/facts and facts.rs of crates/sinks log and count, one struct per fact");
    assert!(at_home > 20, "{at_home} log lines and counters are found where they belong");
    assert!(facts > 40, "{facts} files emit facts");
}

#[test]
fn the_operations_know_no_face() {
    let (mut broken, mut files) = (Vec::new(), 0);
    for source in sources().iter().filter(|source| source.module() == "management") {
        files += 1;
        for name in ["axum", "clap", "comfy_table", "indicatif"].iter().filter(|name| source.names(name)) {
            broken.push(format!("{}: {name}", source.path));
        }
        for other in ["api", "cli", "serve", "roles"] {
            if source.code.contains(&format!("crate::{other}::")) {
                broken.push(format!("{}: crate::{other}", source.path));
            }
        }
    }
    assert_none(&broken, "src/management neither prints nor knows HTTP, nor who asks");
    assert!(files > 3, "{files} files of the operations are found");
}

#[test]
fn subjects_are_made_in_one_file() {
    const HOME: &str = "nats/subjects.rs";
    // A prefix, literal or inserted, with the next word; and the ends of derived subjects.
    let words = ["events", "outbox", "redrive", "attempts", "rejected"];
    let mut forms: Vec<String> =
        words.iter().flat_map(|word| [format!("hub.{word}."), format!("}}.{word}.")]).collect();
    forms.extend([".DLT", "$KV.{", "}_OUTBOX", "}_EVENTS", "}_DLT"].map(str::to_owned));
    let (mut broken, mut at_home) = (Vec::new(), 0);
    for source in sources().iter().filter(|source| !source.is_test()) {
        for form in forms.iter().filter(|form| source.code.contains(*form)) {
            if source.path == HOME {
                at_home += 1;
            } else if !(source.path == "nats/definitions.rs" && form == "$KV.{") {
                // The definitions replace the prefix in the texts of the files.
                broken.push(format!("{}: {form:?}", source.path));
            }
        }
    }
    assert_none(&broken, "subjects and stream names are built and parsed in src/nats/subjects.rs");
    assert!(at_home >= 6, "{at_home} forms are found where they belong");
}

#[test]
fn headers_of_the_hub_are_named_in_one_module() {
    let (mut broken, mut at_home) = (Vec::new(), 0);
    for source in sources().iter().chain(&below("crates/domain/src")) {
        if source.path == "headers.rs" {
            at_home += source.code.matches("\"Hub-").count();
        } else if source.code.contains("\"Hub-") && !source.is_test() && !TEST_DATA.contains(&source.module())
        {
            broken.push(source.path.clone());
        }
    }
    assert_none(&broken, "names of `Hub-` headers are in crates/domain/src/headers.rs");
    assert!(at_home > 20, "{at_home} names are found where they belong");
}

/// Every reason that a filter offers is produced somewhere.
#[test]
fn each_reason_that_a_filter_offers_has_a_producer() {
    let mut sources = below("src/roles");
    let deciding = ["outcome.rs", "deliveries.rs"];
    let core = below("crates/domain/src");
    sources.extend(core.into_iter().filter(|source| deciding.contains(&source.path.as_str())));
    let produced = |reason: &Reason| {
        let name = format!("{reason:?}");
        let forms = [
            format!("reason: Reason::{name}"),
            format!("=> Reason::{name}"),
            format!("(Reason::{name},"),
            format!(", Reason::{name},"),
            format!(" Reason::{name},\n"),
        ];
        sources.iter().any(|source| forms.iter().any(|form| source.code.contains(form)))
    };
    let (offered, older): (Vec<Reason>, Vec<Reason>) =
        Reason::ALL.into_iter().partition(|reason| Reason::PRODUCED.contains(reason));
    assert_eq!(offered.into_iter().filter(|reason| !produced(reason)).collect::<Vec<_>>(), []);
    assert_eq!(older.into_iter().filter(produced).collect::<Vec<_>>(), []);
}

#[test]
fn no_file_is_too_long() {
    let mut all = sources();
    for folder in fs::read_dir(root().join("crates")).expect("the crates are readable") {
        let folder = folder.expect("the crates are readable").path();
        let folder = folder.strip_prefix(root()).expect("below the project").to_string_lossy().into_owned();
        all.extend(below(&folder));
    }
    all.extend(below("tests"));
    let long = all
        .iter()
        .filter(|source| source.lines > MOST_LINES)
        .map(|source| format!("{}: {}", source.path, source.lines))
        .collect::<Vec<_>>();
    assert_none(&long, &format!("no file under src, crates and tests has more than {MOST_LINES} lines"));
}

/// The image build needs every file that the sources embed.
#[test]
fn the_image_is_built_from_all_that_the_sources_read() {
    let dockerfile = fs::read_to_string(root().join("image/Dockerfile")).expect("the Dockerfile is readable");
    let copies = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY "));
    let copied: Vec<&str> = copies
        .filter(|rest| !rest.starts_with("--from"))
        .flat_map(|rest| rest.split_whitespace().rev().skip(1))
        .collect();
    assert!(copied.contains(&"src"), "{copied:?}");
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest is readable");
    let crates = manifest.lines().filter_map(|line| line.split("path = \"").nth(1)?.split(['/', '"']).next());
    let crates: Vec<&str> = crates.collect();
    assert!(crates.contains(&"vendor"), "{crates:?}");
    assert!(crates.iter().all(|folder| copied.contains(folder)), "{crates:?} are in the image: {copied:?}");
    let (mut broken, mut embedded) = (Vec::new(), 0);
    let hub = sources().into_iter().map(|source| ("src", source));
    for (folder, source) in hub.chain(below("crates").into_iter().map(|source| ("crates", source))) {
        let macros = ["include_str!(", "include_bytes!(", "include!("];
        let places = macros.iter().flat_map(|name| source.code.match_indices(name));
        for (at, _) in places {
            let Some(named) = source.code[at..].split('"').nth(1) else { continue };
            embedded += 1;
            let mut path = vec![folder];
            path.extend(source.path.split('/'));
            path.pop();
            for part in named.split('/') {
                match part {
                    ".." => {
                        path.pop();
                    }
                    part => path.push(part),
                }
            }
            if !copied.contains(&path[0]) {
                broken.push(format!("{folder}/{} embeds {}", source.path, path.join("/")));
            }
        }
    }
    assert!(embedded > 5, "only {embedded} found");
    assert_none(&broken, "not copied by image/Dockerfile");
}

/// The examples stand for programs of others, which know only the messages of the hub.
#[test]
fn examples_import_nothing_of_the_hub() {
    let examples = below("examples");
    assert!(examples.iter().any(|source| source.path == "subscriber/main.rs"), "the example is found");
    let knowing = examples.iter().filter(|source| source.code.contains("integration_hub"));
    let knowing: Vec<String> = knowing.map(|source| source.path.clone()).collect();
    assert_none(&knowing, "an example imports nothing of the hub");
    let long = examples.iter().filter(|source| source.lines > MOST_LINES);
    let long: Vec<String> = long.map(|source| format!("{}: {}", source.path, source.lines)).collect();
    assert_none(&long, &format!("no file under examples has more than {MOST_LINES} lines"));
}

#[test]
fn the_name_of_an_item_says_what_it_is() {
    for source in ["src", "crates", "tests"].into_iter().flat_map(below) {
        let words = source.code.split(|c: char| !c.is_alphanumeric() && c != '_');
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let is_empty = EMPTY_NAMES.contains(&pair[1]) || pair[1].ends_with("Desk");
            assert!(!(ITEMS.contains(&pair[0]) && is_empty), "{}: {} {}", source.path, pair[0], pair[1]);
        }
    }
}
