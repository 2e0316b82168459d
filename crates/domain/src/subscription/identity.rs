//! The identity of a subscription, which distinguishes it from a later one with the same name.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

use super::{SubscriptionId, is_tenant};
use crate::hex::Digits;

/// The tenant of events and subscriptions that name none.
pub const DEFAULT_TENANT: &str = "default";

/// The name of a subscription: tenant and id. Two tenants may use the same id. Cheap to clone. Ordered by id, then
/// tenant.
///
/// `Display` writes `crm` for the tenant `default`, otherwise `acme/crm`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SubscriptionRef {
    /// `<tenant>/<id>`; neither contains a slash.
    text: Arc<str>,
}

/// A text that is not the name of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid tenant {0:?}; use 1 to 64 letters, digits, '_', '.' and '-'")]
pub struct InvalidTenant(String);

impl InvalidTenant {
    pub(crate) fn new(tenant: &str) -> Self {
        Self(tenant.to_owned())
    }
}

impl SubscriptionRef {
    pub fn new(tenant: &str, id: &SubscriptionId) -> Result<Self, InvalidTenant> {
        if is_tenant(tenant) {
            Ok(Self { text: format!("{tenant}/{id}").into() })
        } else {
            Err(InvalidTenant::new(tenant))
        }
    }

    /// Makes a name of two texts; `None` if they are not a valid tenant and id.
    pub fn of(tenant: &str, id: &str) -> Option<Self> {
        (is_tenant(tenant) && is_id(id)).then(|| Self { text: format!("{tenant}/{id}").into() })
    }

    /// The inverse of [`token`](Self::token); `None` for a text that is not a token.
    pub fn from_token(token: &str) -> Option<Self> {
        let (tenant, id) = match token.rsplit_once('=') {
            None => (Cow::Borrowed(DEFAULT_TENANT), token),
            Some((tenant, _)) if tenant == DEFAULT_TENANT => return None,
            Some((tenant, id)) => (Cow::Owned(tenant.replace('=', ".")), id),
        };
        // A dot separates tokens of a subject.
        if token.contains('.') {
            return None;
        }
        Self::of(&tenant, id)
    }

    pub fn tenant(&self) -> &str {
        self.parts().0
    }

    pub fn id(&self) -> &str {
        self.parts().1
    }

    pub(crate) fn to_id(&self) -> SubscriptionId {
        SubscriptionId(self.id().to_owned())
    }

    fn parts(&self) -> (&str, &str) {
        self.text.split_once('/').unwrap_or((DEFAULT_TENANT, &self.text))
    }

    /// The form in subjects, keys, and names of lanes and consumers: `crm` for the tenant `default`, otherwise
    /// `<tenant>=<id>` with `=` for each dot of the tenant.
    pub fn token(&self) -> Cow<'_, str> {
        let (tenant, id) = self.parts();
        token(tenant, id)
    }
}

fn token<'a>(tenant: &str, id: &'a str) -> Cow<'a, str> {
    if tenant == DEFAULT_TENANT {
        Cow::Borrowed(id)
    } else {
        Cow::Owned(format!("{}={id}", tenant.replace('.', "=")))
    }
}

/// The token of a subscription; `None` if the arguments are not a valid tenant and id.
pub fn subscription_token<'a>(tenant: &str, id: &'a str) -> Option<Cow<'a, str>> {
    (is_tenant(tenant) && is_id(id)).then(|| token(tenant, id))
}

fn is_id(text: &str) -> bool {
    super::is_subscription_id(text)
}

impl Ord for SubscriptionRef {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.id(), self.tenant()).cmp(&(other.id(), other.tenant()))
    }
}

impl PartialOrd for SubscriptionRef {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SubscriptionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            (DEFAULT_TENANT, id) => f.write_str(id),
            _ => f.write_str(&self.text),
        }
    }
}

impl fmt::Debug for SubscriptionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.text, f)
    }
}

/// One life of a subscription. It is made when the subscription is created and never reused, so it distinguishes a later
/// subscription with the same name. Written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation([u8; 16]);

impl Incarnation {
    /// The incarnation of subscriptions, envelopes and dead letters from versions without incarnations; written as
    /// `legacy`.
    pub const LEGACY: Self = Self([0; 16]);
    const LEGACY_TEXT: &'static str = "legacy";

    /// Makes an incarnation of random bits.
    pub fn new(random: u128) -> Self {
        Self(random.max(1).to_le_bytes())
    }

    pub fn is_legacy(self) -> bool {
        self == Self::LEGACY
    }

    /// Parses an optional text; without one, the incarnation is [`LEGACY`](Self::LEGACY).
    pub fn read(text: Option<&str>) -> Result<Self, InvalidIncarnation> {
        text.map_or(Ok(Self::LEGACY), str::parse)
    }

    /// Passes its text on, which needs no memory of its own.
    pub fn with_text<T>(self, pass: impl FnOnce(&str) -> T) -> T {
        if self.is_legacy() {
            return pass(Self::LEGACY_TEXT);
        }
        let mut bytes = self.0;
        bytes.reverse();
        pass(Digits::of(bytes).as_str())
    }
}

