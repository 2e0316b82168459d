//! The accounts of a plan: what was published, compared with what arrived. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// The longest time after a fault in which a delivery that it interrupted is repeated: the broker's wait for an
/// acknowledgement, and a reconnect.
pub(crate) const AFTERMATH: Duration = Duration::from_secs(20);

/// A published event. Times are from the start of publishing.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) id: String,
    pub(crate) key: &'static str,
    /// Its sequence in the events stream, if the stream has acknowledged it. Otherwise it may have been stored or not.
    pub(crate) sequence: Option<u64>,
}

/// A subscription with the event keys that it selects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subscriber {
    pub(crate) id: &'static str,
    pub(crate) keys: &'static [&'static str],
    /// Events of one key (and so of one domain) arrive in the order of their publication.
    pub(crate) strict: bool,
}

/// A delivery that the endpoint answered with a 2xx.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) subscription: &'static str,
    pub(crate) event: String,
    pub(crate) webhook_id: String,
    pub(crate) at: Duration,
}

/// A dead letter, or an event that was rejected (for all of its subscriptions).
#[derive(Debug, Clone)]
pub(crate) struct SetAside {
    pub(crate) subscription: Option<String>,
    pub(crate) event: String,
    pub(crate) reason: String,
}

/// A fault that was injected.
#[derive(Debug, Clone)]
pub(crate) struct Disturbance {
    pub(crate) what: String,
    pub(crate) from: Duration,
    pub(crate) until: Duration,
    /// It may repeat a delivery.
    pub(crate) repeats: bool,
}

/// A delivery after the first of its pair.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Double {
    pub(crate) event: String,
    pub(crate) subscription: &'static str,
    pub(crate) first: Duration,
    pub(crate) again: Duration,
    /// The faults near it.
    pub(crate) because: Vec<String>,
}

/// The result of each pair of an acknowledged event and a subscription.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) pairs: usize,
    pub(crate) delivered: usize,
    /// Not delivered, but a dead letter or rejected, with the number for each reason.
    pub(crate) set_aside: BTreeMap<String, usize>,
    /// Events without an acknowledgement.
    pub(crate) unacknowledged: usize,
    pub(crate) lost: Vec<String>,
    pub(crate) doubles: Vec<Double>,
    /// Arrivals that cannot be: of an event that was not published, for another subscription, or of one pair with two ids.
    pub(crate) wrong: Vec<String>,
    /// First arrivals at a strict subscription after the first arrival of a later event.
    pub(crate) out_of_order: Vec<String>,
}

impl Accounts {
    pub(crate) fn of(
        published: &[Published],
        subscribers: &[Subscriber],
        arrivals: &[Arrival],
        set_aside: &[SetAside],
        disturbances: &[Disturbance],
    ) -> Self {
        let mut accounts = Self::default();
        let keys: BTreeMap<&str, &str> = published.iter().map(|one| (&*one.id, one.key)).collect();
        let mut arrived = BTreeMap::<(&str, &str), Vec<&Arrival>>::new();
        for arrival in arrivals {
            let key = keys.get(&*arrival.event);
            let subscriber = subscribers.iter().find(|one| one.id == arrival.subscription);
            match (key, subscriber) {
                (Some(key), Some(one)) if one.keys.contains(key) => {
                    arrived.entry((&arrival.event, one.id)).or_default().push(arrival);
                }
                _ => accounts.wrong.push(format!("{} got {}", arrival.subscription, arrival.event)),
            }
        }
        for ((event, subscription), all) in &mut arrived {
            all.sort_by_key(|arrival| arrival.at);
            let ids: BTreeSet<&str> = all.iter().map(|arrival| &*arrival.webhook_id).collect();
            if ids.len() > 1 {
                accounts.wrong.push(format!("{subscription} got {event} under {ids:?}"));
            }
            let first = all[0].at;
            accounts.doubles.extend(all[1..].iter().map(|again| Double {
                event: (*event).to_owned(),
                subscription: again.subscription,
                first,
                again: again.at,
                because: near(disturbances, first, again.at),
            }));
        }
        for subscriber in subscribers.iter().filter(|one| one.strict) {
            for key in subscriber.keys {
                let events = published.iter().filter(|event| event.key == *key);
                let firsts = events.filter_map(|event| {
                    let first = arrived.get(&(&*event.id, subscriber.id))?.first()?;
                    Some((first.at, event.sequence?, &*event.id))
                });
                accounts.out_of_order.extend(late(firsts.collect(), subscriber.id));
            }
        }
        for event in published {
            if event.sequence.is_none() {
                accounts.unacknowledged += 1;
                continue;
            }
            for subscriber in subscribers.iter().filter(|one| one.keys.contains(&event.key)) {
                accounts.pairs += 1;
                let aside = || {
                    set_aside.iter().find(|one| {
                        one.event == event.id
                            && one.subscription.as_deref().is_none_or(|id| id == subscriber.id)
                    })
                };
                if arrived.contains_key(&(&*event.id, subscriber.id)) {
                    accounts.delivered += 1;
                } else if let Some(one) = aside() {
                    *accounts.set_aside.entry(one.reason.clone()).or_default() += 1;
                } else {
                    accounts.lost.push(format!("{} for {}", event.id, subscriber.id));
                }
            }
        }
        accounts
    }

