//! Sizes as text: `"900KB"`, `"1MiB"`. For serde's `with`.

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer};

use crate::domain::backlog::size;

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let text = String::deserialize(deserializer)?;
    let read: ByteSize = text.parse().map_err(|_| {
        serde::de::Error::custom(format!(
            "{text:?} is not a size; write a number and a unit, such as \"900KB\" or \"1GiB\""
        ))
    })?;
    if read.as_u64() > size::MOST {
        return Err(serde::de::Error::custom(format!("{text:?} {}", size::SizeError::TooLarge)));
    }
    Ok(read)
}

/// The size as people write it.
pub(super) fn written(size: ByteSize) -> String {
    size::exact(size.as_u64())
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
