//! Durations as people write them: `"15s"`, `"2h"`, `"250ms"`. For serde's `with`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*value))
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)
        .map_err(|error| D::Error::custom(format!("{error}: write a number and a unit, like \"15s\"")))?;
    parse(&text).map_err(D::Error::custom)
}

/// Reads `"15s"`; the error says what was expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| {
        format!("{text:?} is not a duration: write a number and a unit, like \"15s\", \"250ms\" or \"2h\"")
    })
}

/// The same for a list: `["1s", "5s"]`.
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
