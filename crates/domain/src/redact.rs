//! Hides credentials in the answer of an endpoint, also if they are encoded.
//!
//! The search covers the answer itself, the answer without percent-encoding, JSON and HTML escapes (up to three layers),
//! and lists of numbers as bytes. It compares letters and digits only, ignoring case, so that line breaks and punctuation
//! hide nothing. It finds each credential, its base64 at each of three alignments, and its hexadecimal digits; a part of
//! twelve letters or digits is enough. The whole word around a match is hidden.
//!
//! The cost is bounded for every answer and every credential: the search reads a few times the size of the excerpt, each
//! part once. If a request has very many credentials, nothing of its answer is kept.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

const HIDDEN: &str = "***";
/// Maximum number of layers of escapes that are decoded.
const LAYERS: usize = 3;
/// Number of letters and digits that identify a credential.
const PART: usize = 12;
/// A credential with fewer letters and digits is compared in full, with all its characters.
const FEWEST: usize = 6;
/// The longest escape, in bytes.
const LONGEST: usize = 16;
/// Number of bytes that are removed from the end of a truncated text, because a credential may be cut there.
const MARGIN: usize = 512;
/// Multiple of the shown text that is examined, because hidden text makes room for more.
const LOOKED_AT: usize = 4;
/// Minimum number of bytes that are examined.
const LEAST: usize = 4 * 1024;
/// Maximum size of all credentials of a request together, in bytes.
const MOST_SECRETS: usize = 16 * 1024;
/// Minimum number of consecutive numbers that are read as bytes.
const NUMBERS: usize = 6;

/// Returns at most `most` bytes of a text without the credentials.
///
/// * `cut`: the text is truncated, so its end is not shown
pub fn excerpt<'s>(text: &str, cut: bool, secrets: impl IntoIterator<Item = &'s str>, most: usize) -> String {
    let secrets: Vec<&str> = secrets.into_iter().filter(|secret| !secret.is_empty()).collect();
    if !text.is_empty() && secrets.iter().map(|secret| secret.len()).sum::<usize>() > MOST_SECRETS {
        return "(not kept, because the request has too many credentials to look for in it)".to_owned();
    }
    let looked_at = most.saturating_mul(LOOKED_AT).max(LEAST);
    let (text, cut) = if text.len() > looked_at {
        let end = (0..=looked_at).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        (&text[..end], true)
    } else {
        (text, cut)
    };
    let hidden = found(text, &secrets);
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

/// Returns a short text in full, without the credentials.
pub fn whole<'s>(text: &str, secrets: impl IntoIterator<Item = &'s str>) -> String {
    excerpt(text, false, secrets, usize::MAX)
}

/// The ranges that contain a part of a credential, in order and disjoint.
fn found(text: &str, secrets: &[&str]) -> Vec<Range<usize>> {
    let (mut exact, mut loose) = (Vec::new(), Vec::new());
    // If all credentials are ASCII, other characters are ignored, such as a zero-width space inside a credential.
    let mut wanted = Wanted { ascii: secrets.iter().all(|secret| secret.is_ascii()), ..Wanted::default() };
    for secret in secrets {
        exact.extend(text.match_indices(secret).map(|(at, found)| at..at + found.len()));
        wanted.add(secret);
    }
    let mut view: View = text.bytes().enumerate().map(|(at, byte)| (byte, at, at + 1)).collect();
    for _ in 0..=LAYERS {
        wanted.find(&view, &mut loose);
        wanted.find(&numbers(&view), &mut loose);
        match undone(&view) {
            Some(next) => view = next,
            None => break,
        }
    }
    // Cut out literal matches exactly, and other matches with a margin.
    let exact = apart(exact);
    let within = |range: &Range<usize>| {
        let before = exact.partition_point(|found| found.start <= range.start);
        before.checked_sub(1).is_some_and(|at| range.end <= exact[at].end)
    };
    let loose: Vec<_> = loose.into_iter().filter(|range| !within(range)).collect();
    let words = apart(loose).into_iter().map(|range| word(text, &range));
    apart(words.chain(exact.iter().cloned()).collect())
}

/// Sorts ranges, and merges those that overlap.
fn apart(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    ranges.into_iter().fold(Vec::new(), |mut apart: Vec<Range<usize>>, range| {
        match apart.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            _ => apart.push(range),
        }
        apart
    })
}

/// A decoded text: each byte with its start and end in the original text.
type View = Vec<(u8, usize, usize)>;

