//! The final failed attempt of an envelope, stored for the role that dead-letters it.

use serde::{Deserialize, Serialize};

use super::outcome::Fault;

/// The final failed attempt of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LastWords {
    pub attempt: u32,
    pub status: Option<u16>,
    pub error: String,
    pub fault: Fault,
    /// Milliseconds from the request to the end of the answer.
    pub latency_ms: u64,
    /// The beginning of the answer's body, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}
