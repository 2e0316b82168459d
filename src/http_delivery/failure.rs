//! What went wrong below HTTP, told by the types of the error and its sources, never by text.

use std::error::Error as StdError;
use std::io;

use hyper_util::client::legacy::Error;

use super::client::Unanswered;
use super::guard::{AddressRefused, Unresolved};
use super::meter::Flooded;
use crate::domain::outcome::Failure;

/// No whole answer: the failure, and what the layer below said.
#[derive(Debug, Clone)]
pub(super) struct Broken {
    pub(super) failure: Failure,
    pub(super) detail: Option<String>,
    /// What the answer began with, if the rest of its head makes no sense.
    pub(super) status: Option<u16>,
}

impl Broken {
    pub(super) fn new(failure: Failure, detail: Option<String>) -> Self {
        Self { failure, detail, status: None }
    }
}

impl From<AddressRefused> for Broken {
    fn from(refused: AddressRefused) -> Self {
        Self::new(Failure::AddressRefused, Some(refused.to_string()))
    }
}

/// An error of the client. It names no URL.
pub(super) fn broken(unanswered: Unanswered) -> Broken {
    let Unanswered { error, status } = unanswered;
    Broken {
        failure: classify(&error),
        detail: Some(text(&error)),
        status: status.filter(|_| is_senseless(&error)),
    }
}

/// The head of the answer is there, and cannot be read: its framing, or a header. One without an end is not there.
fn is_senseless(error: &Error) -> bool {
    let mut senseless = false;
    each_source(error, &mut |source| {
        senseless |= source
            .downcast_ref::<hyper::Error>()
            .is_some_and(|error| error.is_parse() && !error.is_parse_too_large() && !error.is_parse_status());
    });
    senseless
}

fn classify(error: &Error) -> Failure {
    let (mut tls, mut malformed) = (false, false);
    let mut found = None;
    each_source(error, &mut |source| {
        if source.is::<AddressRefused>() {
            found = Some(Failure::AddressRefused);
        } else if source.is::<Unresolved>() {
            found = Some(Failure::Dns);
        }
        tls |= source.is::<rustls::Error>();
        malformed |= source.is::<Flooded>();
        malformed |= source.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse);
    });
    match found {
        Some(failure) => failure,
        None if tls => Failure::Tls,
        None if malformed => Failure::Malformed,
        None if error.is_connect() => Failure::Connect,
        None => Failure::Broken,
    }
}

/// Visits an error and all below it. An `io::Error` hides the error it was made from: its `source`
/// is that one's source.
fn each_source(error: &(dyn StdError + 'static), visit: &mut impl FnMut(&(dyn StdError + 'static))) {
    visit(error);
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match inner {
        Some(inner) => each_source(inner, visit),
        None => {
            if let Some(source) = error.source() {
                each_source(source, visit);
            }
        }
    }
}

/// The error and its sources in one line.
pub(super) fn text(error: &(dyn StdError + 'static)) -> String {
    let mut line = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        let said = source.to_string();
        // An io::Error repeats the text of the one it was made from.
        if !line.ends_with(&said) {
            line.push_str(": ");
            line.push_str(&said);
        }
        below = source.source();
    }
    line
}