/// The spellings of all credentials.
#[derive(Default)]
struct Wanted {
    /// All credentials are ASCII.
    ascii: bool,
    /// Letters and digits in lower case, by the length of the compared parts.
    spellings: BTreeMap<usize, Vec<Vec<u8>>>,
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
                // The characters that do not depend on the bytes before and after.
                let sure = (before * 8).div_ceil(6)..shifted.len() * 8 / 6;
                self.add_spelling(encoded.as_bytes()[sure].to_vec());
            }
        }
    }

    fn add_spelling(&mut self, spelling: Vec<u8>) {
        let compared = spelling.iter().filter(|byte| byte.is_ascii() || !self.ascii);
        let letters: Vec<u8> = compared.filter_map(|byte| letter(*byte)).collect();
        if letters.len() < FEWEST {
            self.short.extend((!spelling.is_empty()).then_some(spelling));
            return;
        }
        self.spellings.entry(letters.len().min(PART)).or_default().push(letters);
    }

    /// Finds the spellings in a view. Reads each part of the view and of the spellings once.
    fn find(&self, view: &View, found: &mut Vec<Range<usize>>) {
        if view.is_empty() {
            return;
        }
        let mut place = |part: &[(u8, usize, usize)]| {
            let start = part.iter().map(|(_, start, _)| *start).min();
            let end = part.iter().map(|(.., end)| *end).max();
            found.extend(start.zip(end).map(|(start, end)| start..end));
        };
        let letters: View = view
            .iter()
            .filter(|(byte, ..)| byte.is_ascii() || !self.ascii)
            .filter_map(|(byte, start, end)| Some((letter(*byte)?, *start, *end)))
            .collect();
        let bytes: Vec<u8> = letters.iter().map(|(byte, ..)| *byte).collect();
        for (length, spellings) in &self.spellings {
            let there: HashSet<&[u8]> = bytes.windows(*length).collect();
            let parts = spellings.iter().flat_map(|spelling| spelling.windows(*length));
            let wanted: HashSet<&[u8]> = parts.filter(|part| there.contains(part)).collect();
            if wanted.is_empty() {
                continue;
            }
            for (at, _) in bytes.windows(*length).enumerate().filter(|(_, part)| wanted.contains(part)) {
                place(&letters[at..at + length]);
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

/// The bytes of lists of numbers such as `[72, 117]` and `0x48,0x75`: consecutive numbers, decimal or hexadecimal, without
/// a letter in between.
fn numbers(view: &View) -> View {
    let (mut bytes, mut row) = (View::new(), View::new());
    let mut at = 0;
    let end_row = |row: &mut View, bytes: &mut View| {
        if row.len() >= NUMBERS {
            bytes.append(row);
        }
        row.clear();
    };
    while at < view.len() {
        if !view[at].0.is_ascii_alphanumeric() {
            at += 1;
            continue;
        }
        let from = at;
        while at < view.len() && view[at].0.is_ascii_alphanumeric() {
            at += 1;
        }
        let word: Vec<u8> =
            view[from..at].iter().take(5).map(|(byte, ..)| byte.to_ascii_lowercase()).collect();
        let number = match &word[..] {
            [b'0', b'x', digits @ ..] if (1..=2).contains(&digits.len()) => hex(digits),
            digits if digits.len() <= 3 => {
                std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok())
            }
            _ => None,
        };
        match number.and_then(|number| u8::try_from(number).ok()) {
            Some(byte) => row.push((byte, view[from].1, view[at - 1].2)),
            None => end_row(&mut row, &mut bytes),
        }
    }
    end_row(&mut row, &mut bytes);
    bytes
}

/// A letter or digit in lower case, or a byte of another script.
fn letter(byte: u8) -> Option<u8> {
    (byte.is_ascii_alphanumeric() || !byte.is_ascii()).then_some(byte.to_ascii_lowercase())
}

/// The word around a range: up to the next white space, quote or bracket.
fn word(text: &str, range: &Range<usize>) -> Range<usize> {
    let ends = |byte: u8| byte.is_ascii_whitespace() || b"\"'<>{}[]()".contains(&byte);
    let bytes = text.as_bytes();
    let start = bytes[..range.start].iter().rposition(|byte| ends(*byte)).map_or(0, |at| at + 1);
    let end = bytes[range.end..].iter().position(|byte| ends(*byte)).map_or(bytes.len(), |at| range.end + at);
    start..end
}

/// The view without one layer of escapes; `None` if it has no escapes.
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

/// The escape at the beginning of `rest`: its length and its bytes.
fn escape(rest: &[u8]) -> Option<(usize, Vec<u8>)> {
    match rest {
        [b'%', b'u' | b'U', a, b, c, d, ..] => Some((6, utf8(hex(&[*a, *b, *c, *d])?)?)),
        [b'%', a, b, ..] => Some((3, vec![hex(&[*a, *b])? as u8])),
        [b'\\', b'u', ..] => unicode(rest),
        [b'\\', b'x', a, b, ..] => Some((4, vec![hex(&[*a, *b])? as u8])),
        [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
            Some((4, vec![(a - b'0') * 64 + (b - b'0') * 8 + (c - b'0')]))
        }
        [b'\\', b'n' | b'r' | b't' | b'b' | b'f' | b'v' | b'0', ..] => Some((2, vec![b' '])),
        // The backslash is not an escape here, but the next character may begin one.
        [b'\\', b'%' | b'&', ..] => None,
        [b'\\', escaped, ..] => Some((2, vec![*escaped])),
        [b'&', ..] => entity(rest),
        _ => None,
    }
}

/// Decodes `\u0041`, a pair of surrogates, or `\u{41}`.
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

/// Decodes `&#47;`, `&#x2f;` and the named entities of ASCII punctuation (HTML section 13.5). The `;` of a number is
/// optional.
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
mod tests;
