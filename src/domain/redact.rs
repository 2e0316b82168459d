//! Credentials that an endpoint's answer repeats, found in whatever spelling, and hidden.
//!
//! The answer is looked at as it is and as it reads once percent-encoding, JSON and HTML escapes are undone, up to
//! three times over; letters and digits alone are compared, in any case, so that folding and punctuation hide
//! nothing. Looked for are each credential, its base64 at each of three alignments, and its hexadecimal digits;
//! a part of twelve letters or digits is enough. Where one is found, the whole word around it goes.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

const HIDDEN: &str = "***";
/// Layers of escapes that are undone.
const LAYERS: usize = 3;
/// So many letters and digits of a credential are recognised.
const PART: usize = 12;
/// A credential with fewer letters and digits is compared as a whole, with all its characters.
const FEWEST: usize = 6;
/// Parts of one spelling that are looked for; of a longer one those in between are left out.
const MOST_PARTS: usize = 1024;
/// The longest escape, in bytes.
const LONGEST: usize = 16;
/// Where a text was cut off, a credential may be cut as well: so many bytes before that are not shown.
const MARGIN: usize = 512;

/// `text` without the credentials, at most `most` bytes of it.
///
/// * `cut`: the text goes on where it ends here; then its end is not shown
pub fn excerpt<'s>(text: &str, cut: bool, secrets: impl IntoIterator<Item = &'s str>, most: usize) -> String {
    let hidden = found(text, secrets);
    let shown = if cut { text.len().saturating_sub(MARGIN) } else { text.len() };
    let mut excerpt = String::new();
    let mut at = 0;
    for range in hidden {
        if range.start >= shown || excerpt.len() >= most {
            break;
        }
        excerpt.push_str(&text[at..range.start]);
        excerpt.push_str(HIDDEN);
        at = range.end;
    }
    if at < shown {
        let end = (at..=shown).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(at);
        excerpt.push_str(&text[at..end]);
    }
    let end = (0..=most.min(excerpt.len())).rev().find(|end| excerpt.is_char_boundary(*end));
    excerpt.truncate(end.unwrap_or(0));
    excerpt
}

/// A short text without the credentials, whole.
pub fn whole<'s>(text: &str, secrets: impl IntoIterator<Item = &'s str>) -> String {
    excerpt(text, false, secrets, usize::MAX)
}

/// Where something of a credential stands, in order, apart from one another.
fn found<'s>(text: &str, secrets: impl IntoIterator<Item = &'s str>) -> Vec<Range<usize>> {
    let (mut exact, mut loose) = (Vec::new(), Vec::new());
    let mut wanted = Wanted::default();
    for secret in secrets.into_iter().filter(|secret| !secret.is_empty()) {
        exact.extend(text.match_indices(secret).map(|(at, found)| at..at + found.len()));
        wanted.add(secret);
    }
    let mut view: View = text.bytes().enumerate().map(|(at, byte)| (byte, at, at + 1)).collect();
    for _ in 0..=LAYERS {
        wanted.find(&view, &mut loose);
        match undone(&view) {
            Some(next) => view = next,
            None => break,
        }
    }
    // What stands there word for word is cut out exactly, and the rest generously.
    let within =
        |range: &Range<usize>| exact.iter().any(|found| found.start <= range.start && range.end <= found.end);
    let loose: Vec<_> =
        loose.into_iter().filter(|range| !within(range)).map(|range| word(text, range)).collect();
    let mut all: Vec<_> = exact.into_iter().chain(loose).collect();
    all.sort_unstable_by_key(|range| (range.start, range.end));
    all.into_iter().fold(Vec::new(), |mut apart: Vec<Range<usize>>, range| {
        match apart.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            _ => apart.push(range),
        }
        apart
    })
}

/// A text under some layers of escapes: each byte with the place in the text that it comes from.
type View = Vec<(u8, usize, usize)>;

/// The spellings of all credentials.
#[derive(Default)]
struct Wanted {
    /// By length: parts of letters and digits, in lower case.
    parts: HashMap<usize, HashSet<Vec<u8>>>,
    /// Compared with all characters.
    short: Vec<Vec<u8>>,
}

impl Wanted {
    fn add(&mut self, secret: &str) {
        let mut view: View = secret.bytes().map(|byte| (byte, 0, 0)).collect();
        for _ in 0..=LAYERS {
            self.add_spelling(view.iter().map(|(byte, ..)| *byte).collect());
            match undone(&view) {
                Some(next) => view = next,
                None => break,
            }
        }
        if secret.len() >= 4 {
            let hex = secret.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
            self.add_spelling(hex.into_bytes());
            for before in 0..3 {
                let shifted = [&[0; 2][..before], secret.as_bytes()].concat();
                let encoded = STANDARD_NO_PAD.encode(&shifted);
                // What the bytes before and behind have no part in.
                let sure = (before * 8).div_ceil(6)..shifted.len() * 8 / 6;
                self.add_spelling(encoded.as_bytes()[sure].to_vec());
            }
        }
    }

