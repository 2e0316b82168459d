use super::*;

const T1: &str = "2027-01-15T08:00:00.123456789Z";
const T2: &str = "2027-01-15T09:00:00Z";
const T3: &str = "2027-01-15T10:00:00Z";

/// What somebody may write in the place of an id; the last one is that of another bucket.
fn nonsense() -> Vec<String> {
    let mut all: Vec<String> =
        ["", " ", "nonsense", "{}", "null", "2027-01-15", "2027-99-15T08:00:00Z", "*", "\u{fffd}\0\r\n"]
            .map(str::to_owned)
            .into();
    all.push("9".repeat(100_000));
    all.push(format!("{T1}{}", " ".repeat(100)));
    all
}

const SETTINGS: [SettingsRecord; 5] = [
    SettingsRecord::Missing,
    SettingsRecord::Agrees,
    SettingsRecord::Differs,
    SettingsRecord::Newer,
    SettingsRecord::Damaged,
];

fn bucket<'a>(created: &'a str, id: Option<&'a str>, is_empty: bool) -> Option<RegistryBucket<'a>> {
    Some(RegistryBucket { created, id, accepted: None, is_empty })
}

/// The same, accepted by an operator as the bucket that was created then.
fn accepted<'a>(bucket: Option<RegistryBucket<'a>>, created: &'a str) -> Option<RegistryBucket<'a>> {
    bucket.map(|bucket| RegistryBucket { accepted: Some(created), ..bucket })
}

fn known(id: &str, created: &str) -> KnownRegistry {
    KnownRegistry { id: id.to_owned(), created: created.to_owned() }
}

/// A look of a process that starts.
fn start<'a>(id: Option<&'a str>, bucket: Option<RegistryBucket<'a>>) -> RecordsLook<'a> {
    let settings = SettingsRecord::Agrees;
    RecordsLook { has_events: true, has_others: true, settings, id, bucket, known: None, at_work: false }
}

fn running<'a>(
    id: Option<&'a str>,
    bucket: Option<RegistryBucket<'a>>,
    known: &'a KnownRegistry,
) -> RecordsLook<'a> {
    RecordsLook { known: Some(known), at_work: true, ..start(id, bucket) }
}

fn present(id: &str, created: &str) -> RegistryState {
    RegistryState::Present(known(id, created))
}

#[test]
fn only_the_recorded_bucket_is_the_registry_of_a_process_that_starts() {
    use RegistryState::{Missing, Replaced};
    let cases = [
        (bucket(T1, Some(T1), false), present(T1, T1)),
        (bucket(T1, Some(T1), true), present(T1, T1)),
        // Somebody removed or damaged the metadata of the bucket.
        (bucket(T1, None, false), present(T1, T1)),
        (bucket(T1, Some("nonsense"), false), present(T1, T1)),
        (bucket(T1, Some(T2), true), present(T1, T1)),
        // Restored from a snapshot of the stream.
        (bucket(T2, Some(T1), false), present(T1, T2)),
        (bucket(T2, Some(T1), true), Replaced),
        (bucket(T2, None, true), Replaced),
        (bucket(T2, None, false), Replaced),
        (bucket(T2, Some(T2), false), Replaced),
        (None, Missing),
    ];
    for settings in SETTINGS {
        for (bucket, expected) in &cases {
            let look = RecordsLook { settings, ..start(Some(T1), *bucket) };
            assert_eq!(look.decide().registry, *expected, "{look:?}");
        }
    }
}

#[test]
fn without_an_id_a_bucket_counts_only_if_nothing_was_recorded_or_it_shows_that_it_was_accepted() {
    use RegistryState::{Damaged, Missing, New, Replaced};
    let at = |has_events, settings, bucket| {
        // Whether others exist counts only without the events stream.
        let [a, b] = [has_events, false].map(|has_others| {
            RecordsLook { has_events, has_others, settings, ..start(None, bucket) }.decide().registry
        });
        assert_eq!(a, b, "{bucket:?}");
        a
    };
    let missing = SettingsRecord::Missing;
    assert_eq!(at(false, missing, None), New);
    assert_eq!(at(true, missing, None), Missing);
    // The first start, and a restored bucket on a new server.
    assert_eq!(at(false, missing, bucket(T1, None, true)), present(T1, T1));
    assert_eq!(at(false, missing, bucket(T2, Some(T1), true)), present(T1, T2));
    // An older hub; streams created by hand.
    assert_eq!(at(true, missing, bucket(T1, None, false)), present(T1, T1));
    assert_eq!(at(true, missing, bucket(T2, Some(T1), false)), present(T1, T2));
    assert_eq!(at(true, missing, bucket(T2, Some(T1), true)), Replaced, "a copied configuration");
    assert_eq!(at(true, missing, bucket(T2, Some("nonsense"), false)), Damaged);
    // Settings are recorded, so the id was removed.
    for settings in [SettingsRecord::Agrees, SettingsRecord::Differs, SettingsRecord::Damaged] {
        assert_eq!(at(true, settings, bucket(T1, Some(T1), false)), present(T1, T1));
        for other in [bucket(T1, None, false), bucket(T2, Some(T1), false), bucket(T2, Some("x"), false)] {
            assert_eq!(at(true, settings, other), Damaged, "{other:?}");
        }
        assert_eq!(at(true, settings, None), Missing);
    }
}

