//! Conditional requests (RFC 9110 section 13): a subscription's entity tag is its revision.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::problem::{Kind, Problem};

/// The entity tag of a revision.
pub fn etag(revision: u64) -> (HeaderName, HeaderValue) {
    let value =
        HeaderValue::try_from(format!("\"{revision}\"")).expect("digits in quotes are a header's value");
    (header::ETAG, value)
}

/// What a request expects of the version that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    Unsaid,
    /// `If-None-Match: *`: there is none yet.
    Absent,
    /// `If-Match: *`: there is one, whatever it is.
    Any,
    /// `If-Match: "…"`: it is one of these.
    OneOf(Vec<u64>),
}

impl Precondition {
    pub fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let text = |name: &HeaderName| {
            headers.get(name).map(|value| {
                let problem = || Problem::field(name.as_str(), "is no text");
                value.to_str().map(str::trim).map_err(|_| problem())
            })
        };
        match (text(&header::IF_MATCH).transpose()?, text(&header::IF_NONE_MATCH).transpose()?) {
            (None, None) => Ok(Self::Unsaid),
            (Some(_), Some(_)) => {
                Err(Problem::field("if-match", "stands beside if-none-match; send one of the two"))
            }
            (None, Some("*")) => Ok(Self::Absent),
            (None, Some(_)) => {
                Err(Problem::field("if-none-match", "takes * alone: that there is no such subscription yet"))
            }
            (Some("*"), None) => Ok(Self::Any),
            (Some(tags), None) => {
                // A weak tag never matches strongly; neither does what this hub did not make.
                let known = tags
                    .split(',')
                    .filter_map(|tag| tag.trim().strip_prefix('"')?.strip_suffix('"')?.parse::<u64>().ok());
                Ok(Self::OneOf(known.collect()))
            }
        }
    }

    /// Whether it holds for what stands: its revision, `None` where there is nothing.
    pub fn check(&self, standing: Option<u64>) -> Result<(), Problem> {
        let failed = |detail: &str| Err(Problem::new(Kind::PreconditionFailed, detail));
        match (self, standing) {
            (Self::Unsaid, _) | (Self::Absent, None) | (Self::Any, Some(_)) => Ok(()),
            (Self::OneOf(tags), Some(revision)) if tags.contains(&revision) => Ok(()),
            (Self::Absent, Some(_)) => {
                failed("there is one already, and if-none-match says that there is none")
            }
            (Self::Any | Self::OneOf(_), None) => {
                failed("there is none, and if-match says that there is one")
            }
            (Self::OneOf(_), Some(revision)) => failed(&format!(
                "someone else changed it: its entity tag is \"{revision}\" now. Read it again, and write with that"
            )),
        }
    }

    /// The same for a write that replaces: it has to say what.
    pub fn check_replacing(&self, standing: Option<u64>) -> Result<(), Problem> {
        if *self == Self::Unsaid && standing.is_some() {
            return Err(Problem::new(
                Kind::PreconditionRequired,
                "there is one already: send if-match with the etag of the version that you have read, or `if-match: *` to \
                 replace whatever stands",
            ));
        }
        self.check(standing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &'static str, value: &'static str) -> Result<Precondition, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        Precondition::read(&headers)
    }

    #[test]
    fn preconditions_are_read_and_checked() {
        assert_eq!(Precondition::read(&HeaderMap::new()).unwrap(), Precondition::Unsaid);
        assert_eq!(read("if-match", "*").unwrap(), Precondition::Any);
        assert_eq!(
            read("if-match", "\"7\", W/\"8\", \"x\", \"9\"").unwrap(),
            Precondition::OneOf(vec![7, 9])
        );
        assert_eq!(read("if-none-match", "*").unwrap(), Precondition::Absent);
        assert!(read("if-none-match", "\"7\"").is_err());

        assert!(Precondition::OneOf(vec![7]).check(Some(7)).is_ok());
        assert!(Precondition::OneOf(vec![7]).check(Some(8)).is_err());
        assert!(Precondition::OneOf(vec![7]).check(None).is_err());
        assert!(Precondition::Any.check(None).is_err() && Precondition::Any.check(Some(1)).is_ok());
        assert!(Precondition::Absent.check(Some(1)).is_err() && Precondition::Absent.check(None).is_ok());
        assert!(Precondition::Unsaid.check_replacing(Some(1)).is_err());
        assert!(Precondition::Unsaid.check_replacing(None).is_ok());
    }
}
