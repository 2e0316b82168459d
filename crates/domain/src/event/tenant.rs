//! The tenant of an event: fixed by its subject, or named by its publisher.

use super::decode::{header_value, malformed};
use super::{RejectReason, Rejection};
use crate::subscription::{InvalidTenant, is_tenant};
use crate::token::tenant_of_token;

const CLAIMS: [&str; 2] = ["hub-tenant", "ce-tenant"];

/// The tenant of an event. If the subject has a tenant token, it decides, and the attribute and every header that
/// names a tenant must agree. Otherwise the attribute decides, then the header `Hub-Tenant`, then `default`.
pub(super) fn of_event(
    token: Option<&str>,
    attribute: Option<String>,
    headers: &[(&str, &str)],
) -> Result<String, Rejection> {
    let Some(token) = token else { return claimed(attribute, headers) };
    let bound = tenant_of_token(token).ok_or_else(|| {
        malformed(format!(
            "invalid tenant {token:?} in the subject; use 1 to 64 letters, digits, '_', '-', and '=' for each '.'"
        ))
        .at("tenant")
    })?;
    let mut claims: Vec<String> = attribute.into_iter().collect();
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        match CLAIMS.iter().find(|claim| name.eq_ignore_ascii_case(claim)) {
            Some(&"ce-tenant") => claims.push(header_value(name, value)?),
            Some(_) => claims.push((*value).to_owned()),
            None => {}
        }
    }
    match claims.into_iter().find(|claim| *claim != bound) {
        None => Ok(bound),
        Some(other) => Err(Rejection::new(
            RejectReason::TenantMismatch,
            format!(
                "the event names the tenant {other:?}, but its subject is for {bound:?}; remove the tenant from the event"
            ),
        )
        .at("tenant")),
    }
}

fn claimed(attribute: Option<String>, headers: &[(&str, &str)]) -> Result<String, Rejection> {
    let header =
        || headers.iter().find(|(name, value)| name.eq_ignore_ascii_case("hub-tenant") && !value.is_empty());
    let tenant = match attribute {
        Some(tenant) => tenant,
        None => header().map_or("default", |(_, value)| *value).to_owned(),
    };
    if is_tenant(&tenant) {
        return Ok(tenant);
    }
    Err(malformed(InvalidTenant::new(&tenant).to_string()).at("tenant"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::OffsetDateTime;

    use super::*;
    use crate::event::{Event, Publication};
    use crate::producer_outbox::CONTENT_TYPE;

    const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json");
    const BINARY: [(&str, &str); 4] =
        [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/idp"), ("ce-type", "user.created")];

    fn from(token: &str, headers: &[(&str, &str)], body: &str) -> Result<Event, Rejection> {
        Publication {
            subject_tail: "user.created",
            tenant_token: Some(token),
            headers,
            body: body.as_bytes(),
            stream: "HUB_EVENTS",
            sequence: 1,
            time: OffsetDateTime::UNIX_EPOCH,
            max_size: 4096,
        }
        .decode()
    }

    fn structured(tenant: Option<&str>) -> String {
        let mut event = json!({"specversion": "1.0", "id": "1", "source": "/idp", "type": "user.created"});
        event["tenant"] = json!(tenant);
        event.to_string()
    }

    fn envelope(tenant: Option<&str>) -> String {
        json!({"data": {}, "metadata": {"headers": {"id": "1", "type": "user.created"}, "extensions": {"tenant": tenant}}})
            .to_string()
    }

    /// A publication of each form that names a tenant.
    fn forms<'a>(header: &'a str, value: &'a str) -> Vec<(Vec<(&'a str, &'a str)>, String)> {
        let claim = (header, value);
        let mut binary = BINARY.to_vec();
        binary.push(claim);
        vec![
            (vec![claim], "{}".to_owned()),
            (binary, "{}".to_owned()),
            (vec![STRUCTURED, claim], structured(None)),
            (vec![STRUCTURED], structured(Some(value))),
            (vec![("Content-Type", CONTENT_TYPE), claim], envelope(None)),
            (vec![("Content-Type", CONTENT_TYPE)], envelope(Some(value))),
        ]
    }

    #[test]
    fn the_subject_binds_every_form_to_its_tenant() {
        for (headers, body) in forms("Hub-Tenant", "a.b") {
            assert_eq!(from("a=b", &headers, &body).unwrap().tenant, "a.b", "{headers:?} {body}");
        }
        assert_eq!(from("acme", &[], "{}").unwrap().tenant, "acme");
        assert_eq!(from("acme", &[("Hub-Tenant", "")], "{}").unwrap().tenant, "acme");
    }

    #[test]
    fn an_event_that_names_another_tenant_is_rejected() {
        for header in ["Hub-Tenant", "hub-TENANT", "ce-tenant", "CE-Tenant"] {
            for claim in ["globex", "default", "ACME", "a=b", "acme.x", " acme"] {
                for (headers, body) in forms(header, claim) {
                    // The binding requires that values of `ce-` headers are trimmed.
                    if claim == " acme" && header.to_ascii_lowercase().starts_with("ce-") {
                        continue;
                    }
                    let Err(rejection) = from("acme", &headers, &body) else {
                        panic!("{headers:?} {body} is accepted for acme")
                    };
                    // With only ce-tenant, it is a CloudEvent in binary mode without the required attributes.
                    if rejection.reason == RejectReason::Malformed && headers.len() == 1 {
                        continue;
                    }
                    assert_eq!(rejection.reason, RejectReason::TenantMismatch, "{headers:?} {body}");
                    assert_eq!(rejection.field.as_deref(), Some("tenant"));
                }
            }
        }
        // A second header is checked like the first.
        let twice = [("Hub-Tenant", "acme"), ("Hub-Tenant", "globex")];
        assert_eq!(from("acme", &twice, "{}").unwrap_err().reason, RejectReason::TenantMismatch);
        let mut twice = BINARY.to_vec();
        twice.extend([("ce-tenant", "globex"), ("ce-tenant", "acme")]);
        assert_eq!(from("acme", &twice, "{}").unwrap_err().reason, RejectReason::TenantMismatch);
    }

    #[test]
    fn an_invalid_tenant_token_is_rejected() {
        for token in ["", "a b", "a%b", "é", &"a".repeat(65), "*", "a/b"] {
            let rejection = from(token, &[], "{}").expect_err(token);
            assert_eq!(
                (rejection.reason, rejection.field.as_deref()),
                (RejectReason::Malformed, Some("tenant"))
            );
        }
    }
}
