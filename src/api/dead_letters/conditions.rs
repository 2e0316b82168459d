//! Conditions that select dead letters, as query parameters and as members of a body.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::api::State;
use crate::api::access::reach;
use crate::api::problem::Problem;
use crate::api::query::parsed;
use crate::domain::access::{Caller, check_tenant};
use crate::domain::dead_letter::DeadLetterState;
use crate::domain::outcome::Reason;
use crate::domain::subscription::SubscriptionId;
use crate::management::dead_letters::DeadLetterQuery;

/// Conditions that select dead letters. All must hold.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Conditions {
    /// Domains; in a query repeated, or separated by commas
    #[param(nullable = false)]
    #[schema(example = json!(["policy-client"]))]
    pub(super) domain: Vec<String>,
    /// Tenant. A token that is bound to a tenant can only select that tenant
    tenant: Option<String>,
    /// Subscription id
    #[param(value_type = Option<SubscriptionId>)]
    #[schema(value_type = Option<SubscriptionId>)]
    subscription: Option<String>,
    #[param(value_type = Option<SelectableReason>)]
    #[schema(value_type = Option<SelectableReason>)]
    reason: Option<String>,
    #[param(value_type = Option<DeadLetterState>)]
    #[schema(value_type = Option<DeadLetterState>)]
    state: Option<String>,
    /// Event key, such as `user.created`
    event_key: Option<String>,
    /// Failed at or after this time (RFC 3339)
    #[param(value_type = Option<String>, format = DateTime)]
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<String>,
    /// Failed before this time (RFC 3339)
    #[param(value_type = Option<String>, format = DateTime)]
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<String>,
}

/// The schema of a reason in conditions: without the reasons that only dead letters of older versions have.
struct SelectableReason;

impl PartialSchema for SelectableReason {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("The reason of a dead letter, as a condition."))
            .enum_values(Some(Reason::PRODUCED.map(Reason::as_str)))
            .into()
    }
}

impl ToSchema for SelectableReason {}

impl Conditions {
    /// Reads the conditions of a query that [`QueryRules`](crate::api::query_rules::QueryRules) has checked.
    pub(super) fn of_query(pairs: &[(String, String)]) -> Self {
        let mut conditions = Self::default();
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
                // Part of a list.
                _ => continue,
            };
            *field = Some(value.clone());
        }
        conditions
    }

    pub(super) fn are_none(&self) -> bool {
        *self == Self::default()
    }

    /// Builds the query, limited to the caller's tenant. Fails if another one is named.
    pub(super) fn filter(self, state: &State, caller: &Caller) -> Result<DeadLetterQuery, Problem> {
        for name in &self.domain {
            state.management.domain(name).map_err(|error| Problem::field("domain", error.to_string()))?;
        }
        if let Some(tenant) = &self.tenant {
            check_tenant(tenant).map_err(|error| Problem::field("tenant", error.to_string()))?;
            reach(caller, tenant)?;
        }
        let subscription = self.subscription.map(SubscriptionId::try_from).transpose();
        let subscription = subscription.map_err(|error| Problem::field("subscription", error.to_string()))?;
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
                Err(Problem::field("until", "must be after since"))
            }
            _ => Ok(filter),
        }
    }
}

/// The schema of a body that discards dead letters.
pub(super) struct Discarding;
/// The schema of a body that replays dead letters.
pub(super) struct Replaying;

const ALL: (&str, &str) =
    ("all", "All dead letters, or all of the token's tenant. Cannot be combined with conditions");
const FORCE: (&str, &str) = (
    "force",
    "Also replay dead letters with a replay in progress, because their envelopes are known to be lost",
);

/// The schema of a body: the conditions and boolean members.
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

body!(Discarding, "Dead letters to discard: conditions, or all.", &[ALL]);
body!(Replaying, "Dead letters to replay: conditions, or all.", &[ALL, FORCE]);

fn moment(name: &str, text: Option<&str>) -> Result<Option<OffsetDateTime>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let read = OffsetDateTime::parse(text, &Rfc3339);
    read.map(Some).map_err(|_| {
        let problem = format!(
            "{text:?} is not an RFC 3339 time; send a time such as 2026-01-31T12:00:00Z (in a query, write + as %2B)"
        );
        Problem::field(name, problem)
    })
}
