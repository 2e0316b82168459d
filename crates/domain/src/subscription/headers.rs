//! Headers that a subscription adds to its requests, and the names that are allowed.

use std::collections::BTreeSet;

use secrecy::ExposeSecret;

use super::plain_text::is_credential_value;
use super::{EndpointDelivery, Secret};
use crate::field_error::FieldError;

const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Headers that the hub or the HTTP connection sets, or that would change the meaning of the connection.
const RESERVED: [&str; 14] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "expect",
    "user-agent",
    "traceparent",
];
const RESERVED_PREFIXES: [&str; 2] = ["webhook-", "ce-"];

/// Names of credentials (case-insensitive).
const CREDENTIALS: [&str; 12] = [
    "auth",
    "authentication",
    "x-auth",
    "x-auth-key",
    "x-authentication",
    "dpop",
    "x-key",
    "x-session-id",
    "x-amz-signature",
    "x-hub-signature",
    "x-hub-signature-256",
    "x-signature",
];
/// A name that contains one of these, without its separators, is the name of a credential.
const CREDENTIAL_PARTS: [&str; 18] = [
    "authorization",
    "authtoken",
    "cookie",
    "password",
    "passwd",
    "passphrase",
    "secret",
    "credential",
    "apikey",
    "accesskey",
    "appkey",
    "authkey",
    "clientkey",
    "functionskey",
    "licensekey",
    "masterkey",
    "privatekey",
    "subscriptionkey",
];
/// A name with one of these as a word is the name of a credential.
const CREDENTIAL_WORDS: [&str; 5] = ["token", "jwt", "bearer", "pwd", "csrf"];

/// True if the name of a header suggests a credential: `authorization`, `cookie`, `x-api-key`, `private-token`,
/// `x-amz-security-token`, ….
pub fn is_credential_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    if CREDENTIALS.contains(&lower.as_str()) {
        return true;
    }
    let is_separator = |c: char| !c.is_ascii_alphanumeric();
    let joined: String = lower.split(is_separator).collect();
    CREDENTIAL_PARTS.iter().any(|part| joined.contains(part))
        || lower
            .split(is_separator)
            .any(|word| CREDENTIAL_WORDS.iter().any(|known| word == *known || word.ends_with("token")))
}

/// True if the hub or the connection sets this header.
pub(super) fn is_reserved(lower: &str) -> bool {
    RESERVED.contains(&lower) || RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix))
}

/// True for a token (RFC 9110 section 5.6.2).
pub(super) fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// True for a header value (RFC 9110 section 5.5, without the obsolete part): visible ASCII, spaces and tabs inside.
pub(super) fn is_header_value(value: &str) -> bool {
    value.trim() == value && value.bytes().all(|b| b == b'\t' || (0x20..0x7F).contains(&b))
}

/// Checks `headers` and `secret_headers`. Valid headers are sent unchanged.
pub(super) fn validate(delivery: &EndpointDelivery, errors: &mut Vec<FieldError>) {
    let EndpointDelivery { headers, secret_headers, auth, .. } = delivery;
    let secret_bytes = |secret: &Secret| match secret {
        Secret::Plain(plain) => plain.expose_secret().len(),
        Secret::Sealed(_) => 0,
    };
    let bytes = headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
        + secret_headers.iter().map(|(name, value)| name.len() + secret_bytes(value)).sum::<usize>();
    if headers.len() + secret_headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        let field = if headers.is_empty() { "delivery.secret_headers" } else { "delivery.headers" };
        errors.push(FieldError::new(
            field,
            format!(
                "headers and secret_headers have more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes; \
                 remove some"
            ),
        ));
    }
    let mut seen = BTreeSet::new();
    let mut check_name = |field: String, name: &str, errors: &mut Vec<FieldError>| {
        let lower = name.to_ascii_lowercase();
        let problem = if !is_header_name(name) {
            "invalid header name; use letters, digits and '-', like x-team"
        } else if is_reserved(&lower) {
            "reserved header; use another name, like x-team"
        } else if auth.header().is_some_and(|header| header.eq_ignore_ascii_case(name)) {
            "delivery.auth sets this header; remove one of them"
        } else if !seen.insert(lower) {
            "occurs twice (header names are case-insensitive); write it once, in headers or in secret_headers"
        } else {
            return true;
        };
        errors.push(FieldError::new(field, problem));
        false
    };
    for (name, value) in headers {
        let field = || format!("delivery.headers.{name}");
        if check_name(field(), name, errors) && (is_credential_name(name) || is_credential_value(value)) {
            let what = if is_credential_name(name) { "is the name of" } else { "has the form of" };
            errors.push(FieldError::new(
                field(),
                format!(
                    "{what} a credential, but headers are stored and shown in plain text; move it to \
                     delivery.secret_headers, or use delivery.auth"
                ),
            ));
        }
        if !is_header_value(value) {
            errors.push(FieldError::new(
                field(),
                "invalid header value; use visible ASCII without leading or trailing spaces",
            ));
        }
    }
    for (name, value) in secret_headers {
        let field = format!("delivery.secret_headers.{name}");
        check_name(field.clone(), name, errors);
        super::validate::validate_secret(&field, value, is_header_value, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_known_by_their_names() {
        for name in [
            "authorization",
            "Proxy-Authorization",
            "cookie",
            "Set-Cookie",
            "x-api-key",
            "API-Key",
            "apikey",
            "x-auth-token",
            "x-access-token",
            "x-amz-security-token",
            "private-token",
            "PRIVATE-TOKEN",
            "x-gitlab-token",
            "x-vault-token",
            "x-goog-api-key",
            "ocp-apim-subscription-key",
            "x-functions-key",
            "x-shopify-access-token",
            "x-client-secret",
            "db_password",
            "X-Passwd",
            "token",
            "authtoken",
            "x-csrf-token",
            "x-jwt",
            "dpop",
            "x-forwarded-authorization",
            "x_api_key",
            "x.api.key",
            "x-amz-access-key",
            "aws-credentials",
        ] {
            assert!(is_credential_name(name), "{name}");
        }
        for name in [
            "x-team",
            "accept",
            "accept-language",
            "x-tenant",
            "x-request-id",
            "idempotency-key",
            "x-routing-key",
            "referer",
            "origin",
            "x-priority",
            "x-environment",
            "x-author",
            "tracestate",
            "x-keyboard",
            "date",
            "x-tokenizer",
        ] {
            assert!(!is_credential_name(name), "{name}");
        }
    }
}
