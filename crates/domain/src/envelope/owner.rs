//! Reads the identity of an envelope from the start of its body, without parsing the event.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserializer as _, MapAccess, Visitor};

use crate::event::JsonText;
use crate::subscription::{Identity, Incarnation, SubscriptionRef};

impl Identity {
    /// Reads an envelope up to its tenant and ignores the rest. `None` if subscription or tenant is missing or invalid.
    pub fn of_envelope(body: &[u8]) -> Option<Self> {
        let mut head = Head::default();
        // Stopping early is an error of the parser; the fields read so far count.
        let _ = serde_json::Deserializer::from_slice(body).deserialize_map(&mut head);
        let subscription = SubscriptionRef::of(&head.tenant?, &head.subscription?)?;
        Some(Self { subscription, incarnation: head.incarnation })
    }
}

#[derive(Default)]
struct Head<'a> {
    subscription: Option<Cow<'a, str>>,
    tenant: Option<Cow<'a, str>>,
    incarnation: Incarnation,
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Subscription,
    Tenant,
    Incarnation,
    #[serde(other)]
    Other,
}

impl<'de> Visitor<'de> for &mut Head<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an envelope")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while self.subscription.is_none() || self.tenant.is_none() {
            match map.next_key()? {
                Some(Field::Subscription) => self.subscription = Some(map.next_value::<JsonText<'de>>()?.0),
                Some(Field::Tenant) => self.tenant = Some(map.next_value::<JsonText<'de>>()?.0),
                Some(Field::Incarnation) => self.incarnation = map.next_value()?,
                Some(Field::Other) => drop(map.next_value::<de::IgnoredAny>()?),
                None => break,
            }
        }
        Ok(())
    }
}
