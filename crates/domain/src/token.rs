//! Encodes texts as tokens of subjects, and as parts of names of streams and consumers.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::subscription::is_tenant;

/// Maximum length of a token of `safe_token`, in bytes.
pub const MAX_TOKEN_BYTES: usize = 128;

/// Separates the hash at the end of a shortened token. An escape is `_` and two upper-case hex digits, so no other
/// token contains two underscores in a row.
const SHORTENED: &str = "__";
const HASH_HEX: usize = 64;

/// Encodes any text injectively into 1 to [`MAX_TOKEN_BYTES`] of `[A-Za-z0-9_-]`. ASCII letters, digits and `-` are kept,
/// every other byte of the UTF-8 form becomes `_` and two hex digits, and the empty text becomes `_`. A longer result is
/// cut and ends with the SHA-256 of the text, so it is as unique as the hash.
pub fn safe_token(text: &str) -> String {
    if text.is_empty() {
        return "_".to_owned();
    }
    let mut token = String::with_capacity(text.len().min(MAX_TOKEN_BYTES) + 8);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            token.push(char::from(byte));
        } else {
            write!(token, "_{byte:02X}").expect("writing to memory does not fail");
        }
        if token.len() > MAX_TOKEN_BYTES {
            token.truncate(MAX_TOKEN_BYTES - SHORTENED.len() - HASH_HEX);
            write!(token, "{SHORTENED}{:x}", Sha256::digest(text)).expect("writing to memory does not fail");
            return token;
        }
    }
    token
}

/// The name of a tenant as a token of a subject, with `=` for each `.`. A token cannot contain `.`, and a tenant's name
/// cannot contain `=`.
pub fn tenant_token(tenant: &str) -> String {
    tenant.replace('.', "=")
}

/// The inverse of [`tenant_token`]; `None` for a token of no valid tenant.
pub fn tenant_of_token(token: &str) -> Option<String> {
    let tenant = token.replace('=', ".");
    (!token.contains('.') && is_tenant(&tenant)).then_some(tenant)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The inverse, for tokens that were not shortened.
    fn original(token: &str) -> String {
        let mut bytes = Vec::new();
        let mut rest = if token == "_" { "" } else { token };
        while let Some(first) = rest.chars().next() {
            if first == '_' {
                bytes.push(u8::from_str_radix(&rest[1..3], 16).unwrap());
                rest = &rest[3..];
            } else {
                bytes.push(first as u8);
                rest = &rest[1..];
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn tokens_of_examples() {
        for (text, token) in [
            ("billing-crm", "billing-crm"),
            ("a.b", "a_2Eb"),
            ("a_b", "a_5Fb"),
            ("_2E", "_5F2E"),
            ("*>", "_2A_3E"),
            ("ü", "_C3_BC"),
            ("", "_"),
            ("_", "_5F"),
        ] {
            assert_eq!(safe_token(text), token);
        }
        assert_eq!(safe_token(&"x".repeat(MAX_TOKEN_BYTES)), "x".repeat(MAX_TOKEN_BYTES));
    }

    #[test]
    fn long_texts_differ_by_their_hash() {
        let long = "x".repeat(MAX_TOKEN_BYTES + 1);
        let token = safe_token(&long);
        assert_eq!(token.len(), MAX_TOKEN_BYTES);
        assert!(token.starts_with(&format!("{}__", "x".repeat(62))), "{token}");
        assert_ne!(token, safe_token(&format!("{long}x")));
        // A text that equals the shortened token has another token.
        assert_ne!(safe_token(&token), token);
    }

    proptest! {
        #[test]
        fn every_token_is_safe_and_bounded(text in "\\PC{0,200}|[ -~]{0,200}|(?s:.{0,40})") {
            let token = safe_token(&text);
            prop_assert!((1..=MAX_TOKEN_BYTES).contains(&token.len()));
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
        }

        #[test]
        fn a_token_gives_its_text_back(text in "(?s:.{0,10})|[a._> -]{0,40}") {
            prop_assert_eq!(original(&safe_token(&text)), text);
        }

        #[test]
        fn different_texts_have_different_tokens(a in "[a_25EF.]{0,4}|[x.]{120,140}", b in "[a_25EF.]{0,4}|[x.]{120,140}") {
            prop_assert_eq!(safe_token(&a) == safe_token(&b), a == b);
        }
    }
}
