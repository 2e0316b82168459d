//! What arrives: the envelope that the hub sends to external brokers, `{"data": …, "metadata": {"headers",
//! "domain", "envelope", "extensions"}}`, as far as it concerns us.

use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Debug, Deserialize)]
pub struct Event<'a> {
    /// Whatever the producer says of this type of event; read by who knows the type.
    #[serde(borrow)]
    pub data: &'a RawValue,
    pub metadata: Metadata,
}

#[derive(Debug, Deserialize)]
pub struct Metadata {
    pub headers: Headers,
    #[serde(default)]
    pub domain: Domain,
}

#[derive(Debug, Deserialize)]
pub struct Headers {
    /// The same whenever the event is sent again; a broker's own number is not.
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
}

#[derive(Debug, Default, Deserialize)]
pub struct Domain {
    /// The version of the type: what is in `data`.
    pub version: Option<u32>,
}

impl<'a> Event<'a> {
    /// The error says what is missing or wrong, and where.
    pub fn read(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }
}
