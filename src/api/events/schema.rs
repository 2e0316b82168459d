//! A CloudEvent as the description of the API shows it. It is read by [`crate::domain::event`], which takes
//! extensions of any name: no type of this program has its members.

use serde_json::json;
use utoipa::openapi::schema::{AdditionalProperties, KnownFormat, SchemaFormat, Type};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

pub(super) struct CloudEvent;

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description)).min_length(Some(1))
}

impl PartialSchema for CloudEvent {
    fn schema() -> RefOr<Schema> {
        let time = text("When it happened, RFC 3339; when it was stored where not given")
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
        ObjectBuilder::new()
            .description(Some("CloudEvents 1.0 in the JSON format; any extension attributes beside these"))
            .property("specversion", text("The version of CloudEvents").enum_values(Some(["1.0"])))
            .required("specversion")
            .property("id", text("Unique among the events of its source"))
            .required("id")
            .property("source", text("Where it comes from"))
            .required("source")
            .property("type", text("The event key, <resource>.<operation>").examples([json!("user.created")]))
            .required("type")
            .property("time", time)
            .property("tenant", text("The token's, or default, where not given"))
            .property("subject", text("What it is about"))
            .property("datacontenttype", text("The media type of the data"))
            .property("dataschema", text("The schema of the data"))
            .property("data", ObjectBuilder::new().schema_type(utoipa::openapi::schema::SchemaType::AnyValue))
            .property("data_base64", text("Data that is not JSON, instead of `data`"))
            .additional_properties(Some(AdditionalProperties::FreeForm(true)))
            .examples([json!({
                "specversion": "1.0", "id": "e-1", "source": "/idp", "type": "user.created", "data": {"user_id": "u1"}
            })])
            .into()
    }
}

impl ToSchema for CloudEvent {}
