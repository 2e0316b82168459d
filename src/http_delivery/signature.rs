//! Signatures by Standard Webhooks 1.0: symmetric (`v1`, HMAC-SHA256) and asymmetric (`v1a`, ed25519). During a rotation
//! both secrets sign, and the header is a list. Standard Webhooks signs the body only; in binary mode the event's
//! attributes are headers, which get a second signature.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use ring::signature::{Ed25519KeyPair, KeyPair};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::domain::subscription::{Secret, Signing};

const SEED: usize = 32;

/// The kind of a signing secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// `whsec_`: the receiver has the same secret.
    HmacSha256,
    /// `whsk_`: the receiver has the public key (`whpk_`).
    Ed25519,
}

impl Algorithm {
    /// Reads the secret's prefix; `None` for any other prefix.
    pub fn of(secret: &SecretString) -> Option<Self> {
        let secret = secret.expose_secret();
        let symmetric = secret.starts_with("whsec_").then_some(Self::HmacSha256);
        symmetric.or_else(|| secret.starts_with("whsk_").then_some(Self::Ed25519))
    }
}

/// A new signing secret.
#[derive(Debug, Clone)]
pub(crate) struct NewSecret {
    pub secret: SecretString,
    /// The receiver's key for an asymmetric secret, `whpk_…`.
    pub public_key: Option<String>,
}

impl NewSecret {
    /// Generates a random secret: an HMAC key of 32 bytes, or an ed25519 seed.
    pub(crate) fn generate(algorithm: Algorithm) -> Self {
        let random: [u8; SEED] = rand::random();
        match algorithm {
            Algorithm::HmacSha256 => {
                Self { secret: format!("whsec_{}", STANDARD.encode(random)).into(), public_key: None }
            }
            Algorithm::Ed25519 => {
                let pair = Ed25519KeyPair::from_seed_unchecked(&random).expect("a seed is any 32 bytes");
                let public = pair.public_key().as_ref();
                Self {
                    secret: format!("whsk_{}", STANDARD.encode([&random, public].concat())).into(),
                    public_key: Some(format!("whpk_{}", STANDARD.encode(public))),
                }
            }
        }
    }
}

/// Signs the deliveries of one subscription.
pub(super) struct Signer {
    current: SigningKey,
    /// The previous key, and the Unix time at which it stops signing.
    previous: Option<(SigningKey, i64)>,
}

impl Signer {
    /// Takes opened secrets. `None` if one of them is not a valid key.
    pub(super) fn new(signing: &Signing) -> Option<Self> {
        let key = |secret: &Secret| match secret {
            Secret::Plain(plain) => SigningKey::new(plain),
            Secret::Sealed(_) => None,
        };
        let previous = match &signing.previous {
            Some(previous) => Some((key(&previous.secret)?, previous.until.unix_timestamp())),
            None => None,
        };
        Some(Self { current: key(&signing.secret)?, previous })
    }

    /// Returns the signatures over id, time and body of all keys valid at `timestamp` (Unix seconds), separated by spaces.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> HeaderValue {
        self.with_each_key(timestamp, |key| key.sign(id, timestamp, body))
    }

    /// Returns the signatures over the attributes in the headers of a request in binary mode.
    pub(super) fn sign_attributes(&self, id: &str, timestamp: u64, headers: &HeaderMap) -> HeaderValue {
        let text = signed_attributes(id, timestamp, headers);
        self.with_each_key(timestamp, |key| key.signature(&[&text]))
    }

    fn with_each_key(&self, timestamp: u64, sign: impl Fn(&SigningKey) -> String) -> HeaderValue {
        let mut value = sign(&self.current);
        if let Some((key, until)) = &self.previous
            && i64::try_from(timestamp).is_ok_and(|now| now < *until)
        {
            value.push(' ');
            value.push_str(&sign(key));
        }
        HeaderValue::from_maybe_shared(bytes::Bytes::from(value)).expect("base64 is a header value")
    }
}

/// The text that the attributes' signature covers: the line `ce-attributes`, the id, the time, and `<name>:<value>` of each
/// `ce-` header and of `content-type` (`datacontenttype`) as sent, sorted by name, joined by line feeds. No header value
/// holds a line feed, so the text of a body's signature, which begins with the id, never equals such a text.
fn signed_attributes(id: &str, timestamp: u64, headers: &HeaderMap) -> Vec<u8> {
    let of_event = |name: &HeaderName| name.as_str().starts_with("ce-") || *name == CONTENT_TYPE;
    let mut attributes: Vec<_> = headers.iter().filter(|(name, _)| of_event(name)).collect();
    attributes.sort_unstable_by_key(|(name, _)| name.as_str());
    let mut text = format!("ce-attributes\n{id}\n{timestamp}").into_bytes();
    for (name, value) in attributes {
        text.push(b'\n');
        text.extend_from_slice(name.as_str().as_bytes());
        text.push(b':');
        text.extend_from_slice(value.as_bytes());
    }
    text
}

/// One parsed signing key.
pub(super) enum SigningKey {
    Hmac(Box<Hmac<Sha256>>),
    Ed25519(Box<Ed25519KeyPair>),
}

