//! Rotates a signing secret, with an overlap during which both secrets sign.

use std::time::Duration;

use secrecy::SecretString;
use time::OffsetDateTime;

use super::{Management, ManagementError};
use crate::domain::field_error::FieldError;
use crate::domain::subscription::{Secret, Signing};
use crate::http_delivery::signature::{Algorithm, NewSecret};
use crate::nats::StoredSubscription;
use crate::seal::{open_subscription, seal_subscription};

/// The longest overlap of the previous and the new secret.
pub const LONGEST_OVERLAP: Duration = Duration::from_secs(365 * 24 * 3600);

/// The result of a rotation. The new key is shown only here.
#[derive(Debug)]
pub struct RotationResult {
    /// The subscription's new revision.
    pub revision: u64,
    pub verify_with: VerificationKey,
    /// Until when the previous secret signs too.
    pub previous_until: Option<OffsetDateTime>,
    /// An older secret that was to sign until this time, and no longer does.
    pub ended_before: Option<OffsetDateTime>,
}

/// What happens to the current secrets.
#[derive(Debug, Clone, Copy)]
pub enum PreviousSecret {
    /// The newest secret signs together with the new one for this time; an older one ends.
    Overlaps(Duration),
    /// The newest secret ends because no receiver has it; the older one keeps its remaining time.
    IsReplaced,
}

#[derive(Debug)]
pub enum VerificationKey {
    /// HMAC-SHA256: the receiver needs the same secret (`whsec_`).
    Secret(SecretString),
    /// ed25519: the public key (`whpk_`). The private key never leaves the hub.
    PublicKey(String),
}

impl Management {
    /// Creates a new signing secret. `algorithm` defaults to that of the previous secret, or HMAC without one.
    pub async fn rotate_secret(
        &self,
        mut stored: StoredSubscription,
        secrets: PreviousSecret,
        algorithm: Option<Algorithm>,
    ) -> Result<RotationResult, ManagementError> {
        let id = stored.subscription.id.to_string();
        if stored.subscription.delivery.endpoint().is_none() {
            return Err(ManagementError::Invalid(vec![FieldError::new(
                "delivery.signing",
                "needs delivery.url; messages to an external broker are not signed",
            )]));
        }
        let sealer = self.sealer().ok_or_else(|| ManagementError::NoMasterKey { id: id.clone() })?;
        // A sealed text opens only in its own field, so the secret that becomes the previous one is sealed again.
        let mut opened = stored.subscription.clone();
        open_subscription(sealer, &mut opened).map_err(|source| ManagementError::Sealed { id, source })?;
        let before = opened.delivery.endpoint_mut().and_then(|endpoint| endpoint.signing.take());
        let algorithm = algorithm.unwrap_or_else(|| match before.as_ref().map(|signing| &signing.secret) {
            Some(Secret::Plain(secret)) => Algorithm::of(secret).unwrap_or(Algorithm::HmacSha256),
            _ => Algorithm::HmacSha256,
        });
        let made = NewSecret::generate(algorithm);
        let new = Secret::Plain(made.secret.clone());
        let now = self.js.read_now().await?;
        let still_signs = before.as_ref().and_then(|signing| signing.previous.as_ref());
        let still_signs = still_signs.map(|previous| previous.until).filter(|until| *until > now);
        if matches!(secrets, PreviousSecret::IsReplaced) && still_signs.is_none() {
            return Err(ManagementError::Invalid(vec![FieldError::new(
                "replace",
                "needs a previous secret that still signs, and there is none, so receivers could no longer verify; rotate \
                 with an overlap instead",
            )]));
        }
        let (signing, ended_before) = match (before, secrets) {
            (None, _) => (Signing { secret: new, previous: None }, None),
            (Some(signing), PreviousSecret::IsReplaced) => (signing.replace(new), None),
            (Some(signing), PreviousSecret::Overlaps(overlap)) => {
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
            Some(public) => VerificationKey::PublicKey(public),
            None => VerificationKey::Secret(made.secret),
        };
        Ok(RotationResult { revision, verify_with, previous_until, ended_before })
    }
}