    /// Doubles without a fault near them.
    pub(crate) fn unexplained(&self) -> Vec<&Double> {
        self.doubles.iter().filter(|double| double.because.is_empty()).collect()
    }

    /// What must not be, in words; empty if all is well.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut report = |what: &str, some: Vec<String>| {
            if !some.is_empty() {
                problems.push(format!("{} {what}, such as {:?}", some.len(), &some[..some.len().min(5)]));
            }
        };
        report("pairs are lost", self.lost.clone());
        report("arrivals are wrong", self.wrong.clone());
        report("arrivals are out of order", self.out_of_order.clone());
        let unexplained = self.unexplained().into_iter().map(|double| format!("{double:?}")).collect();
        report("doubles have no fault near them", unexplained);
        problems
    }
}

impl fmt::Display for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pairs, delivered, set_aside, unacknowledged, lost, doubles, .. } = self;
        write!(
            f,
            "{pairs} pairs: {delivered} delivered, {} set aside {set_aside:?}, {} lost; {} doubled",
            set_aside.values().sum::<usize>(),
            lost.len(),
            doubles.len()
        )?;
        let mut causes = BTreeMap::<&str, usize>::new();
        for cause in doubles.iter().flat_map(|double| &double.because) {
            *causes.entry(cause).or_default() += 1;
        }
        if !causes.is_empty() {
            write!(f, " (near {causes:?})")?;
        }
        write!(f, "; {unacknowledged} events without an acknowledgement")
    }
}

/// The faults that may have interrupted a delivery between its first arrival and a later one, or shortly before: a delivery
/// that a fault delayed may arrive after it, and twice.
fn near(disturbances: &[Disturbance], first: Duration, again: Duration) -> Vec<String> {
    let near =
        disturbances.iter().filter(|one| one.repeats && one.from <= again && first <= one.until + AFTERMATH);
    near.map(|one| one.what.clone()).collect()
}

