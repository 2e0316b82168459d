//! Event keys (`user.created`) and the patterns that match them (`user.*`, `policy.>`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Maximum length of a key or pattern in bytes. It becomes a part of subjects, whose length servers limit.
pub const MAX_KEY_BYTES: usize = 255;

/// `<resource>.<operation>[.<more>]`: two or more non-empty tokens of `[A-Za-z0-9_-]`, at most
/// [`MAX_KEY_BYTES`] in total.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", schema(value_type = String, max_length = 255, pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+$", example = "user.created"))]
pub struct EventKey(String);

/// A pattern of event keys with NATS wildcards: `*` is one token, `>` at the end is one token or more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", schema(value_type = String, max_length = 255, pattern = r"^(([A-Za-z0-9_-]+|\*)(\.([A-Za-z0-9_-]+|\*))*(\.>)?|>)$", example = "user.*"))]
pub struct KeyPattern(String);

/// The reason why a text is not a key or pattern. It names the invalid part and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    #[error(
        "invalid event key {0:?}; write <resource>.<operation>: two or more tokens of letters, digits, '_' and '-', joined by dots"
    )]
    Key(String),
    #[error(
        "invalid token {token:?} in event pattern {pattern:?}; write a word of letters, digits, '_' and '-', '*' for any word, or '>' at the end for one word or more"
    )]
    Token { token: String, pattern: String },
    /// `what` is `event key` or `event pattern`.
    #[error("{what} is {bytes} bytes long; shorten it to at most {max}", max = MAX_KEY_BYTES)]
    TooLong { what: &'static str, bytes: usize },
}

impl EventKey {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl KeyPattern {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The problem of a pattern that matches no key, because a key has two words or more; `None` for other patterns.
    pub fn never_matches(&self) -> Option<String> {
        let word = self.0.as_str();
        (word != ">" && !word.contains('.')).then(|| {
            let wanted = if word == "*" { "\">\"".to_owned() } else { format!("\"{word}.>\"") };
            format!("{word:?} matches nothing, because an event key has two words or more; write {wanted}")
        })
    }

    /// The tokens between the dots: words, `*`, and `>` at the end.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// True if the key matches, by the rules of NATS subjects: `*` matches one token, `>` one token or more.
    pub fn matches(&self, key: &EventKey) -> bool {
        let mut tokens = key.0.split('.');
        for wanted in self.tokens() {
            match (wanted, tokens.next()) {
                (">", found) => return found.is_some(),
                ("*", Some(_)) => {}
                (word, Some(token)) if word == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }
}

impl KeyPattern {
    /// True if a key exists that matches both patterns. Neither may be one that [never matches](Self::never_matches).
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut own, mut others) = (self.tokens(), other.tokens());
        loop {
            match (own.next(), others.next()) {
                (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some(one), Some(other)) if one == other || one == "*" || other == "*" => {}
                _ => return false,
            }
        }
    }
}

impl fmt::Display for KeyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for EventKey {
    type Err = InvalidKey;
    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        Self::try_from(text.to_owned())
    }
}

impl FromStr for KeyPattern {
    type Err = InvalidKey;
    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        Self::try_from(text.to_owned())
    }
}

impl From<EventKey> for String {
    fn from(key: EventKey) -> Self {
        key.0
    }
}

impl From<KeyPattern> for String {
    fn from(pattern: KeyPattern) -> Self {
        pattern.0
    }
}

impl TryFrom<String> for EventKey {
    type Error = InvalidKey;
    fn try_from(text: String) -> Result<Self, InvalidKey> {
        check_length("event key", &text)?;
        let well_formed = text.contains('.') && text.split('.').all(is_word);
        if !well_formed {
            return Err(InvalidKey::Key(text));
        }
        Ok(Self(text))
    }
}

impl TryFrom<String> for KeyPattern {
    type Error = InvalidKey;
    fn try_from(text: String) -> Result<Self, InvalidKey> {
        check_length("event pattern", &text)?;
        let mut tokens = text.split('.').peekable();
        while let Some(token) = tokens.next() {
            let last = tokens.peek().is_none();
            if !(is_word(token) || token == "*" || (token == ">" && last)) {
                return Err(InvalidKey::Token { token: token.to_owned(), pattern: text.clone() });
            }
        }
        Ok(Self(text))
    }
}

