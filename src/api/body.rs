//! JSON bodies: read with an error that names the field.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::State;
use super::problem::{Kind, Problem};

/// A JSON body that must be there.
pub struct JsonBody(pub Value);

/// A JSON body that may be missing or null: then the value is `T`'s default.
pub struct MaybeJson<T>(pub T);

impl FromRequest<State> for JsonBody {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &State) -> Result<Self, Problem> {
        require_json(request.headers())?;
        let bytes = Bytes::from_request(request, state).await?;
        parse(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned + Default> FromRequest<State> for MaybeJson<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &State) -> Result<Self, Problem> {
        if request.headers().contains_key(header::CONTENT_TYPE) {
            require_json(request.headers())?;
        }
        let bytes = Bytes::from_request(request, state).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        match parse(&bytes)? {
            Value::Null => Ok(Self(T::default())),
            value => typed(value).map(Self),
        }
    }
}

/// Reads a type from a JSON object; what does not fit is named by its path.
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    // Serde would read a struct from a list too.
    if !value.is_object() {
        return Err(Problem::field("body", "must be an object"));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        Problem::field(if path == "." { "body" } else { &path }, error.into_inner().to_string())
    })
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media == "application/json" || media.ends_with("+json") {
        Ok(())
    } else {
        Err(Problem::new(Kind::UnsupportedMediaType, "send JSON, with `content-type: application/json`"))
    }
}

fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(bytes).map_err(|error| Problem::field("body", format!("is not JSON: {error}")))
}
