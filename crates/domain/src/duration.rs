//! Durations with a unit: `"15s"`, `"2h"`, `"250ms"`. For serde's `with`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*value))
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)
        .map_err(|error| D::Error::custom(format!("{error}; write a number and a unit, like \"15s\"")))?;
    parse(&text).map_err(D::Error::custom)
}

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration {0:?}; write a number and a unit, like \"15s\", \"250ms\" or \"2h\"")]
pub struct InvalidDuration(String);

/// Parses a duration such as `"15s"`.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    humantime::parse_duration(text).map_err(|_| InvalidDuration(text.to_owned()))
}

/// Lists of durations: `["1s", "5s"]`.
pub mod list {
    use super::*;

    pub fn serialize<S: Serializer>(values: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|value| humantime::format_duration(*value).to_string()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Duration>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| parse(text).map_err(D::Error::custom))
            .collect()
    }
}

/// Optional durations.
pub mod optional {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)
            .map_err(|error| D::Error::custom(format!("{error}; write a number and a unit, like \"3d\"")))?;
        text.map(|text| parse(&text).map_err(D::Error::custom)).transpose()
    }
}
