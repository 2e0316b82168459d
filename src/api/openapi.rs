//! The description of the API (OpenAPI 3.1), generated from the handlers and the types themselves.

use std::collections::BTreeMap;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, Ref, RefOr, Response as Described,
    ResponseBuilder, ResponsesBuilder, SecurityRequirement,
};
use utoipa::{IntoResponses, PartialSchema as _, ToSchema as _};

use super::problem::{self, FieldProblem, ProblemBody};

/// Title, version and how callers say who they are.
pub fn base() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Integration Hub")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Publish events, and manage who gets them. Every request but this document, health and metrics carries a \
             bearer token (`hub token create`); a token that is bound to a tenant sees and touches that tenant alone. \
             Every error is a problem (RFC 9457) that names the field.",
        ))
        .build();
    let mut api = OpenApiBuilder::new().info(info).build();
    let components = api.components.get_or_insert_default();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("hub_<name>_<secret>")
        .description(Some(
            "The scopes are publish, read, manage and operate; each operation names the one it needs.",
        ))
        .build();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    components.schemas.insert(ProblemBody::name().into_owned(), ProblemBody::schema());
    components.schemas.insert(FieldProblem::name().into_owned(), FieldProblem::schema());
    api.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    api
}

/// The document as it is served and kept in the tests.
pub fn document(mut api: OpenApi) -> String {
    // Handlers are named within their modules; an operation's id is the only one in the document.
    for item in api.paths.paths.values_mut() {
        let PathItem { get, put, post, delete, patch, .. } = item;
        for operation in [get, put, post, delete, patch].into_iter().flatten() {
            let tag = operation.tags.iter().flatten().next();
            let id = tag.iter().map(|tag| tag.as_str()).chain(operation.operation_id.as_deref());
            let id = id.collect::<Vec<_>>().join("_").replace(' ', "_");
            operation.operation_id = Some(id);
        }
    }
    let mut text = api.to_pretty_json().expect("a description of strings and maps is JSON");
    text.push('\n');
    text
}

pub fn answer(document: &str) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document.to_owned()).into_response()
}

fn described(text: &str) -> Described {
    let schema = Ref::from_schema_name(ProblemBody::name());
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new().description(text).content(problem::CONTENT_TYPE, content).build()
}

macro_rules! problems {
    ($(#[$doc:meta])* $name:ident: $($status:literal $text:literal),+) => {
        $(#[$doc])*
        pub struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Described>> {
                ResponsesBuilder::new()$(.response($status, described($text)))+.build().into()
            }
        }
    };
}

problems!(
    /// What any request may be answered.
    Usual:
    "400" "The request is not as it must be; `errors` names the fields",
    "401" "No token, or one that is unknown, revoked or expired",
    "403" "The token lacks the scope, or is bound to a tenant and this is beyond it",
    "429" "This token, address or tenant has as much as it may; `Retry-After` says when to try again",
    "500" "Something broke in the hub; its log says what",
    "503" "Not now: the broker does not answer, or there is too much to do; `Retry-After` says when"
);
problems!(
    /// Where a path names one thing.
    Missing: "404" "There is no such thing, or not for this token"
);
problems!(
    /// Where a body is taken.
    Body:
    "408" "The body came too slowly",
    "413" "The body is too large",
    "415" "The body is of another media type"
);
problems!(
    /// Where `If-Match` is honoured.
    Guarded: "412" "Someone else changed it: the precondition does not hold"
);
problems!(
    /// Where stored secrets may be kept.
    Keeping: "422" "A stored secret would be sent elsewhere than before; `errors` names each that has to be given again"
);
problems!(
    /// Where a write replaces, and has to say what.
    Required: "428" "There is one already, and no `If-Match` says which version it is to replace"
);
problems!(
    /// Where the outbox's database is asked.
    WithOutbox: "409" "The hub knows no outbox: `outbox.database_url` is not set, or that database is not set up"
);
problems!(
    /// Where an order on one row may not apply to it.
    OnOneRow: "409" "The row stands where this order does not apply; or the hub knows no outbox"
);
problems!(
    /// Where something else may stand in the way.
    Conflicting: "409" "The id is in use by another subscription of the tenant, or by several tenants and the request names none; or a setting is missing"
);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn text() -> String {
        document(crate::api::routes().split_for_parts().1)
    }

    /// `HUB_BLESS=1 cargo test` writes it anew.
    #[test]
    fn the_description_is_the_one_that_is_kept() {
        let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/openapi.json");
        let text = text();
        if std::env::var_os("HUB_BLESS").is_some() {
            std::fs::write(kept, &text).expect("the snapshot is written");
        }
        let before = std::fs::read_to_string(kept).unwrap_or_default();
        assert!(
            before == text,
            "tests/snapshots/openapi.json is another: look at it, and HUB_BLESS=1 keeps the new one"
        );
    }

    #[test]
    fn it_is_openapi_3_1_and_every_operation_is_described() {
        let api: serde_json::Value = serde_json::from_str(&text()).expect("JSON");
        assert!(api["openapi"].as_str().expect("a version").starts_with("3.1"));
        let paths = api["paths"].as_object().expect("paths");
        assert!(paths.len() >= 5, "{paths:?}");
        let mut ids = BTreeSet::new();
        for (path, item) in paths {
            for (method, operation) in item.as_object().expect("operations") {
                let name = format!("{method} {path}");
                assert!(operation["summary"].is_string(), "{name}: no summary");
                let id =
                    operation["operationId"].as_str().unwrap_or_else(|| panic!("{name}: no operation id"));
                assert!(ids.insert(id.to_owned()), "{name}: another operation has the id {id}");
                for status in ["401", "403", "503"] {
                    assert!(operation["responses"][status].is_object(), "{name}: no {status}");
                }
            }
        }
    }
}
