//! JSON answers. Events, ids and endpoints' answers come from outside, and people read answers on terminals, so characters
//! that control a terminal are escaped, as on the command line.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::problem::{Problem, ProblemKind};
use crate::facts::AnswerNotWritten;
use crate::printable::PrintableJson;

/// A JSON answer.
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match written(&self.0) {
            Ok(body) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
            Err(error) => {
                AnswerNotWritten { error: &error }.emit();
                Problem::new(ProblemKind::Internal, "writing the answer failed; see the hub's log")
                    .into_response()
            }
        }
    }
}

/// Writes a value as JSON in one line, without characters that control a terminal.
pub(super) fn written(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut body = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut body, PrintableJson::compact()))?;
    Ok(body)
}