/// A text that is not an incarnation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid incarnation; write 32 of 0-9 and a-f, or \"legacy\"")]
pub struct InvalidIncarnation;

impl std::str::FromStr for Incarnation {
    type Err = InvalidIncarnation;
    fn from_str(text: &str) -> Result<Self, InvalidIncarnation> {
        if text == Self::LEGACY_TEXT {
            return Ok(Self::LEGACY);
        }
        let digits =
            text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let bits = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        // Zero is written only as `legacy`.
        bits.filter(|bits| *bits != 0).map(|bits| Self(bits.to_le_bytes())).ok_or(InvalidIncarnation)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Incarnation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Incarnation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Incarnation;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an incarnation")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Incarnation, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// The identity of a subscription: its name and its incarnation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    pub subscription: SubscriptionRef,
    pub incarnation: Incarnation,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.subscription.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(tenant: &str, id: &str) -> SubscriptionRef {
        SubscriptionRef::of(tenant, id).unwrap()
    }

    #[test]
    fn tokens_round_trip() {
        for (tenant, id, token, shown) in [
            ("default", "crm", "crm", "crm"),
            ("acme", "crm", "acme=crm", "acme/crm"),
            ("a.b", "crm", "a=b=crm", "a.b/crm"),
            ("Default", "crm", "Default=crm", "Default/crm"),
            ("..", "c_r-m", "===c_r-m", "../c_r-m"),
            ("default.default", "default", "default=default=default", "default.default/default"),
        ] {
            let name = named(tenant, id);
            assert_eq!((name.token().as_ref(), name.to_string().as_str()), (token, shown));
            assert_eq!((name.tenant(), name.id()), (tenant, id));
            assert_eq!(SubscriptionRef::from_token(token), Some(name));
            assert_eq!(subscription_token(tenant, id).as_deref(), Some(token));
        }
    }

    #[test]
    fn invalid_tokens_are_rejected() {
        for token in [
            "",
            "=",
            "default=crm",
            "=crm",
            "acme=",
            "acme=Crm",
            "a.b=crm",
            "a b=crm",
            "a/b",
            "*",
            ">",
            "*=crm",
        ] {
            assert_eq!(SubscriptionRef::from_token(token), None, "{token:?}");
        }
        for (tenant, id) in
            [("", "crm"), ("a/b", "crm"), ("a=b", "crm"), ("*", "crm"), ("acme", ""), ("acme", "a=b")]
        {
            assert_eq!(SubscriptionRef::of(tenant, id), None, "{tenant:?} {id:?}");
            assert_eq!(subscription_token(tenant, id), None, "{tenant:?} {id:?}");
        }
    }

    #[test]
    fn an_incarnation_reads_back() {
        for incarnation in
            [Incarnation::LEGACY, Incarnation::new(0), Incarnation::new(7), Incarnation::new(u128::MAX)]
        {
            assert_eq!(incarnation.to_string().parse(), Ok(incarnation));
            let json = serde_json::to_string(&incarnation).unwrap();
            assert_eq!(serde_json::from_str::<Incarnation>(&json).unwrap(), incarnation);
        }
        assert!(!Incarnation::new(0).is_legacy());
        assert_eq!(Incarnation::read(None), Ok(Incarnation::LEGACY));
        for text in [
            "",
            "0",
            "LEGACY",
            &"0".repeat(32),
            &"A".repeat(32),
            &"a".repeat(31),
            &format!("+{}", "a".repeat(31)),
        ] {
            assert!(text.parse::<Incarnation>().is_err(), "{text:?}");
        }
    }

    /// Similar names: dots, the default tenant, tokens that look alike.
    fn any_name() -> impl Strategy<Value = (String, String)> {
        let tenant = "default|[a.]{1,4}|[A-Za-z0-9_.-]{1,64}|a(\\.default)?";
        (tenant, "[a-c][a-c_-]{0,3}|default|[a-z0-9][a-z0-9_-]{0,63}")
    }

    proptest! {
        #[test]
        fn a_token_is_one_safe_token_and_gives_its_name_back((tenant, id) in any_name()) {
            let name = named(&tenant, &id);
            let token = name.token().into_owned();
            prop_assert!(!token.is_empty() && token.len() <= 64 + 1 + 64);
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'=')), "{token}");
            prop_assert_eq!(SubscriptionRef::from_token(&token), Some(name));
        }

        #[test]
        fn two_names_have_two_tokens(one in any_name(), other in any_name()) {
            let (a, b) = (named(&one.0, &one.1), named(&other.0, &other.1));
            prop_assert_eq!(a.token() == b.token(), one == other);
            prop_assert_eq!(a == b, one == other);
            prop_assert_eq!(a.cmp(&b), (&one.1, &one.0).cmp(&(&other.1, &other.0)));
        }

        #[test]
        fn a_text_is_the_token_of_at_most_one_name(text in "[a.=d]{0,6}|(default=)?[a=]{1,5}|\\PC{0,12}") {
            if let Some(name) = SubscriptionRef::from_token(&text) {
                prop_assert_eq!(name.token(), text);
            }
        }
    }
}
