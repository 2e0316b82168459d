//! Rules of each protocol for the names of destinations, and the escaping of values in them.

use crate::field_error::FieldError;

/// Rules for the name of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameRules {
    /// Any text up to a length: Redis keys, AMQP routing keys.
    #[default]
    Any,
    /// NATS subjects: non-empty tokens separated by dots, without spaces and wildcards.
    Subject,
    /// Kafka topics: ASCII letters, digits, `.`, `_` and `-`.
    Topic,
}

impl NameRules {
    /// Escapes a value for use in a name. Injective: different values give different results. Allowed characters stay
    /// unchanged.
    ///
    /// * Subjects: `%HH` (RFC 3986) for each byte of a space, control character, wildcard, `%`, or dot without a
    ///   token on both sides: `a b` is `a%20b`.
    /// * Topics: `_.HH` for each byte that is not allowed, and for a `_` before a dot: `crm::user` is
    ///   `crm_.3A_.3Auser`.
    pub fn part(self, text: &str) -> String {
        let mut part = String::with_capacity(text.len());
        let mut before = None;
        let mut rest = text.chars();
        while let Some(char) = rest.next() {
            let after = rest.as_str().chars().next();
            let (is_legal, sign) = match self {
                Self::Any => (true, ""),
                Self::Subject => (is_of_subject(before, char, after), "%"),
                Self::Topic => (is_of_topic(char) && (char, after) != ('_', Some('.')), "_."),
            };
            if is_legal {
                part.push(char);
            } else {
                let mut bytes = [0; 4];
                for byte in char.encode_utf8(&mut bytes).bytes() {
                    part.push_str(&format!("{sign}{byte:02X}"));
                }
            }
            before = Some(char);
        }
        part
    }

    /// Checks the literal text of a template, which is not escaped. The error names the field `destination`.
    pub(super) fn check_text(self, text: &str) -> Result<(), FieldError> {
        let is_legal = |char: char| match self {
            Self::Any => true,
            Self::Subject => is_of_token(char) || char == '.',
            Self::Topic => is_of_topic(char),
        };
        let Some(char) = text.chars().find(|char| !is_legal(*char)) else { return Ok(()) };
        let allowed = match self {
            Self::Any => "any text",
            Self::Subject => "tokens with dots between, without spaces and wildcards",
            Self::Topic => "ASCII letters, digits, '.', '_' and '-'",
        };
        Err(FieldError::new("destination", format!("{char:?} in {text:?} is not allowed; write {allowed}")))
    }
}

impl NameRules {
    /// Checks the tokens of a whole name. The error names the field `destination`.
    pub(super) fn check_tokens(self, name: &str) -> Result<(), FieldError> {
        let has_empty_token = self == Self::Subject && name.split('.').any(str::is_empty);
        if !has_empty_token {
            return Ok(());
        }
        Err(FieldError::new(
            "destination",
            "has a dot at an end, or two dots in a row; write a token on both sides of each dot",
        ))
    }
}

fn is_of_topic(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-')
}

fn is_of_token(char: char) -> bool {
    !char.is_whitespace() && !char.is_control() && !matches!(char, '*' | '>' | '.')
}

fn is_of_subject(before: Option<char>, char: char, after: Option<char>) -> bool {
    match char {
        '.' => before.is_some_and(|char| char != '.') && after.is_some_and(|char| char != '.'),
        '%' => false,
        _ => is_of_token(char),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_legal_stays_and_the_rest_is_escaped() {
        for (names, text, expected) in [
            (NameRules::Any, "crm::user *\u{e9}", "crm::user *\u{e9}"),
            (NameRules::Subject, "user.created", "user.created"),
            (NameRules::Subject, "crm::user-7", "crm::user-7"),
            (NameRules::Subject, "a b*>%", "a%20b%2A%3E%25"),
            (NameRules::Subject, ".a..b.", "%2Ea%2E%2Eb%2E"),
            (NameRules::Subject, "\u{e9}\u{a0}", "\u{e9}%C2%A0"),
            (NameRules::Topic, "order_items-v1.eu", "order_items-v1.eu"),
            (NameRules::Topic, "crm::user", "crm_.3A_.3Auser"),
            (NameRules::Topic, "a_.b", "a_.5F.b"),
            (NameRules::Topic, "a__:", "a___.3A"),
            (NameRules::Topic, "\u{e9}", "_.C3_.A9"),
        ] {
            assert_eq!(names.part(text), expected, "{names:?} {text:?}");
        }
    }

    #[test]
    fn a_template_with_an_invalid_character_is_rejected() {
        for (names, text) in [
            (NameRules::Subject, "a b"),
            (NameRules::Subject, "events.>"),
            (NameRules::Topic, "crm::"),
            (NameRules::Topic, "caf\u{e9}"),
        ] {
            let error = names.check_text(text).unwrap_err();
            assert_eq!(error.field, "destination");
            assert!(error.problem.contains(&format!("{text:?}")), "{error}");
        }
        for (names, text) in
            [(NameRules::Any, "a b"), (NameRules::Subject, ".events::%."), (NameRules::Topic, "._-a1")]
        {
            assert_eq!(names.check_text(text), Ok(()));
        }
    }

    /// Reverses the escaping.
    fn text_of(names: NameRules, part: &str) -> String {
        let sign = if names == NameRules::Subject { "%" } else { "_." };
        let (mut bytes, mut rest) = (Vec::new(), part);
        while let Some(first) = rest.bytes().next() {
            if let Some(tail) = rest.strip_prefix(sign) {
                bytes.push(u8::from_str_radix(&tail[..2], 16).unwrap());
                rest = &tail[2..];
            } else {
                bytes.push(first);
                // Bytes of a longer character go one by one.
                let length = rest.chars().next().unwrap().len_utf8();
                bytes.extend(&rest.as_bytes()[1..length]);
                rest = &rest[length..];
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    proptest! {
        #[test]
        fn any_text_becomes_a_legal_part_that_no_other_becomes(text in "[a_.:%* \u{e9}\u{85}]{1,12}") {
            let subject = NameRules::Subject.part(&text);
            prop_assert!(subject.split('.').all(|token| !token.is_empty() && token.chars().all(is_of_token)));
            prop_assert_eq!(text_of(NameRules::Subject, &subject), text.clone());
            let topic = NameRules::Topic.part(&text);
            prop_assert!(topic.chars().all(is_of_topic));
            prop_assert_eq!(text_of(NameRules::Topic, &topic), text);
        }
    }
}
