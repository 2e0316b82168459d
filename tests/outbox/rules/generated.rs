//! Generated events with unusual values.

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde_json::Value;

use super::cases::TRACE;

/// One of these texts, or one of them with up to two characters changed.
fn near(random: &mut StdRng, texts: &[&str], palette: &str) -> String {
    let mut text: Vec<char> = texts.choose(random).expect("there are some").chars().collect();
    let palette: Vec<char> = palette.chars().collect();
    for _ in 0..random.random_range(0..3) {
        let at = random.random_range(0..=text.len());
        let new = *palette.choose(random).expect("there are some");
        match random.random_range(0..3) {
            0 => text.insert(at, new),
            1 if at < text.len() => text[at] = new,
            _ if at < text.len() => drop(text.remove(at)),
            _ => {}
        }
    }
    text.into_iter().collect()
}

/// Any JSON, mostly valid.
fn any_json(random: &mut StdRng, depth: usize) -> String {
    let scalars = [
        "null",
        "true",
        "0",
        "-1",
        "1.5",
        "17.0",
        "1e3",
        "1E15",
        "-2.5e-3",
        "9007199254740993",
        "1e308",
        "1e400",
        "01",
        "1.",
        "\"\"",
        "\"x\"",
        "\"É ☃\"",
        r#""\u0000""#,
        r#""\\u0000""#,
        r#""\ud800""#,
        r#""\ud83d\ude00""#,
        r#""\n\u007f""#,
        "\"\u{7f}\"",
        "NaN",
        "'x'",
    ];
    // Valid values more often.
    match random.random_range(0..if depth < 4 { 10 } else { 6 }) {
        0 => (*scalars.choose(random).expect("there are some")).to_owned(),
        1..6 => (*scalars[..9].choose(random).expect("there are some")).to_owned(),
        6 | 7 => {
            let items: Vec<String> =
                (0..random.random_range(0..4)).map(|_| any_json(random, depth + 1)).collect();
            format!("[{}]", items.join(", "))
        }
        _ => {
            let keys = ["a", "B c", "", "é", "region", "id", r"\u0000", r"\ud800", r"\u0041"];
            let members: Vec<String> = (0..random.random_range(0..4))
                .map(|at| {
                    let key = if random.random_bool(0.9) { &keys[..5] } else { &keys[..] };
                    let key = key.choose(random).expect("there are some");
                    format!("\"{key}{at}\": {}", any_json(random, depth + 1))
                })
                .collect();
            format!("{{{}}}", members.join(", "))
        }
    }
}

pub(super) fn any_event(random: &mut StdRng) -> String {
    let times = [
        "2026-01-31T12:00:00Z",
        "2024-02-29T23:59:60.5+01:00",
        "2016-12-31t23:59:60z",
        "2026-06-30 23:59:59.9-00:30",
    ];
    let texts = ["x", "user-u1", "a b", "É", "ab\u{a0}c"];
    let traces = [TRACE];
    let keys = ["user.created", "a.b-c.D_1"];
    let numbers = ["1", "7.0", "12e1", "123456", "-3", "0.5"];
    // Changes of these would only test the rounding of doubles.
    let large = ["999999999999999999", "-999999999999999999", "1000000000000000000", "1e300", "-1e-300"];
    let mut fields = vec![("data", any_json(random, 0))];
    let palette = "0129-+:.TtZz xé\u{a0}\n\0=*>_";
    let quoted = |random: &mut StdRng, texts: &[&str], palette: &str| {
        Value::from(near(random, texts, palette)).to_string()
    };
    fields.push(("type", quoted(random, &keys, "ab._-* é")));
    fields.push(("stream", quoted(random, &texts, palette)));
    for field in [
        "id",
        "time",
        "time",
        "tenant",
        "traceparent",
        "version",
        "sequence_id",
        "expected_version",
        "extensions",
        "event_store",
        "source",
        "correlation_id",
        "published",
        "priority",
    ] {
        if random.random_bool(0.25) && fields.iter().all(|(known, _)| *known != field) {
            let value = match field {
                "time" => quoted(random, &times, palette),
                "traceparent" => quoted(random, &traces, "0af-gA"),
                "version" | "sequence_id" | "expected_version" if random.random_bool(0.2) => {
                    (*large.choose(random).expect("there are some")).to_owned()
                }
                "version" | "sequence_id" | "expected_version" => near(random, &numbers, "0159-.e"),
                "extensions" | "event_store" if random.random_bool(0.8) => {
                    format!("{{\"x\": {}}}", any_json(random, 1))
                }
                "published" => near(random, &["true", "false", "null"], "1"),
                "priority" => quoted(random, &["live", "bulk"], "x"),
                "extensions" | "event_store" => any_json(random, 0),
                _ => quoted(random, &texts, palette),
            };
            fields.push((field, value));
        }
    }
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{{}}}", fields.join(", "))
}
