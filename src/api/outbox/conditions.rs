//! Conditions that select rows of the producer outbox, as query parameters and as members of a body.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::problem::Problem;
use crate::api::query::{limit, parsed};
use crate::domain::key::EventKey;
use crate::domain::producer_outbox::{Status, TARGET_BROKER_NAMES, is_target_broker};
use crate::management::producer_outbox::{RowCursor, RowSelection};

/// Maximum number of ids in one request.
const MOST_IDS: usize = 1_000;

/// Selects a page of rows. All conditions must hold.
#[derive(Debug, Default, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct OutboxListQuery {
    /// Target broker: `internal`, or the name of an external broker
    broker: Option<String>,
    /// Statuses; repeated, or separated by commas
    #[param(required = false)]
    status: Vec<Status>,
    /// Stream
    stream: Option<String>,
    /// Event key, such as `user.created`
    event_key: Option<String>,
    /// Maximum number of entries, 1 to 1000. Default: 100
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Cursor: `next` of the previous page
    after: Option<String>,
}

/// A parsed [`OutboxListQuery`].
pub(super) struct Listing {
    pub(super) selection: RowSelection,
    pub(super) after: RowCursor,
    pub(super) limit: usize,
}

impl Listing {
    /// Reads a query that [`QueryRules`](crate::api::query_rules::QueryRules) has checked.
    pub(super) fn of_query(pairs: Vec<(String, String)>) -> Result<Self, Problem> {
        let mut query = OutboxListQuery::default();
        for (name, value) in pairs {
            match name.as_str() {
                "status" => {
                    for one in value.split(',') {
                        query.status.extend(parsed::<Status>("status", Some(one))?);
                    }
                }
                "limit" => query.limit = parsed("limit", Some(&value))?,
                "broker" => query.broker = Some(value),
                "stream" => query.stream = Some(value),
                "event_key" => query.event_key = Some(value),
                "after" => query.after = Some(value),
                // The description of the operation, which was checked, has no other.
                _ => {}
            }
        }
        let OutboxListQuery { broker, status, stream, event_key, limit: asked, after } = query;
        check_broker(broker.as_deref())?;
        Ok(Self {
            after: parsed("after", after.as_deref())?.unwrap_or_default(),
            limit: limit(asked)?,
            selection: RowSelection {
                broker,
                statuses: status,
                message_ids: Vec::new(),
                stream,
                event_type: event_type(event_key.as_deref())?,
            },
        })
    }
}

fn check_broker(name: Option<&str>) -> Result<(), Problem> {
    if name.is_none_or(is_target_broker) {
        return Ok(());
    }
    Err(Problem::field("broker", format!("is not the name of a target broker; {TARGET_BROKER_NAMES}")))
}

fn event_type(key: Option<&str>) -> Result<Option<String>, Problem> {
    Ok(parsed::<EventKey>("event_key", key)?.map(String::from))
}

/// Rows of the producer outbox to change: conditions, all of which must hold, or `all`.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = OutboxOrder)]
pub(super) struct RowChange {
    /// Event ids, on all brokers unless `broker` is set
    #[schema(max_items = 1000)]
    ids: Vec<String>,
    /// Target broker: `internal`, or the name of an external broker
    broker: Option<String>,
    /// Statuses
    status: Vec<Status>,
    /// Stream
    stream: Option<String>,
    /// Event key
    #[schema(example = "user.created")]
    event_key: Option<String>,
    /// All rows that can be changed. Cannot be combined with conditions
    all: bool,
    /// Cursor: `next` of the previous answer, with the same conditions
    after: Option<String>,
}

impl RowChange {
    /// Returns the selection and the start. Refuses a body without conditions and without `all`.
    pub(super) fn read(self) -> Result<(RowSelection, RowCursor), Problem> {
        let Self { ids, broker, status, stream, event_key, all, after } = self;
        check_broker(broker.as_deref())?;
        let has_conditions = !ids.is_empty()
            || broker.is_some()
            || !status.is_empty()
            || stream.is_some()
            || event_key.is_some();
        if !has_conditions && !all {
            let which = "no condition is set; set ids, broker, status, stream or event_key, or {\"all\": true} for all rows";
            return Err(Problem::field("body", which));
        }
        if all && has_conditions {
            return Err(Problem::field("all", "cannot be combined with conditions; send one or the other"));
        }
        if ids.len() > MOST_IDS {
            let problem = format!("has {} ids; send at most {MOST_IDS} at a time", ids.len());
            return Err(Problem::field("ids", problem));
        }
        let selection = RowSelection {
            broker,
            statuses: status,
            message_ids: ids,
            stream,
            event_type: event_type(event_key.as_deref())?,
        };
        Ok((selection, parsed("after", after.as_deref())?.unwrap_or_default()))
    }
}
