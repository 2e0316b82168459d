//! Which rows of the outbox: the same conditions as parameters of a query and as members of a body.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::problem::Problem;
use crate::api::query::{limit, parsed};
use crate::domain::key::EventKey;
use crate::domain::producer_outbox::Status;
use crate::management::outbox::{RowCursor, RowSelection};

/// Most ids that one order names.
const MOST_IDS: usize = 1_000;

/// Which rows, and which part of them. All conditions that are given must hold.
#[derive(Debug, Default, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Of this target broker: `internal`, or the name of an external one
    broker: Option<String>,
    /// Of these statuses: repeated, or separated by commas
    #[param(required = false)]
    status: Vec<Status>,
    /// Of this stream
    stream: Option<String>,
    /// Of events with this key, such as `user.created`
    event_key: Option<String>,
    /// At most this many, 1 to 1000; 100 where not given
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Go on here: `next` of the page before
    after: Option<String>,
}

/// What a list is asked for.
pub(super) struct Listing {
    pub(super) selection: RowSelection,
    pub(super) after: RowCursor,
    pub(super) limit: usize,
}

impl Listing {
    pub(super) fn of_query(pairs: Vec<(String, String)>) -> Result<Self, Problem> {
        let mut query = ListQuery::default();
        for (name, value) in pairs {
            let twice = match name.as_str() {
                "status" => {
                    for one in value.split(',') {
                        query.status.extend(parsed::<Status>("status", Some(one))?);
                    }
                    continue;
                }
                "limit" => query.limit.replace(number(&value)?).is_some(),
                "broker" => query.broker.replace(value).is_some(),
                "stream" => query.stream.replace(value).is_some(),
                "event_key" => query.event_key.replace(value).is_some(),
                "after" => query.after.replace(value).is_some(),
                _ => {
                    let problem = "is no parameter of this; /openapi.json says which there are";
                    return Err(Problem::field(&name, problem));
                }
            };
            if twice {
                return Err(Problem::field(&name, "is given twice; give it once"));
            }
        }
        let ListQuery { broker, status, stream, event_key, limit: asked, after } = query;
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

fn number(text: &str) -> Result<usize, Problem> {
    text.parse().map_err(|_| Problem::field("limit", format!("{text:?} is no number; write 1 to 1000")))
}

fn event_type(key: Option<&str>) -> Result<Option<String>, Problem> {
    Ok(parsed::<EventKey>("event_key", key)?.map(String::from))
}

/// Which rows of the outbox to change: conditions, all of which must hold, or `all`.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = OutboxOrder)]
pub(super) struct BulkOrder {
    /// The events' ids, on every broker unless `broker` says which
    #[schema(max_items = 1000)]
    ids: Vec<String>,
    /// Of this target broker: `internal`, or the name of an external one
    broker: Option<String>,
    /// Of these statuses
    status: Vec<Status>,
    /// Of this stream
    stream: Option<String>,
    /// Of events with this key
    #[schema(example = "user.created")]
    event_key: Option<String>,
    /// All rows that the order applies to. Then no condition is given
    all: bool,
    /// Go on here: `next` of the answer before, with the same conditions
    after: Option<String>,
}

impl BulkOrder {
    /// Which rows are meant, and where to begin. Nothing is meant unsaid.
    pub(super) fn read(self) -> Result<(RowSelection, RowCursor), Problem> {
        let Self { ids, broker, status, stream, event_key, all, after } = self;
        let has_conditions = !ids.is_empty()
            || broker.is_some()
            || !status.is_empty()
            || stream.is_some()
            || event_key.is_some();
        if !has_conditions && !all {
            let which =
                "say which: ids, broker, status, stream or event_key; or {\"all\": true} for all of them";
            return Err(Problem::field("body", which));
        }
        if all && has_conditions {
            return Err(Problem::field("all", "is given beside conditions; give the one or the others"));
        }
        if ids.len() > MOST_IDS {
            let problem = format!("are {}; name at most {MOST_IDS} at a time", ids.len());
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
