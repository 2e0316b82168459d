//! One place for each part of the delivery contract (docs/architecture.md): dead letters, the pull loop, and the query for
//! dead letters.

use super::source::{Source, below};
use super::{BROKERS, assert_none};

/// Headers that only a dead letter has.
const LETTER_HEADERS: [&str; 6] =
    ["FAULT", "STATE", "FAILED_AT", "LAST_STATUS", "LAST_ERROR", "NEXT_REDRIVE_AT"];
/// What ends before the type in a definition, a signature or a pattern, which build no value.
const NO_VALUES: [&str; 5] = ["struct ", "impl ", "for ", "-> ", "let "];
/// The pull request of JetStream, and the readers of the client library.
const PULLS: [&str; 9] = [
    "MSG.NEXT",
    "jetstream::consumer",
    "PullConsumer",
    "PushConsumer",
    "OrderedConsumer",
    ".fetch()",
    ".batch()",
    ".messages().await",
    ".get_consumer(",
];
const PULLER: &str = "nats/pull.rs";
/// The loop over a durable, and the one over a stream in order, through an ephemeral consumer.
const PULL_LOOPS: [&str; 2] = ["nats/reader.rs", "nats/ordered_reader.rs"];
const QUERY: &str = "dead_letter_query.rs";
/// The options of the command line, which become a query.
const OPTIONS: &str = "cli/dlt/select.rs";
/// Who selects dead letters.
const SELECTING: [&str; 4] = ["nats", "management", "api", "cli"];

/// The sources of the hub and its core, without tests.
fn product() -> Vec<Source> {
    let all = ["src", "crates/domain/src", BROKERS].into_iter().flat_map(below);
    all.filter(|source| !source.is_test()).collect()
}

/// True if the word at this place is a whole name, and no variant of another type.
fn is_name(code: &str, at: usize) -> bool {
    let before = code[..at].chars().next_back();
    let is_path = code[..at].ends_with("dead_letter::");
    is_path || before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '_' | ':'))
}

/// How often the value is written by its fields, in a source that imports its type. (`Verdict` and `Decision` have a
/// variant of the same name.)
fn literals(source: &Source, name: &str) -> usize {
    if !source.code.contains("dead_letter::") {
        return 0;
    }
    let form = format!("{name} {{");
    let places = source.code.match_indices(&form).filter(|(at, _)| {
        let before = &source.code[..*at];
        is_name(&source.code, *at) && !NO_VALUES.iter().any(|word| before.ends_with(word))
    });
    places.count()
}

/// Dead letters that are built, or whose headers are written or read, outside of the core's `dead_letter.rs`; and headers of a
/// message that are written from a dead letter outside of `nats/dead_letters.rs`.
fn other_writers(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources.iter().filter(|source| source.path != "dead_letter.rs") {
        if literals(source, "DeadLetter") > 0 {
            broken.push(format!("{}: a dead letter is built without DeadLetter::new", source.path));
        }
        for name in LETTER_HEADERS.iter().filter(|_| source.path != "headers.rs") {
            if source.code.contains(&format!("headers::{name}")) {
                broken.push(format!("{}: headers::{name}", source.path));
            }
        }
        if source.code.contains("letter.to_headers()") && source.path != "nats/dead_letters.rs" {
            broken.push(format!("{}: headers of a dead letter", source.path));
        }
    }
    broken
}

#[test]
fn dead_letters_have_one_constructor_and_one_writer() {
    let sources = product();
    assert_none(&other_writers(&sources), "DeadLetter::new builds, nats/dead_letters.rs writes");
    let core = sources.iter().find(|source| source.path == "dead_letter.rs").expect("the core has it");
    let letter = core.code.split("impl DeadLetter {").nth(1).expect("its functions");
    let letter = letter.split("\n}").next().unwrap_or_default();
    // `new`, and `read`, which restores a stored one.
    assert_eq!(letter.matches("Self {").count() - letter.matches("-> Self {").count(), 2, "{letter}");
    let writers = sources.iter().map(|source| source.code.matches("letter.to_headers()").count());
    assert_eq!(writers.sum::<usize>(), 1, "nats/dead_letters.rs writes the headers once");
}

/// Pull requests outside of the puller, and pullers outside of the two loops.
fn other_pulls(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources.iter().filter(|source| source.path != PULLER) {
        let found = PULLS.iter().filter(|form| source.code.contains(**form));
        broken.extend(found.map(|form| format!("{}: {form}", source.path)));
        if source.code.contains("Puller") && !PULL_LOOPS.contains(&source.path.as_str()) {
            broken.push(format!("{}: Puller", source.path));
        }
        if source.code.contains("Puller::bind") && source.path != PULL_LOOPS[0] {
            broken.push(format!("{}: reads a durable", source.path));
        }
    }
    broken
}

