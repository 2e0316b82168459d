//! Sealed credentials of subscriptions. A sealed text opens in one place only.
//!
//! `v2.<key id>.<base64url of nonce and ciphertext, unpadded>`: the associated data are tenant, id, incarnation and the
//! field's path, each preceded by its length, so a text that is copied to another subscription, incarnation or field
//! cannot be opened. `v1` binds the id only. It opens in subscriptions without an incarnation, until `hub secrets
//! rotate` replaces it.

use secrecy::SecretString;

use super::{SealError, Sealer};
use crate::domain::subscription::{Incarnation, Secret, Subscription};

const V1: &str = "v1.";
const V2: &str = "v2.";

/// The only place where a sealed text opens.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub tenant: &'a str,
    pub id: &'a str,
    pub incarnation: Incarnation,
    /// The field's path, such as `delivery.auth.token`.
    pub field: &'a str,
}

impl Place<'_> {
    fn associated_data(&self) -> Vec<u8> {
        let incarnation = self.incarnation.to_string();
        ["subscription", self.tenant, self.id, &incarnation, self.field].iter().fold(
            Vec::new(),
            |mut data, part| {
                data.extend_from_slice(&(part.len() as u64).to_be_bytes());
                data.extend_from_slice(part.as_bytes());
                data
            },
        )
    }
}

/// Whether a sealed text is bound to its place. Writes accept no other sealed text.
pub fn is_bound(sealed: &str) -> bool {
    sealed.starts_with(V2)
}

impl Sealer {
    /// Seals a subscription's credential. Each call returns a different text.
    pub fn seal_at(&self, place: &Place<'_>, secret: &SecretString) -> String {
        self.seal_as(V2, &place.associated_data(), secret)
    }

    /// Opens a credential that was sealed for this place.
    pub fn open_at(&self, place: &Place<'_>, sealed: &str) -> Result<SecretString, SealError> {
        if !sealed.starts_with(V1) {
            return self.open_as(V2, &place.associated_data(), sealed);
        }
        if place.incarnation.is_legacy() { self.open(place.id, sealed) } else { Err(SealError::Forged) }
    }
}

