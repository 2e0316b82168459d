//! A new signing secret, and an overlap in which both sign.

use std::time::Duration;

use secrecy::SecretString;
use time::OffsetDateTime;

use super::{Management, ManagementError};
use crate::domain::field_error::FieldError;
use crate::domain::subscription::{Secret, Signing};
use crate::http_delivery::signature::{Algorithm, NewSecret};
use crate::nats::Stored;
use crate::seal::{open_subscription, seal_subscription};

/// The longest time that the secret before may sign beside the new one.
pub const LONGEST_OVERLAP: Duration = Duration::from_secs(365 * 24 * 3600);

/// What the receiver verifies with from now on; it is told this once.
#[derive(Debug)]
pub struct Rotated {
    /// The subscription's new revision.
    pub revision: u64,
    pub verify_with: VerifyWith,
    /// Until when the secret before signs beside it.
    pub previous_until: Option<OffsetDateTime>,
    /// A secret before that one was to sign until then, and does so no more.
    pub ended_before: Option<OffsetDateTime>,
}

/// What becomes of the secrets that sign now.
#[derive(Debug, Clone, Copy)]
pub enum Before {
    /// The newest one signs for so long beside the new one; one before it ends.
    Overlaps(Duration),
    /// The newest one ends, since no receiver has it; the one before it goes on for its time.
    IsReplaced,
}

#[derive(Debug)]
pub enum VerifyWith {
    /// HMAC-SHA256: the receiver has the same secret (`whsec_`).
    Secret(SecretString),
    /// ed25519: the public key (`whpk_`). The private one leaves the hub no more.
    PublicKey(String),
}

impl Management {
    /// Signs with a new secret. `algorithm`: that of the one before where not given, else HMAC.
    pub async fn rotate_secret(
        &self,
        mut stored: Stored,
        secrets: Before,
        algorithm: Option<Algorithm>,
    ) -> Result<Rotated, ManagementError> {
        let id = stored.subscription.id.to_string();
        if stored.subscription.delivery.endpoint().is_none() {
            return Err(ManagementError::Invalid(vec![FieldError::new(
                "delivery.signing",
                "is for a url, and this subscription names a broker, whose messages are not signed",
            )]));
        }
        let sealer = self.sealer().ok_or_else(|| ManagementError::NoMasterKey { id: id.clone() })?;
        // What is sealed for one field opens in no other: the secret that becomes the previous one is sealed anew.
        let mut opened = stored.subscription.clone();
        open_subscription(sealer, &mut opened).map_err(|source| ManagementError::Sealed { id, source })?;
        let before = opened.delivery.endpoint_mut().and_then(|endpoint| endpoint.signing.take());
        let algorithm = algorithm.unwrap_or_else(|| match before.as_ref().map(|signing| &signing.secret) {
            Some(Secret::Plain(secret)) => Algorithm::of(secret).unwrap_or(Algorithm::HmacSha256),
            _ => Algorithm::HmacSha256,
        });
        let made = NewSecret::generate(algorithm);
        let new = Secret::Plain(made.secret.clone());
        let now = OffsetDateTime::now_utc();
        let still_signs = before.as_ref().and_then(|signing| signing.previous.as_ref());
        let still_signs = still_signs.map(|previous| previous.until).filter(|until| *until > now);
        if matches!(secrets, Before::IsReplaced) && still_signs.is_none() {
            return Err(ManagementError::Invalid(vec![FieldError::new(
                "replace",
                "needs a secret before the newest one that still signs, and there is none: receivers would be cut off; \
                 rotate with an overlap instead",
            )]));
        }
        let (signing, ended_before) = match (before, secrets) {
            (None, _) => (Signing { secret: new, previous: None }, None),
            (Some(signing), Before::IsReplaced) => (signing.replace(new), None),
            (Some(signing), Before::Overlaps(overlap)) => {
                let until = (!overlap.is_zero()).then(|| now + overlap.min(LONGEST_OVERLAP));
                (signing.rotate(new, until), still_signs)
            }
        };
        let previous_until = signing.previous.as_ref().map(|previous| previous.until);
        if let Some(endpoint) = stored.subscription.delivery.endpoint_mut() {
            endpoint.signing = Some(signing);
        }
        seal_subscription(sealer, &mut stored.subscription);
        let revision = self.put_changed(&stored).await?;
        let verify_with = match made.public_key {
            Some(public) => VerifyWith::PublicKey(public),
            None => VerifyWith::Secret(made.secret),
        };
        Ok(Rotated { revision, verify_with, previous_until, ended_before })
    }
}
