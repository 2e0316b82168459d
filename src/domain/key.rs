//! Event keys (`user.created`) and the patterns that match them (`user.*`, `policy.>`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// `<resource>.<operation>[.<more>]`: two or more non-empty tokens of `[A-Za-z0-9_-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventKey(String);

/// A pattern over event keys with NATS wildcards: `*` is one token, a trailing `>` one or more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyPattern(String);

/// Why a key or a pattern was refused; the text names the part and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidKey(pub String);

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
        let well_formed = text.split('.').count() >= 2
            && text.split('.').all(|token| {
                !token.is_empty()
                    && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
            });
        if !well_formed {
            return Err(InvalidKey(format!(
                "event key {text:?} is not <resource>.<operation>: two or more tokens of letters, digits, '_' and '-', joined by dots"
            )));
        }
        Ok(Self(text))
    }
}

impl TryFrom<String> for KeyPattern {
    type Error = InvalidKey;
    fn try_from(text: String) -> Result<Self, InvalidKey> {
        let tokens: Vec<&str> = text.split('.').collect();
        for (position, token) in tokens.iter().enumerate() {
            let last = position + 1 == tokens.len();
            let literal = !token.is_empty()
                && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            if !(literal || *token == "*" || (*token == ">" && last)) {
                return Err(InvalidKey(format!(
                    "event pattern {text:?}: token {token:?} must be a word of letters, digits, '_' and '-', '*' for any one word, or '>' at the end for all that follow"
                )));
            }
        }
        Ok(Self(text))
    }
}
