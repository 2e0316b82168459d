//! No test asserts on measured time: how fast something is depends on the machine, and belongs to the benchmark. A wait has a
//! deadline, which makes a hang a failure, and a test with paused time measures its own clock.

use std::collections::BTreeSet;

use crate::assert_none;
use crate::source::{below_with_tests, without_literals};

/// What measures time.
const MEASURED: [&str; 2] = [".elapsed()", "duration_since("];
/// What reads a clock; compared or calculated with, it is a measurement, too.
const READ: [&str; 4] = ["Instant::now()", "SystemTime::now()", "OffsetDateTime::now_utc()", ".arrived"];

/// The assertions on measured time in a source, each as its condition.
fn assertions_on_time(text: &str) -> Vec<String> {
    let code = without_paused(&without_literals(text));
    functions(&code).into_iter().flat_map(asserted).collect()
}

/// The assertions of a function that contain a measurement or a name that is bound to one.
fn asserted(body: &str) -> Vec<String> {
    let mut measured = Names::default();
    for (at, _) in body.match_indices("let ") {
        let statement = &body[at + 4..];
        let statement = &statement[..end_of(statement, &[';'])];
        let Some((bound, value)) = statement.split_once('=') else { continue };
        let names = words(bound.split(':').next().unwrap_or(bound));
        // A block is code of its own.
        if !value.contains('{') && measures(value, &measured) {
            measured.durations.extend(names);
        } else if READ.iter().any(|form| value.contains(form)) {
            measured.moments.extend(names);
        }
    }
    let mut found = Vec::new();
    for (at, _) in body.match_indices("!(") {
        let name = body[..at].rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        let arguments = &body[at + 2..];
        let first = end_of(arguments, &[',']);
        let condition = match name.rsplit("assert").next() {
            _ if !name.contains("assert") => continue,
            // Both sides.
            Some("_eq" | "_ne") => {
                let second = arguments.get(first + 1..).unwrap_or_default();
                &arguments[..first + 1 + end_of(second, &[','])]
            }
            _ => &arguments[..first],
        };
        if measures(condition, &measured) {
            found.push(condition.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    found
}

/// The names that are bound to a measured duration, or to what a clock showed.
#[derive(Default)]
struct Names<'a> {
    durations: BTreeSet<&'a str>,
    moments: BTreeSet<&'a str>,
}

/// True if an expression has a measured duration. A moment minus a constant is a moment.
fn measures(expression: &str, measured: &Names) -> bool {
    let is_moment = |side: Option<&str>| side.is_some_and(|word| measured.moments.contains(word));
    MEASURED.iter().any(|form| expression.contains(form))
        || words(expression).any(|word| measured.durations.contains(word))
        || expression.match_indices(" - ").any(|(at, minus)| {
            let before = without_index(&expression[..at]);
            is_moment(words(before).last()) && is_moment(words(&expression[at + minus.len()..]).next())
        })
        || READ.iter().any(|form| {
            expression.match_indices(form).any(|(at, _)| {
                let before = expression[..at].trim_end_matches(|c: char| {
                    c.is_alphanumeric() || matches!(c, '_' | ':' | '.' | '[' | ']' | '(' | ')')
                });
                let after = expression[at + form.len()..].trim_start();
                let is_difference = before.trim_end().ends_with('-') || after.starts_with("- ");
                let is_bound = form.ends_with("()")
                    && (before.trim_end().ends_with(['<', '>'])
                        || ["<= ", ">= "].iter().any(|sign| before.ends_with(sign))
                        || after.starts_with(['<', '>']));
                is_difference || is_bound
            })
        })
}

/// The text without an index at its end: `arrived` of `arrived[count - 1]`.
fn without_index(text: &str) -> &str {
    let Some(inside) = text.strip_suffix(']') else { return text };
    let mut depth = 0;
    let open = inside.char_indices().rev().find(|(_, character)| {
        depth += usize::from(*character == ']');
        let is_open = *character == '[' && depth == 0;
        depth -= usize::from(*character == '[' && depth > 0);
        is_open
    });
    open.map_or(text, |(at, _)| &inside[..at])
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| !word.is_empty() && !matches!(*word, "mut" | "ref" | "Some" | "Ok" | "_"))
}

/// The position of the first of these characters outside of brackets, or of the bracket that closes the text.
fn end_of(text: &str, ends: &[char]) -> usize {
    let mut depth = 0;
    for (at, character) in text.char_indices() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => return at,
            ')' | ']' | '}' => depth -= 1,
            _ if depth == 0 && ends.contains(&character) => return at,
            _ => {}
        }
    }
    text.len()
}

