//! Compares a definition with the server's configuration, and decides which differences may be changed.

use serde_json::{Map, Value};

use super::{Drift, DriftKind};
use crate::nats::stream_api::StreamInfo;

/// The fields of the definition that differ from the server's configuration. Fields that the definition does not have
/// belong to the operator.
pub(super) fn compare(
    what: &str,
    wanted: &Map<String, Value>,
    found: &Map<String, Value>,
    stream: Option<&StreamInfo>,
) -> Vec<Drift> {
    let mut drifts = Vec::new();
    for (field, wanted) in wanted {
        let found = found.get(field).cloned().unwrap_or(Value::Null);
        if field == "metadata" {
            let kept = |key: &String, value: &Value| found.get(key).is_some_and(|there| there == value);
            if wanted.as_object().is_some_and(|fields| fields.iter().all(|(key, value)| kept(key, value))) {
                continue;
            }
        } else if (field == "sources" && same_entries(wanted, &found)) || equal(wanted, &found) {
            continue;
        }
        let loses = stream.is_some_and(|info| would_lose(field, wanted, &found, info));
        let (field, wanted) = (field.clone(), wanted.clone());
        // New subjects are added even if others cannot be removed.
        if loses && field == "subjects" && !contains_all(&found, &wanted) {
            let (field, both) = (field.clone(), union(&found, &wanted));
            let kind = DriftKind::Differs { field, wanted: both, found: found.clone() };
            drifts.push(Drift { what: what.to_owned(), kind });
        }
        drifts.push(Drift {
            what: what.to_owned(),
            kind: if loses {
                DriftKind::WouldLose { field, wanted, found }
            } else {
                DriftKind::Differs { field, wanted, found }
            },
        });
    }
    drifts
}

/// Whether two lists have the same entries, comparing only the fields that the first list has.
fn same_entries(wanted: &Value, found: &Value) -> bool {
    let (Some(wanted), Some(found)) = (wanted.as_array(), found.as_array()) else { return false };
    let same = |(wanted, found): (&Value, &Value)| {
        wanted
            .as_object()
            .is_some_and(|fields| fields.iter().all(|(key, value)| found.get(key) == Some(value)))
    };
    wanted.len() == found.len() && wanted.iter().zip(found).all(same)
}

/// The entries of both lists, each once.
fn union(list: &Value, other: &Value) -> Value {
    let mut entries = list.as_array().cloned().unwrap_or_default();
    let new: Vec<Value> =
        other.as_array().into_iter().flatten().filter(|one| !entries.contains(one)).cloned().collect();
    entries.extend(new);
    Value::Array(entries)
}

/// Whether a list contains every entry of another.
fn contains_all(list: &Value, entries: &Value) -> bool {
    let (Some(list), Some(entries)) = (list.as_array(), entries.as_array()) else { return false };
    entries.iter().all(|entry| list.contains(entry))
}

/// Equality in which a missing value equals the default: the server omits defaults.
fn equal(wanted: &Value, found: &Value) -> bool {
    let default = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    };
    wanted == found || (default(wanted) && default(found))
}

/// Whether the change would make the server drop messages of the stream.
fn would_lose(field: &str, wanted: &Value, found: &Value, info: &StreamInfo) -> bool {
    if info.state.messages == 0 {
        return false;
    }
    // -1 and 0 mean no limit.
    let limit = |value: &Value| value.as_i64().filter(|number| *number > 0).map_or(u64::MAX, |n| n as u64);
    match field {
        "max_bytes" => limit(wanted) < info.state.bytes,
        "max_msgs" => limit(wanted) < info.state.messages,
        // The stream state does not show ages and counts per subject, so reducing these limits is never safe.
        "max_age" | "max_msgs_per_subject" => limit(wanted) < limit(found),
        "retention" => true,
        // Messages on a removed subject could not be found any more.
        "subjects" => !contains_all(wanted, found),
        _ => false,
    }
}

