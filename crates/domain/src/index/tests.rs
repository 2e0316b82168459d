//! Results and costs of look-ups in the index.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::event::EventData;

fn subscription(id: &str, tenant: &str, events: &[&str], more: serde_json::Value) -> Subscription {
    let mut document = json!({
        "id": id, "tenant": tenant, "events": events, "delivery": {"url": format!("https://{id}.example/hooks")},
    });
    document.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    Subscription::from_value(document).unwrap()
}

fn entry(id: &str, tenant: &str, events: &[&str]) -> IndexEntry {
    IndexEntry::new(subscription(id, tenant, events, json!({})), 1).unwrap()
}

fn event(tenant: &str, key: &str) -> Event {
    Event {
        id: "e1".to_owned(),
        key: key.parse().unwrap(),
        source: "idp".to_owned(),
        time: "2026-01-01T00:00:00Z".to_owned(),
        tenant: tenant.to_owned(),
        subject: None,
        datacontenttype: None,
        dataschema: None,
        data: EventData::None,
        extensions: Default::default(),
        external_metadata: None,
        identity: "e1".to_owned(),
    }
}

fn found(index: &SubscriptionIndex, tenant: &str, key: &str) -> Vec<String> {
    let mut ids: Vec<String> =
        index.matching(&event(tenant, key)).iter().map(|entry| entry.subscription.id().to_owned()).collect();
    ids.sort();
    ids
}

fn named(tenant: &str, id: &str) -> SubscriptionRef {
    SubscriptionRef::of(tenant, id).unwrap()
}

#[test]
fn each_matching_subscription_of_the_tenant_is_found_once() {
    let mut index = SubscriptionIndex::new();
    index.insert(entry("a", "acme", &["user.created", "user.*", "user.>", ">"]));
    index.insert(entry("b", "acme", &["*.created"]));
    index.insert(entry("c", "acme", &["role.*"]));
    index.insert(entry("d", "other", &["user.created"]));
    assert_eq!(found(&index, "acme", "user.created"), ["a", "b"]);
    assert_eq!(found(&index, "acme", "role.created"), ["a", "b", "c"]);
    assert_eq!(found(&index, "acme", "user.created.eu"), ["a"]);
    assert_eq!(found(&index, "other", "user.created"), ["d"]);
    assert!(found(&index, "nobody", "user.created").is_empty());
}

#[test]
fn paused_subscriptions_are_kept_but_do_not_match() {
    let mut index = SubscriptionIndex::new();
    index.insert(
        IndexEntry::new(subscription("a", "acme", &["user.>"], json!({"state": "paused"})), 1).unwrap(),
    );
    assert!(found(&index, "acme", "user.created").is_empty());
    assert_eq!(index.get(&named("acme", "a")).unwrap().subscription.state, SubscriptionState::Paused);
    index.insert(entry("a", "acme", &["user.>"]));
    assert_eq!(found(&index, "acme", "user.created"), ["a"]);
    index.insert(
        IndexEntry::new(subscription("a", "acme", &["user.>"], json!({"state": "paused"})), 3).unwrap(),
    );
    assert!(found(&index, "acme", "user.created").is_empty());
    assert_eq!((index.len(), index.iter().count()), (1, 1));
}

#[test]
fn filters_decide_after_the_key() {
    let mut index = SubscriptionIndex::new();
    for (id, source) in [("a", "idp"), ("b", "crm")] {
        let filter = json!({"filter": [{"exact": {"source": source}}, {"prefix": {"type": "user."}}]});
        index.insert(IndexEntry::new(subscription(id, "acme", &[">"], filter), 1).unwrap());
    }
    assert_eq!(found(&index, "acme", "user.created"), ["a"]);
    assert!(found(&index, "acme", "role.created").is_empty());
}

#[test]
fn a_replacement_leaves_nothing_of_the_old_form() {
    let mut index = SubscriptionIndex::new();
    assert!(index.insert(entry("a", "acme", &["user.*", "role.>"])).is_none());
    let old = index.insert(entry("a", "acme", &["client.*"])).unwrap();
    assert_eq!(old.subscription.events.len(), 2);
    assert!(found(&index, "acme", "user.created").is_empty());
    assert_eq!(found(&index, "acme", "client.created"), ["a"]);
    assert!(index.remove(&named("acme", "a")).is_some());
    assert!(index.remove(&named("acme", "a")).is_none());
    assert!(index.is_empty() && index.tenants.is_empty() && index.get(&named("acme", "a")).is_none());
    assert!(index.iter().next().is_none());
}

#[test]
fn one_id_in_two_tenants_is_two_subscriptions() {
    let mut index = SubscriptionIndex::new();
    index.insert(entry("a", "acme", &["user.*"]));
    assert!(index.insert(entry("a", "globex", &["user.*"])).is_none());
    assert_eq!((index.len(), found(&index, "acme", "user.created")), (2, vec!["a".to_owned()]));
    assert!(index.remove(&named("acme", "a")).is_some());
    assert!(found(&index, "acme", "user.created").is_empty());
    assert_eq!(found(&index, "globex", "user.created"), ["a"]);
    assert!(index.get(&named("default", "a")).is_none());
}

