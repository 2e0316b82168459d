//! Decides which fields of a stream or consumer belong to provisioning, and which to the running hub.
//!
//! Processes keep state in the configuration of streams and consumers: circuits, pauses, the shared settings, the id of
//! the registry. Provisioning corrects everything else that a definition has. Everything that changes the configuration of
//! an existing part by a definition gets the definition from [`desired`].

use serde_json::{Map, Value, json};

use crate::nats::agreement::{ACCEPTED, REGISTRY, SETTINGS};
use crate::nats::circuits;
use crate::nats::subjects::{lane_of_consumer, subscription_of_own_lane};

const MAX_ACK_PENDING: &str = "max_ack_pending";
/// Fields that are set once, or by whoever pauses a consumer.
const RUNTIME_FIELDS: [&str; 2] = ["pause_until", "first_seq"];

fn is_runtime_metadata(key: &str) -> bool {
    [SETTINGS, REGISTRY, ACCEPTED].contains(&key) || circuits::is_metadata(key)
}

/// The definition of a part that exists with the configuration `found`: without the fields that belong to the running
/// hub, or with the value that the running hub has chosen.
pub(in crate::nats) fn desired(
    definition: &Map<String, Value>,
    found: &Map<String, Value>,
) -> Map<String, Value> {
    let mut desired = definition.clone();
    for field in RUNTIME_FIELDS {
        desired.remove(field);
    }
    if let Some(Value::Object(metadata)) = desired.get_mut("metadata") {
        metadata.retain(|key, _| !is_runtime_metadata(key));
    }
    // The lane of an open circuit gives out one message at a time.
    if let Some(in_flight) = in_flight_of_circuit(definition, found) {
        desired.insert(MAX_ACK_PENDING.to_owned(), json!(in_flight));
    }
    desired
}