#[test]
fn a_process_that_starts_waits_if_the_id_is_damaged_and_writes_nothing() {
    for id in nonsense() {
        for settings in SETTINGS {
            for bucket in [bucket(T1, Some(T1), false), bucket(T1, Some(&id), false), bucket(T1, None, true)]
            {
                let decision = RecordsLook { settings, ..start(Some(&id), bucket) }.decide();
                assert_eq!(decision.registry, RegistryState::Damaged);
                if settings != SettingsRecord::Agrees {
                    assert!(!decision.works, "it has not agreed yet");
                }
                assert!(!decision.writes(), "{decision:?}");
            }
            let decision = RecordsLook { settings, ..start(Some(&id), None) }.decide();
            assert_eq!(decision.registry, RegistryState::Missing);
        }
    }
}

/// Each damage of each record, alone and together, in each state of the bucket.
#[test]
fn a_process_at_work_goes_on_and_mends_each_damage_of_the_registry_that_it_knows() {
    let mut ids: Vec<Option<String>> = nonsense().into_iter().map(Some).collect();
    ids.extend([None, Some(T1.to_owned()), Some(T2.to_owned()), Some(T3.to_owned())]);
    // The same bucket, and one that was restored before.
    for me in [known(T1, T1), known(T1, T2)] {
        for id in &ids {
            for in_bucket in &ids {
                for settings in SETTINGS {
                    let bucket = bucket(&me.created, in_bucket.as_deref(), false);
                    let look = RecordsLook { settings, ..running(id.as_deref(), bucket, &me) };
                    let decision = look.decide();
                    let differs = matches!(settings, SettingsRecord::Differs | SettingsRecord::Newer);
                    assert_eq!(decision.works, !differs, "{look:?}");
                    let RegistryState::Present(found) = &decision.registry else { panic!("{look:?}") };
                    assert_eq!(found.created, me.created);
                    if differs {
                        assert!(!decision.writes(), "{look:?}");
                        continue;
                    }
                    // Also the id of another bucket is replaced. An operator accepts this one under its creation time.
                    let accepted = id.as_deref() == Some(&me.created);
                    let expected = if accepted { &*me.created } else { T1 };
                    assert_eq!(found.id, expected, "{look:?}");
                    let written = |there: &Option<String>| {
                        (there.as_deref() != Some(expected)).then(|| expected.to_owned())
                    };
                    assert_eq!(decision.write_id, written(id), "{look:?}");
                    assert_eq!(decision.write_bucket, written(in_bucket), "{look:?}");
                    assert_eq!(decision.write_settings, settings != SettingsRecord::Agrees, "{look:?}");
                }
            }
        }
    }
}

#[test]
fn no_process_records_another_bucket_than_the_one_that_it_knows() {
    let me = known(T1, T1);
    let others = [
        bucket(T2, None, false),
        bucket(T2, None, true),
        bucket(T2, Some(T2), false),
        bucket(T2, Some(T1), true),
        bucket(T2, Some("nonsense"), false),
        None,
    ];
    let mut ids: Vec<Option<String>> = nonsense().into_iter().map(Some).collect();
    ids.extend([None, Some(T1.to_owned()), Some(T3.to_owned())]);
    for other in others {
        for id in &ids {
            for settings in [SettingsRecord::Missing, SettingsRecord::Agrees, SettingsRecord::Damaged] {
                let look = RecordsLook { settings, ..running(id.as_deref(), other, &me) };
                let decision = look.decide();
                let expected = if other.is_some() { RegistryState::Replaced } else { RegistryState::Missing };
                assert_eq!(decision.registry, expected, "{look:?}");
                assert!(decision.works, "it makes deleted parts again");
                assert_eq!(decision.write_bucket, None);
                // A removed id comes back, so that a process that starts does not accept the other bucket.
                assert_eq!(decision.write_id, id.is_none().then(|| T1.to_owned()), "{look:?}");
                assert_eq!(decision.write_settings, settings != SettingsRecord::Agrees);
            }
        }
    }
    // It was restored, and its record is damaged too.
    for id in nonsense() {
        let restored = running(Some(&id), bucket(T2, Some(T1), false), &me).decide();
        assert_eq!(restored.registry, present(T1, T2));
        assert_eq!(restored.write_id.as_deref(), Some(T1));
    }
}

