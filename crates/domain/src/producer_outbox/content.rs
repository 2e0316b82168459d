//! Checks JSON values of an event: both databases must store them, and every reader must parse them.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Maximum nesting of a field's value, which itself has level 0. serde_json stops at 128, SQLite at 1,000.
const MAX_DEPTH: usize = 100;

/// Checks a field's value. The error has the problem and its position.
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

    /// The parser refuses numbers beyond an IEEE 754 double.
    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    /// The parser refuses half of a surrogate pair.
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
        // A name is checked as a text one level deeper.
        while members.next_key_seed(self.below())?.is_some() {
            members.next_value_seed(self.below())?;
        }
        Ok(())
    }
}