/// The arrivals after one with a higher sequence.
fn late(mut firsts: Vec<(Duration, u64, &str)>, subscription: &str) -> Vec<String> {
    firsts.sort_unstable();
    let (mut highest, mut late) = (0, Vec::new());
    for (_, sequence, event) in firsts {
        if sequence < highest {
            late.push(format!("{subscription} got {event} ({sequence}) after {highest}"));
        }
        highest = highest.max(sequence);
    }
    late
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBSCRIBERS: [Subscriber; 2] = [
        Subscriber { id: "all", keys: &["user.created", "policy.updated"], strict: false },
        Subscriber { id: "users", keys: &["user.created"], strict: true },
    ];

    fn secs(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    fn published(id: &str, key: &'static str) -> Published {
        Published { id: id.to_owned(), key, sequence: Some(1) }
    }

    fn arrival(subscription: &'static str, event: &str, at: u64) -> Arrival {
        let webhook_id = format!("env_{subscription}_{event}");
        Arrival { subscription, event: event.to_owned(), webhook_id, at: secs(at) }
    }

    fn crash(from: u64, until: u64, repeats: bool) -> Disturbance {
        Disturbance { what: "crash".to_owned(), from: secs(from), until: secs(until), repeats }
    }

    #[test]
    fn a_pair_is_delivered_set_aside_or_lost() {
        let events = [published("u", "user.created"), published("p", "policy.updated")];
        let arrivals = [arrival("all", "u", 1)];
        let account = |aside: &[SetAside]| Accounts::of(&events, &SUBSCRIBERS, &arrivals, aside, &[]);
        let nothing = account(&[]);
        assert_eq!((nothing.pairs, nothing.delivered), (3, 1));
        assert_eq!(nothing.lost, ["u for users", "p for all"]);
        assert_eq!(nothing.problems().len(), 1);
        let letter = |subscription: Option<&str>, event: &str| SetAside {
            subscription: subscription.map(str::to_owned),
            event: event.to_owned(),
            reason: "exhausted".to_owned(),
        };
        // A letter of another subscription accounts for nothing; a rejected event for all of its pairs.
        assert_eq!(account(&[letter(Some("all"), "u")]).lost.len(), 2);
        let all = account(&[letter(Some("users"), "u"), letter(None, "p")]);
        assert!(all.problems().is_empty(), "{all}");
        assert_eq!(all.set_aside["exhausted"], 2);
    }

    #[test]
    fn an_event_without_an_acknowledgement_may_arrive_or_not() {
        let event = Published { sequence: None, ..published("u", "user.created") };
        for arrivals in [&[][..], &[arrival("all", "u", 1)]] {
            let account = Accounts::of(std::slice::from_ref(&event), &SUBSCRIBERS, arrivals, &[], &[]);
            assert!(account.problems().is_empty(), "{account}");
            assert_eq!((account.pairs, account.unacknowledged), (0, 1));
        }
    }

    #[test]
    fn a_double_needs_a_fault_that_repeats_near_it() {
        let events = [published("p", "policy.updated")];
        let arrivals = [arrival("all", "p", 40), arrival("all", "p", 30)];
        let with = |faults: &[Disturbance]| Accounts::of(&events, &SUBSCRIBERS, &arrivals, &[], faults);
        let explained = [crash(35, 36, true), crash(5, 31, true), crash(0, 11, true), crash(39, 50, true)];
        for fault in explained {
            let account = with(std::slice::from_ref(&fault));
            assert!(account.problems().is_empty() && account.doubles.len() == 1, "{fault:?}: {account}");
        }
        for fault in [crash(35, 36, false), crash(0, 9, true), crash(41, 50, true)] {
            let account = with(std::slice::from_ref(&fault));
            assert_eq!(account.unexplained().len(), 1, "{fault:?}");
            assert_eq!(account.problems().len(), 1);
        }
        assert_eq!((with(&[]).doubles[0].first, with(&[]).doubles[0].again), (secs(30), secs(40)));
    }

    #[test]
    fn what_was_not_published_or_not_selected_is_wrong() {
        let events = [published("p", "policy.updated")];
        let mut renamed = arrival("all", "p", 2);
        renamed.webhook_id = "env_other".to_owned();
        let arrivals =
            [arrival("all", "p", 1), renamed, arrival("users", "p", 1), arrival("all", "unknown", 1)];
        let account = Accounts::of(&events, &SUBSCRIBERS, &arrivals, &[], &[crash(1, 1, true)]);
        assert_eq!(account.wrong.len(), 3, "{:?}", account.wrong);
        assert_eq!(account.problems().len(), 1);
    }

    #[test]
    fn a_strict_subscription_gets_each_key_in_order() {
        let at = |id: &str, sequence| Published { sequence: Some(sequence), ..published(id, "user.created") };
        let events = [
            at("a", 1),
            at("b", 2),
            at("c", 3),
            Published { sequence: None, ..published("d", "user.created") },
        ];
        let account = |users: &[(&str, u64)]| {
            // Another subscription gets them in any order.
            let others = [("c", 1), ("a", 2), ("b", 3)].map(|(event, second)| arrival("all", event, second));
            let users = users.iter().map(|(event, second)| arrival("users", event, *second));
            let arrivals: Vec<Arrival> = users.chain(others).collect();
            Accounts::of(&events, &SUBSCRIBERS, &arrivals, &[], &[crash(0, 100, true)])
        };
        // A repetition of an earlier one, and an event of unknown order, are in order.
        let fine = account(&[("a", 1), ("b", 2), ("d", 3), ("a", 4), ("c", 5)]);
        assert!(fine.problems().is_empty(), "{:?}", fine.problems());
        let late = account(&[("a", 1), ("c", 2), ("b", 3)]);
        assert_eq!(late.out_of_order, ["users got b (2) after 3"]);
        assert_eq!(late.problems().len(), 1);
    }
}