/// Each function from its parameters on, without the functions that follow it.
fn functions(code: &str) -> Vec<&str> {
    let starts = code.match_indices("fn ").map(|(at, _)| at);
    starts
        .filter_map(|at| {
            let open = at + code[at..].find(['{', ';'])?;
            let body = code[open..].strip_prefix('{')?;
            Some(&body[..end_of(body, &[])])
        })
        .collect()
}

/// The code without tests that run on paused time.
fn without_paused(code: &str) -> String {
    let mut parts = code.split("start_paused = true");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let open = part.find('{').map_or(part.len(), |at| at + 1);
        kept.push_str(&part[(open + end_of(&part[open..], &[])).min(part.len())..]);
    }
    kept
}

#[test]
fn no_test_asserts_on_measured_time() {
    let (mut broken, mut found) = (Vec::new(), 0);
    for folder in ["src", "crates", "tests"] {
        for (path, text) in below_with_tests(folder) {
            found += text.matches("assert").count();
            let on_time = assertions_on_time(&text).into_iter();
            broken.extend(on_time.map(|condition| format!("{folder}/{path}: {condition}")));
        }
    }
    assert!(found > 5_000, "{found} assertions are found");
    assert_none(&broken, "a test asserts on what happens and in which order, and not on measured time");
}

#[test]
fn the_rule_finds_assertions_on_measured_time() {
    for (planted, condition) in [
        ("assert!(started.elapsed() < STEP, \"{}\", text);", "started.elapsed() < STEP"),
        ("let took = started.elapsed(); assert!(took < STEP);", "took < STEP"),
        ("let took: Duration = started.elapsed(); let ms = took.as_millis(); assert!(ms < 5);", "ms < 5"),
        ("let (a, took) = (one, b.duration_since(c)); assert_eq!(took, STEP);", "took, STEP"),
        ("assert!((ZERO..STEP).contains(&two.duration_since(one)));", "two.duration_since(one)"),
        ("let gap = all[1].arrived - all[0].arrived; assert!(gap >= STEP, \"gap\");", "gap >= STEP"),
        (
            "let arrived = all.map(|one| one.arrived); \
             let time = arrived[before + count - 1] - arrived[before - 1]; let rate = n / time; assert!(rate > 7.0);",
            "rate > 7.0",
        ),
        ("let age = OffsetDateTime::now_utc() - row.at; assert!(age < STEP);", "age < STEP"),
        ("let due = row.at - time::OffsetDateTime::now_utc(); prop_assert!(due > STEP);", "due > STEP"),
        ("while !done() { assert!(Instant::now() < deadline, \"late\"); }", "Instant::now() < deadline"),
        ("assert!(start + STEP >= tokio::time::Instant::now());", "tokio::time::Instant::now()"),
    ] {
        let text = format!("#[tokio::test]\nasync fn planted() {{\n    {planted}\n}}\n");
        let found = assertions_on_time(&text);
        assert!(found.len() == 1 && found[0].contains(condition), "{planted}: {found:?}");
    }
    for allowed in [
        // A deadline of a wait, an argument, a text, the order of moments, and what the product recorded.
        "if Instant::now() >= deadline { panic!(\"late\") }",
        "assert_eq!(reports.about(SUBJECT, Instant::now()), None);",
        "let took = started.elapsed(); println!(\"{took:?}\"); assert!(is_done, \"{took:?} {}\", took.as_secs());",
        "let before = OffsetDateTime::now_utc(); let at = run(); assert!(before <= at);",
        "let before = SystemTime::now(); assert!(before - PRECISION <= at);",
        "assert!(requests[1].arrived_at >= named, \"early\");",
        "assert_eq!(letter.next_redrive_at - letter.failed_at, STEP);",
        "// assert!(started.elapsed() < STEP);\n",
        "let text = \"assert!(started.elapsed() < STEP)\";",
    ] {
        let text = format!("#[test]\nfn allowed() {{\n    {allowed}\n}}\n");
        assert_eq!(assertions_on_time(&text), Vec::<String>::new(), "{allowed}");
    }
    let paused = "#[tokio::test(start_paused = true)]\nasync fn paused() { assert!(a.elapsed() < STEP); }\n";
    let after = "#[test]\nfn after() { assert!(b.elapsed() < STEP); }\n";
    assert_eq!(assertions_on_time(&format!("{paused}{after}")), ["b.elapsed() < STEP"]);
}
