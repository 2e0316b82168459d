//! The kinds of failures, and the classes of statuses, as metrics name them.

use super::{Failure, Fault};

impl Failure {
    pub const ALL: [Self; 14] = [
        Self::Timeout,
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Broken,
        Self::Malformed,
        Self::AddressRefused,
        Self::Token,
        Self::Sealed,
        Self::Request,
        Self::BrokerUnavailable,
        Self::BrokerRefused,
        Self::Unpublishable,
        Self::UnknownBroker,
    ];
}

/// The kinds of failures with an answer.
const ANSWERED: [&str; 6] = ["redirect", "gone", "throttled", "client-error", "server-error", "odd-status"];

/// Every kind of failure, with its fault.
pub fn failure_kinds() -> impl Iterator<Item = (Fault, &'static str)> {
    let answered = ANSWERED.into_iter().map(|kind| (Fault::Subscriber, kind));
    answered.chain(Failure::ALL.into_iter().map(|failure| (failure.fault(), failure.kind())))
}

/// What an attempt ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusClass {
    Success,
    Redirect,
    ClientError,
    ServerError,
    Other,
    /// There was no answer, or a broker acknowledged.
    None,
}

impl StatusClass {
    pub const ALL: [Self; 6] =
        [Self::Success, Self::Redirect, Self::ClientError, Self::ServerError, Self::Other, Self::None];

    pub fn of(status: Option<u16>) -> Self {
        match status {
            None => Self::None,
            Some(200..=299) => Self::Success,
            Some(300..=399) => Self::Redirect,
            Some(400..=499) => Self::ClientError,
            Some(500..=599) => Self::ServerError,
            Some(_) => Self::Other,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "2xx",
            Self::Redirect => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::Other => "other",
            Self::None => "none",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::outcome::Outcome;

    #[test]
    fn every_failure_has_a_kind_of_the_list() {
        let kinds: Vec<_> = failure_kinds().collect();
        let distinct: BTreeSet<&str> = kinds.iter().map(|(_, kind)| *kind).collect();
        assert_eq!(distinct.len(), kinds.len(), "{kinds:?}");
        let answered = (0..=u16::MAX).map(|status| Outcome::Answered { status, retry_after: None });
        let failed = Failure::ALL.into_iter().map(Outcome::Failed);
        let mut met = BTreeSet::new();
        for outcome in answered.chain(failed) {
            let Some(kind) = outcome.kind() else { continue };
            assert!(kinds.contains(&(outcome.fault(), kind)), "{outcome:?}: {kind}");
            met.insert(kind);
        }
        assert_eq!(met, distinct);
    }

    #[test]
    fn a_status_is_of_its_class() {
        for (status, class) in [
            (Some(200), "2xx"),
            (Some(299), "2xx"),
            (Some(301), "3xx"),
            (Some(410), "4xx"),
            (Some(503), "5xx"),
            (Some(100), "other"),
            (Some(999), "other"),
            (None, "none"),
        ] {
            assert_eq!(StatusClass::of(status).as_str(), class);
        }
        for (at, class) in StatusClass::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, at);
        }
    }
}
