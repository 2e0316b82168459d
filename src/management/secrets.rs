//! The secrets of a subscription that is written: which stored ones are kept, and which must be given again.

use secrecy::ExposeSecret as _;

use super::ManagementError;
use crate::domain::field_error::FieldError;
use crate::domain::subscription::{Secret, Subscription};
use crate::seal::{Place, Sealer, is_bound, seal_subscription};

/// Seals plain secrets, and copies those that are kept or unchanged from the stored subscription.
///
/// A secret may be kept (`"***"`, which is parsed as sealed and empty) only if it is still sent to the same place;
/// otherwise a caller who may write subscriptions could have it sent to a place of their own. Sealed text is accepted
/// only from an operator, and only if it opens here.
pub(super) fn resolve(
    subscription: &mut Subscription,
    stored: Option<&Subscription>,
    sealer: Option<&Sealer>,
    operator: bool,
) -> Result<(), ManagementError> {
    let (tenant, id, incarnation) =
        (subscription.tenant.clone(), subscription.id.to_string(), subscription.incarnation);
    let new_delivery = subscription.delivery.clone();
    let mut stored_secrets = stored.cloned();
    let kept = stored_secrets.as_mut().map(|stored| stored.delivery.named_secrets_mut()).unwrap_or_default();
    let moves =
        |field: &str| stored.map(|stored| new_delivery.moves(&stored.delivery, field)).unwrap_or_default();
    let (mut errors, mut needed) = (Vec::new(), Vec::new());
    for (field, secret) in subscription.delivery.named_secrets_mut() {
        let place = Place { tenant: &tenant, id: &id, incarnation, field: &field };
        let mut refuse = |problem: &str| errors.push(FieldError::new(field.clone(), problem));
        let kept = kept.iter().find(|(name, _)| *name == field).map(|(_, secret)| &**secret);
        match (&*secret, kept) {
            (Secret::Sealed(sealed), _) if !sealed.is_empty() && !operator => {
                refuse(
                    "is sealed text, which only an operator may write; write the credential itself, or \"***\" to keep the \
                     stored one",
                );
            }
            (Secret::Sealed(sealed), Some(kept)) => {
                let same = matches!(kept, Secret::Sealed(kept) if sealed == kept);
                if !sealed.is_empty() && !same && !opens(sealer, &place, sealed) {
                    refuse("is sealed text that cannot be opened here; write the credential itself");
                    continue;
                }
                let moved = moves(&field);
                if !moved.is_empty() {
                    needed.push(FieldError::new(
                        field.clone(),
                        format!(
                            "must be given again, because it would be sent to another place or in another way ({} changed); write \
                             the credential itself in the same request",
                            moved.join(", ")
                        ),
                    ));
                } else if sealed.is_empty() {
                    *secret = kept.clone();
                }
            }
            (Secret::Sealed(sealed), None) if sealed.is_empty() => refuse(
                "is \"***\", which keeps the stored credential, but none is stored; write the credential itself",
            ),
            (Secret::Sealed(sealed), None) => {
                if !opens(sealer, &place, sealed) {
                    refuse("is sealed text that cannot be opened here; write the credential itself");
                }
            }
            (Secret::Plain(plain), Some(Secret::Sealed(sealed))) => {
                let opened = sealer.and_then(|sealer| sealer.open_at(&place, sealed).ok());
                if opened.is_some_and(|opened| opened.expose_secret() == plain.expose_secret()) {
                    *secret = Secret::Sealed(sealed.clone());
                }
            }
            (Secret::Plain(_), _) => {}
        }
    }
    if !errors.is_empty() {
        return Err(ManagementError::Invalid(errors));
    }
    if !needed.is_empty() {
        return Err(ManagementError::SecretsNeeded(needed));
    }
    if let Some(sealer) = sealer {
        seal_subscription(sealer, subscription);
    }
    Ok(())
}

