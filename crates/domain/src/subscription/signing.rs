//! Signing secrets of Standard Webhooks 1.0, symmetric (`v1`) and asymmetric (`v1a`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Secret;
use crate::field_error::FieldError;

/// The signing secrets. The prefix of a secret selects the algorithm: `whsec_` is HMAC-SHA256, `whsk_` is ed25519.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Signing {
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Password, example = "whsec_…"))]
    pub secret: Secret,
    /// The replaced secret; until it expires, deliveries have a signature of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousSecret>,
}

/// A replaced secret that signs until it expires.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PreviousSecret {
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Password, example = "whsec_…"))]
    pub secret: Secret,
    /// The time at which the secret expires (RFC 3339).
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
}

impl Signing {
    /// Replaces the secret. The old one signs as well until `until`, or ends at once if that is `None`. An earlier
    /// previous secret always ends at once.
    pub fn rotate(self, new: Secret, until: Option<OffsetDateTime>) -> Self {
        let previous = until.map(|until| PreviousSecret { secret: self.secret, until });
        Self { secret: new, previous }
    }

    /// Replaces a secret that no receiver knows; the previous secret is kept.
    pub fn replace(self, new: Secret) -> Self {
        Self { secret: new, previous: self.previous }
    }

    pub(super) fn validate(&self, errors: &mut Vec<FieldError>) {
        validate_secret("delivery.signing.secret", &self.secret, errors);
        if let Some(previous) = &self.previous {
            validate_secret("delivery.signing.previous.secret", &previous.secret, errors);
        }
    }
}

/// Accepts `whsec_` and the base64 of 24 to 64 bytes, or `whsk_` and the base64 of an ed25519 seed of 32 bytes, with or
/// without the 32 bytes of its public key after it.
fn validate_secret(field: &str, secret: &Secret, errors: &mut Vec<FieldError>) {
    let Secret::Plain(text) = secret else { return };
    let text = text.expose_secret();
    let length = |encoded: &str| STANDARD.decode(encoded).ok().map(|key| key.len());
    let problem = if let Some(encoded) = text.strip_prefix("whsk_") {
        if matches!(length(encoded), Some(32 | 64)) {
            return;
        }
        "must be whsk_ and the base64 of an ed25519 key (32 bytes, or 64 with the public key); make one with: \
         hub subscription rotate-secret ID --algorithm ed25519"
    } else if text.starts_with("whpk_") {
        "is the public key, which is for the receiver; write the private key, whsk_…"
    } else {
        if text.strip_prefix("whsec_").and_then(length).is_some_and(|length| (24..=64).contains(&length)) {
            return;
        }
        "must be whsec_ and the base64 of 24 to 64 random bytes; make one with: \
         echo whsec_$(openssl rand -base64 32)"
    };
    errors.push(FieldError::new(field, problem));
}
