//! The OpenAPI 3.1 description of the API, generated from the handlers and their types.

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

/// Title, version and authentication of the API.
pub(crate) fn base() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Integration Hub")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Publish events and manage subscriptions. Every request needs a bearer token (`hub token create`), except this \
             document, health and metrics. A token that is bound to a tenant can only see and change that tenant's \
             resources; naming another tenant is refused (403). Every error is a problem (RFC 9457) that names the invalid field.",
        ))
        .build();
    let mut api = OpenApiBuilder::new().info(info).build();
    let components = api.components.get_or_insert_default();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("hub_<name>_<secret>")
        .description(Some(
            "Scopes: publish, read, manage and operate. Each operation names the scope that it needs.",
        ))
        .build();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    components.schemas.insert(ProblemBody::name().into_owned(), ProblemBody::schema());
    components.schemas.insert(FieldProblem::name().into_owned(), FieldProblem::schema());
    api.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    api
}

/// The document that is served, and stored as a test snapshot.
pub(crate) fn document(mut api: OpenApi) -> String {
    // Handler names are unique in their module only; an operation id must be unique in the document.
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

pub(crate) fn answer(document: &str) -> Response {
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
        pub(crate) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Described>> {
                ResponsesBuilder::new()$(.response($status, described($text)))+.build().into()
            }
        }
    };
}

problems!(
    /// Problems of every operation.
    CommonProblems:
    "400" "Invalid request; `errors` names the fields",
    "401" "The token is missing, unknown, revoked or expired",
    "403" "The token lacks the scope, or its tenant may not use this operation",
    "429" "The token, address or tenant has reached a limit; retry after `Retry-After`",
    "500" "Internal error; see the hub's log",
    "503" "Temporarily unavailable: the NATS server does not answer, or the hub is overloaded; retry after `Retry-After`"
);
problems!(
    /// Operations on one resource.
    NotFoundProblem: "404" "The resource does not exist, or the token may not see it"
);
problems!(
    /// Operations with a body.
    BodyProblems:
    "408" "The body arrived too slowly",
    "413" "The body is too large",
    "415" "The media type is not supported"
);
problems!(
    /// Operations with `If-Match`.
    PreconditionFailedProblem: "412" "The precondition failed: the subscription was changed"
);
problems!(
    /// Operations that may keep stored secrets.
    SecretRequiredProblem: "422" "A stored secret would be sent to another destination; `errors` names each secret to send again"
);
problems!(
    /// Operations that replace a subscription.
    PreconditionRequiredProblem: "428" "The subscription already exists, and `If-Match` is missing"
);
problems!(
    /// Operations on the producer outbox.
    NoOutboxProblem: "409" "No producer outbox: `outbox.database_url` is not set, or the outbox schema is missing in that database"
);
problems!(
    /// Operations on one row of the producer outbox.
    RowStatusProblem: "409" "The row's status does not allow this operation; or there is no producer outbox"
);
problems!(
    /// Operations on one subscription.
    ConflictProblem: "409" "The id is in use by another subscription of the tenant, or by several tenants and the request names none; or a setting is missing"
);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn text() -> String {
        document(crate::api::routes().split_for_parts().1)
    }

    /// `HUB_BLESS=1 cargo test` updates the snapshot.
    #[test]
    fn the_description_equals_the_snapshot() {
        let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/openapi.json");
        let text = text();
        if std::env::var_os("HUB_BLESS").is_some() {
            std::fs::write(kept, &text).expect("the snapshot is written");
        }
        let before = std::fs::read_to_string(kept).unwrap_or_default();
        assert!(
            before == text,
            "tests/snapshots/openapi.json differs: check the change, and update the snapshot with HUB_BLESS=1"
        );
    }

    /// The table of docs/http-api.md lists every operation, each with its scope.
    #[test]
    fn the_documentation_lists_every_operation_with_its_scope() {
        let quoted =
            |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        let mut listed = BTreeMap::new();
        for row in include_str!("../../docs/http-api.md").lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
            let scopes = cells.last().map(|cell| quoted(cell)).unwrap_or_default();
            for operation in quoted(cells[0]) {
                assert!(
                    listed.insert(operation.clone(), scopes.clone()).is_none(),
                    "{operation}: listed twice"
                );
            }
        }
        let api: serde_json::Value = serde_json::from_str(&text()).expect("JSON");
        let mut offered = BTreeMap::new();
        for (path, item) in api["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                let summary = operation["summary"].as_str().unwrap_or_default();
                let scope = summary.split("(scope `").nth(1).and_then(|rest| rest.split('`').next());
                let scope = scope.unwrap_or_else(|| panic!("{method} {path}: the summary names no scope"));
                offered.insert(format!("{} {path}", method.to_uppercase()), vec![scope.to_owned()]);
            }
        }
        assert_eq!(listed, offered);
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
