//! Sizes as text: `"900KB"`, `"1MiB"`. For serde's `with`.

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer};

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        serde::de::Error::custom(format!(
            "{text:?} is not a size; write a number and a unit, such as \"900KB\" or \"1GiB\""
        ))
    })
}

/// The same for an optional field.
pub(super) mod optional {
    use super::{ByteSize, Deserializer};

    pub(in crate::settings) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<ByteSize>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }
}
