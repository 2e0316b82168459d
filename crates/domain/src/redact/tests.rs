use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;

fn percent(text: &str, upper: bool, every: usize) -> String {
    let one = |(at, byte): (usize, u8)| match (at % every == 0 || !byte.is_ascii_graphic(), upper) {
        (false, _) => char::from(byte).to_string(),
        (true, true) => format!("%{byte:02X}"),
        (true, false) => format!("%{byte:02x}"),
    };
    text.bytes().enumerate().map(one).collect()
}

/// All common encodings of a text.
fn spellings(secret: &str) -> Vec<(&'static str, String)> {
    let json = serde_json::to_string(secret).unwrap();
    let json = json[1..json.len() - 1].to_owned();
    let each = |form: fn(char) -> String| secret.chars().map(form).collect::<String>();
    let units = |text: &str| text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect::<String>();
    let html = |slash: &str| {
        secret
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('"', "&quot;")
            .replace('\'', "&#39;")
            .replace('/', slash)
    };
    let encoded = |before: &str| STANDARD.encode(format!("{before}{secret}"));
    let hex = secret.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let middle = (secret.len() / 2..).find(|at| secret.is_char_boundary(*at)).unwrap();
    vec![
        ("as it is", secret.to_owned()),
        ("JSON", json.clone()),
        ("JSON with slashes", json.replace('/', "\\/")),
        ("JSON in code points", units(secret)),
        ("JSON within JSON", json.replace('\\', "\\\\").replace('"', "\\\"").replace('/', "\\\\/")),
        ("percent", percent(secret, true, 1)),
        ("percent in lower case", percent(secret, false, 1)),
        ("some of it in percent", percent(secret, true, 3)),
        ("percent twice", percent(&percent(secret, true, 1), true, 1)),
        ("a form", percent(secret, true, usize::MAX).replace("%20", "+")),
        ("HTML", html("/")),
        ("HTML by names", html("&sol;")),
        ("HTML by numbers", each(|c| format!("&#{};", u32::from(c)))),
        ("HTML by hexadecimal numbers", each(|c| format!("&#x{:X};", u32::from(c)))),
        ("HTML of percent", percent(secret, true, 2).replace('%', "&percnt;")),
        ("JSON of HTML", html("&#x2F;").replace('&', "\\u0026")),
        ("base64", encoded("")),
        ("base64 behind one byte", encoded("u")),
        ("base64 behind two bytes", encoded("u:")),
        ("base64 of a pair", encoded("someone:")),
        ("base64 of a pair with more behind", STANDARD.encode(format!("me:{secret}:there"))),
        ("base64 for URLs", URL_SAFE_NO_PAD.encode(format!("x{secret}"))),
        ("base64 in percent", percent(&encoded("me:"), false, usize::MAX).replace('=', "%3d")),
        ("folded", format!("{}\r\n {}", &secret[..middle], &secret[middle..])),
        (
            "folded in JSON",
            format!("{}\\r\\n\\t{}", &json_of(&secret[..middle]), &json_of(&secret[middle..])),
        ),
        ("hexadecimal", hex.clone()),
        ("hexadecimal in upper case", hex.to_uppercase()),
        ("in upper case", secret.to_uppercase()),
        ("a list of bytes", format!("{:?}", secret.as_bytes())),
        ("bytes with blanks", secret.bytes().map(|byte| format!("{byte} ")).collect()),
        ("bytes in hexadecimal", secret.bytes().map(|byte| format!("0x{byte:02X}, ")).collect()),
        ("percent with code points", secret.bytes().map(|byte| format!("%u{byte:04x}")).collect()),
        ("with blanks of no width", secret.chars().flat_map(|c| [c, '\u{200b}']).collect()),
    ]
}

