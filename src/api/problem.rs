//! Error answers: problem details (RFC 9457), which name the field if there is one.

use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::json::written;
use crate::bounded;
use crate::domain::field_error::FieldError;
use crate::facts::{
    RequestFailedInNats, RequestFailedInStore, RequestWithoutCredential, RequestWithoutNats,
    RequestWithoutStore,
};
use crate::management::ManagementError;
use crate::management::producer_outbox::StoreError;

pub(crate) const CONTENT_TYPE: &str = "application/problem+json";
/// Maximum number of invalid fields in an answer.
const MOST_FIELDS: usize = 100;
/// Maximum size of the name of an invalid field, and of its problem, in bytes.
const MAX_TEXT_BYTES: usize = 2_000;

/// The kind of a problem: the last part of its type URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ProblemKind {
    InvalidRequest,
    SecretRequired,
    Unauthenticated,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    Conflict,
    PreconditionFailed,
    PreconditionRequired,
    TooLarge,
    PathTooLong,
    HeadersTooLarge,
    UnsupportedMediaType,
    TooSlow,
    TooMany,
    QuotaExceeded,
    Unavailable,
    NotConfigured,
    Internal,
}

impl ProblemKind {
    fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::SecretRequired => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::PreconditionRequired => StatusCode::PRECONDITION_REQUIRED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::PathTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::QuotaExceeded => StatusCode::CONFLICT,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotConfigured => StatusCode::CONFLICT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The part of the request that such a problem is about, unless it names another one.
    fn field(self) -> Option<&'static str> {
        match self {
            Self::NotFound => Some("path"),
            Self::Forbidden => Some("authorization"),
            Self::TooLarge | Self::TooSlow => Some("body"),
            _ => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid-request",
            Self::SecretRequired => "secret-required",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::Conflict => "conflict",
            Self::PreconditionFailed => "precondition-failed",
            Self::PreconditionRequired => "precondition-required",
            Self::TooLarge => "too-large",
            Self::PathTooLong => "path-too-long",
            Self::HeadersTooLarge => "headers-too-large",
            Self::UnsupportedMediaType => "unsupported-media-type",
            Self::TooSlow => "too-slow",
            Self::TooMany => "too-many-requests",
            Self::QuotaExceeded => "quota-exceeded",
            Self::Unavailable => "unavailable",
            Self::NotConfigured => "not-configured",
            Self::Internal => "internal",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::InvalidRequest => "Invalid request",
            Self::SecretRequired => "Secret required again",
            Self::Unauthenticated => "No valid token",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "Method not allowed",
            Self::Conflict => "Conflict",
            Self::PreconditionFailed => "Precondition failed",
            Self::PreconditionRequired => "Precondition required",
            Self::TooLarge => "Body too large",
            Self::PathTooLong => "Path too long",
            Self::HeadersTooLarge => "Headers too large",
            Self::UnsupportedMediaType => "Unsupported media type",
            Self::TooSlow => "Request timed out",
            Self::TooMany => "Too many requests",
            Self::QuotaExceeded => "Quota exceeded",
            Self::Unavailable => "Temporarily unavailable",
            Self::NotConfigured => "Not configured",
            Self::Internal => "Internal error",
        }
    }
}

/// An error answer, with `Retry-After` or `WWW-Authenticate` if necessary.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    kind: ProblemKind,
    detail: String,
    errors: Vec<FieldError>,
    retry_after: Option<u32>,
    challenge: Option<&'static str>,
    closing: bool,
}

/// Problem details (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody {
    /// `urn:integration-hub:problem:<kind>`
    #[serde(rename = "type")]
    uri: String,
    title: &'static str,
    status: u16,
    /// The problem of this request, and its remedy.
    detail: String,
    /// The invalid fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldProblem>,
}

/// An invalid field.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FieldProblem {
    /// Path of the field, such as `delivery.auth.type`, or name of the query parameter or header.
    field: String,
    /// The problem and its remedy.
    problem: String,
}

