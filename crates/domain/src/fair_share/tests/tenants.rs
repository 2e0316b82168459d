//! Several tenants.

use super::*;

fn of_tenant(tenant: &str, subscription: usize) -> Identity {
    let subscription = SubscriptionRef::of(tenant, &format!("s{subscription}")).unwrap();
    Identity { subscription, incarnation: Incarnation::new(1) }
}

#[test]
fn a_tenant_with_many_subscriptions_gets_no_larger_part() {
    let mut fair = empty(64, 1_000, 100_000);
    let put = |fair: &mut FairShare<(Identity, u64)>, tenant: &str, subscription: usize, number: u64| {
        let identity = of_tenant(tenant, subscription);
        fair.offer(&identity, 10_000, None, (identity.clone(), number), START).unwrap();
    };
    // Each has proved itself with a few items.
    let all = || (0..180).map(|subscription| ("acme", subscription)).chain([("globex", 0)]);
    for (tenant, subscription) in all() {
        (0..4).for_each(|number| put(&mut fair, tenant, subscription, number));
    }
    while let Some((identity, _)) = fair.next(START) {
        fair.finished(&identity, Finish::Healthy, START, START);
    }
    (0..180).for_each(|subscription| (0..10).for_each(|number| put(&mut fair, "acme", subscription, number)));
    put(&mut fair, "globex", 0, 0);
    // The tenant with the fewest items in flight is next, and a tenant cannot fill the pool.
    let mut running: Vec<(Identity, u64)> = Vec::new();
    while let Some(item) = fair.next(START) {
        running.push(item);
    }
    let of = |running: &[(Identity, u64)], tenant: &str| {
        running.iter().filter(|(identity, _)| identity.subscription.tenant() == tenant).count()
    };
    assert_eq!((of(&running, "acme"), of(&running, "globex")), (60, 1));
    assert!(running[..3].iter().any(|(identity, _)| identity.subscription.tenant() == "globex"));
    // The reserved slots are available at once.
    for number in 1..40 {
        let identity = of_tenant("globex", 0);
        fair.offer(&identity, 10_000, None, (identity.clone(), number), START).unwrap();
    }
    while let Some(item) = fair.next(START) {
        running.push(item);
    }
    assert_eq!(of(&running, "globex"), 4);
    // Each free slot goes to globex, until both have the same number.
    for _ in 0..200 {
        let at = running.iter().position(|(identity, _)| identity.subscription.tenant() == "acme").unwrap();
        let (identity, _) = running.remove(at);
        fair.finished(&identity, Finish::Healthy, START, START);
        running.extend(fair.next(START));
        if of(&running, "globex") >= 32 {
            break;
        }
        let grown: Vec<Identity> = running
            .iter()
            .filter(|(identity, _)| identity.subscription.tenant() == "globex")
            .map(|(identity, _)| identity.clone())
            .collect();
        // Its share grows with each healthy finish.
        for identity in grown {
            fair.finished(&identity, Finish::Healthy, START, START);
        }
        running.retain(|(identity, _)| identity.subscription.tenant() != "globex");
        while let Some(item) = fair.next(START) {
            running.push(item);
        }
    }
    assert_eq!(fair.tenants.waiting_of("globex"), 0, "all its items ran long before acme's");
    assert!(fair.tenants.waiting_of("acme") > 1_000);
}

#[test]
fn the_waiting_items_of_a_tenant_are_bounded_if_there_are_several() {
    let mut fair = empty(4, 100, 10);
    let put = |fair: &mut FairShare<Item>, tenant: &str, number: u64| {
        fair.offer(&of_tenant(tenant, number as usize), 1, None, (0, number), START)
    };
    // A single tenant has no limit.
    (0..20).for_each(|number| put(&mut fair, "acme", number).unwrap());
    put(&mut fair, "globex", 0).unwrap();
    assert_eq!(put(&mut fair, "acme", 20), Err((0, 20)));
    put(&mut fair, "globex", 1).unwrap();
    fair.drain();
    assert_eq!(fair.tenants.waiting_of("acme"), 0);
    put(&mut fair, "acme", 20).unwrap();
}