fn json_of(text: &str) -> String {
    let json = serde_json::to_string(text).unwrap();
    json[1..json.len() - 1].to_owned()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_encoding_of_a_credential_is_kept(
        secret in "[!-~]{0,10}[A-Za-z0-9]{8}[ -~]{0,12}[!-~]",
        before in "[a-z ,.]{0,20}",
        behind in "[a-z ,.]{0,20}",
    ) {
        for (spelling, text) in spellings(&secret) {
            for (open, close) in [(" ", " "), ("{\"a\":\"", "\"}"), ("<b>", "</b>")] {
                let shown = whole(&format!("{before}{open}{text}{close}{behind}"), [secret.as_str()]);
                prop_assert!(shown.contains("***"), "{}: {:?} in {:?}", spelling, secret, shown);
                // Neither the credential nor its encoding is left, compared by letters and digits, except escapes.
                let letters = |text: &str| text.bytes().filter_map(letter).map(char::from).collect::<String>();
                let around = letters(&format!("{before} {open} {close} {behind}"));
                let mut hidden = vec![(letters(&secret), 8)];
                if spelling.starts_with("base64") || spelling.starts_with("hexadecimal") {
                    hidden.push((letters(&text), 10));
                }
                let shown = letters(&shown);
                for part in hidden.iter().flat_map(|(text, length)| text.as_bytes().windows(*length)) {
                    let part = std::str::from_utf8(part).unwrap();
                    prop_assert!(
                        !shown.contains(part) || around.contains(part),
                        "{}: {:?} shows {:?}", spelling, secret, part
                    );
                }
            }
        }
    }

    #[test]
    fn any_text_and_secrets_are_taken(text in "\\PC{0,200}|[%&\\\\u#x0-9a-f;]{0,80}", secrets in proptest::collection::vec("\\PC{0,20}", 0..4), cut: bool) {
        let shown = excerpt(&text, cut, secrets.iter().map(String::as_str), 100);
        prop_assert!(shown.len() <= 100);
    }

    #[test]
    fn other_text_is_kept(text in "[ -~äö]{0,200}") {
        prop_assume!(!text.to_lowercase().contains("zq"));
        prop_assert_eq!(whole(&text, ["zqzqzqzqzqzqzq77"]), text);
    }
}

/// The cost is bounded for every answer and every set of credentials.
#[test]
fn the_work_is_bounded() {
    let repeated = ["A".repeat(65_536), "Aa".repeat(32_768), "%25".repeat(21_845), "\\u{".repeat(16_384)];
    let numbers = "1,".repeat(32_768);
    let many: Vec<String> = (6..66).map(|length| "a".repeat(length)).collect();
    for text in repeated.iter().chain([&numbers]) {
        // With a cost for each match, each of these would take half a minute.
        for _ in 0..20 {
            let shown = excerpt(text, true, many.iter().map(String::as_str), 1_024);
            assert!(shown.len() <= 1_024);
        }
    }
    let secret = "k".repeat(MOST_SECRETS + 1);
    assert!(whole("anything", [secret.as_str()]).contains("not kept"));
}

#[test]
fn a_short_credential_is_found_under_escapes() {
    for (secret, text) in [
        ("a/b", r#"{"key":"a\/b"}"#),
        ("a/b", "key=a%2fb"),
        ("#!&", "<i>#!&amp;</i>"),
        ("hush", "\\u0068\\u0075\\u0073\\u0068"),
        ("x", "[x]"),
    ] {
        assert!(whole(text, [secret]).contains("***"), "{secret} {text}");
    }
}

#[test]
fn a_literal_credential_is_cut_out_exactly() {
    let shown = whole("/hook?key=hush-hush-hush Basic bWU6aHVzaA== x", ["hush-hush-hush", "bWU6aHVzaA=="]);
    assert_eq!(shown, "/hook?key=*** Basic *** x");
}

#[test]
fn a_part_of_a_long_credential_is_enough() {
    let secret = "0123456789abcdefghijklmnopqrstuvwxyz";
    assert_eq!(whole("token 456789abcdefghij...", [secret]), "token ***");
    assert_eq!(whole("token 45678", [secret]), "token 45678");
    let long: String =
        (0..8_192u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)).collect();
    let shown = whole(&format!("token {} end", &long[1_000..1_100]), [long.as_str()]);
    assert!(shown.ends_with("*** end") && shown.len() <= "token *** end".len(), "{shown}");
}

#[test]
fn an_excerpt_shows_no_part_of_a_truncated_credential() {
    let secret = "correct-horse-battery-staple";
    for length in 0..2_000 {
        let text = format!("{} {secret} {}", "x".repeat(length), "y".repeat(2_000 - length));
        let cut = &text[..1_536];
        let shown = excerpt(cut, true, [secret], 1_024);
        assert!(!shown.contains("corr") && shown.len() <= 1_024, "{length}");
        let shown = excerpt(&text, false, [secret], 1_024);
        assert!(!shown.contains("corr") && shown.len() <= 1_024, "{length}");
    }
}
