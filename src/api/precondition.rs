//! Conditional requests (RFC 9110 section 13). A subscription's entity tag is its revision.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::problem::{Problem, ProblemKind};

/// Builds the `ETag` header of a revision.
pub(crate) fn etag(revision: u64) -> (HeaderName, HeaderValue) {
    let value =
        HeaderValue::try_from(format!("\"{revision}\"")).expect("digits in quotes are a valid header value");
    (header::ETAG, value)
}

/// The version that a request expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Precondition {
    /// No header.
    None,
    /// `If-None-Match: *`: the subscription does not exist.
    Absent,
    /// `If-Match: *`: the subscription exists, with any revision.
    Any,
    /// `If-Match: "…"`: the subscription has one of these revisions.
    OneOf(Vec<u64>),
}

impl Precondition {
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let text = |name: &HeaderName| {
            headers.get(name).map(|value| {
                let problem = || Problem::field(name.as_str(), "must be visible ASCII");
                value.to_str().map(str::trim).map_err(|_| problem())
            })
        };
        match (text(&header::IF_MATCH).transpose()?, text(&header::IF_NONE_MATCH).transpose()?) {
            (None, None) => Ok(Self::None),
            (Some(_), Some(_)) => {
                Err(Problem::field("if-match", "cannot be combined with if-none-match; send one of the two"))
            }
            (None, Some("*")) => Ok(Self::Absent),
            (None, Some(_)) => {
                Err(Problem::field("if-none-match", "must be *; send * to create and never replace"))
            }
            (Some("*"), None) => Ok(Self::Any),
            (Some(tags), None) => {
                // A weak tag, or one that is not a revision, never matches.
                let known = tags
                    .split(',')
                    .filter_map(|tag| tag.trim().strip_prefix('"')?.strip_suffix('"')?.parse::<u64>().ok());
                Ok(Self::OneOf(known.collect()))
            }
        }
    }

    /// Checks the current revision; `None` means that the subscription does not exist.
    pub(crate) fn check(&self, current: Option<u64>) -> Result<(), Problem> {
        let failed =
            |name: &str, problem: &str| Err(Problem::header(ProblemKind::PreconditionFailed, name, problem));
        match (self, current) {
            (Self::None, _) | (Self::Absent, None) | (Self::Any, Some(_)) => Ok(()),
            (Self::OneOf(tags), Some(revision)) if tags.contains(&revision) => Ok(()),
            (Self::Absent, Some(_)) => failed(
                "if-none-match",
                "the subscription already exists; read it, and replace it with if-match",
            ),
            (Self::Any | Self::OneOf(_), None) => {
                failed("if-match", "the subscription does not exist; leave out if-match to create it")
            }
            (Self::OneOf(_), Some(revision)) => failed(
                "if-match",
                &format!(
                    "the subscription was changed, its etag is now \"{revision}\"; read it again and retry with that etag"
                ),
            ),
        }
    }

    /// Checks a write that replaces a subscription: it requires `If-Match`.
    pub(crate) fn check_replacing(&self, current: Option<u64>) -> Result<(), Problem> {
        if *self == Self::None && current.is_some() {
            return Err(Problem::header(
                ProblemKind::PreconditionRequired,
                "if-match",
                "required, because the subscription already exists; send the etag of the version that you read, or * \
                 to replace any version",
            ));
        }
        self.check(current)
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
        assert_eq!(Precondition::read(&HeaderMap::new()).unwrap(), Precondition::None);
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
        assert!(Precondition::None.check_replacing(Some(1)).is_err());
        assert!(Precondition::None.check_replacing(None).is_ok());
    }
}