/// Whether given sealed text is bound to this place and opens there.
fn opens(sealer: Option<&Sealer>, place: &Place<'_>, sealed: &str) -> bool {
    is_bound(sealed) && sealer.is_some_and(|sealer| sealer.open_at(place, sealed).is_ok())
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use serde_json::{Value, json};

    use super::*;
    use crate::settings::Settings;

    fn sealer() -> Sealer {
        let mut secrets = Settings::defaults().secrets;
        secrets.master_key = Some(SecretString::from("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="));
        Sealer::from_settings(&secrets).unwrap().unwrap()
    }

    fn subscription(delivery: &Value) -> Subscription {
        let document = json!({"id": "crm", "tenant": "acme", "events": ["user.>"], "delivery": delivery});
        let mut subscription = Subscription::from_value(document).unwrap();
        // As `read_subscription` does.
        for secret in subscription.secrets_mut() {
            if matches!(secret, Secret::Plain(plain) if plain.expose_secret() == "***") {
                *secret = Secret::Sealed(String::new());
            }
        }
        subscription
    }

    fn stored(delivery: &Value) -> Subscription {
        let mut subscription = subscription(delivery);
        resolve(&mut subscription, None, Some(&sealer()), false).unwrap();
        subscription
    }

    fn write(
        delivery: &Value,
        stored: &Subscription,
        operator: bool,
    ) -> Result<Subscription, ManagementError> {
        let mut new = subscription(delivery);
        resolve(&mut new, Some(stored), Some(&sealer()), operator).map(|()| new)
    }

    /// A text with the outer form of a certificate.
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMAgwADAAAwIAAA==\n-----END CERTIFICATE-----\n";
    const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// One of each kind of authentication, all with every other secret.
    fn deliveries() -> Vec<Value> {
        let auths = [
            json!({"type": "none"}),
            json!({"type": "api_key", "key": "hush"}),
            json!({"type": "api_key", "query": "key", "key": "hush"}),
            json!({"type": "basic", "username": "u", "password": "hush"}),
            json!({"type": "bearer", "token": "hush"}),
            json!({"type": "oauth2", "token_url": "https://idp.example/t", "client_id": "c", "client_secret": "hush"}),
        ];
        let whole = |auth: Value| {
            json!({
                "url": "https://crm.example/hooks", "auth": auth, "secret_headers": {"X-Key": "hush"},
                "signing": {"secret": SIGNING, "previous": {"secret": SIGNING, "until": "2030-01-31T00:00:00Z"}},
                "tls": {"ca": CERTIFICATE, "cert": CERTIFICATE, "key": "hush"},
            })
        };
        auths.into_iter().map(whole).collect()
    }

    /// Every secret as `***`.
    fn kept(delivery: &Value) -> Value {
        stored(delivery).hidden_json()["delivery"].clone()
    }

    fn secrets(delivery: &Value) -> Vec<String> {
        let mut subscription = subscription(delivery);
        subscription.delivery.named_secrets_mut().into_iter().map(|(name, _)| name.into_owned()).collect()
    }

    fn needed(result: Result<Subscription, ManagementError>) -> Vec<String> {
        match result {
            Err(ManagementError::SecretsNeeded(errors)) => {
                errors.into_iter().map(|error| error.field).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_secret_is_kept_if_its_destination_is_unchanged() {
        for delivery in deliveries() {
            let before = stored(&delivery);
            for (pointer, value) in [
                ("/url", json!("https://crm.example/hooks")),
                ("/url", json!("https://CRM.example:443/other?x=1")),
                ("/max_in_flight", json!(3)),
                ("/timeout", json!("3s")),
                ("/content_mode", json!("binary")),
                ("/headers", json!({"x-team": "a"})),
            ] {
                let mut new = kept(&delivery);
                new[&pointer[1..]] = value;
                let written = write(&new, &before, false).expect(pointer);
                let texts = |subscription: &Subscription| -> Vec<String> {
                    subscription.clone().secrets_mut().iter().map(|secret| format!("{secret:?}")).collect()
                };
                assert_eq!(texts(&written), texts(&before), "{pointer}");
            }
        }
    }

    /// For every secret and every change of its destination: with all as `***`, and with all but one given.
    #[test]
    fn no_secret_is_sent_to_another_place() {
        let mut changes = 0;
        for delivery in deliveries() {
            let before = stored(&delivery);
            let of_auth = |field: &String| field.starts_with("delivery.auth.");
            let all = secrets(&delivery);
            let everywhere = [
                ("/url", json!("http://crm.example/hooks")),
                ("/url", json!("https://crm.example:8443/hooks")),
                ("/url", json!("https://other.example/hooks")),
                ("/url", json!("https://crm.example.evil.example/hooks")),
                ("/url", json!("https://evil.example/https://crm.example/")),
                ("/tls/ca", json!(CERTIFICATE.repeat(2))),
                ("/tls/ca", Value::Null),
            ];
            let of_the_token = [
                ("/auth/token_url", json!("https://evil.example/t")),
                ("/auth/token_url", json!("http://idp.example/t")),
                ("/auth/token_url", json!("https://idp.example:444/t")),
            ];
            let of_the_form = [
                ("/auth/client_auth", json!("client_secret_post")),
                ("/auth/header", json!("x-logged")),
                ("/auth/query", json!("k")),
            ];
            let mut cases: Vec<(&str, Value, Vec<String>)> =
                everywhere.into_iter().map(|(pointer, value)| (pointer, value, all.clone())).collect();
            let fits = |pointer: &str| match delivery["auth"]["type"].as_str().unwrap() {
                "oauth2" => !pointer.ends_with("header") && !pointer.ends_with("query"),
                "api_key" => {
                    let has_query = delivery["auth"]["query"].is_string();
                    pointer == "/auth/query" || (pointer == "/auth/header" && !has_query)
                }
                _ => false,
            };
            for (pointer, value) in of_the_token.into_iter().filter(|(pointer, _)| fits(pointer)) {
                let moved = all.iter().filter(|field| of_auth(field) || *field == "delivery.tls.key");
                cases.push((pointer, value, moved.cloned().collect()));
            }
            for (pointer, value) in of_the_form.into_iter().filter(|(pointer, _)| fits(pointer)) {
                cases.push((pointer, value, all.iter().filter(|field| of_auth(field)).cloned().collect()));
            }
            for (pointer, value, expected) in cases {
                let set = |mut delivery: Value| {
                    let (parent, name) = pointer.rsplit_once('/').unwrap();
                    let parent = delivery.pointer_mut(parent).unwrap().as_object_mut().unwrap();
                    match &value {
                        Value::Null => parent.remove(name),
                        value => parent.insert(name.to_owned(), value.clone()),
                    };
                    delivery
                };
                assert_eq!(
                    needed(write(&set(kept(&delivery)), &before, false)),
                    expected,
                    "{pointer} {value}"
                );
                assert_eq!(
                    needed(write(&set(kept(&delivery)), &before, true)),
                    expected,
                    "{pointer}: an operator's"
                );
                let given = set(delivery.clone());
                write(&given, &before, false).expect("all are given");
                for field in &expected {
                    let path = format!("/{}", field.trim_start_matches("delivery.").replace('.', "/"));
                    let path = path.replace("x-key", "X-Key");
                    let mut but_one = given.clone();
                    *but_one.pointer_mut(&path).unwrap() = json!("***");
                    assert_eq!(needed(write(&but_one, &before, false)), [field.as_str()], "{pointer}");
                    changes += 1;
                }
            }
        }
        assert!(changes > 200, "{changes}");
    }

    #[test]
    fn another_kind_of_authentication_keeps_no_secret() {
        for (from, to) in
            deliveries().iter().flat_map(|from| deliveries().into_iter().map(move |to| (from.clone(), to)))
        {
            if from["auth"]["type"] == to["auth"]["type"] {
                continue;
            }
            let mut new = kept(&from);
            new["auth"] = kept(&to)["auth"].clone();
            match write(&new, &stored(&from), true) {
                Ok(written) => assert_eq!(written.hidden_json()["delivery"]["auth"], json!({"type": "none"})),
                Err(ManagementError::Invalid(errors)) => {
                    assert!(
                        errors.iter().all(|error| error.field.starts_with("delivery.auth.")),
                        "{errors:?}"
                    );
                }
                // The client certificate would be shown to a new token endpoint.
                Err(ManagementError::SecretsNeeded(errors)) => {
                    assert!(errors.iter().all(|error| error.field == "delivery.tls.key"), "{errors:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn changing_to_a_broker_and_back_restores_no_secret() {
        for delivery in deliveries() {
            let broker = json!({"broker": "partner_events", "stream": "orders"});
            let at_the_broker = write(&broker, &stored(&delivery), true).unwrap();
            match write(&kept(&delivery), &at_the_broker, true) {
                Err(ManagementError::Invalid(errors)) => {
                    let fields: Vec<String> = errors.into_iter().map(|error| error.field).collect();
                    assert_eq!(fields, secrets(&delivery));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn only_an_operator_may_write_sealed_text() {
        for delivery in deliveries() {
            let before = stored(&delivery);
            for field in secrets(&delivery) {
                let path = format!("/{}", field.trim_start_matches("delivery.").replace('.', "/"))
                    .replace("x-key", "X-Key");
                let own = serde_json::to_value(&before).unwrap()["delivery"].pointer(&path).unwrap().clone();
                let mut new = kept(&delivery);
                *new.pointer_mut(&path).unwrap() = own;
                write(&new, &before, true).expect("an operator's");
                let refused = |result| match result {
                    Err(ManagementError::Invalid(errors)) => assert_eq!(errors[0].field, field),
                    other => panic!("{other:?}"),
                };
                refused(write(&new, &before, false));
                *new.pointer_mut(&path).unwrap() = json!({"sealed": "v1.k1.AAAA"});
                refused(write(&new, &before, true));
            }
        }
    }
}