/// The `max_ack_pending` of an own lane whose circuit is open: the recorded one. Versions before it was recorded have only
/// set it. It may be one more than in the definition, for the probe. `None` if this is something else.
fn in_flight_of_circuit(definition: &Map<String, Value>, found: &Map<String, Value>) -> Option<i64> {
    let name = definition.get("durable_name")?.as_str()?;
    subscription_of_own_lane(lane_of_consumer(name)?)?;
    let most = definition.get(MAX_ACK_PENDING)?.as_i64()?;
    let recorded = circuits::recorded_in_flight(found)?;
    let there = found.get(MAX_ACK_PENDING).and_then(Value::as_i64);
    [recorded, there].into_iter().flatten().find(|one| (1..=most.saturating_add(1)).contains(one)).or(Some(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::compare::{compare, overlay};
    use super::*;
    use crate::nats::definitions::{self, StreamDefinition};

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(fields) => fields,
            other => panic!("{other} is not an object"),
        }
    }

    /// What provisioning makes of a part.
    fn provisioned(definition: &Map<String, Value>, found: &Map<String, Value>) -> Map<String, Value> {
        overlay(found, &compare("it", &desired(definition, found), found, None))
    }

    fn metadata(config: &Map<String, Value>, key: &str) -> Option<Value> {
        config.get("metadata")?.get(key).cloned()
    }

    const CIRCUIT: [&str; 5] = [
        "hub.circuit.since",
        "hub.circuit.pause-ms",
        "hub.circuit.probe-at",
        "hub.circuit.in-flight",
        "hub.circuit.of-a-newer-version",
    ];

    /// All consumers and streams of a hub, and lanes of single subscriptions.
    fn definitions() -> Vec<Map<String, Value>> {
        let parameters = definitions::tests::parameters();
        let mut all = Vec::new();
        for StreamDefinition { config, consumers, .. } in definitions::render(&parameters) {
            all.push(config);
            all.extend(consumers.into_iter().map(|consumer| consumer.config));
        }
        for lane in ["own-crm", "own-acme=crm", "strict-0-crm", "strict-15-acme=crm"] {
            all.push(definitions::lane(&parameters, &parameters.domains[0], lane).config);
        }
        all
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            proptest::collection::vec(".{0,4}", 0..3).prop_map(Value::from),
            proptest::collection::btree_map("[a-z.]{0,8}", ".{0,4}", 0..3).prop_map(|fields| json!(fields)),
        ]
    }

    proptest! {
        /// Whatever an operator changed is corrected, what the running hub stores stays, and the next look finds nothing.
        #[test]
        fn provisioning_corrects_its_own_fields_and_keeps_those_of_the_running_hub(
            which in any::<prop::sample::Index>(),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), value()), 0..6),
            state in proptest::collection::btree_map(
                prop::sample::select([&CIRCUIT[..], &[SETTINGS, REGISTRY, ACCEPTED, "_nats.ver", "operator"]].concat()),
                ".{0,12}",
                0..6,
            ),
            in_flight in proptest::option::of(-2_i64..300_000),
            pause in proptest::option::of(".{0,12}"),
            extra in proptest::option::of(value()),
        ) {
            let all = definitions();
            let definition = &all[which.index(all.len())];
            let mut found = definition.clone();
            let fields: Vec<String> = definition.keys().cloned().collect();
            for (field, value) in damage {
                found.insert(fields[field.index(fields.len())].clone(), value);
            }
            if let Some(Value::Object(there)) = found.get_mut("metadata") {
                there.extend(state.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
            }
            found.extend(pause.clone().map(|until| ("pause_until".to_owned(), json!(until))));
            found.extend(extra.clone().map(|value| ("of_the_operator".to_owned(), value)));
            if let Some(in_flight) = in_flight {
                found.insert("max_ack_pending".to_owned(), json!(in_flight));
            }

            let done = provisioned(definition, &found);
            // Of the running hub, and of the operator.
            prop_assert_eq!(done.get("pause_until"), found.get("pause_until"));
            prop_assert_eq!(done.get("of_the_operator"), found.get("of_the_operator"));
            if found.get("metadata").is_some_and(Value::is_object) {
                for key in state.keys() {
                    prop_assert_eq!(metadata(&done, key), metadata(&found, key), "{}", key);
                }
            }
            // Of provisioning.
            let open = in_flight_of_circuit(definition, &found).is_some();
            for (field, wanted) in definition {
                match field.as_str() {
                    "metadata" => {
                        for (key, wanted) in wanted.as_object().into_iter().flatten() {
                            prop_assert_eq!(metadata(&done, key), Some(wanted.clone()), "{}", key);
                        }
                    }
                    "max_ack_pending" if open => {
                        let chosen = done[field].as_i64().unwrap_or_default();
                        prop_assert!(chosen >= 1 && wanted.as_i64().is_some_and(|most| chosen <= most + 1));
                    }
                    _ => prop_assert!(
                        done.get(field) == Some(wanted) || compare("it", &object(json!({field: wanted})), &done, None).is_empty(),
                        "{}: {:?}", field, done.get(field)
                    ),
                }
            }
            prop_assert_eq!(compare("it", &desired(definition, &done), &done, None), vec![]);
        }
    }

    #[test]
    fn the_lane_of_an_open_circuit_keeps_its_number_in_flight() {
        let definition = object(json!({
            "durable_name": "lane-own-acme=crm", "max_ack_pending": 200_000, "max_deliver": 5,
        }));
        let after = |metadata: Value, max_ack_pending: Value| {
            let found = object(json!({
                "max_ack_pending": max_ack_pending, "max_deliver": 9, "metadata": metadata,
            }));
            let done = provisioned(&definition, &found);
            assert_eq!(done["max_deliver"], 5);
            done["max_ack_pending"].clone()
        };
        let open = |in_flight: &str| json!({"hub.circuit.since": "s", "hub.circuit.in-flight": in_flight});
        assert_eq!(after(json!({}), json!(4)), 200_000, "changed by hand");
        assert_eq!(after(open("4"), json!(4)), 4);
        assert_eq!(after(open("4"), json!(1_000)), 4, "changed by hand");
        assert_eq!(after(json!({"hub.circuit.since": "s"}), json!(4)), 4, "of an older version");
        for damaged in ["", "-1", "0", "x", "9999999", "99999999999999999999"] {
            assert_eq!(after(open(damaged), json!(4)), 4, "{damaged}");
            assert_eq!(after(open(damaged), json!(-1)), 1, "{damaged}");
        }
        assert_eq!(after(json!({"hub.circuit.in-flight": "4"}), json!(4)), 200_000, "no circuit");
    }

    #[test]
    fn a_strict_lane_has_one_in_flight_whatever_its_metadata_say() {
        let parameters = definitions::tests::parameters();
        let definition = definitions::lane(&parameters, &parameters.domains[0], "strict-3-crm").config;
        for metadata in [json!({}), json!({"hub.circuit.since": "s", "hub.circuit.in-flight": "7"})] {
            let mut found = definition.clone();
            found.insert("metadata".to_owned(), metadata);
            for changed in [json!(1), json!(64), json!(-1), Value::Null] {
                found.insert("max_ack_pending".to_owned(), changed);
                let done = provisioned(&definition, &found);
                assert_eq!((&done["max_ack_pending"], &done["max_deliver"]), (&json!(1), &json!(-1)));
            }
        }
    }
}
