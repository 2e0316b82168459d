//! Access over HTTP: tokens, their scopes, and the reach of a tenant's token.
//!
//! A token has the form `hub_<id>_<secret>` and is sent as a bearer token (RFC 6750). Only the SHA-256 of its secret is
//! stored; the secret is 32 random bytes, so the hash needs neither salt nor cost. The id is not secret and names the
//! token in lists and logs.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::outcome::UnknownName;
use super::subscription::{InvalidTenant, is_tenant};

/// Length of a token's secret, in bytes.
pub const SECRET_BYTES: usize = 32;
const PREFIX: &str = "hub_";
const MAX_ID: usize = 32;

/// A permission of a token. No scope implies another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Publish events.
    Publish,
    /// See subscriptions, domains, dead letters and traces.
    Read,
    /// Write subscriptions: create, change, delete, pause, resume, test, rotate secrets.
    Manage,
    /// Run the hub: replay and discard dead letters, pause and resume domains.
    Operate,
}

impl Scope {
    pub const ALL: [Self; 4] = [Self::Publish, Self::Read, Self::Manage, Self::Operate];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Read => "read",
            Self::Manage => "manage",
            Self::Operate => "operate",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = UnknownName;
    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| UnknownName::new("scope", text, "publish, read, manage, operate"))
    }
}

/// Id of a token, shown in lists and logs: `[a-z0-9][a-z0-9-]{0,31}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenId(String);

impl TokenId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<TokenId> for String {
    fn from(id: TokenId) -> Self {
        id.0
    }
}

/// A text that is not the id of a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid token name {0:?}; use 1 to {max} of a-z, 0-9 and '-', with a letter or digit first", max = MAX_ID)]
pub struct InvalidTokenId(String);

impl TryFrom<String> for TokenId {
    type Error = InvalidTokenId;
    fn try_from(text: String) -> Result<Self, InvalidTokenId> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if (1..=MAX_ID).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('-') {
            Ok(Self(text))
        } else {
            Err(InvalidTokenId(text))
        }
    }
}

impl FromStr for TokenId {
    type Err = InvalidTokenId;
    fn from_str(text: &str) -> Result<Self, InvalidTokenId> {
        Self::try_from(text.to_owned())
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The stored record of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredToken {
    pub id: TokenId,
    /// SHA-256 of the secret's text, in lower-case hexadecimal digits.
    pub hash: String,
    pub scopes: Vec<Scope>,
    /// The tenant that the token is limited to; all tenants if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
}

/// A token with its secret.
#[derive(Debug, Clone)]
pub struct PresentedToken {
    pub id: TokenId,
    secret: SecretString,
}

impl PresentedToken {
    /// Makes a token of random bytes.
    pub fn new(id: TokenId, secret: &[u8; SECRET_BYTES]) -> Self {
        Self { id, secret: SecretString::from(URL_SAFE_NO_PAD.encode(secret)) }
    }

    /// Parses `hub_<id>_<secret>`; `None` for any other text. The secret may contain `_`, the id may not.
    pub fn read(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let id = TokenId::try_from(id.to_owned()).ok()?;
        (!secret.is_empty()).then(|| Self { id, secret: SecretString::from(secret.to_owned()) })
    }

    /// The text to send; shown once, when the token is created.
    pub fn text(&self) -> SecretString {
        SecretString::from(format!("{PREFIX}{}_{}", self.id, self.secret.expose_secret()))
    }

    pub fn hash(&self) -> String {
        Sha256::digest(self.secret.expose_secret()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl StoredToken {
    /// True if a presented token matches and has not expired. Compares hashes, so the duration of the comparison reveals
    /// nothing about the secret.
    pub fn admits(&self, presented: &PresentedToken, now: OffsetDateTime) -> bool {
        self.id == presented.id
            && self.hash == presented.hash()
            && self.expires_at.is_none_or(|expires| now < expires)
    }
}

/// The caller of an operation, and its permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The token's name.
    pub name: String,
    scopes: Vec<Scope>,
    tenant: Option<String>,
}

impl Caller {
    pub fn of(token: &StoredToken) -> Self {
        Self { name: token.id.to_string(), scopes: token.scopes.clone(), tenant: token.tenant.clone() }
    }

    /// A caller with all permissions: the command line, and every API caller if the settings require no tokens.
    pub fn unbound(name: &str) -> Self {
        Self { name: name.to_owned(), scopes: Scope::ALL.to_vec(), tenant: None }
    }

    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// The tenant that the caller is limited to, if any.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// True if the caller operates the whole hub: scope `operate`, not limited to a tenant.
    pub fn is_operator(&self) -> bool {
        self.tenant.is_none() && self.has(Scope::Operate)
    }

    /// True if the caller may access that tenant's data.
    pub fn reaches(&self, tenant: &str) -> bool {
        self.tenant.as_deref().is_none_or(|own| own == tenant)
    }
}

/// Checks the name of a tenant.
pub fn check_tenant(tenant: &str) -> Result<(), InvalidTenant> {
    if is_tenant(tenant) { Ok(()) } else { Err(InvalidTenant::new(tenant)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presented(id: &str, fill: u8) -> PresentedToken {
        PresentedToken::new(id.parse().unwrap(), &[fill; SECRET_BYTES])
    }

    fn stored(token: &PresentedToken, expires_at: Option<OffsetDateTime>) -> StoredToken {
        StoredToken {
            id: token.id.clone(),
            hash: token.hash(),
            scopes: vec![Scope::Read],
            tenant: Some("acme".to_owned()),
            created_at: OffsetDateTime::UNIX_EPOCH,
            expires_at,
        }
    }

    #[test]
    fn a_token_reads_back_and_its_debug_form_hides_it() {
        let token = presented("ci-1", 0xff);
        let text = token.text();
        let read = PresentedToken::read(text.expose_secret()).unwrap();
        assert_eq!((read.id.as_str(), read.hash()), ("ci-1", token.hash()));
        assert!(!format!("{token:?}").contains(token.secret.expose_secret()));
        for text in ["", "hub_", "hub_ci-1", "hub_ci-1_", "hub__x", "nub_a_x", "hub_A_x"] {
            assert!(PresentedToken::read(text).is_none(), "{text}");
        }
    }

    #[test]
    fn it_admits_the_right_secret_until_it_expires() {
        let now = OffsetDateTime::UNIX_EPOCH + time::Duration::days(1);
        let token = presented("a", 1);
        assert!(stored(&token, None).admits(&token, now));
        assert!(stored(&token, Some(now + time::Duration::SECOND)).admits(&token, now));
        assert!(!stored(&token, Some(now)).admits(&token, now));
        assert!(!stored(&token, None).admits(&presented("a", 2), now));
        assert!(!stored(&token, None).admits(&presented("b", 1), now));
    }

    #[test]
    fn a_bound_caller_reaches_its_tenant_alone() {
        let caller = Caller::of(&stored(&presented("a", 1), None));
        assert!(caller.has(Scope::Read) && !caller.has(Scope::Manage));
        assert!(caller.reaches("acme") && !caller.reaches("other"));
        assert!(Caller::unbound("all").reaches("other") && Caller::unbound("all").has(Scope::Operate));
    }
}
