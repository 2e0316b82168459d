//! JSON answers. Events, ids and endpoints' answers come from strangers, and people read answers on terminals: what acts
//! on a terminal is escaped, as on the command line.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::problem::{Kind, Problem};
use crate::printable::PrintableJson;

/// An answer as JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match written(&self.0) {
            Ok(body) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
            Err(error) => {
                tracing::error!(%error, "an answer cannot be written as JSON");
                Problem::new(Kind::Internal, "the answer cannot be written; the log of the hub says why")
                    .into_response()
            }
        }
    }
}

/// A value as JSON in one line without a character that acts on a terminal.
pub(super) fn written(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut body = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut body, PrintableJson::compact()))?;
    Ok(body)
}
