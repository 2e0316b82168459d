//! How a delivery is signed: Standard Webhooks 1.0, symmetric (`v1`) and asymmetric (`v1a`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Secret;
use crate::field_error::FieldError;

/// The secrets that sign. The prefix determines the kind: `whsec_` signs with HMAC-SHA256,
/// `whsk_` with ed25519.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Signing {
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Password, example = "whsec_…"))]
    pub secret: Secret,
    /// The secret before this one: while it holds, both sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousSecret>,
}

/// A secret that was replaced, and still signs until its time is over.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PreviousSecret {
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Password, example = "whsec_…"))]
    pub secret: Secret,
    /// RFC 3339; from then on the secret signs no more.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
}

impl Signing {
    /// Puts `new` in the place of the secret, which goes on signing beside it until `until`; without
    /// one it ends at once. A secret before both ends at once either way.
    pub fn rotate(self, new: Secret, until: Option<OffsetDateTime>) -> Self {
        let previous = until.map(|until| PreviousSecret { secret: self.secret, until });
        Self { secret: new, previous }
    }

    /// Puts `new` in the place of a secret that no receiver has: the one before it goes on signing for its time.
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

/// `whsec_` and the base64 of 24 to 64 bytes; `whsk_` and the base64 of an ed25519 seed of 32 bytes,
/// with or without the 32 bytes of its public key behind it.
fn validate_secret(field: &str, secret: &Secret, errors: &mut Vec<FieldError>) {
    let Secret::Plain(text) = secret else { return };
    let text = text.expose_secret();
    let length = |encoded: &str| STANDARD.decode(encoded).ok().map(|key| key.len());
    let problem = if let Some(encoded) = text.strip_prefix("whsk_") {
        if matches!(length(encoded), Some(32 | 64)) {
            return;
        }
        "must be whsk_ and the base64 of an ed25519 key, 32 bytes or 64 with the public key behind, as \
         Standard Webhooks says; make one with: hub subscription rotate-secret ID --algorithm ed25519"
    } else if text.starts_with("whpk_") {
        "is the public key, which goes to the receiver; write the private one, whsk_…"
    } else {
        if text.strip_prefix("whsec_").and_then(length).is_some_and(|length| (24..=64).contains(&length)) {
            return;
        }
        "must be whsec_ and the base64 of 24 to 64 random bytes, as Standard Webhooks says; \
         make one with: echo whsec_$(openssl rand -base64 32)"
    };
    errors.push(FieldError::new(field, problem));
}