#[test]
fn an_entry_needs_sealed_secrets() {
    let plain = json!({"delivery": {"url": "https://a.example", "auth": {"type": "bearer", "token": "t"}}});
    assert!(IndexEntry::new(subscription("a", "acme", &[">"], plain), 1).is_err());
}

#[test]
fn an_entry_gives_the_whole_subscription_back() {
    let more = json!({"filter": [{"exact": {"source": "idp"}}], "state": "paused"});
    let subscription = subscription("a", "acme", &["user.*", "role.>"], more);
    let stored = serde_json::to_value(&subscription).unwrap();
    let again = IndexEntry::new(subscription, 7).unwrap().to_subscription().unwrap();
    assert_eq!(serde_json::to_value(&again).unwrap(), stored);
}

#[test]
fn a_key_costs_what_it_matches_among_100_000_subscriptions() {
    let mut index = SubscriptionIndex::new();
    let resources = ["user", "role", "group", "client", "policy"];
    for n in 0..100_000u32 {
        let resource = resources[n as usize % resources.len()];
        let own = format!("{resource}.operation{n}");
        index.insert(entry(&format!("s{n}"), "acme", &[&own, &format!("own{n}.*")]));
    }
    for n in 0..10 {
        index.insert(entry(&format!("all{n}"), "acme", &["user.*", "*.operation5"]));
    }
    assert_eq!(index.len(), 100_010);

    // 1 of the 100,000 and the 10, with a few nodes: root, user, *, and their children.
    let (candidates, visited) = index.candidates(&event("acme", "user.operation5"));
    assert_eq!((candidates.len(), visited), (11, 6));
    let (candidates, visited) = index.candidates(&event("acme", "own77.anything"));
    assert_eq!((candidates.len(), visited), (1, 4));
    let (candidates, visited) = index.candidates(&event("acme", "nothing.at.all"));
    assert_eq!((candidates.len(), visited), (0, 2));
}

#[test]
fn the_fixed_part_of_an_entry_stays_small() {
    // 100,000 subscriptions may take 2 KB each, including their texts and their places in the trie.
    assert!(size_of::<IndexEntry>() <= 128, "{}", size_of::<IndexEntry>());
}

/// A change of the index: the subscription `id` of this tenant gets these patterns, or is removed.
#[derive(Debug, Clone)]
enum Change {
    Insert { id: u8, tenant: u8, patterns: Vec<String>, paused: bool },
    Remove { id: u8 },
}

fn change() -> impl Strategy<Value = Change> {
    let pattern = "([ab]|\\*)(\\.([ab]|\\*)){0,2}(\\.>)?";
    prop_oneof![
        3 => (0..8u8, 0..2u8, proptest::collection::vec(pattern, 1..4), proptest::bool::weighted(0.2))
            .prop_map(|(id, tenant, patterns, paused)| Change::Insert { id, tenant, patterns, paused }),
        1 => (0..8u8).prop_map(|id| Change::Remove { id }),
    ]
}

proptest! {
    #[test]
    fn the_index_finds_what_a_plain_scan_finds(
        changes in proptest::collection::vec(change(), 1..30),
        keys in proptest::collection::vec("[ab](\\.[ab]){1,3}", 1..6),
    ) {
        let mut index = SubscriptionIndex::new();
        for change in changes {
            match change {
                Change::Insert { id, tenant, patterns, paused } => {
                    let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
                    let state = json!({"state": if paused { "paused" } else { "active" }});
                    let subscription = subscription(&format!("s{id}"), &format!("t{tenant}"), &patterns, state);
                    index.insert(IndexEntry::new(subscription, 1).unwrap());
                }
                Change::Remove { id: number } => {
                    for tenant in ["t0", "t1"] {
                        let name = named(tenant, &format!("s{number}"));
                        let known = index.get(&name).is_some();
                        prop_assert_eq!(index.remove(&name).is_some(), known);
                    }
                }
            }
        }
        for key in &keys {
            for tenant in ["t0", "t1"] {
                let event = event(tenant, key);
                let scan: BTreeSet<String> = index
                    .iter()
                    .map(|entry| &entry.subscription)
                    .filter(|s| s.tenant() == tenant && s.state == SubscriptionState::Active)
                    .filter(|s| s.events.iter().any(|pattern| pattern.matches(&event.key)))
                    .map(|s| s.id().to_owned())
                    .collect();
                prop_assert_eq!(found(&index, tenant, key), Vec::from_iter(scan));
            }
        }
        let names: Vec<_> = index.iter().map(|entry| entry.subscription.reference.clone()).collect();
        prop_assert_eq!(names.len(), index.len());
        names.iter().for_each(|name| { index.remove(name); });
        prop_assert!(index.tenants.is_empty(), "no node is left behind");
    }
}