    fn add_spelling(&mut self, spelling: Vec<u8>) {
        let letters: Vec<u8> = spelling.iter().filter_map(|byte| letter(*byte)).collect();
        if letters.len() < FEWEST {
            self.short.extend((!spelling.is_empty()).then_some(spelling));
            return;
        }
        let length = letters.len().min(PART);
        let parts = letters.windows(length);
        let step = parts.len().div_ceil(MOST_PARTS);
        self.parts.entry(length).or_default().extend(parts.step_by(step).map(<[u8]>::to_vec));
    }

    fn find(&self, view: &View, found: &mut Vec<Range<usize>>) {
        let mut place = |part: &[(u8, usize, usize)]| {
            let start = part.iter().map(|(_, start, _)| *start).min();
            let end = part.iter().map(|(.., end)| *end).max();
            found.extend(start.zip(end).map(|(start, end)| start..end));
        };
        let letters: View =
            view.iter().filter_map(|(byte, start, end)| Some((letter(*byte)?, *start, *end))).collect();
        let bytes: Vec<u8> = letters.iter().map(|(byte, ..)| *byte).collect();
        for (length, parts) in &self.parts {
            for (at, part) in bytes.windows(*length).enumerate() {
                if parts.contains(part) {
                    place(&letters[at..at + length]);
                }
            }
        }
        let bytes: Vec<u8> = view.iter().map(|(byte, ..)| *byte).collect();
        for short in &self.short {
            for (at, _) in bytes.windows(short.len()).enumerate().filter(|(_, part)| part == short) {
                place(&view[at..at + short.len()]);
            }
        }
    }
}

/// A letter or digit in lower case, or a byte of another script.
fn letter(byte: u8) -> Option<u8> {
    (byte.is_ascii_alphanumeric() || !byte.is_ascii()).then_some(byte.to_ascii_lowercase())
}

/// The word around a place: to the next blank, quote or bracket.
fn word(text: &str, range: Range<usize>) -> Range<usize> {
    let ends = |byte: u8| byte.is_ascii_whitespace() || b"\"'<>{}[]()".contains(&byte);
    let bytes = text.as_bytes();
    let start = bytes[..range.start].iter().rposition(|byte| ends(*byte)).map_or(0, |at| at + 1);
    let end = bytes[range.end..].iter().position(|byte| ends(*byte)).map_or(bytes.len(), |at| range.end + at);
    start..end
}

/// The view without one layer of escapes; `None` where there is none.
fn undone(view: &View) -> Option<View> {
    let mut plain = View::with_capacity(view.len());
    let mut at = 0;
    while at < view.len() {
        let found = match view[at].0 {
            b'%' | b'\\' | b'&' => {
                let rest: Vec<u8> = view[at..].iter().take(LONGEST).map(|(byte, ..)| *byte).collect();
                escape(&rest)
            }
            _ => None,
        };
        let Some((length, bytes)) = found else {
            plain.push(view[at]);
            at += 1;
            continue;
        };
        let (start, end) = (view[at].1, view[at + length - 1].2);
        plain.extend(bytes.into_iter().map(|byte| (byte, start, end)));
        at += length;
    }
    (plain.len() != view.len()).then_some(plain)
}

/// The escape at the beginning of `rest`: its length, and what it stands for.
fn escape(rest: &[u8]) -> Option<(usize, Vec<u8>)> {
    match rest {
        [b'%', a, b, ..] => Some((3, vec![hex(&[*a, *b])? as u8])),
        [b'\\', b'u', ..] => unicode(rest),
        [b'\\', b'x', a, b, ..] => Some((4, vec![hex(&[*a, *b])? as u8])),
        [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
            Some((4, vec![(a - b'0') * 64 + (b - b'0') * 8 + (c - b'0')]))
        }
        [b'\\', b'n' | b'r' | b't' | b'b' | b'f' | b'v' | b'0', ..] => Some((2, vec![b' '])),
        // Before one of these the backslash is not an escape, and what follows may be.
        [b'\\', b'%' | b'&', ..] => None,
        [b'\\', escaped, ..] => Some((2, vec![*escaped])),
        [b'&', ..] => entity(rest),
        _ => None,
    }
}

/// `\u0041`, a pair of surrogates, or `\u{41}`.
fn unicode(rest: &[u8]) -> Option<(usize, Vec<u8>)> {
    let digits = |at: usize| hex(rest.get(at..at + 4)?);
    if rest.get(2) == Some(&b'{') {
        let end = rest.iter().position(|byte| *byte == b'}')?;
        return Some((end + 1, utf8(hex(&rest[3..end])?)?));
    }
    let unit = digits(2)?;
    if (0xd800..0xdc00).contains(&unit) && rest.get(6..8) == Some(b"\\u") {
        let low = digits(8).filter(|low| (0xdc00..0xe000).contains(low))?;
        return Some((12, utf8(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00))?));
    }
    Some((6, utf8(unit)?))
}

