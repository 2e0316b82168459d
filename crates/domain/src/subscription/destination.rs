//! The destination of each secret of a subscription. A stored secret is kept only if its destination stays the same, so
//! that a user who may change a subscription, but not read its secrets, cannot redirect them.

use super::{Auth, ClientAuth, DEFAULT_API_KEY_HEADER, Delivery, EndpointDelivery};

/// A field that determines the destination of a secret, and its value.
type Fact = (&'static str, String);

impl Delivery {
    /// The changed fields that give the secret at `field` another destination than in `before`.
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
    /// All facts that determine who receives the secret at `field`.
    fn destination(&self, field: &str) -> Vec<Fact> {
        let ca = self.tls.as_ref().and_then(|tls| tls.ca.as_ref());
        let ca = ca.map(|ca| ca.as_str().to_owned()).unwrap_or_default();
        // The URL counts for each secret, because fetched tokens are also sent there.
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
            // The client certificate is also presented to the token endpoint.
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