impl Problem {
    pub(crate) fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
            challenge: None,
            closing: false,
        }
    }

    /// One or more invalid fields.
    pub(crate) fn fields(errors: Vec<FieldError>) -> Self {
        let detail = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Self { errors, ..Self::new(ProblemKind::InvalidRequest, detail) }
    }

    pub(crate) fn field(field: &str, problem: impl Into<String>) -> Self {
        Self::fields(vec![FieldError::new(field, problem)])
    }

    /// A problem of a header, or of another part of the request, which is named in `errors` too.
    pub(crate) fn header(kind: ProblemKind, name: &str, problem: impl Into<String>) -> Self {
        let error = FieldError::new(name, problem);
        Self::new(kind, error.to_string()).with_fields(vec![error])
    }

    /// Temporarily unavailable; the caller may retry after `seconds`.
    pub(crate) fn later(seconds: u32, detail: impl Into<String>) -> Self {
        Self { retry_after: Some(seconds), ..Self::new(ProblemKind::Unavailable, detail) }
    }

    /// The caller has reached a limit (RFC 6585 section 4); it may retry after `seconds`.
    pub(crate) fn too_many(seconds: u32, detail: impl Into<String>) -> Self {
        Self { retry_after: Some(seconds), ..Self::new(ProblemKind::TooMany, detail) }
    }

    /// Closes the connection after the answer, because the rest of the request is not read.
    pub(crate) fn closing(self) -> Self {
        Self { closing: true, ..self }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// The complete HTTP answer, for a connection whose request was not read.
    pub(crate) fn to_http(&self) -> Vec<u8> {
        let status = self.status();
        let body = written(&self.body()).unwrap_or_default();
        let retry = self.retry_after.map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
        let mut answer = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: {CONTENT_TYPE}\r\n{retry}content-length: {}\r\nconnection: close\r\n\r\n",
            status.as_u16(),
            status.canonical_reason().unwrap_or_default(),
            body.len()
        )
        .into_bytes();
        answer.extend_from_slice(&body);
        answer
    }

    fn body(&self) -> ProblemBody {
        // Both quote the request.
        let cut = |text: &str| bounded::middle(text, MAX_TEXT_BYTES).into_owned();
        let of_kind = self.kind.field().map(|field| FieldError::new(field, self.detail.clone()));
        let of_kind = of_kind.filter(|_| self.errors.is_empty());
        let fields = self
            .errors
            .iter()
            .chain(&of_kind)
            .take(MOST_FIELDS)
            .map(|error| FieldProblem { field: cut(&error.field), problem: cut(&error.problem) });
        ProblemBody {
            uri: format!("urn:integration-hub:problem:{}", self.kind.as_str()),
            title: self.kind.title(),
            status: self.status().as_u16(),
            detail: bounded::middle(&self.detail, bounded::MAX_ERROR_BYTES).into_owned(),
            errors: fields.collect(),
        }
    }

    /// An answer with a `WWW-Authenticate` challenge (RFC 6750 section 3).
    pub(crate) fn unauthenticated(challenge: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let errors = vec![FieldError::new(header::AUTHORIZATION.as_str(), detail.clone())];
        Self { challenge: Some(challenge), errors, ..Self::new(ProblemKind::Unauthenticated, detail) }
    }

    /// An error of the outbox database.
    ///
    /// * `before`: what was done before the error
    fn of_store(error: &StoreError, before: &str) -> Self {
        if error.is_transient() || matches!(error, StoreError::Connect { .. }) {
            RequestWithoutStore { error }.emit();
            return Self::later(2, format!("outbox database unavailable ({error}); try again later{before}"));
        }
        if error.is_of_setup() {
            return Self::new(ProblemKind::NotConfigured, format!("{error}{before}"));
        }
        RequestFailedInStore { error }.emit();
        let detail = format!("the outbox database returned an error; see the hub's log{before}");
        Self::new(ProblemKind::Internal, detail)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.kind.status()
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    #[cfg(test)]
    pub(crate) fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// Replaces the detail.
    pub(crate) fn with_detail(self, detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..self }
    }

    /// Replaces the invalid fields.
    pub(crate) fn with_fields(self, errors: Vec<FieldError>) -> Self {
        Self { errors, ..self }
    }
}

