//! Where a subscription's secrets are sent. A stored secret is kept only while that stays the same: whoever
//! may change a subscription, and not read its secrets, does not get them sent elsewhere.

use super::{Auth, ClientAuth, DEFAULT_API_KEY_HEADER, Delivery, EndpointDelivery};

/// A field that says where or how a secret is sent, and what it says.
type Fact = (&'static str, String);

impl Delivery {
    /// The fields by which the secret at `field` would be sent elsewhere, or otherwise, than by `before`;
    /// none if it stays where it was.
    pub fn moves(&self, before: &Delivery, field: &str) -> Vec<&'static str> {
        let facts = |delivery: &Delivery| {
            delivery.endpoint().map(|endpoint| endpoint.destination(field)).unwrap_or_default()
        };
        let (now, before) = (facts(self), facts(before));
        let differs = |fact: &&Fact| !before.contains(fact);
        let gone = before.iter().filter(|(name, _)| !now.iter().any(|(known, _)| known == name));
        now.iter().filter(differs).chain(gone).map(|(name, _)| *name).collect()
    }
}

impl EndpointDelivery {
    /// All that decides who reads the secret at `field`.
    fn destination(&self, field: &str) -> Vec<Fact> {
        let ca = self.tls.as_ref().and_then(|tls| tls.ca.clone()).unwrap_or_default();
        // A token that was fetched is sent to the URL as well, so the URL counts for each secret.
        let mut facts = vec![("delivery.url", origin(&self.url)), ("delivery.tls.ca", ca)];
        let of_auth = field.starts_with("delivery.auth.");
        if of_auth {
            facts.push(("delivery.auth.type", self.auth.kind().to_owned()));
        }
        match &self.auth {
            Auth::ApiKey { header, query, .. } if of_auth => {
                let header = match query {
                    Some(_) => String::new(),
                    None => header.as_deref().unwrap_or(DEFAULT_API_KEY_HEADER).to_ascii_lowercase(),
                };
                facts.push(("delivery.auth.header", header));
                facts.push(("delivery.auth.query", query.clone().unwrap_or_default()));
            }
            // The client certificate is shown there as well.
            Auth::Oauth2 { token_url, client_auth, .. } if of_auth || field == "delivery.tls.key" => {
                let form = match client_auth {
                    ClientAuth::ClientSecretBasic => "client_secret_basic",
                    ClientAuth::ClientSecretPost => "client_secret_post",
                };
                facts.push(("delivery.auth.token_url", origin(token_url)));
                if of_auth {
                    facts.push(("delivery.auth.client_auth", form.to_owned()));
                }
            }
            _ => {}
        }
        facts
    }
}

/// Scheme, host and port.
fn origin(url: &url::Url) -> String {
    url.origin().ascii_serialization()
}