#[test]
fn one_loop_pulls_messages_and_takes_their_permits() {
    let sources = product();
    assert_none(&other_pulls(&sources), "nats/pull.rs pulls, for nats/reader.rs and nats/ordered_reader.rs");
    let code = |path: &str| &sources.iter().find(|source| source.path == path).expect("it exists").code;
    assert_eq!(code(PULLER).matches("MSG.NEXT").count(), 1);
    assert!(code(PULL_LOOPS[0]).contains("try_acquire_owned()"), "the loop takes a permit for each message");
    for path in PULL_LOOPS {
        assert!(code(path).contains("Puller::"), "{path} pulls");
    }
}

/// Conditions for dead letters outside of the query.
fn other_queries(sources: &[Source]) -> Vec<String> {
    let conditions = ["Option<Reason>", "Option<DeadLetterState>"];
    let mut broken = Vec::new();
    for source in sources.iter().filter(|source| source.path != QUERY && source.path != OPTIONS) {
        // A schema in an attribute is text of the API's document.
        let code = source.code.lines().filter(|line| !line.trim_start().starts_with("#["));
        let fields: Vec<&str> = code
            .filter(|line| conditions.iter().any(|end| line.trim_end().ends_with(&format!("{end},"))))
            .collect();
        broken.extend(fields.iter().map(|field| format!("{}: {}", source.path, field.trim())));
        if source.code.contains("struct DeadLetterQuery") || source.code.contains("fn accepts(&self, letter:")
        {
            broken.push(format!("{}: a second query", source.path));
        }
    }
    broken
}

#[test]
fn dead_letters_are_selected_by_one_type() {
    let sources = product();
    assert_none(
        &other_queries(&sources),
        "hub_domain::dead_letter_query has the conditions for dead letters",
    );
    let query = sources.iter().find(|source| source.path == QUERY).expect("the core has it");
    assert!(query.code.contains("pub struct DeadLetterQuery {"), "{}", query.code);
    for module in SELECTING {
        let all = sources.iter().filter(|source| source.module() == module);
        assert!(all.clone().any(|source| source.code.contains("DeadLetterQuery")), "{module} uses the query");
    }
    let options = sources.iter().find(|source| source.path == OPTIONS).expect("the command line has it");
    assert!(options.code.contains("-> Result<DeadLetterQuery, CliError>"), "its options become the query");
}

/// Each rule finds a violation.
#[test]
fn the_rules_find_what_they_forbid() {
    let planted =
        |path: &str, code: &str| [Source { path: path.to_owned(), lines: 1, code: code.to_owned() }];
    for code in [
        "use crate::domain::dead_letter::DeadLetter;\nlet letter = DeadLetter { id };",
        "use super::dead_letter::{DeadLetter, Origin};\nOk(DeadLetter { id, ..before })",
        "let letter = crate::domain::dead_letter::DeadLetter { id };",
        "map.insert(headers::LAST_ERROR, text);",
        "for (name, value) in letter.to_headers() {",
    ] {
        assert_eq!(other_writers(&planted("roles/settle.rs", code)).len(), 1, "{code}");
    }
    for code in [
        "format!(\"$JS.API.CONSUMER.MSG.NEXT.{stream}\")",
        "let messages = consumer.fetch().max_messages(10);\nconsumer.fetch()",
        "use async_nats::jetstream::consumer::PullConsumer as Reader;",
        "let puller = Puller::new(js);",
    ] {
        assert!(!other_pulls(&planted("nats/registry.rs", code)).is_empty(), "{code}");
    }
    assert_eq!(other_pulls(&planted(PULL_LOOPS[1], "Puller::bind(js)")).len(), 1);
    for code in [
        "struct Conditions {\n    reason: Option<Reason>,\n}",
        "pub state: Option<DeadLetterState>,",
        "struct DeadLetterQuery {",
    ] {
        assert_eq!(other_queries(&planted("api/conditions.rs", code)).len(), 1, "{code}");
    }
    let fine = "use super::dead_letter::DeadLetter;\nstruct DeadLetter {\nimpl DeadLetter {\nfn new() -> DeadLetter {\nlet DeadLetter { id } = letter;\n\
                Decision::DeadLetter { reason }\nstruct StoppedDeadLetter { id }";
    assert_none(&other_writers(&planted("roles/settle.rs", fine)), "none builds a dead letter");
}
