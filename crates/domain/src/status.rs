//! HTTP statuses to which a subscription gives another meaning than the default.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::field_error::FieldError;

/// Maximum number of entries in a list.
const MAX_PATTERNS: usize = 64;

/// `delivery.statuses` of a subscription: statuses to retry, and statuses that are permanent failures. They override the
/// default table. A code takes precedence over a class. No class includes 410: only the code changes the meaning of
/// *gone*.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Statuses {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<PatternText>, example = json!([404, "5xx"])))]
    pub retry: Vec<StatusPattern>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<PatternText>, example = json!([404, "5xx"])))]
    pub permanent: Vec<StatusPattern>,
}

/// A status (`404`) or a class of statuses (`"4xx"`), 300 to 599. A 2xx is always a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PatternText", into = "PatternText")]
pub enum StatusPattern {
    Code(u16),
    /// The first digit: 3, 4 or 5.
    Class(u8),
}

/// A status (`404`) or a class of statuses (`"4xx"`).
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = StatusPattern))]
#[serde(
    untagged,
    expecting = "is neither a status nor a class; write a status like 404, or a class like \"4xx\""
)]
enum PatternText {
    Number(u64),
    Text(String),
}

/// A number or text that is neither a status nor a class of statuses.
#[derive(Debug, thiserror::Error)]
enum InvalidStatus {
    #[error("invalid status {0}; write 300 to 599")]
    Number(u64),
    #[error("unknown class of statuses {0:?}; write \"3xx\", \"4xx\" or \"5xx\"")]
    Class(String),
}

impl TryFrom<PatternText> for StatusPattern {
    type Error = InvalidStatus;
    fn try_from(form: PatternText) -> Result<Self, InvalidStatus> {
        match form {
            PatternText::Number(number) => match u16::try_from(number) {
                Ok(code @ 300..=599) => Ok(Self::Code(code)),
                _ => Err(InvalidStatus::Number(number)),
            },
            PatternText::Text(text) => match text.as_str() {
                "3xx" => Ok(Self::Class(3)),
                "4xx" => Ok(Self::Class(4)),
                "5xx" => Ok(Self::Class(5)),
                _ => Err(InvalidStatus::Class(text)),
            },
        }
    }
}

impl From<StatusPattern> for PatternText {
    fn from(pattern: StatusPattern) -> Self {
        match pattern {
            StatusPattern::Code(code) => Self::Number(code.into()),
            StatusPattern::Class(class) => Self::Text(format!("{class}xx")),
        }
    }
}

impl fmt::Display for StatusPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Class(class) => write!(f, "\"{class}xx\""),
        }
    }
}

/// The meaning of a status for a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Treatment {
    Retry,
    Permanent,
}

impl Statuses {
    pub fn is_empty(&self) -> bool {
        self.retry.is_empty() && self.permanent.is_empty()
    }

    /// The meaning of a status; `None` for the default.
    pub(crate) fn treatment(&self, status: u16) -> Option<Treatment> {
        let of = |pattern| {
            if self.retry.contains(&pattern) {
                Some(Treatment::Retry)
            } else if self.permanent.contains(&pattern) {
                Some(Treatment::Permanent)
            } else {
                None
            }
        };
        let class = (status != 410 && (300..=599).contains(&status))
            .then(|| StatusPattern::Class(u8::try_from(status / 100).unwrap_or_default()));
        of(StatusPattern::Code(status)).or_else(|| class.and_then(of))
    }

    /// Checks the values. Every error names its field and the remedy.
    pub fn validate(&self, errors: &mut Vec<FieldError>) {
        for (name, list) in [("retry", &self.retry), ("permanent", &self.permanent)] {
            if list.len() > MAX_PATTERNS {
                errors.push(FieldError::new(
                    format!("delivery.statuses.{name}"),
                    format!(
                        "has {} entries, the limit is {MAX_PATTERNS}; use classes like \"5xx\"",
                        list.len()
                    ),
                ));
            }
        }
        for (position, pattern) in self.permanent.iter().enumerate() {
            if self.retry.contains(pattern) {
                errors.push(FieldError::new(
                    format!("delivery.statuses.permanent[{position}]"),
                    format!("{pattern} is also in delivery.statuses.retry; remove one of them"),
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(json: &str) -> Result<Statuses, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_code_comes_before_a_class_and_no_class_holds_410() {
        let statuses = statuses(r#"{"retry": ["4xx", 501], "permanent": [404, "5xx"]}"#).unwrap();
        for (status, expected) in [
            (400, Some(Treatment::Retry)),
            (404, Some(Treatment::Permanent)),
            (410, None),
            (500, Some(Treatment::Permanent)),
            (501, Some(Treatment::Retry)),
            (302, None),
            (200, None),
            (999, None),
        ] {
            assert_eq!(statuses.treatment(status), expected, "{status}");
        }
        let text = serde_json::to_string(&statuses).unwrap();
        assert_eq!(text, r#"{"retry":["4xx",501],"permanent":[404,"5xx"]}"#);
    }

    #[test]
    fn invalid_statuses_are_rejected() {
        for (json, part) in [
            (r#"{"retry": [200]}"#, "300 to 599"),
            (r#"{"retry": [6000000]}"#, "300 to 599"),
            (r#"{"retry": ["2xx"]}"#, "3xx"),
            (r#"{"permanent": ["404"]}"#, "4xx"),
            (r#"{"permanent": [true]}"#, "404"),
            (r#"{"ignore": [404]}"#, "ignore"),
        ] {
            let error = statuses(json).unwrap_err();
            assert!(error.contains(part), "{json}: {error}");
        }
        let mut errors = Vec::new();
        statuses(r#"{"retry": [404], "permanent": [500, 404]}"#).unwrap().validate(&mut errors);
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].field, "delivery.statuses.permanent[1]");
    }
}
