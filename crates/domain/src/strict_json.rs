//! Reads JSON strictly: a member that occurs twice is an error with its path. [`Value`] alone would keep the last one.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A text that is not JSON, or in which a member occurs twice. No text of it quotes a value.
#[derive(Debug, thiserror::Error)]
pub enum StrictJsonError {
    #[error("{path}: occurs twice; remove one of the two")]
    Duplicate {
        /// Path of the member, such as `delivery.url` or `[1].id`.
        path: String,
    },
    #[error(transparent)]
    Syntax(serde_json::Error),
}

/// Parses one JSON value.
pub fn parse(json: &[u8]) -> Result<Value, StrictJsonError> {
    let found = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let read = Strict { path: "", found: &found }.deserialize(&mut deserializer);
    match read.and_then(|value| deserializer.end().map(|()| value)) {
        Ok(value) => Ok(value),
        Err(error) => Err(match found.into_inner() {
            Some(path) => StrictJsonError::Duplicate { path },
            None => StrictJsonError::Syntax(error),
        }),
    }
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    path: &'a str,
    /// The path of a member that occurs twice.
    found: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, list.len());
            match items.next_element_seed(Strict { path: &path, ..self })? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let path = if self.path.is_empty() { name.clone() } else { format!("{}.{name}", self.path) };
            if object.contains_key(&name) {
                self.found.replace(Some(path));
                return Err(A::Error::custom("a member occurs twice"));
            }
            let value = members.next_value_seed(Strict { path: &path, ..self })?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_value_is_read_as_it_is() {
        for value in [
            json!(null),
            json!([]),
            json!({}),
            json!([1, -1, 1.5, u64::MAX, true, "a\u{e9}\n", {"a": {"a": [{"a": null}]}}]),
        ] {
            assert_eq!(parse(value.to_string().as_bytes()).expect("JSON"), value);
        }
    }

    #[test]
    fn a_member_that_occurs_twice_is_named_by_its_path() {
        for (json, expected) in [
            (r#"{"id":"a","id":"b"}"#, "id"),
            (r#"{"id":"a","i\u0064":"a"}"#, "id"),
            (r#"{"delivery":{"url":"x","auth":{"type":"none","type":"none"}}}"#, "delivery.auth.type"),
            (r#"[{"id":"a"},{"id":"a","tenant":"b","id":"a"}]"#, "[1].id"),
            (r#"{"filter":[{"any":[{},{"a":1,"a":1}]}]}"#, "filter[0].any[1].a"),
            (r#"{"":1,"":2}"#, ""),
        ] {
            match parse(json.as_bytes()) {
                Err(StrictJsonError::Duplicate { path }) => assert_eq!(path, expected),
                other => panic!("{json}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_text_that_is_not_json_is_an_error() {
        for text in ["", "{", "{}{}", "[1,]", "nul", "\"a", "{\"a\":1,}", &"[".repeat(1_000)] {
            assert!(matches!(parse(text.as_bytes()), Err(StrictJsonError::Syntax(_))), "{text}");
        }
        assert!(matches!(parse(b"\"\xff\""), Err(StrictJsonError::Syntax(_))));
    }
}
