//! The schema of a CloudEvent in the API description. [`crate::domain::event`] parses events and accepts extensions of any
//! name, so no type has these members.

use serde_json::json;
use utoipa::openapi::schema::{AdditionalProperties, KnownFormat, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{ObjectBuilder, Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::key::EventKey;

pub(super) struct CloudEvent;

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description)).min_length(Some(1))
}

/// An optional member; `null` counts as absent (JSON format 1.0.2, section 2.2).
fn optional(description: &str) -> ObjectBuilder {
    text(description).schema_type(SchemaType::from_iter([Type::String, Type::Null]))
}

impl PartialSchema for CloudEvent {
    fn schema() -> RefOr<Schema> {
        let time = optional("Time of the event, RFC 3339. Default: the time at which it was stored")
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
        ObjectBuilder::new()
            .description(Some("A CloudEvent 1.0 in the JSON format, with any extension attributes"))
            .property("specversion", text("CloudEvents version").enum_values(Some(["1.0"])))
            .required("specversion")
            .property("id", text("Id, unique among the events of its source"))
            .required("id")
            .property("source", text("Source of the event"))
            .required("source")
            .property("type", Ref::from_schema_name(EventKey::name()))
            .required("type")
            .property("time", time)
            .property("tenant", optional("Tenant. Default: the token's tenant, or `default`"))
            .property("subject", optional("Subject of the event"))
            .property("datacontenttype", optional("Media type of the data"))
            .property("dataschema", optional("Schema of the data"))
            .property("data", ObjectBuilder::new().schema_type(SchemaType::AnyValue))
            .property("data_base64", optional("Data that is not JSON, instead of `data`"))
            .additional_properties(Some(AdditionalProperties::FreeForm(true)))
            .examples([json!({
                "specversion": "1.0", "id": "e-1", "source": "/idp", "type": "user.created", "data": {"user_id": "u1"}
            })])
            .into()
    }
}

impl ToSchema for CloudEvent {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((EventKey::name().into_owned(), EventKey::schema()));
    }
}
