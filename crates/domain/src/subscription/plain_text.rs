//! Recognizes credentials in fields that are stored and shown in plain text: headers, and the query of a URL.

use url::Url;

use super::headers::is_credential_name;

/// Further names of credentials in a query, where they are more common than in a header.
const PARAMETERS: [&str; 2] = ["sig", "signature"];
/// Schemes of `Authorization` (RFC 9110 section 11.4), whose values are credentials.
const SCHEMES: [&str; 3] = ["bearer ", "basic ", "digest "];
/// Prefixes of signing secrets.
const PREFIXES: [&str; 2] = ["whsec_", "whsk_"];

/// True if the name of a query parameter suggests a credential: `token`, `api_key`, `sig`, ….
pub fn is_credential_parameter(name: &str) -> bool {
    PARAMETERS.iter().any(|known| name.eq_ignore_ascii_case(known)) || is_credential_name(name)
}

/// True if a value has the form of a credential, whatever its name.
pub(super) fn is_credential_value(value: &str) -> bool {
    let lower = value.to_ascii_lowercase();
    SCHEMES.iter().chain(&PREFIXES).any(|prefix| lower.starts_with(prefix))
        || lower.contains("private key-----")
}

/// The name of the first query parameter that is a credential.
pub(super) fn credential_in_query(url: &Url) -> Option<String> {
    url.query_pairs().find(|(name, _)| is_credential_parameter(name)).map(|(name, _)| name.into_owned())
}

/// The URL with `***` for credentials in its query, which older versions accepted. Other URLs are unchanged.
pub fn shown_url(url: &Url) -> Url {
    let mut shown = url.clone();
    if credential_in_query(url).is_some() {
        let pairs: Vec<(String, String)> = url
            .query_pairs()
            .map(|(name, value)| {
                let value =
                    if is_credential_parameter(&name) { "***".to_owned() } else { value.into_owned() };
                (name.into_owned(), value)
            })
            .collect();
        shown.query_pairs_mut().clear().extend_pairs(pairs);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_a_query_are_known_and_hidden() {
        for name in [
            "token",
            "api_key",
            "apikey",
            "API_KEY",
            "sig",
            "SIG",
            "access_token",
            "client_secret",
            "%74oken",
        ] {
            let url = Url::parse(&format!("https://crm.example/h?team=a&{name}=hush&page=2")).expect("a URL");
            assert!(credential_in_query(&url).is_some(), "{url}");
            let shown = shown_url(&url);
            assert!(!shown.as_str().contains("hush") && shown.as_str().contains("=***&page=2"), "{shown}");
        }
        for plain in
            ["https://crm.example/h", "https://crm.example/h?team=a%20b&monkey=1&x", "https://a.example/?"]
        {
            let url = Url::parse(plain).expect("a URL");
            assert_eq!((credential_in_query(&url), shown_url(&url)), (None, url), "{plain}");
        }
    }

    #[test]
    fn credentials_are_known_by_their_form() {
        for value in ["Bearer hush", "basic aHVzaA==", "whsec_hush", "-----BEGIN EC PRIVATE KEY-----"] {
            assert!(is_credential_value(value), "{value}");
        }
        for value in ["billing", "bearer", "basics of it", "application/json", ""] {
            assert!(!is_credential_value(value), "{value}");
        }
    }
}
