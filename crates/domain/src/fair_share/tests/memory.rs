//! The memory for waiting items.

use super::*;

const MEMORY: usize = 264;
/// Memory for waiting items: all but the slots.
const FOR_WAITING: u64 = 256;

/// Eight slots, of which two are reserved, and subscriptions that are not on probation.
fn proven(subscriptions: usize) -> FairShare<Item> {
    let mut fair = FairShare::new(PoolLimits {
        slots: 8,
        queue_per_subscription: 10_000,
        queue_per_tenant: usize::MAX,
        memory: MEMORY,
    });
    prove(&mut fair, 0..subscriptions);
    fair
}

/// The same, at a pace that frees all memory within two seconds.
fn busy(subscriptions: usize) -> FairShare<Item> {
    let mut fair = proven(subscriptions);
    for number in 0..FOR_WAITING / 20 + 1 {
        offer(&mut fair, 0, number).unwrap();
        assert_eq!(fair.next(START), Some((0, number)));
        finish(&mut fair, 0, true);
    }
    fair
}

/// Offers items in turns until one is refused, at most `most` each. Returns the number of accepted ones.
fn fill(fair: &mut FairShare<Item>, subscriptions: usize, most: u64, now: Duration) -> u64 {
    let mut accepted = 0;
    for number in 0..most {
        for subscription in 0..subscriptions {
            while fair.next(now).is_some() {}
            let item = (subscription, number);
            match fair.offer(&id(subscription), 32, None, item, now) {
                Ok(()) => accepted += 1,
                Err(_) => return accepted,
            }
        }
    }
    accepted
}

#[test]
fn one_queue_takes_a_quarter_of_the_free_memory() {
    let mut fair = proven(1);
    // Its share is less than the pool.
    let accepted = fill(&mut fair, 1, 1_000, START);
    let waiting = fair.waiting() as u64;
    assert!(accepted > waiting && (40..=64).contains(&waiting), "{accepted}, {waiting}");
}

#[test]
fn queues_take_all_memory_while_endpoints_that_answer_use_the_pool() {
    let mut fair = busy(4);
    assert_eq!(fill(&mut fair, 4, 100, START), 400, "nothing is refused");
    assert_eq!(fair.in_flight(), 6);
    assert!(fair.waiting() as u64 > FOR_WAITING);
    assert!(fair.relieve(Duration::from_millis(99)).is_empty(), "they may still move");
}

#[test]
fn queues_that_do_not_move_give_their_items_back_while_memory_is_short() {
    let mut fair = busy(4);
    fill(&mut fair, 4, 100, START);
    let (slot, waiting) = (fair.waiting_of(&id(0)), fair.waiting());
    let later = Duration::from_millis(150);
    // The first one moves.
    fair.finished(&id(0), Finish::Healthy, START, later);
    assert_eq!(fair.next_wake(later), Some(Duration::ZERO));
    let given = fair.relieve(later);
    assert_eq!(
        given.iter().map(|(subscription, _)| *subscription).collect::<BTreeSet<_>>(),
        [1, 2, 3].into()
    );
    assert_eq!(fair.waiting() + given.len(), waiting);
    assert_eq!(fair.waiting_of(&id(0)), slot);
    // In order, and the first one stays.
    let of_one: Vec<u64> =
        given.iter().filter(|(subscription, _)| *subscription == 1).map(|item| item.1).collect();
    assert!(of_one.is_sorted() && of_one.last() == Some(&99));
    assert_eq!(fair.waiting_of(&id(1)), 1);
    assert!(fair.relieve(later).is_empty());
    assert_ne!(fair.next_wake(later), Some(Duration::ZERO));
}

/// What is behind them would wait for long.
#[test]
fn queues_of_slow_endpoints_do_not_take_all_memory() {
    let mut fair = proven(4);
    assert!(fill(&mut fair, 4, 100, START) < FOR_WAITING, "their pace is not known");
    let mut fair = busy(4);
    let later = Duration::from_millis(250);
    assert!(fill(&mut fair, 4, 100, later) < FOR_WAITING, "nothing has ended for a while");
}

#[test]
fn a_new_subscription_that_hangs_has_its_part_until_it_is_slow() {
    let mut fair = proven(0);
    let accepted = fill(&mut fair, 1, 1_000, START);
    assert!((40..=65).contains(&accepted), "{accepted}");
    for number in 0..10 {
        assert!(fair.offer(&id(0), 32, None, (0, number), queue::SLOW).is_err());
    }
}

#[test]
fn a_heavy_item_counts_as_many() {
    let mut fair = proven(2);
    let heavy = |fair: &mut FairShare<Item>, subscription, number| {
        fair.offer_of_weight(&id(subscription), 32, None, ((subscription, number), 16), START)
    };
    while fair.next(START).is_some() {}
    let accepted = (0..100).take_while(|number| heavy(&mut fair, 0, *number).is_ok()).count();
    assert!((2..=4).contains(&accepted), "a quarter of the free memory, {accepted} items");
    assert!(fair.in_memory as u64 <= FOR_WAITING / 4);
    // Another one finds room, and a single item is accepted whatever it weighs.
    let huge = fair.offer_of_weight(&id(1), 32, None, ((1, 0), 10_000), START);
    assert_eq!((huge, heavy(&mut fair, 1, 1).is_err()), (Ok(()), true));
    assert_eq!(fair.drain().len(), accepted + 1);
    assert_eq!(fair.in_memory, 0);
}
