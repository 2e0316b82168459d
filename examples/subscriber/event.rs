//! The envelope that the hub sends to external brokers, `{"data": …, "metadata": {"headers", "domain", "envelope",
//! "extensions"}}`, reduced to the parts that this service uses.

use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Debug, Deserialize)]
pub(crate) struct Event<'a> {
    /// Data of the event; its schema depends on the type.
    #[serde(borrow)]
    pub data: &'a RawValue,
    pub metadata: Metadata,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub headers: Headers,
    #[serde(default)]
    pub domain: Domain,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Headers {
    /// Event id, the same in every repetition. The id of the broker's entry is not.
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Domain {
    /// Version of the schema of `data`.
    pub version: Option<u32>,
}

impl<'a> Event<'a> {
    /// Parses an envelope. The error names the missing or invalid field.
    pub(crate) fn read(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }
}