impl From<ManagementError> for Problem {
    fn from(error: ManagementError) -> Self {
        let kind = match &error {
            ManagementError::Invalid(_) => {
                let ManagementError::Invalid(errors) = error else { unreachable!("matched above") };
                return Self::fields(errors);
            }
            ManagementError::SecretsNeeded(errors) => {
                return Self::new(ProblemKind::SecretRequired, error.to_string()).with_fields(errors.clone());
            }
            ManagementError::EventRejected(rejection) => {
                return Self::field("body", rejection.detail.clone());
            }
            ManagementError::NoneSelected { .. } => {
                let field = FieldError::new("body", error.to_string());
                return Self::new(ProblemKind::NotFound, error.to_string()).with_fields(vec![field]);
            }
            ManagementError::UnknownDomain { .. }
            | ManagementError::NoSubscription { .. }
            | ManagementError::NoDeadLetter { .. }
            | ManagementError::NoBulkJob { .. }
            | ManagementError::NoRow { .. } => ProblemKind::NotFound,
            ManagementError::ForeignCursor { .. } => return Self::field("after", error.to_string()),
            ManagementError::Conflict { .. } => {
                let field = FieldError::new("if-match", "the subscription was changed; read it again");
                return Self::new(ProblemKind::PreconditionFailed, error.to_string())
                    .with_fields(vec![field]);
            }
            ManagementError::TooManySubscriptions { .. } | ManagementError::SubscriptionsTooLarge { .. } => {
                ProblemKind::QuotaExceeded
            }
            ManagementError::BrokerOfOperator { .. } => ProblemKind::Forbidden,
            ManagementError::TooManyBulkJobsOfTenant { .. } => return Self::too_many(5, error.to_string()),
            ManagementError::Exists { .. }
            | ManagementError::AmbiguousSubscription { .. }
            | ManagementError::OwnerRemoved { .. }
            | ManagementError::WrongRowStatus { .. } => ProblemKind::Conflict,
            ManagementError::NoMasterKey { .. } | ManagementError::NoProducerOutbox => {
                ProblemKind::NotConfigured
            }
            ManagementError::Full { .. } => {
                return Self::later(5, "the events stream is full; publish the event again later");
            }
            ManagementError::TooManyBulkJobs { .. }
            | ManagementError::ProducerOutboxBusy
            | ManagementError::Stopping => return Self::later(5, error.to_string()),
            ManagementError::Store(source) => return Self::of_store(source, ""),
            ManagementError::RowsPartlyChanged { verb, done, source } => {
                let before =
                    format!("; {done} rows were {verb} before; send the same request again for the rest");
                return Self::of_store(source, &before);
            }
            ManagementError::TooLarge(_) | ManagementError::TooLargeForServer(_) => ProblemKind::TooLarge,
            ManagementError::Sealed { .. } => {
                RequestWithoutCredential { error: &error }.emit();
                ProblemKind::Internal
            }
            ManagementError::NotProvisioned { .. }
            | ManagementError::PartlyDone { .. }
            | ManagementError::Nats(_) => {
                if error.is_passing() {
                    RequestWithoutNats { error: &error }.emit();
                    return Self::later(2, "the hub's NATS server is unavailable; try again later");
                }
                RequestFailedInNats { error: &error }.emit();
                return Self::new(
                    ProblemKind::Internal,
                    "the hub's NATS server returned an error; see the hub's log",
                );
            }
        };
        Self::new(kind, error.to_string())
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                Self::new(ProblemKind::TooLarge, "the body is too large; send a smaller one")
            }
            _ => Self::field("body", format!("reading failed: {}", rejection.body_text())),
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::field("query", rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let text = written(&self.body()).unwrap_or_default();
        let mut response = (self.status(), [(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if self.closing {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_quotes_a_bounded_part_of_the_request() {
        let big = "x".repeat(20_000);
        let errors = (0..150).map(|_| FieldError::new(big.clone(), big.clone())).collect();
        let problem = Problem::fields(errors);
        let body = problem.body();
        assert!(body.detail.len() <= bounded::MAX_ERROR_BYTES, "{}", body.detail.len());
        assert_eq!(body.errors.len(), MOST_FIELDS);
        for error in &body.errors {
            assert!(error.field.len() <= MAX_TEXT_BYTES && error.problem.len() <= MAX_TEXT_BYTES);
        }
        let short = Problem::field("tenant", "unknown").body();
        assert_eq!((short.errors[0].field.as_str(), short.errors[0].problem.as_str()), ("tenant", "unknown"));
    }
}
