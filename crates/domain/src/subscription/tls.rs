//! TLS settings of a subscription: a private CA, and a client certificate (mutual TLS).

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::Secret;
use super::certificates::{Certificates, MAX_PEM_BYTES};
use crate::field_error::FieldError;

/// TLS settings, all in PEM. They are parsed when a connection is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = Tls))]
#[serde(deny_unknown_fields)]
pub struct EndpointTls {
    /// One or more root certificates. For the endpoint they replace the roots of the system, for an OAuth2 token
    /// endpoint they are added to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub ca: Option<Certificates>,
    /// The client certificate, followed by its intermediates; requires `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub cert: Option<Certificates>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = Password))]
    pub key: Option<Secret>,
}

impl EndpointTls {
    /// True if more than certificates was read as certificates; it is not written again.
    pub fn has_dropped_text(&self) -> bool {
        [&self.ca, &self.cert].into_iter().flatten().any(|certificates| certificates.problem().is_some())
    }

    pub(super) fn validate(&self, url: &url::Url, errors: &mut Vec<FieldError>) {
        let mut error = |field: &str, problem: String| errors.push(FieldError::new(field, problem));
        if url.scheme() != "https" {
            error(
                "delivery.tls",
                "is set, but delivery.url is not https://; write https, or remove it".to_owned(),
            );
        }
        for (field, certificates) in [("delivery.tls.ca", &self.ca), ("delivery.tls.cert", &self.cert)] {
            if let Some(problem) = certificates.as_ref().and_then(Certificates::problem) {
                error(field, problem.to_string());
            }
        }
        let is_key = |text: &str| {
            text.len() <= MAX_PEM_BYTES && text.contains("-----BEGIN ") && text.contains("PRIVATE KEY-----")
        };
        if let Some(Secret::Plain(key)) = &self.key
            && !is_key(key.expose_secret())
        {
            error(
                "delivery.tls.key",
                "must be an unencrypted private key in PEM (PKCS#8, SEC1 or PKCS#1); write the text from its \
                 BEGIN line to its END line"
                    .to_owned(),
            );
        }
        match (&self.cert, &self.key) {
            (Some(_), None) => {
                error("delivery.tls.key", "is missing, but delivery.tls.cert is set; write both".to_owned())
            }
            (None, Some(_)) => {
                error("delivery.tls.cert", "is missing, but delivery.tls.key is set; write both".to_owned())
            }
            (None, None) if self.ca.is_none() => {
                error(
                    "delivery.tls",
                    "is empty; write \"ca\", or \"cert\" and \"key\", or remove it".to_owned(),
                );
            }
            _ => {}
        }
    }
}