/// The configuration `base` with the changes of `drifts`.
pub(super) fn overlay(base: &Map<String, Value>, drifts: &[Drift]) -> Map<String, Value> {
    let mut config = base.clone();
    for drift in drifts {
        if let DriftKind::Differs { field, wanted, .. } = &drift.kind {
            match (config.get_mut(field), wanted) {
                // Other metadata belong to the operator or to the running hub.
                (Some(Value::Object(there)), Value::Object(fields)) if field == "metadata" => {
                    there.extend(fields.clone());
                }
                _ => {
                    config.insert(field.clone(), wanted.clone());
                }
            }
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info(messages: u64, bytes: u64) -> StreamInfo {
        serde_json::from_value(json!({
            "config": {}, "state": {"messages": messages, "bytes": bytes, "first_seq": 1, "last_seq": messages}
        }))
        .unwrap()
    }

    #[test]
    fn a_limit_below_the_current_size_is_never_applied() {
        let wanted = json!({"max_bytes": 100});
        let found = json!({"max_bytes": 1000});
        let kind = |info| {
            compare("s", wanted.as_object().unwrap(), found.as_object().unwrap(), Some(&info)).remove(0).kind
        };
        assert!(matches!(kind(info(5, 500)), DriftKind::WouldLose { .. }));
        assert!(matches!(kind(info(1, 50)), DriftKind::Differs { .. }));
        assert!(matches!(kind(info(0, 0)), DriftKind::Differs { .. }));
    }

    #[test]
    fn an_omitted_default_is_no_drift() {
        let wanted = json!({"max_age": 0, "deny_purge": false, "metadata": {"hub.role": "events"}});
        let found = json!({"metadata": {"hub.role": "events", "_nats.ver": "2.15.1"}});
        assert_eq!(compare("s", wanted.as_object().unwrap(), found.as_object().unwrap(), None), vec![]);
    }

    #[test]
    fn new_subjects_are_added_and_used_ones_kept() {
        let kinds = |wanted: Value, found: Value, messages| {
            let (wanted, found) = (json!({"subjects": wanted}), json!({"subjects": found}));
            let info = info(messages, messages * 100);
            let drifts = compare("s", wanted.as_object().unwrap(), found.as_object().unwrap(), Some(&info));
            drifts
                .into_iter()
                .map(|drift| match drift.kind {
                    DriftKind::Differs { wanted, .. } => ("differs", wanted),
                    DriftKind::WouldLose { wanted, .. } => ("would-lose", wanted),
                    DriftKind::Missing => ("missing", Value::Null),
                })
                .collect::<Vec<_>>()
        };
        let (old, new) = (json!(["e.>"]), json!(["e.>", "f.>"]));
        assert_eq!(kinds(new.clone(), old.clone(), 5), [("differs", new.clone())]);
        assert_eq!(kinds(old.clone(), new.clone(), 5), [("would-lose", old.clone())]);
        assert_eq!(kinds(old.clone(), new, 0), [("differs", old)]);
        assert_eq!(
            kinds(json!(["a", "b"]), json!(["b", "c"]), 5),
            [("differs", json!(["b", "c", "a"])), ("would-lose", json!(["a", "b"]))]
        );
    }

    #[test]
    fn fields_the_server_adds_to_a_source_are_no_drift() {
        let wanted = json!({"sources": [{"name": "A", "filter_subject": "a.none"}]});
        let drifts =
            |found: Value| compare("s", wanted.as_object().unwrap(), found.as_object().unwrap(), None);
        assert_eq!(
            drifts(json!({"sources": [{"name": "A", "filter_subject": "a.none", "opt_start_seq": 1}]})).len(),
            0
        );
        assert_eq!(drifts(json!({"sources": [{"name": "B", "filter_subject": "a.none"}]})).len(), 1);
        assert_eq!(drifts(json!({})).len(), 1);
    }
}