impl SigningKey {
    /// Parses a secret. `None` if it is not `whsec_` or `whsk_` with a key in base64, or if the seed of a `whsk_` secret
    /// does not fit the public key after it.
    pub(super) fn new(secret: &SecretString) -> Option<Self> {
        let algorithm = Algorithm::of(secret)?;
        let (_, encoded) = secret.expose_secret().split_once('_')?;
        let key = STANDARD.decode(encoded).ok()?;
        match algorithm {
            Algorithm::HmacSha256 => Hmac::new_from_slice(&key).ok().map(Box::new).map(Self::Hmac),
            Algorithm::Ed25519 => {
                let (seed, public) = key.split_at_checked(SEED)?;
                let pair = match public {
                    [] => Ed25519KeyPair::from_seed_unchecked(seed),
                    public => Ed25519KeyPair::from_seed_and_public_key(seed, public),
                };
                pair.ok().map(Box::new).map(Self::Ed25519)
            }
        }
    }

    /// The signature over `{id}.{timestamp}.{body}`; `timestamp` in Unix seconds.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        self.signature(&[format!("{id}.{timestamp}.").as_bytes(), body])
    }

    /// Returns `v1,` or `v1a,` and the base64 of the signature over the parts.
    fn signature(&self, parts: &[&[u8]]) -> String {
        let mut value = String::with_capacity(92);
        match self {
            Self::Hmac(mac) => {
                let mut mac = mac.clone();
                parts.iter().for_each(|part| mac.update(part));
                value.push_str("v1,");
                STANDARD.encode_string(mac.finalize().into_bytes(), &mut value);
            }
            Self::Ed25519(pair) => {
                value.push_str("v1a,");
                STANDARD.encode_string(pair.sign(&parts.concat()), &mut value);
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const AT: u64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;

    fn key(secret: &str) -> Option<SigningKey> {
        SigningKey::new(&SecretString::from(secret))
    }

    /// The vectors that the reference implementations of Standard Webhooks test with.
    #[test]
    fn signs_as_the_published_vectors_say() {
        let symmetric = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(symmetric.sign(ID, AT, BODY), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let secret =
            "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
        assert_eq!(
            key(secret).unwrap().sign(ID, AT, BODY),
            "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
        );
    }

    #[test]
    fn the_attributes_signature_covers_each_attribute() {
        let headers = |changes: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            let base = [
                ("ce-id", "1"),
                ("content-type", "application/json"),
                ("ce-b", "%0A"),
                ("webhook-attempt", "1"),
            ];
            for (name, value) in base.iter().chain(changes) {
                match *value {
                    "" => drop(headers.remove(*name)),
                    value => drop(headers.insert(*name, HeaderValue::from_str(value).unwrap())),
                }
            }
            headers
        };
        let text = |headers: &HeaderMap| String::from_utf8(signed_attributes(ID, 7, headers)).unwrap();
        let whole = text(&headers(&[]));
        assert_eq!(
            whole,
            format!("ce-attributes\n{ID}\n7\nce-b:%0A\nce-id:1\ncontent-type:application/json")
        );
        for change in [
            ("ce-id", "2"),
            ("ce-id", ""),
            ("ce-new", "x"),
            ("content-type", "text/html"),
            ("content-type", ""),
        ] {
            assert_ne!(text(&headers(&[change])), whole, "{change:?}");
        }
        assert_eq!(text(&headers(&[("webhook-attempt", "2"), ("x-team", "b")])), whole, "of the event alone");
    }

    #[test]
    fn only_whsec_and_whsk_secrets_are_keys() {
        let seed = STANDARD.encode([7; 32]);
        assert!(key(&format!("whsk_{seed}")).is_some());
        let not_its_public_key = STANDARD.encode([7; 64]);
        for secret in [
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(),
            "whsec_?".to_owned(),
            format!("whpk_{seed}"),
            "whsk_AAAA".to_owned(),
            format!("whsk_{not_its_public_key}"),
        ] {
            assert!(key(&secret).is_none(), "{secret}");
        }
    }

    #[test]
    fn a_secret_that_was_made_signs_and_its_public_key_verifies() {
        for algorithm in [Algorithm::HmacSha256, Algorithm::Ed25519] {
            let made = NewSecret::generate(algorithm);
            assert_eq!(Algorithm::of(&made.secret), Some(algorithm));
            let signature = SigningKey::new(&made.secret).unwrap().sign(ID, AT, BODY);
            assert_eq!(made.public_key.is_some(), algorithm == Algorithm::Ed25519);
            let Some(public) = made.public_key else { continue };
            let public = STANDARD.decode(public.strip_prefix("whpk_").unwrap()).unwrap();
            let public = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, public);
            let signed = STANDARD.decode(signature.strip_prefix("v1a,").unwrap()).unwrap();
            let message = [format!("{ID}.{AT}.").as_bytes(), BODY].concat();
            public.verify(&message, &signed).unwrap();
        }
    }

    #[test]
    fn both_secrets_sign_until_the_previous_ends() {
        let old = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let new = key(&format!("whsk_{}", STANDARD.encode([7; 32]))).unwrap();
        let (old_signature, new_signature) = (old.sign(ID, AT, BODY), new.sign(ID, AT, BODY));
        let until = i64::try_from(AT).unwrap() + 1;
        let signer = Signer { current: new, previous: Some((old, until)) };
        assert_eq!(signer.sign(ID, AT, BODY), format!("{new_signature} {old_signature}").as_str());
        let alone = signer.sign(ID, AT + 1, BODY);
        assert!(alone.to_str().unwrap().starts_with("v1a,") && !alone.to_str().unwrap().contains(' '));
    }
}
