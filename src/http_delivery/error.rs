//! Errors of one attempt. The types in the source chain decide what failed, never a text.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use hyper::header::InvalidHeaderValue;
use hyper_util::client::legacy::Error as ClientError;

use super::address_guard::{AddressRefused, Unresolved};
use super::client::RequestError;
use super::meter::TooMuchData;
use super::tls::TlsError;
use super::token::TokenError;
use crate::domain::event::NotACloudEvent;
use crate::domain::outcome::{Failure, Outcome};

/// An attempt that got no complete answer. Cheap to clone.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", Outcome::Failed(*.failure).error_text())]
pub(super) struct DeliveryError {
    pub(super) failure: Failure,
    /// The status of an answer without a readable head, if it counts.
    pub(super) status: Option<u16>,
    source: Arc<dyn StdError + Send + Sync>,
}

/// The request cannot be built.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidRequest {
    #[error("the event is not UTF-8")]
    NotUtf8(#[from] std::str::Utf8Error),
    #[error(transparent)]
    NotACloudEvent(#[from] NotACloudEvent),
    #[error("the event's {attribute} is not a valid header value")]
    HeaderValue { attribute: String, source: InvalidHeaderValue },
    #[error("the event's attribute name {attribute:?} is not a valid header name")]
    HeaderName { attribute: String, source: hyper::header::InvalidHeaderName },
    #[error("the envelope id is not a valid header value")]
    EnvelopeId(#[source] InvalidHeaderValue),
    #[error("the credential is not a valid header value")]
    Credential(#[source] InvalidHeaderValue),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl DeliveryError {
    fn new(failure: Failure, source: impl StdError + Send + Sync + 'static) -> Self {
        Self { failure, status: None, source: Arc::new(source) }
    }

    /// Whether it is that of a token endpoint that did not answer.
    pub(super) fn is_silent_token_endpoint(&self) -> bool {
        let token = self.source.downcast_ref::<TokenError>();
        matches!(token, Some(TokenError::Timeout | TokenError::Request(_)))
    }

    /// The error below and its sources in one line. It names no URL.
    pub(super) fn detail(&self) -> String {
        text(&*self.source)
    }
}

impl From<InvalidRequest> for DeliveryError {
    fn from(error: InvalidRequest) -> Self {
        Self::new(Failure::Request, error)
    }
}

impl From<TlsError> for DeliveryError {
    fn from(error: TlsError) -> Self {
        InvalidRequest::from(error).into()
    }
}

impl From<AddressRefused> for DeliveryError {
    fn from(error: AddressRefused) -> Self {
        Self::new(Failure::AddressRefused, error)
    }
}

impl From<RequestError> for DeliveryError {
    fn from(error: RequestError) -> Self {
        let RequestError { error, status } = error;
        let failure = classify(&error);
        // A receiver that has begun a 2xx has the event. Any other answer without a complete head is asked for again.
        let counts = |status: &u16| {
            has_invalid_headers(&error) || ((200..300).contains(status) && has_incomplete_head(&error))
        };
        let status = status.filter(counts);
        Self { status, ..Self::new(failure, error) }
    }
}

impl From<TokenError> for DeliveryError {
    /// An unreachable token endpoint is a missing token; a refused address stays a refused address.
    fn from(error: TokenError) -> Self {
        let failure = match &error {
            TokenError::Request(source) if classify(source) == Failure::AddressRefused => {
                Failure::AddressRefused
            }
            _ => Failure::Token,
        };
        Self::new(failure, error)
    }
}

/// True if the head arrived, but the framing or a header of the answer is invalid.
fn has_invalid_headers(error: &ClientError) -> bool {
    let mut invalid = false;
    each_source(error, &mut |source| {
        invalid |= source
            .downcast_ref::<hyper::Error>()
            .is_some_and(|error| error.is_parse() && !error.is_parse_too_large() && !error.is_parse_status());
    });
    invalid
}

/// True if the connection broke within the head of the answer, or the head is longer than is read.
fn has_incomplete_head(error: &ClientError) -> bool {
    let mut incomplete = false;
    each_source(error, &mut |source| {
        incomplete |= source.is::<io::Error>()
            || source
                .downcast_ref::<hyper::Error>()
                .is_some_and(|error| error.is_incomplete_message() || error.is_parse_too_large());
    });
    incomplete
}

fn classify(error: &ClientError) -> Failure {
    let (mut tls, mut malformed) = (false, false);
    let mut found = None;
    each_source(error, &mut |source| {
        if source.is::<AddressRefused>() {
            found = Some(Failure::AddressRefused);
        } else if source.is::<Unresolved>() {
            found = Some(Failure::Dns);
        }
        tls |= source.is::<rustls::Error>();
        malformed |= source.is::<TooMuchData>();
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

/// Visits an error and its sources. The error inside an `io::Error` is visited too: `source()` skips it.
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

/// An error and its sources in one line. The HTTP client's own wrapper ("client error (Connect)") is left out if it has a
/// source, so that the cause comes first.
pub(super) fn text(error: &(dyn StdError + 'static)) -> String {
    let mut line = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        if error.is::<ClientError>() && next.is_some() {
            continue;
        }
        let message = error.to_string();
        // An io::Error repeats the text of the error inside it.
        if line.is_empty() {
            line = message;
        } else if !line.ends_with(&message) {
            line.push_str(": ");
            line.push_str(&message);
        }
    }
    line
}