#[test]
fn settings_are_never_recorded_without_an_id_of_the_registry() {
    let me = known(T1, T1);
    let buckets = [None, bucket(T1, Some(T1), false), bucket(T2, None, true), bucket(T2, Some("x"), false)];
    for [has_events, has_others] in [[false, false], [false, true], [true, false], [true, true]] {
        for settings in SETTINGS {
            for id in [None, Some(""), Some("nonsense"), Some(T1), Some(T2)] {
                for bucket in buckets {
                    for known in [None, Some(&me)] {
                        for at_work in [false, true] {
                            let look =
                                RecordsLook { has_events, has_others, settings, id, bucket, known, at_work };
                            let decision = look.decide();
                            if decision.write_settings {
                                assert!(id.is_some() || decision.write_id.is_some(), "{look:?}");
                            }
                            if let Some(id) = decision.write_id.as_ref().or(decision.write_bucket.as_ref()) {
                                assert!(is_registry_id(id), "{look:?}");
                            }
                            assert!(!decision.writes() || (decision.works && has_events), "{look:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_process_that_differed_leaves_a_damaged_record_to_the_others() {
    let me = known(T1, T1);
    for settings in [SettingsRecord::Missing, SettingsRecord::Damaged] {
        for id in [None, Some("nonsense"), Some(T1)] {
            let look =
                RecordsLook { settings, at_work: false, ..running(id, bucket(T1, Some(T1), false), &me) };
            let decision = look.decide();
            assert!(!decision.works && !decision.writes(), "{look:?}");
            assert_eq!(decision.registry, present(T1, T1));
        }
    }
}

/// The events stream was deleted, and perhaps the bucket: only what shows by itself that it is the registry counts, because
/// envelopes wait in the outboxes.
#[test]
fn a_process_that_starts_creates_no_registry_while_another_part_of_the_hub_exists() {
    use RegistryState::{Damaged, Missing, New, Replaced};
    let without_events = |has_others, bucket| {
        let settings = SettingsRecord::Missing;
        let decision =
            RecordsLook { has_events: false, has_others, settings, ..start(None, bucket) }.decide();
        assert!(!decision.works && !decision.writes());
        decision.registry
    };
    assert_eq!(without_events(false, None), New);
    assert_eq!(without_events(true, None), Missing);
    let others = [
        // Its own id is recorded before any other part exists.
        (bucket(T1, Some(T1), true), present(T1, T1)),
        (bucket(T1, Some(T1), false), present(T1, T1)),
        // Restored.
        (bucket(T2, Some(T1), false), present(T1, T2)),
        // Of a version that recorded nothing.
        (bucket(T1, None, false), present(T1, T1)),
        // Created again, by hand or with a copied configuration.
        (bucket(T2, None, true), Replaced),
        (bucket(T2, Some(T1), true), Replaced),
        (bucket(T2, Some("nonsense"), false), Damaged),
        (bucket(T2, Some("nonsense"), true), Damaged),
    ];
    for (bucket, expected) in others {
        assert_eq!(without_events(true, bucket), expected, "{bucket:?}");
    }
}

/// Whatever is recorded, whichever parts exist, and whatever the metadata of the bucket say.
#[test]
fn a_process_at_work_follows_another_bucket_only_if_an_operator_accepted_it() {
    let me = known(T1, T1);
    let ids = [None, Some(""), Some("nonsense"), Some(T1), Some(T2), Some(T3)];
    for [has_events, has_others] in [[false, false], [false, true], [true, false], [true, true]] {
        for settings in SETTINGS {
            for id in ids {
                for in_bucket in ids {
                    for mark in ids {
                        for is_empty in [false, true] {
                            let other = bucket(T2, in_bucket, is_empty)
                                .map(|bucket| RegistryBucket { accepted: mark, ..bucket });
                            let look =
                                RecordsLook { has_events, has_others, settings, ..running(id, other, &me) };
                            let decision = look.decide();
                            let restored = in_bucket == Some(T1) && !is_empty;
                            if decision.registry != RegistryState::Replaced && !restored {
                                let RegistryState::Present(found) = &decision.registry else {
                                    panic!("{look:?}")
                                };
                                assert_eq!(mark, Some(T2), "{look:?}");
                                assert_eq!(Some(found.id.as_str()), id, "{look:?}");
                            }
                            if decision.registry == RegistryState::Replaced {
                                assert!(decision.write_bucket.is_none(), "{look:?}");
                                assert!(decision.write_id.as_deref().is_none_or(|id| id == T1), "{look:?}");
                            }
                        }
                    }
                    let none = RecordsLook { has_events, has_others, settings, ..running(id, None, &me) };
                    assert_eq!(none.decide().registry, RegistryState::Missing);
                }
            }
        }
    }
    let by_operator = running(Some(T2), accepted(bucket(T2, Some(T2), true), T2), &me).decide();
    assert_eq!((&by_operator.registry, by_operator.writes()), (&present(T2, T2), false));
    // Recorded by a process that found neither the events stream nor the bucket.
    let by_process = running(Some(T2), bucket(T2, Some(T2), true), &me).decide();
    assert_eq!((&by_process.registry, by_process.writes()), (&RegistryState::Replaced, false));
    // A copied configuration of an accepted bucket.
    let copied = running(Some(T3), accepted(bucket(T3, Some(T3), true), T2), &me).decide();
    assert_eq!(copied.registry, RegistryState::Replaced);
}
