//! Every error answer: problem details (RFC 9457), naming the field where there is one.

use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::json::written;
use crate::domain::field_error::FieldError;
use crate::management::ManagementError;
use crate::management::outbox::StoreError;

pub const CONTENT_TYPE: &str = "application/problem+json";

/// What a problem is, by the last part of its type URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
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
    UnsupportedMediaType,
    TooSlow,
    TooMany,
    QuotaExceeded,
    Unavailable,
    NotConfigured,
    Internal,
}

impl Kind {
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
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::QuotaExceeded => StatusCode::CONFLICT,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotConfigured => StatusCode::CONFLICT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
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
            Self::InvalidRequest => "The request is not as it must be",
            Self::SecretRequired => "A secret has to be given again",
            Self::Unauthenticated => "No valid token",
            Self::Forbidden => "The token does not allow this",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "The method is not supported here",
            Self::Conflict => "Conflict",
            Self::PreconditionFailed => "It was changed meanwhile",
            Self::PreconditionRequired => "Say which version you mean to replace",
            Self::TooLarge => "The body is too large",
            Self::UnsupportedMediaType => "The body is of another media type",
            Self::TooSlow => "The request came too slowly",
            Self::TooMany => "More than this caller may have",
            Self::QuotaExceeded => "The tenant has as many as it may",
            Self::Unavailable => "Not available at the moment",
            Self::NotConfigured => "The hub lacks a setting for this",
            Self::Internal => "The hub failed",
        }
    }
}

/// An error answer. `Retry-After`, `WWW-Authenticate` and `Allow` go with it where they belong.
#[derive(Debug, Clone)]
pub struct Problem {
    kind: Kind,
    detail: String,
    errors: Vec<FieldError>,
    retry_after: Option<u32>,
    challenge: Option<&'static str>,
    closing: bool,
}

/// Problem details (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// `urn:integration-hub:problem:<kind>`
    #[serde(rename = "type")]
    uri: String,
    title: &'static str,
    status: u16,
    /// What is wrong with this request, and what to do.
    detail: String,
    /// Each field that was refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldProblem>,
}

/// A field that was refused.
#[derive(Debug, Serialize, ToSchema)]
pub struct FieldProblem {
    /// Its path, such as `delivery.auth.type`; a query parameter or header by its name.
    field: String,
    /// What is wrong, and how to mend it.
    problem: String,
}

impl Problem {
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
            challenge: None,
            closing: false,
        }
    }

    /// One or more fields that were refused.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        let detail = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Self { errors, ..Self::new(Kind::InvalidRequest, detail) }
    }

    pub fn field(field: &str, problem: impl Into<String>) -> Self {
        Self::fields(vec![FieldError::new(field, problem)])
    }

    /// Later, after so many seconds.
    pub fn later(seconds: u32, detail: impl Into<String>) -> Self {
        Self { retry_after: Some(seconds), ..Self::new(Kind::Unavailable, detail) }
    }

    /// This caller has as much as it may; again after so many seconds (RFC 6585 section 4).
    pub fn too_many(seconds: u32, detail: impl Into<String>) -> Self {
        Self { retry_after: Some(seconds), ..Self::new(Kind::TooMany, detail) }
    }

    /// The same, and the connection is closed after it: the rest of the request is not read.
    pub fn closing(self) -> Self {
        Self { closing: true, ..self }
    }

    /// The whole answer on a connection of which no request was read.
    pub fn to_http(&self) -> Vec<u8> {
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
        let fields = self
            .errors
            .iter()
            .map(|error| FieldProblem { field: error.field.clone(), problem: error.problem.clone() });
        ProblemBody {
            uri: format!("urn:integration-hub:problem:{}", self.kind.as_str()),
            title: self.kind.title(),
            status: self.status().as_u16(),
            detail: self.detail.clone(),
            errors: fields.collect(),
        }
    }

    /// RFC 6750 section 3: how to say who one is.
    pub fn unauthenticated(challenge: &'static str, detail: impl Into<String>) -> Self {
        Self { challenge: Some(challenge), ..Self::new(Kind::Unauthenticated, detail) }
    }

    /// Of the outbox's database. `before`: what was done before it failed.
    fn of_store(error: &StoreError, before: &str) -> Self {
        if error.is_transient() || matches!(error, StoreError::Connect { .. }) {
            tracing::warn!(%error, "the outbox's database does not answer");
            return Self::later(
                2,
                format!("the outbox's database does not answer ({error}); try again{before}"),
            );
        }
        if error.is_of_setup() {
            return Self::new(Kind::NotConfigured, format!("{error}{before}"));
        }
        tracing::error!(%error, "a request could not be carried out");
        let detail = format!("the outbox's database refused; the log of the hub says why{before}");
        Self::new(Kind::Internal, detail)
    }

    pub fn status(&self) -> StatusCode {
        self.kind.status()
    }

    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The same, told in other words.
    pub fn with_detail(self, detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..self }
    }

    /// The same, with these fields beside it.
    pub fn with_fields(self, errors: Vec<FieldError>) -> Self {
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
                return Self::new(Kind::SecretRequired, error.to_string()).with_fields(errors.clone());
            }
            ManagementError::EventRejected(detail) => return Self::field("body", detail.clone()),
            ManagementError::UnknownDomain { .. }
            | ManagementError::NoSubscription { .. }
            | ManagementError::NoDeadLetter { .. }
            | ManagementError::NoOrder { .. }
            | ManagementError::NoRow { .. }
            | ManagementError::NoneSelected { .. } => Kind::NotFound,
            ManagementError::ForeignCursor { .. } => return Self::field("after", error.to_string()),
            ManagementError::Conflict { .. } => Kind::PreconditionFailed,
            ManagementError::TooManySubscriptions { .. } | ManagementError::SubscriptionsTooLarge { .. } => {
                Kind::QuotaExceeded
            }
            ManagementError::TooManyOrdersOf { .. } => return Self::too_many(5, error.to_string()),
            ManagementError::Exists { .. }
            | ManagementError::AmbiguousSubscription { .. }
            | ManagementError::OwnerRemoved { .. }
            | ManagementError::RowStands { .. } => Kind::Conflict,
            ManagementError::NoMasterKey { .. } | ManagementError::NoOutbox => Kind::NotConfigured,
            ManagementError::Full { .. } => {
                return Self::later(5, "the events stream is full; publish again when the hub has caught up");
            }
            ManagementError::TooManyOrders { .. }
            | ManagementError::OutboxBusy
            | ManagementError::Stopping => return Self::later(5, error.to_string()),
            ManagementError::Store(source) => return Self::of_store(source, ""),
            ManagementError::OutboxHalfway { verb, done, source } => {
                let before =
                    format!("; {done} rows were {verb} before, and the same order again does the rest");
                return Self::of_store(source, &before);
            }
            ManagementError::TooLarge(_) => Kind::TooLarge,
            ManagementError::Sealed { .. } => {
                tracing::error!(%error, "a stored credential cannot be opened");
                Kind::Internal
            }
            ManagementError::NotProvisioned { .. }
            | ManagementError::Halfway { .. }
            | ManagementError::Nats(_) => {
                if error.is_passing() {
                    tracing::warn!(%error, "the broker does not answer");
                    return Self::later(2, "the hub's broker does not answer; try again");
                }
                tracing::error!(%error, "a request could not be carried out");
                return Self::new(Kind::Internal, "the hub's broker refused; the log of the hub says why");
            }
        };
        Self::new(kind, error.to_string())
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Self::new(Kind::TooLarge, "the body is larger than this takes"),
            _ => Self::field("body", format!("cannot be read: {}", rejection.body_text())),
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
