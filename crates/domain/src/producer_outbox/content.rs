//! What the JSON of an event may hold: what both databases keep and every reader reads.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The deepest level of a value inside a field; the field's own value is level 0. Readers of JSON stop at about 128
/// (serde_json), SQLite at 1,000.
pub const MAX_DEPTH: usize = 100;

/// Checks a field's value. The error says what is wrong and where.
pub(super) fn check(json: &RawValue) -> Result<(), serde_json::Error> {
    let mut input = serde_json::Deserializer::from_str(json.get());
    Content { level: 0 }.deserialize(&mut input)
}

struct Content {
    level: usize,
}

impl Content {
    fn below(&self) -> Self {
        Self { level: self.level + 1 }
    }
}

impl<'de> DeserializeSeed<'de> for Content {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.level > MAX_DEPTH {
            return Err(D::Error::custom(format!("is nested more than {MAX_DEPTH} levels deep; flatten it")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Content {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    /// A number beyond an IEEE 754 double is an error of the parser.
    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    /// Half of a surrogate pair is an error of the parser.
    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if text.contains('\0') {
            return Err(E::custom("holds the character \\u0000, which PostgreSQL cannot store; remove it"));
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.below())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        // A name is a text one level down.
        while members.next_key_seed(self.below())?.is_some() {
            members.next_value_seed(self.below())?;
        }
        Ok(())
    }
}
