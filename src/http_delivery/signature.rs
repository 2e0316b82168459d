//! Signatures as Standard Webhooks 1.0 has them (symmetric, `v1`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// The key of a `whsec_` secret, ready to sign.
#[derive(Clone)]
pub(super) struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// `None` where the secret is not `whsec_` and base64.
    pub(super) fn new(secret: &SecretString) -> Option<Self> {
        let encoded = secret.expose_secret().strip_prefix("whsec_")?;
        let key = STANDARD.decode(encoded).ok()?;
        Hmac::new_from_slice(&key).ok().map(Self)
    }

    /// `v1,<base64 of HMAC-SHA256 over "{id}.{timestamp}.{body}">`; `timestamp` in Unix seconds.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> HeaderValue {
        let mut mac = self.0.clone();
        mac.update(id.as_bytes());
        mac.update(b".");
        mac.update(timestamp.to_string().as_bytes());
        mac.update(b".");
        mac.update(body);
        let mut value = String::with_capacity(47);
        value.push_str("v1,");
        STANDARD.encode_string(mac.finalize().into_bytes(), &mut value);
        HeaderValue::from_maybe_shared(bytes::Bytes::from(value)).expect("base64 is a header value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector that the reference libraries of Standard Webhooks test with.
    #[test]
    fn signs_as_the_published_vector_says() {
        let key = SigningKey::new(&SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).unwrap();
        let signature = key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn only_whsec_secrets_are_keys() {
        for secret in ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_?"] {
            assert!(SigningKey::new(&SecretString::from(secret)).is_none(), "{secret}");
        }
    }
}