/// Calls `act` for each secret of a subscription with its place; stops at the first error.
fn each<E>(
    subscription: &mut Subscription,
    mut act: impl FnMut(&Place<'_>, &mut Secret) -> Result<(), E>,
) -> Result<(), E> {
    let Subscription { tenant, id, incarnation, delivery, .. } = subscription;
    for (field, secret) in delivery.named_secrets_mut() {
        act(&Place { tenant, id: id.as_str(), incarnation: *incarnation, field: &field }, secret)?;
    }
    Ok(())
}

/// Seals every plain credential of `subscription`.
pub fn seal_subscription(sealer: &Sealer, subscription: &mut Subscription) {
    let sealed: Result<(), std::convert::Infallible> = each(subscription, |place, secret| {
        if let Secret::Plain(plain) = secret {
            *secret = Secret::Sealed(sealer.seal_at(place, plain));
        }
        Ok(())
    });
    let Ok(()) = sealed;
}

/// Seals every credential of `subscription` that is not sealed with the current key or not bound to its place. Returns
/// their number. If any sealed credential cannot be opened, nothing is changed.
pub fn reseal_subscription(sealer: &Sealer, subscription: &mut Subscription) -> Result<usize, SealError> {
    let current = format!("{V2}{}.", sealer.key_id());
    let mut count = 0;
    let mut resealed = subscription.clone();
    each(&mut resealed, |place, secret| {
        if let Secret::Sealed(sealed) = &*secret {
            // Current ones are opened too, because another key may have the same id.
            let opened = sealer.open_at(place, sealed)?;
            if !sealed.starts_with(&current) {
                *secret = Secret::Sealed(sealer.seal_at(place, &opened));
                count += 1;
            }
        }
        Ok(())
    })?;
    *subscription = resealed;
    Ok(count)
}

/// Opens every sealed credential of `subscription`. After an error some may be open already.
pub fn open_subscription(sealer: &Sealer, subscription: &mut Subscription) -> Result<(), SealError> {
    each(subscription, |place, secret| {
        if let Secret::Sealed(sealed) = &*secret {
            *secret = Secret::Plain(sealer.open_at(place, sealed)?);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;
    use serde_json::json;

    use super::*;
    use crate::settings::Settings;

    fn sealer() -> Sealer {
        let mut secrets = Settings::defaults().secrets;
        secrets.master_key = Some(SecretString::from("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="));
        Sealer::from_settings(&secrets).unwrap().unwrap()
    }

    const PLACE: Place<'_> =
        Place { tenant: "acme", id: "crm", incarnation: Incarnation::LEGACY, field: "delivery.auth.token" };

    /// Each part of the place, also where two together read the same.
    #[test]
    fn a_sealed_text_opens_in_its_place_alone() {
        let (sealer, secret) = (sealer(), SecretString::from("hush"));
        let home = Place { incarnation: Incarnation::new(1), ..PLACE };
        let sealed = sealer.seal_at(&home, &secret);
        assert!(sealed.starts_with("v2.k1.") && is_bound(&sealed), "{sealed}");
        assert_eq!(sealer.open_at(&home, &sealed).unwrap().expose_secret(), "hush");
        for elsewhere in [
            Place { tenant: "globex", ..home },
            Place { tenant: "acmec", id: "rm", ..home },
            Place { tenant: "default", ..home },
            Place { id: "crm2", ..home },
            Place { incarnation: Incarnation::new(2), ..home },
            Place { incarnation: Incarnation::LEGACY, ..home },
            Place { field: "delivery.auth.password", ..home },
            Place { field: "delivery.signing.secret", ..home },
            Place { field: "delivery.signing.previous.secret", ..home },
            Place { field: "delivery.secret_headers.x-a", ..home },
        ] {
            assert_eq!(sealer.open_at(&elsewhere, &sealed).unwrap_err(), SealError::Forged, "{elsewhere:?}");
        }
        for name in ["crm", "acme/crm", "nats.password"] {
            assert!(sealer.open(name, &sealed).is_err(), "no setting's, nor of the form before");
        }
        let settings = sealer.seal("nats.password", &secret);
        assert!(sealer.open_at(&home, &settings).is_err() && sealer.open_at(&PLACE, &settings).is_err());
        let relabelled = sealed.replacen("v2.", "v1.", 1);
        assert!(sealer.open("crm", &relabelled).is_err() && sealer.open_at(&PLACE, &relabelled).is_err());
    }

    #[test]
    fn the_form_before_opens_where_it_was_made_alone() {
        let (sealer, secret) = (sealer(), SecretString::from("hush"));
        let before = sealer.seal("crm", &secret);
        assert!(before.starts_with("v1.") && !is_bound(&before));
        assert_eq!(sealer.open_at(&PLACE, &before).unwrap().expose_secret(), "hush");
        for elsewhere in [Place { id: "other", ..PLACE }, Place { incarnation: Incarnation::new(1), ..PLACE }]
        {
            assert_eq!(sealer.open_at(&elsewhere, &before).unwrap_err(), SealError::Forged, "{elsewhere:?}");
        }
        let mut subscription = Subscription::from_value(json!({
            "id": "crm", "tenant": "acme", "events": ["user.>"],
            "delivery": {"url": "https://a.example/", "auth": {"type": "bearer", "token": {"sealed": before}}},
        }))
        .unwrap();
        assert_eq!(reseal_subscription(&sealer, &mut subscription), Ok(1));
        assert_eq!(reseal_subscription(&sealer, &mut subscription), Ok(0));
        let stored = serde_json::to_string(&subscription).unwrap();
        assert!(stored.contains("v2.k1.") && !stored.contains("v1."), "{stored}");
        open_subscription(&sealer, &mut subscription).unwrap();
        match &*subscription.secrets_mut()[0] {
            Secret::Plain(plain) => assert_eq!(plain.expose_secret(), "hush"),
            Secret::Sealed(text) => panic!("still sealed: {text}"),
        }
    }

    #[test]
    fn a_copied_secret_opens_in_no_other_subscription_or_field() {
        let sealer = sealer();
        let whole = |tenant: &str, id: &str, incarnation: u128| {
            let mut subscription = Subscription::from_value(json!({
                "id": id, "tenant": tenant, "events": ["user.>"],
                "delivery": {"url": "https://a.example/", "auth": {"type": "bearer", "token": "hush"},
                             "secret_headers": {"x-a": "hush", "x-b": "hush"}},
            }))
            .unwrap();
            subscription.incarnation = Incarnation::new(incarnation);
            seal_subscription(&sealer, &mut subscription);
            subscription
        };
        let home = whole("acme", "crm", 1);
        let fields = home.clone().secrets_mut().len();
        for mut other in [whole("acme", "crm", 2), whole("globex", "crm", 1), whole("acme", "other", 1)] {
            other.delivery = home.delivery.clone();
            assert_eq!(open_subscription(&sealer, &mut other), Err(SealError::Forged));
        }
        for (from, to) in (0..fields).flat_map(|from| (0..fields).map(move |to| (from, to))) {
            let mut copied = home.clone();
            let text = copied.secrets_mut()[from].clone();
            *copied.secrets_mut()[to] = text;
            assert_eq!(open_subscription(&sealer, &mut copied).is_ok(), from == to, "{from} {to}");
        }
    }
}