/// `&#47;`, `&#x2f;` and the named ones of ASCII's punctuation (HTML section 13.5), with or without `;`
/// where it is a number.
fn entity(rest: &[u8]) -> Option<(usize, Vec<u8>)> {
    const NAMED: [(&[u8], u8); 38] = [
        (b"amp", b'&'),
        (b"lt", b'<'),
        (b"gt", b'>'),
        (b"quot", b'"'),
        (b"apos", b'\''),
        (b"sol", b'/'),
        (b"plus", b'+'),
        (b"equals", b'='),
        (b"colon", b':'),
        (b"semi", b';'),
        (b"percnt", b'%'),
        (b"num", b'#'),
        (b"excl", b'!'),
        (b"dollar", b'$'),
        (b"lpar", b'('),
        (b"rpar", b')'),
        (b"ast", b'*'),
        (b"comma", b','),
        (b"period", b'.'),
        (b"quest", b'?'),
        (b"commat", b'@'),
        (b"lsqb", b'['),
        (b"lbrack", b'['),
        (b"bsol", b'\\'),
        (b"rsqb", b']'),
        (b"rbrack", b']'),
        (b"hat", b'^'),
        (b"lowbar", b'_'),
        (b"grave", b'`'),
        (b"lcub", b'{'),
        (b"lbrace", b'{'),
        (b"verbar", b'|'),
        (b"vert", b'|'),
        (b"rcub", b'}'),
        (b"rbrace", b'}'),
        (b"nbsp", b' '),
        (b"tab", b' '),
        (b"newline", b' '),
    ];
    let digits = |from: usize, fits: fn(&u8) -> bool| {
        let count = rest[from..].iter().take_while(|byte| fits(byte)).count();
        let closed = usize::from(rest.get(from + count) == Some(&b';'));
        (from..from + count, from + count + closed)
    };
    match rest {
        [b'&', b'#', b'x' | b'X', ..] => {
            let (number, length) = digits(3, u8::is_ascii_hexdigit);
            Some((length, utf8(hex(&rest[number])?)?))
        }
        [b'&', b'#', ..] => {
            let (number, length) = digits(2, u8::is_ascii_digit);
            let number = std::str::from_utf8(&rest[number]).ok()?.parse().ok()?;
            Some((length, utf8(number)?))
        }
        _ => {
            let end = rest.iter().position(|byte| *byte == b';')?;
            let name = rest[1..end].to_ascii_lowercase();
            NAMED.iter().find(|(known, _)| *known == name).map(|(_, byte)| (end + 1, vec![*byte]))
        }
    }
}

fn hex(digits: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u32::from_str_radix(text, 16).ok()
}

fn utf8(code: u32) -> Option<Vec<u8>> {
    char::from_u32(code).map(|c| c.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
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

    /// Every way in which a text is commonly written where it is shown again.
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
        ]
    }

    fn json_of(text: &str) -> String {
        let json = serde_json::to_string(text).unwrap();
        json[1..json.len() - 1].to_owned()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn no_spelling_of_a_credential_stays(
            secret in "[!-~]{0,10}[A-Za-z0-9]{8}[ -~]{0,12}[!-~]",
            before in "[a-z ,.]{0,20}",
            behind in "[a-z ,.]{0,20}",
        ) {
            for (spelling, text) in spellings(&secret) {
                for (open, close) in [(" ", " "), ("{\"a\":\"", "\"}"), ("<b>", "</b>")] {
                    let shown = whole(&format!("{before}{open}{text}{close}{behind}"), [secret.as_str()]);
                    prop_assert!(shown.contains("***"), "{}: {:?} in {:?}", spelling, secret, shown);
                    // Neither its letters and digits nor those of its spelling, as long as that is no escape.
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
        fn what_is_no_credential_stays(text in "[ -~äö]{0,200}") {
            prop_assume!(!text.to_lowercase().contains("zq"));
            prop_assert_eq!(whole(&text, ["zqzqzqzqzqzqzq77"]), text);
        }
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
    fn what_stands_word_for_word_is_cut_out_exactly() {
        let shown =
            whole("/hook?key=hush-hush-hush Basic bWU6aHVzaA== x", ["hush-hush-hush", "bWU6aHVzaA=="]);
        assert_eq!(shown, "/hook?key=*** Basic *** x");
    }

    #[test]
    fn a_part_of_a_long_credential_is_enough() {
        let secret = "0123456789abcdefghijklmnopqrstuvwxyz";
        assert_eq!(whole("token 456789abcdefghij...", [secret]), "token ***");
        assert_eq!(whole("token 45678", [secret]), "token 45678");
        let long: String = (0..8_192u32)
            .map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26))
            .collect();
        let shown = whole(&format!("token {} end", &long[1_000..1_100]), [long.as_str()]);
        assert!(shown.ends_with("*** end") && shown.len() <= "token *** end".len(), "{shown}");
    }

    #[test]
    fn an_excerpt_shows_nothing_of_what_is_cut_in_two() {
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
}
