//! Every case, and the expected verdict of each writer.

use std::fmt::Write as _;

use serde_json::Value;

pub(super) const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// `events.max_size` of the settings' defaults.
pub(super) const LARGEST: usize = 900_000;

/// The verdict of every writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Accepted,
    /// Each error contains this text.
    Refused(&'static str),
}
use Verdict::{Accepted, Refused};

/// An event with one field set to this JSON text.
fn with(field: &str, json: &str) -> String {
    let mut event = String::from("{");
    for (name, value) in [("type", r#""user.created""#), ("stream", r#""user-u1""#), ("data", r#"{"n": 1}"#)]
    {
        if name != field {
            write!(event, "\"{name}\": {value}, ").expect("writing to memory does not fail");
        }
    }
    event + &format!("\"{field}\": {json}}}")
}

fn text(text: &str) -> String {
    Value::from(text).to_string()
}

/// `depth` nested arrays.
fn nested(arrays: usize) -> String {
    "[".repeat(arrays) + &"]".repeat(arrays)
}

/// Every case: the event as JSON text, and the verdict.
pub(super) fn cases() -> Vec<(String, Verdict)> {
    let mut cases = Vec::new();
    let mut of = |field: &'static str, accepted: &[&str], refused: &[&str]| {
        cases.extend(accepted.iter().map(|json| (with(field, json), Accepted)));
        cases.extend(refused.iter().map(|json| (with(field, json), Refused(field))));
    };
    let quoted = |texts: &[&str]| -> Vec<String> { texts.iter().map(|plain| text(plain)).collect() };

    let times = quoted(&[
        "2026-01-31T12:00:00Z",
        "2026-01-31t12:00:00z",
        "2026-01-31 12:00:00Z",
        "2026-01-31T12:00:00.1Z",
        "2026-01-31T12:00:00.123456789Z",
        "2026-01-31T12:00:00.1234567890123+01:00",
        "2026-01-31T23:59:59-23:59",
        "2026-01-31T00:00:00+23:59",
        "2026-01-31T00:00:00-00:00",
        "0000-01-01T00:00:00Z",
        "0000-02-29T00:00:00Z",
        "9999-12-31T23:59:59.999Z",
        "2024-02-29T00:00:00Z",
        "2000-02-29T00:00:00Z",
        "2026-06-30T23:59:60Z",
        "2016-12-31T23:59:60.5Z",
        "2017-01-01T00:59:60+01:00",
        "2016-12-31T13:59:60-10:00",
    ]);
    let not_times = quoted(&[
        "",
        "yesterday",
        "2026-01-31",
        "2026-01-31T12:00Z",
        "2026-01-31T12:00:00",
        "2026-01-31T24:00:00Z",
        "2026-01-31T12:60:00Z",
        "2026-01-31T12:00:60Z",
        "2026-01-31T23:59:61Z",
        "2026-01-30T23:59:60Z",
        "2026-01-31T23:59:60+01:00",
        "2026-01-31T12:00:00 Z",
        "2026-01-31T12:00:00Z ",
        " 2026-01-31T12:00:00Z",
        "2026-01-31T12:00:00.Z",
        "2026-01-31T12:00:00,5Z",
        "2026-01-31x12:00:00Z",
        "2026-01-31_12:00:00Z",
        "2026-01-31T12:00:00+24:00",
        "2026-01-31T12:00:00+01:60",
        "2026-01-31T12:00:00+0100",
        "2026-01-31T12:00:00+01",
        "2026-01-31T12:00:00Zulu",
        "2026-01-31T12:00:00ZZ",
        "2026-02-29T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "1900-02-29T00:00:00Z",
        "2026-04-31T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-01-00T00:00:00Z",
        "2026-01-32T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "-001-01-01T00:00:00Z",
        "2026-W05-6T12:00:00Z",
        "2026-031T12:00:00Z",
        "20260131T120000Z",
        "２０２６-01-31T12:00:00Z",
        "2026-01-31T12:00:00.٣Z",
        "2026-01-31T12:00:00−01:00",
        "2026-1-31T12:00:00Z",
        "26-01-31T12:00:00Z",
        "2026-01-31T12:00:00\u{0}Z",
    ]);
    let bad_times: Vec<&str> =
        not_times.iter().map(String::as_str).chain(["1738324800", "true", "{}", r#""\ud800""#]).collect();
    let good_times: Vec<&str> = times.iter().map(String::as_str).chain(["null"]).collect();
    of("time", &good_times, &bad_times);

    let long = |bytes: usize| text(&"x".repeat(bytes));
    let (longest_id, too_long_id) = (long(255), long(256));
    let wide = text(&"é".repeat(127));
    let too_wide = text(&"é".repeat(128));
    of(
        "id",
        &[
            r#""e1""#,
            "null",
            r#""a b""#,
            r#""%20x""#,
            r#""e.*.>""#,
            "\"\u{c9}\"",
            "\"E\u{301}\"",
            r#""☃ \ud83d\ude00""#,
            r#""\u200b""#,
            r#""a\"b\\c/d""#,
            r#""{}""#,
            &longest_id,
            &wide,
        ],
        &[
            r#""""#,
            r#"" ""#,
            r#"" a""#,
            r#""a ""#,
            r#""\u00a0a""#,
            r#""a\u2003""#,
            r#""a\u3000""#,
            r#""\u2028a""#,
            r#""a\u0085""#,
            r#""a\u0085b""#,
            r#""\u009f""#,
            r#""a\nb""#,
            r#""a\tb""#,
            r#""a\r""#,
            r#""\u001f""#,
            r#""a\u007f""#,
            r#""a\u0000b""#,
            r#""\ud800""#,
            r#""\udc00x""#,
            "1",
            "true",
            "[]",
            "{}",
            &too_long_id,
            &too_wide,
        ],
    );

    let longest_key = text(&format!("user.{}", "x".repeat(250)));
    let too_long_key = text(&format!("user.{}", "x".repeat(251)));
    of(
        "type",
        &[r#""user.created""#, r#""a.b.c-d_E.0""#, r#""user.-""#, &longest_key],
        &[
            "null",
            "7",
            r#""""#,
            r#""user""#,
            r#""user.""#,
            r#"".created""#,
            r#""user..created""#,
            r#""user.*""#,
            r#""user.>""#,
            r#""user.cre ated""#,
            r#""üser.created""#,
            r#""user.created\n""#,
            r#""user.\u0000""#,
            r#""user.cre/ated""#,
            r#""user.１""#,
            &too_long_key,
        ],
    );

    let (longest, too_long) = (long(512), long(513));
    for field in
        ["source", "correlation_id", "causation_id", "fqn", "sequence_id", "origin_stream", "stream_category"]
    {
        of(
            field,
            &[r#""x""#, r#"" x ""#, r#""É☃""#, "null", &longest],
            &[
                r#""""#,
                "true",
                "[]",
                "{}",
                r#""a\nb""#,
                r#""\u0000""#,
                r#""a\u007f""#,
                r#""\ud800""#,
                &too_long,
            ],
        );
    }
    of(
        "stream",
        &[r#""x""#, r#"" x ""#, r#""crm::user-7""#, &longest],
        &["null", r#""""#, "7", "[]", r#""a\nb""#, r#""\u0000""#, r#""\udfff""#, &too_long],
    );
    let longest_tenant = long(64);
    let too_long_tenant = long(65);
    of(
        "tenant",
        &[r#""acme""#, r#""a-b_c.D0""#, "null", &longest_tenant],
        &[
            r#""""#,
            r#""a b""#,
            r#""acmé""#,
            r#""a\n""#,
            r#""a=b""#,
            r#""a*""#,
            r#""\u0000""#,
            "1",
            &too_long_tenant,
        ],
    );

    for field in ["published", "asynchronous"] {
        of(field, &["true", "false", "null"], &[r#""true""#, "1", "0", "[]", r#""""#]);
    }
    of("priority", &[r#""live""#, r#""bulk""#, "null"], &[r#""urgent""#, r#""Live""#, r#""""#, "0", "true"]);
    of("kind", &[r#""EVENT""#, r#""COMMAND""#, "null"], &[r#""event""#, r#""QUERY""#, r#""""#, "1"]);
    let trace = text(TRACE);
    let unsampled = text(&TRACE.replace("-01", "-fe"));
    let bad_traces = quoted(&[
        "",
        "00-x",
        &TRACE.replace("00-0af", "01-0af"),
        &TRACE.replace("00-0af", "ff-0af"),
        &TRACE.to_uppercase(),
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        &format!("{TRACE}-00"),
        &format!(" {TRACE}"),
        &TRACE.replace("-01", "-1"),
        &TRACE.replace("-01", "-0g"),
    ]);
    let bad_traces: Vec<&str> = bad_traces.iter().map(String::as_str).chain(["7"]).collect();
    of("traceparent", &[&trace, &unsampled, "null"], &bad_traces);

    of(
        "version",
        &["1", "7.0", "1e0", "12e1", "999999999", "null"],
        &["0", "-1", "1.5", r#""1""#, "1000000000", "4294967297", "1e300", "true", "[]"],
    );
    let whole = ["0", "-0", "-1", "17", "17.0", "1e3", "999999999999999999", "-999999999999999999", "null"];
    let not_whole = [
        "1.5",
        "-0.5",
        "1000000000000000000",
        "-1000000000000000000",
        "18446744073709551615",
        "1e18",
        "1e300",
    ];
    of("expected_version", &whole, &[&not_whole[..], &[r#""3""#, "true", "[]"]].concat());
    of("sequence_id", &whole, &not_whole);

    // All kinds of content.
    let (deepest, too_deep, far_too_deep) = (nested(101), nested(102), nested(900));
    let digits = "9".repeat(400);
    for field in ["data", "extensions", "event_store"] {
        let inside =
            |json: &str| if field == "data" { json.to_owned() } else { format!("{{\"x\": {json}}}") };
        let deepest = if field == "data" { deepest.clone() } else { inside(&nested(100)) };
        let too_deep = if field == "data" { too_deep.clone() } else { inside(&nested(101)) };
        let accepted = [
            "null",
            "true",
            "1",
            "-1.5e-7",
            "1e308",
            "5e-324",
            "1e-999",
            "12345678901234567890123",
            r#""""#,
            r#""É☃""#,
            r#""\\u0000""#,
            r#""\\\\u0000 \\ud800""#,
            r#""\ud83d\ude00""#,
            r#""\uD83D\uDE00""#,
            "\"\u{fffd}\u{ffff}\"",
            r#""\u0001\n\t""#,
            r#"[[], {}, [{"a": [null]}]]"#,
            r#"{"": {"": 1}}"#,
            r#"{"a": 1, "a": 2}"#,
            "\" \u{2028}\"",
        ];
        let refused = [
            r#""\u0000""#,
            r#""\\\u0000""#,
            r#"{"a": [{"b\u0000": 1}]}"#,
            r#""\ud800""#,
            r#""\udc00""#,
            r#""\ud800\ud800""#,
            r#""\uD800x\uDC00""#,
            r#"{"\udc00": 1}"#,
            "1e309",
            "-1e999",
            "[[1e400]]",
            &digits,
        ];
        let accepted: Vec<String> = accepted.iter().map(|json| inside(json)).chain([deepest]).collect();
        let refused: Vec<String> =
            refused.iter().map(|json| inside(json)).chain([too_deep, inside(&far_too_deep)]).collect();
        let accepted: Vec<&str> = accepted.iter().map(String::as_str).collect();
        let refused: Vec<&str> = refused.iter().map(String::as_str).collect();
        of(field, &accepted, &refused);
    }
    of("event_store", &["null", "{}"], &["[]", "1", r#""x""#, "true"]);
    let large = |bytes: usize| format!("{{\"x\": {}}}", text(&"y".repeat(bytes)));
    let fits = large(16_000);
    let (too_large, reals) = (large(16_400), format!("{{\"x\": [{}0]}}", "1.5E15,".repeat(2_300)));
    // The largest growth: control characters become escapes of six bytes in an attribute.
    let deletes = format!(r#"{{"note": "{}"}}"#, "\u{7f}".repeat(16_000));
    let controls = format!(r#"{{"note": ["{0}", {{"x": "{0}"}}]}}"#, "\u{85}".repeat(4_000));
    let names = [
        r#"{"region": "eu", "partner_tier": 1, "Größe": 1.5, "a b": null, "": "x", "Id": "x", "TIME": 1}"#,
        r#"{"subject": 7, "dataschema": "", "specVersion": "2", "traceparent": "x", "published": "no", "sequence": 1}"#,
        r#"{"x": "a\r\nb: c", "a\nb": "\u001b[31m", "y": ["a", {"b": 13}]}"#,
        "null",
        "{}",
        &fits,
        &deletes,
        &controls,
    ];
    of(
        "extensions",
        &names,
        &[
            "[]",
            "1",
            r#""x""#,
            "true",
            r#"{"id": "x"}"#,
            r#"{"source": "x"}"#,
            r#"{"tenant": null}"#,
            r#"{"data": 1}"#,
            r#"{"data_base64": ""}"#,
            r#"{"datacontenttype": "text/plain"}"#,
            r#"{"specversion": "1.0"}"#,
            r#"{"time": 1}"#,
            &too_large,
            &reals,
        ],
    );

    // The envelope's own part is less than 1,500 bytes here.
    let fits = text(&"d".repeat(LARGEST - 1_500));
    of(
        "data",
        &[&fits],
        &[&text(&"d".repeat(LARGEST)), &text(&"d".repeat(910_000)), &text(&"d".repeat(5_000_000))],
    );
    let many = format!("[{}0]", "1, ".repeat(LARGEST / 3 - 1_000));
    of("data", &[&many], &[&format!("[{}0]", "[1],".repeat(LARGEST / 4 + 1_000))]);

    for (event, field) in [
        (r#"{"stream": "s", "data": 1}"#, "type"),
        (r#"{"type": "a.b", "data": 1}"#, "stream"),
        (r#"{"type": "a.b", "stream": "s"}"#, "data"),
        ("[]", "event"),
        ("null", "event"),
        (r#""x""#, "event"),
    ] {
        cases.push((event.to_owned(), Refused(field)));
    }
    cases
}

/// Invalid JSON and unknown fields: each writer refuses them with its own text.
pub(super) const REFUSED_SOMEHOW: [&str; 9] = [
    "",
    "{",
    "{} {}",
    r#"{"type": "a.b", "stream": "s", "data": NaN}"#,
    r#"{"type": "a.b", "stream": "s", "data": Infinity}"#,
    r#"{"type": "a.b", "stream": "s", "data": 0x1}"#,
    r#"{type: "a.b", stream: "s", data: 1}"#,
    r#"{"type": "a.b", "stream": "s", "data": 1, "colour": "red"}"#,
    r#"{"type": "a.b", "stream": "s", "data": 1, "Id": "x"}"#,
];
