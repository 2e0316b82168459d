//! Message ids of messages that the hub publishes. They depend on a secret, so that no other publisher can use such an
//! id first, which would make the stream drop the hub's message as a duplicate.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::hex::Digits;

/// The block size of SHA-256, in bytes.
const BLOCK: usize = 64;

/// Makes message ids with a secret that all processes of a hub share.
#[derive(Clone)]
pub struct MessageIds {
    secret: [u8; 32],
}

impl MessageIds {
    pub fn new(secret: [u8; 32]) -> Self {
        Self { secret }
    }

    /// Derives the secret from another one, such as the master key.
    pub fn derived_from(secret: &[u8]) -> Self {
        Self { secret: hmac(secret, &[b"integration-hub message ids"]) }
    }

    /// Makes an id: `evt_` and 128 bits of an HMAC over the parts, each after its length. The same parts give the same
    /// id.
    pub fn id(&self, parts: &[&str]) -> String {
        let lengths: Vec<[u8; 8]> = parts.iter().map(|part| (part.len() as u64).to_le_bytes()).collect();
        let message: Vec<&[u8]> =
            lengths.iter().zip(parts).flat_map(|(length, part)| [&length[..], part.as_bytes()]).collect();
        let code = hmac(&self.secret, &message);
        let (first, _) = code.split_first_chunk().expect("a code has 32 bytes");
        ["evt_", Digits::of(*first).as_str()].concat()
    }
}

impl fmt::Debug for MessageIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageIds")
    }
}

/// HMAC-SHA256 (RFC 2104) over the concatenated parts.
fn hmac(key: &[u8], message: &[&[u8]]) -> [u8; 32] {
    let mut block = [0u8; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let keyed = |pad: u8| Sha256::new_with_prefix(block.map(|byte| byte ^ pad));
    let mut inner = keyed(0x36);
    message.iter().for_each(|part| inner.update(part));
    let mut outer = keyed(0x5c);
    outer.update(inner.finalize());
    outer.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// RFC 4231, test cases 2 and 6.
    #[test]
    fn the_hmac_is_that_of_the_standard() {
        assert_eq!(
            hex(&hmac(b"Jefe", &[b"what do ya want ", b"for nothing?"])),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(&hmac(&[0xaa; 131], &[b"Test Using Larger Than Block-Size Key - Hash Key First"])),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn an_id_depends_on_the_secret_and_on_each_part() {
        let (ids, others) = (MessageIds::new([1; 32]), MessageIds::new([2; 32]));
        assert_eq!(ids.id(&["acme", "1"]), MessageIds::new([1; 32]).id(&["acme", "1"]));
        assert_ne!(ids.id(&["acme", "1"]), others.id(&["acme", "1"]));
        assert_ne!(ids.id(&["acme", "1"]), ids.id(&["acm", "e1"]));
        assert_ne!(MessageIds::derived_from(b"a").id(&["1"]), MessageIds::derived_from(b"b").id(&["1"]));
        assert_eq!(ids.id(&["1"]).len(), 36);
        assert_eq!(format!("{ids:?}"), "MessageIds", "the secret is not shown");
    }
}
