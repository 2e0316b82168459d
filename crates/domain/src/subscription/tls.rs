//! TLS of one subscription's own: a private CA, and a certificate that the hub shows (mutual TLS).

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::Secret;
use crate::field_error::FieldError;

/// Bound on what every envelope of the subscription carries along.
const MAX_PEM_BYTES: usize = 32 * 1024;

/// All in PEM. Whether it can be used is known where the connection is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = Tls))]
#[serde(deny_unknown_fields)]
pub struct EndpointTls {
    /// One or more roots; the endpoint's certificate must come from one of them, and the system's
    /// are not asked. An OAuth2 token endpoint's may come from one of them or of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The hub's certificate, with its intermediates behind it; and the key to it. Both or neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = Password))]
    pub key: Option<Secret>,
}

impl EndpointTls {
    pub(super) fn validate(&self, url: &url::Url, errors: &mut Vec<FieldError>) {
        let mut error = |field: &str, problem: String| errors.push(FieldError::new(field, problem));
        if url.scheme() != "https" {
            error(
                "delivery.tls",
                "is given, but delivery.url is not https://; write https, or take it out".to_owned(),
            );
        }
        let bad = |text: &str, label: &str| {
            (text.len() > MAX_PEM_BYTES || !text.contains(label)).then(|| {
                format!(
                    "is not PEM of at most {MAX_PEM_BYTES} bytes; write the text from {label} to its END line"
                )
            })
        };
        for (field, text) in [("delivery.tls.ca", &self.ca), ("delivery.tls.cert", &self.cert)] {
            if let Some(problem) = text.as_ref().and_then(|text| bad(text, "-----BEGIN CERTIFICATE-----")) {
                error(field, problem);
            }
        }
        if let Some(Secret::Plain(key)) = &self.key
            && (bad(key.expose_secret(), "-----BEGIN ").is_some()
                || !key.expose_secret().contains("PRIVATE KEY-----"))
        {
            error(
                "delivery.tls.key",
                "is not the PEM of a private key (PKCS#8, SEC1 or PKCS#1, not encrypted); write the text from its \
                 BEGIN line to its END line"
                    .to_owned(),
            );
        }
        match (&self.cert, &self.key) {
            (Some(_), None) => {
                error("delivery.tls.key", "is missing beside delivery.tls.cert; write both".to_owned())
            }
            (None, Some(_)) => {
                error("delivery.tls.cert", "is missing beside delivery.tls.key; write both".to_owned())
            }
            (None, None) if self.ca.is_none() => {
                error(
                    "delivery.tls",
                    "is empty; write \"ca\", or \"cert\" and \"key\", or take it out".to_owned(),
                );
            }
            _ => {}
        }
    }
}