fn is_word(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn check_length(what: &'static str, text: &str) -> Result<(), InvalidKey> {
    if text.len() > MAX_KEY_BYTES {
        return Err(InvalidKey::TooLong { what, bytes: text.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, key: &str) -> bool {
        pattern.parse::<KeyPattern>().unwrap().matches(&key.parse().unwrap())
    }

    #[test]
    fn patterns_match_as_nats_subjects_do() {
        for (pattern, key, expected) in [
            ("user.created", "user.created", true),
            ("user.created", "user.deleted", false),
            ("user.created", "user.created.eu", false),
            ("user.created.eu", "user.created", false),
            ("user.*", "user.created", true),
            ("user.*", "user.created.eu", false),
            ("*.created", "user.created", true),
            ("*.*", "user.created", true),
            ("*.*", "user.created.eu", false),
            ("user", "user.created", false),
            ("*", "user.created", false),
            ("user.>", "user.created", true),
            ("user.>", "user.created.eu", true),
            ("user.created.>", "user.created", false),
            ("user.*.>", "user.created", false),
            ("user.*.>", "user.created.eu", true),
            (">", "user.created", true),
            ("*.>", "user.created", true),
            ("User.created", "user.created", false),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn malformed_keys_and_patterns_are_refused() {
        let long = format!("user.{}", "x".repeat(MAX_KEY_BYTES - 4));
        for key in
            ["", "user", "user.", ".created", "user..created", "user.*", "user.>", "us er.x", "ü.x", &long]
        {
            assert!(key.parse::<EventKey>().is_err(), "{key}");
        }
        for pattern in ["", "user.", ".>", "user.>.x", "user.cre*", ">>", "us er.*", "user..*", &long] {
            assert!(pattern.parse::<KeyPattern>().is_err(), "{pattern}");
        }
        assert!(long[..MAX_KEY_BYTES].parse::<EventKey>().is_ok());
    }

    #[test]
    fn a_pattern_of_one_word_is_reported_as_matching_nothing() {
        for (pattern, remedy) in [("*", "\">\""), ("user", "\"user.>\""), ("USER_1", "\"USER_1.>\"")] {
            let problem = pattern.parse::<KeyPattern>().expect("a pattern").never_matches();
            assert!(problem.expect("a problem").contains(remedy), "{pattern}");
        }
        for pattern in [">", "*.*", "user.*", "user.>", "*.created"] {
            assert_eq!(pattern.parse::<KeyPattern>().expect("a pattern").never_matches(), None);
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_the_keys_that_fill_its_wildcards(
            key in "[ab]{1,2}(\\.[ab]{1,2}){1,3}",
            pattern in "([ab]{1,2}|\\*)(\\.([ab]{1,2}|\\*)){0,3}(\\.>)?",
        ) {
            // The rule in another way: replace the wildcards with the tokens of the key.
            let mut rest: Vec<&str> = key.split('.').collect();
            let mut filled = Vec::new();
            for wanted in pattern.split('.') {
                match wanted {
                    ">" => filled.append(&mut rest),
                    "*" if !rest.is_empty() => filled.push(rest.remove(0)),
                    word => {
                        filled.push(word);
                        if !rest.is_empty() { rest.remove(0); }
                    }
                }
            }
            let takes_one = !pattern.ends_with('>') || key.split('.').count() >= pattern.split('.').count();
            prop_assert_eq!(matches(&pattern, &key), takes_one && filled.join(".") == key);
        }

        #[test]
        fn patterns_overlap_if_a_key_matches_both(
            one in "(([ab]|\\*)(\\.([ab]|\\*)){0,2}\\.>|([ab]|\\*)(\\.([ab]|\\*)){1,2}|>)",
            other in "(([ab]|\\*)(\\.([ab]|\\*)){0,2}\\.>|([ab]|\\*)(\\.([ab]|\\*)){1,2}|>)",
        ) {
            // Every key of two to four words; `c` stands for a word in neither pattern.
            let mut keys: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
            let mut found = false;
            for _ in 2..=4 {
                keys = keys.iter().flat_map(|key| ["a", "b", "c"].map(|word| format!("{key}.{word}"))).collect();
                found |= keys.iter().any(|key| matches(&one, key) && matches(&other, key));
            }
            let [one, other] = [&one, &other].map(|text| text.parse::<KeyPattern>().unwrap());
            prop_assert_eq!((one.overlaps(&other), other.overlaps(&one)), (found, found));
        }

        #[test]
        fn a_key_is_a_pattern_for_itself_alone(key in "[ab]{1,2}(\\.[ab]{1,2}){1,3}", other in "[ab]{1,2}(\\.[ab]{1,2}){1,3}") {
            prop_assert_eq!(matches(&key, &other), key == other);
        }

        #[test]
        fn reading_never_panics(text in ".{0,20}") {
            let _ = text.parse::<EventKey>();
            let _ = text.parse::<KeyPattern>();
        }
    }
}
