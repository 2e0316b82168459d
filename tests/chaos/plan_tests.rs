//! The generator of plans.

use std::collections::BTreeSet;

use crate::plan::{
    ALWAYS, Actor, CLUSTER, COMMON, FAULTS, Filter, Kind, LENGTH, Plan, Roles, SINGLE, Topology, seeds,
};

#[test]
fn a_seed_always_gives_the_same_plan() {
    for seed in 0..100 {
        assert_eq!(Plan::of(seed), Plan::of(seed));
        assert_eq!(Plan::of(seed).faults.len(), FAULTS + 1 + ALWAYS.len());
    }
    let distinct: BTreeSet<String> = (0..100).map(|seed| Plan::of(seed).to_string()).collect();
    assert_eq!(distinct.len(), 100);
}

#[test]
fn any_few_consecutive_seeds_have_every_kind() {
    for first in 0..40 {
        let common: BTreeSet<Kind> = kinds(first, first + 4);
        assert!(COMMON.iter().all(|kind| common.contains(kind)), "seeds from {first}: {common:?}");
        let own = kinds(first, first + 8);
        assert!(SINGLE.iter().chain(&CLUSTER).all(|kind| own.contains(kind)), "seeds from {first}: {own:?}");
    }
}

fn kinds(from: u64, to: u64) -> BTreeSet<Kind> {
    (from..to).flat_map(|seed| Plan::of(seed).faults).map(|fault| fault.kind).collect()
}

#[test]
fn a_plan_has_only_faults_of_its_servers_and_in_time() {
    for seed in 0..200 {
        let plan = Plan::of(seed);
        let foreign = match plan.topology {
            Topology::Single => &CLUSTER[..],
            Topology::Cluster => &SINGLE[..],
        };
        assert!(plan.faults.iter().all(|fault| !foreign.contains(&fault.kind)), "{plan}");
        assert!(plan.faults.iter().all(|fault| fault.at < LENGTH), "{plan}");
        assert!(plan.faults.is_sorted_by_key(|fault| fault.at), "{plan}");
        assert!(plan.roles == Roles::Together || plan.topology == Topology::Single, "{plan}");
        let actors = [
            Actor::Processes,
            Actor::Broker,
            Actor::Network,
            Actor::Endpoints,
            Actor::Operator,
            Actor::Clocks,
        ];
        let divided: usize = actors.into_iter().map(|actor| plan.of_actor(actor).len()).sum();
        assert_eq!(divided, plan.faults.len());
        assert!(Plan::calm(seed).faults.is_empty());
    }
}

#[test]
fn kinds_have_names_and_can_be_selected() {
    let names: BTreeSet<&str> = Kind::all().map(Kind::name).collect();
    assert_eq!(names.len(), Kind::all().count());
    let only = Filter::parse("kill-hub, flap").expect("known names");
    let without = Filter::parse("-kill-hub,-flap").expect("known names");
    for seed in 0..20 {
        let all = Plan::of(seed);
        let (some, others) = (all.clone().filtered(&only), all.clone().filtered(&without));
        assert!(some.faults.iter().all(|fault| matches!(fault.kind, Kind::KillHub | Kind::Flap)));
        assert_eq!(some.faults.len() + others.faults.len(), all.faults.len());
        assert_eq!(all.clone().filtered(&Filter::default()), all);
    }
    assert!(Filter::parse("kill-everything").is_err());
}

#[test]
fn seeds_are_numbers_and_ranges() {
    assert_eq!(seeds("7"), Ok(vec![7]));
    assert_eq!(seeds("0-2,9"), Ok(vec![0, 1, 2, 9]));
    assert!(seeds("a").is_err() && seeds("").is_err());
}
