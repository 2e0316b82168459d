//! Which dead letters: the same conditions as parameters of a query and as members of a body.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::api::State;
use crate::api::problem::Problem;
use crate::api::query::parsed;
use crate::domain::access::{Caller, check_tenant};
use crate::domain::dead_letter::DeadLetterState;
use crate::domain::outcome::Reason;
use crate::domain::subscription::SubscriptionId;
use crate::management::dead_letters::DeadLetterQuery;

/// All that are given must hold.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Conditions {
    /// Of these domains: repeated, or separated by commas
    #[param(nullable = false)]
    #[schema(example = json!(["policy-client"]))]
    pub(super) domain: Vec<String>,
    /// Of this tenant; a token that is bound to one sees that one alone
    tenant: Option<String>,
    #[param(value_type = Option<SubscriptionId>)]
    #[schema(value_type = Option<SubscriptionId>)]
    subscription: Option<String>,
    #[param(value_type = Option<Reason>)]
    #[schema(value_type = Option<Reason>)]
    reason: Option<String>,
    #[param(value_type = Option<DeadLetterState>)]
    #[schema(value_type = Option<DeadLetterState>)]
    state: Option<String>,
    /// Such as `user.created`
    event_key: Option<String>,
    /// Failed at this time (RFC 3339) or later
    #[param(value_type = Option<String>, format = DateTime)]
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<String>,
    /// Failed before this time (RFC 3339)
    #[param(value_type = Option<String>, format = DateTime)]
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<String>,
}

impl Conditions {
    /// Takes the conditions out of a query; what else it holds is left over.
    pub(super) fn of_query(pairs: Vec<(String, String)>) -> Result<(Self, Vec<(String, String)>), Problem> {
        let (mut conditions, mut rest) = (Self::default(), Vec::new());
        for (name, value) in pairs {
            let Self { domain, tenant, subscription, reason, state, event_key, since, until } =
                &mut conditions;
            let field = match name.as_str() {
                "domain" => {
                    domain.extend(value.split(',').map(str::to_owned));
                    continue;
                }
                "tenant" => tenant,
                "subscription" => subscription,
                "reason" => reason,
                "state" => state,
                "event_key" => event_key,
                "since" => since,
                "until" => until,
                _ => {
                    rest.push((name, value));
                    continue;
                }
            };
            if field.replace(value).is_some() {
                return Err(Problem::field(&name, "is given twice; give it once"));
            }
        }
        Ok((conditions, rest))
    }

    pub(super) fn are_none(&self) -> bool {
        *self == Self::default()
    }

    /// A tenant is named that the caller does not reach.
    pub(super) fn beyond(&self, caller: &Caller) -> bool {
        self.tenant.as_ref().is_some_and(|tenant| !caller.reaches(tenant))
    }

    /// As a filter within what the caller reaches.
    pub(super) fn filter(self, state: &State, caller: &Caller) -> Result<DeadLetterQuery, Problem> {
        for name in &self.domain {
            state.management.domain(name).map_err(|error| Problem::field("domain", error.to_string()))?;
        }
        if let Some(tenant) = &self.tenant {
            check_tenant(tenant).map_err(|problem| Problem::field("tenant", problem))?;
        }
        let subscription = self.subscription.map(SubscriptionId::try_from).transpose();
        let subscription = subscription.map_err(|problem| Problem::field("subscription", problem))?;
        let filter = DeadLetterQuery {
            domains: self.domain,
            tenant: caller.tenant().map(str::to_owned).or(self.tenant),
            subscription: subscription.map(String::from),
            reason: parsed("reason", self.reason.as_deref())?,
            state: parsed("state", self.state.as_deref())?,
            event_key: parsed("event_key", self.event_key.as_deref())?,
            since: moment("since", self.since.as_deref())?,
            until: moment("until", self.until.as_deref())?,
            ..DeadLetterQuery::default()
        };
        match (filter.since, filter.until) {
            (Some(since), Some(until)) if since >= until => {
                Err(Problem::field("until", "is not after since; nothing failed in between"))
            }
            _ => Ok(filter),
        }
    }
}

/// Which dead letters to discard: conditions, or all.
pub(super) struct Discarding;
/// Which dead letters to replay: conditions, or all.
pub(super) struct Replaying;

const ALL: (&str, &str) =
    ("all", "All of them; of the token's tenant where it is bound to one. Then no condition is given");
const FORCE: (&str, &str) =
    ("force", "Also those that are on their way again already, because these envelopes are known to be gone");

/// A body's schema: the conditions and some members that are true or false.
fn with_flags(flags: &[(&str, &str)], about: &str) -> RefOr<Schema> {
    let RefOr::T(Schema::Object(mut object)) = Conditions::schema() else {
        unreachable!("a struct with named fields is described as an object")
    };
    for (name, text) in flags {
        let flag = ObjectBuilder::new()
            .schema_type(Type::Boolean)
            .description(Some(*text))
            .default(Some(serde_json::Value::Bool(false)));
        object.properties.insert((*name).to_owned(), flag.build().into());
    }
    object.description = Some(about.to_owned());
    object.min_properties = Some(1);
    RefOr::T(Schema::Object(object))
}

macro_rules! body {
    ($name:ident, $about:literal, $flags:expr) => {
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                with_flags($flags, $about)
            }
        }

        impl ToSchema for $name {
            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                Conditions::schemas(schemas);
            }
        }
    };
}

body!(Discarding, "Which dead letters to discard: conditions, or all.", &[ALL]);
body!(Replaying, "Which dead letters to replay: conditions, or all.", &[ALL, FORCE]);

fn moment(name: &str, text: Option<&str>) -> Result<Option<OffsetDateTime>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let read = OffsetDateTime::parse(text, &Rfc3339);
    read.map(Some).map_err(|_| {
        let problem = format!(
            "{text:?} is no time of RFC 3339: write 2026-01-31T12:00:00Z (in a query, + of an offset is %2B)"
        );
        Problem::field(name, problem)
    })
}
