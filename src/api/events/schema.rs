//! A CloudEvent as the description of the API shows it. It is read by [`crate::domain::event`], which takes
//! extensions of any name: no type of this program has its members.

use serde_json::json;
use utoipa::openapi::schema::{AdditionalProperties, KnownFormat, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{ObjectBuilder, Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::key::EventKey;

pub(super) struct CloudEvent;

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description)).min_length(Some(1))
}

/// Of the JSON format 1.0.2, section 2.2: `null` is as good as not given.
fn optional(description: &str) -> ObjectBuilder {
    text(description).schema_type(SchemaType::from_iter([Type::String, Type::Null]))
}

impl PartialSchema for CloudEvent {
    fn schema() -> RefOr<Schema> {
        let time = optional("When it happened, RFC 3339; when it was stored where not given")
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
        ObjectBuilder::new()
            .description(Some("CloudEvents 1.0 in the JSON format; any extension attributes beside these"))
            .property("specversion", text("The version of CloudEvents").enum_values(Some(["1.0"])))
            .required("specversion")
            .property("id", text("Unique among the events of its source"))
            .required("id")
            .property("source", text("Where it comes from"))
            .required("source")
            .property("type", Ref::from_schema_name(EventKey::name()))
            .required("type")
            .property("time", time)
            .property("tenant", optional("The token's, or default, where not given"))
            .property("subject", optional("What it is about"))
            .property("datacontenttype", optional("The media type of the data"))
            .property("dataschema", optional("The schema of the data"))
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
