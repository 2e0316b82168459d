//! The last words of an envelope: its final failed attempt, kept for whoever dead-letters it.

use serde::{Deserialize, Serialize};

use super::outcome::Fault;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LastWords {
    pub attempt: u32,
    pub status: Option<u16>,
    pub error: String,
    pub fault: Fault,
    /// Milliseconds from the request to its end.
    pub latency_ms: u64,
    /// The beginning of the answer's body, if one came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}
