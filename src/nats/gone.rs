//! Gone is done: what the hub deletes or reads by its sequence may be gone already. Another process finished the same
//! step, or an operator removed it (`nats stream rmm`, `purge`, `rm`). That is the finished state, not an error.

use serde_json::{Value, json};

use super::connection::JetStream;
use super::error::NatsError;
use super::publish::one_line;
use crate::domain::headers;

/// `None` if the requested message, or its stream, does not exist.
pub(super) fn unless_gone<T>(result: Result<T, NatsError>) -> Result<Option<T>, NatsError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The dead letter of a redriven envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Predecessor {
    Stands,
    /// It was delivered, discarded, or has a successor.
    Resolved,
    /// The dead-letter stream was made again since the redrive, so nothing is known about it.
    Unknown,
}

impl JetStream {
    /// Deletes one message. Succeeds if it, or its stream, does not exist.
    pub async fn delete(&self, stream: &str, sequence: u64) -> Result<(), NatsError> {
        let request = json!({"seq": sequence, "no_erase": true});
        let deleted = self.api::<Value>(&format!("STREAM.MSG.DELETE.{stream}"), &request).await;
        match unless_gone(deleted) {
            Ok(_) => Ok(()),
            // The server reports any failure with this code, also that there is no such message.
            Err(error) if error.is_delete_failed() => match self.get(stream, sequence).await? {
                Some(_) => Err(error),
                None => Ok(()),
            },
            Err(error) => Err(error),
        }
    }

    /// The state of the dead letter that a redriven envelope names. `envelope` is the envelope's id, if it is known: a
    /// dead letter of another envelope at this sequence belongs to a stream that was made again.
    pub async fn predecessor(
        &self,
        domain: &str,
        sequence: u64,
        envelope: Option<&str>,
    ) -> Result<Predecessor, NatsError> {
        let stream = self.names().dlt_stream(domain);
        if let Some(message) = self.get(&stream, sequence).await? {
            // The id of an unreadable envelope is made up; its dead letter names no tenant.
            let is_named = message.header(headers::TENANT).is_some_and(|tenant| !tenant.is_empty());
            let same = !is_named || is_of(message.header(headers::ID), envelope);
            return Ok(if same { Predecessor::Stands } else { Predecessor::Unknown });
        }
        let Some(info) = unless_gone(self.stream_info(&stream).await)? else {
            return Ok(Predecessor::Unknown);
        };
        // A stream that was made again starts above the sequences of the one before.
        let first = info.config.get("first_seq").and_then(Value::as_u64).unwrap_or(0);
        let was_here = sequence >= first && sequence <= info.state.last_seq;
        Ok(if was_here { Predecessor::Resolved } else { Predecessor::Unknown })
    }

    /// Deletes the dead letter that a delivered envelope, or one with a newer dead letter, names. Leaves a dead letter of
    /// another envelope alone. Returns whether it was still there.
    pub async fn resolve_dead_letter(
        &self,
        domain: &str,
        sequence: u64,
        envelope: Option<&str>,
    ) -> Result<bool, NatsError> {
        match self.predecessor(domain, sequence, envelope).await? {
            Predecessor::Stands => self.delete_dead_letter(domain, sequence).await.map(|()| true),
            Predecessor::Resolved | Predecessor::Unknown => Ok(false),
        }
    }
}

/// Whether a dead letter with this id is that of the envelope. A stored id may be cut. What names no id is not compared.
pub(super) fn is_of(stored: Option<&str>, envelope: Option<&str>) -> bool {
    let (Some(stored), Some(envelope)) = (stored, envelope) else { return true };
    one_line(envelope).trim().starts_with(stored.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::ApiError;

    fn answered(code: u16, err_code: u16) -> Result<(), NatsError> {
        let source = ApiError { code, err_code, description: "an arbitrary text".to_owned() };
        Err(NatsError::Api { subject: "$JS.API".to_owned(), source })
    }

    #[test]
    fn each_answer_that_nothing_is_there_is_the_finished_state() {
        assert!(matches!(unless_gone(Ok(7)), Ok(Some(7))));
        for (code, err_code) in [(404, 10037), (400, 10043), (404, 10059), (404, 0), (500, 10014)] {
            assert!(matches!(unless_gone(answered(code, err_code)), Ok(None)), "{code} {err_code}");
        }
        for (code, err_code) in [(503, 10008), (500, 10057), (503, 10077), (400, 10003)] {
            assert!(unless_gone(answered(code, err_code)).is_err(), "{code} {err_code}");
        }
        let silent = NatsError::timeout("$JS.API", std::time::Duration::from_secs(5));
        assert!(unless_gone::<()>(Err(silent)).is_err());
    }

    #[test]
    fn a_dead_letter_is_compared_by_its_id() {
        assert!(is_of(Some("env_1"), Some("env_1")));
        assert!(!is_of(Some("env_2"), Some("env_1")));
        // An id of another writer, as it is stored.
        assert!(is_of(Some("a b"), Some(" a\nb ")));
        assert!(is_of(Some("long"), Some("long and cut")));
        assert!(is_of(None, Some("env_1")) && is_of(Some("env_1"), None));
    }
}
