//! Turns of tenants: of those with a runnable subscription, the one with the fewest items in flight comes next.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{QueuePlace, Turn};

/// The waiting subscriptions with room in their share, by what they may take of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    /// Not on probation, with nothing in flight.
    First,
    /// Not on probation, with items in flight.
    Further,
    /// New, with nothing in flight.
    Newcomer,
    /// On probation, with nothing in flight.
    Probe,
    /// On probation, with items in flight.
    Probation,
}

/// Number of rings.
const RINGS: usize = 5;

impl Ring {
    /// In the order of preference within each group.
    pub(super) const STEADY: [Self; 2] = [Self::First, Self::Further];
    pub(super) const ON_PROBATION: [Self; 3] = [Self::Newcomer, Self::Probe, Self::Probation];
}

/// The place of a tenant in the slab.
pub(super) type TenantPlace = usize;

/// Tenants with subscriptions in the pool, and their runnable subscriptions.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    places: HashMap<Box<str>, TenantPlace>,
    tenants: Vec<Option<TenantShare>>,
    free: Vec<TenantPlace>,
    /// Tenants with a subscription in that ring, by number of items in flight, then by turn.
    order: [BTreeSet<(usize, Turn, TenantPlace)>; RINGS],
    turns: Turn,
    /// The first tenant.
    first: Option<Box<str>>,
    several: bool,
}

#[derive(Debug)]
struct TenantShare {
    name: Box<str>,
    subscriptions: usize,
    /// Its items in slots.
    in_flight: usize,
    /// Its items in flight that have left their slots.
    parked: usize,
    waiting: usize,
    turn: Turn,
    /// Its runnable subscriptions by turn, for each ring.
    rings: [BTreeMap<Turn, QueuePlace>; RINGS],
}

impl Tenants {
    /// True if there ever was more than one tenant.
    pub(super) fn several(&self) -> bool {
        self.several
    }

    /// Adds a subscription of a tenant.
    pub(super) fn enter(&mut self, name: &str) -> TenantPlace {
        if let Some(&place) = self.places.get(name) {
            self.get(place).subscriptions += 1;
            return place;
        }
        self.several |= self.first.get_or_insert_with(|| name.into()).as_ref() != name;
        self.turns += 1;
        let tenant = TenantShare {
            name: name.into(),
            subscriptions: 1,
            in_flight: 0,
            parked: 0,
            waiting: 0,
            turn: self.turns,
            rings: Default::default(),
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.tenants[place] = Some(tenant);
                place
            }
            None => {
                self.tenants.push(Some(tenant));
                self.tenants.len() - 1
            }
        };
        self.places.insert(name.into(), place);
        place
    }

    /// Removes a subscription, which has no waiting items and none in flight.
    pub(super) fn leave(&mut self, place: TenantPlace) {
        let tenant = self.get(place);
        tenant.subscriptions -= 1;
        if tenant.subscriptions == 0
            && let Some(tenant) = self.tenants[place].take()
        {
            self.places.remove(&tenant.name);
            self.free.push(place);
        }
    }

    pub(super) fn waiting(&mut self, place: TenantPlace) -> &mut usize {
        &mut self.get(place).waiting
    }

    /// Number of waiting items of a tenant; 0 for an unknown tenant.
    pub(super) fn waiting_of(&self, name: &str) -> usize {
        let tenant = self.places.get(name).and_then(|place| self.tenants[*place].as_ref());
        tenant.map_or(0, |tenant| tenant.waiting)
    }

    pub(super) fn insert(&mut self, place: TenantPlace, ring: Ring, turn: Turn, subscription: QueuePlace) {
        self.change(place, |tenant| {
            tenant.rings[ring as usize].insert(turn, subscription);
        });
    }

    pub(super) fn remove(&mut self, place: TenantPlace, ring: Ring, turn: Turn) {
        self.change(place, |tenant| {
            tenant.rings[ring as usize].remove(&turn);
        });
    }

    pub(super) fn started(&mut self, place: TenantPlace) {
        self.change(place, |tenant| tenant.in_flight += 1);
    }

    pub(super) fn finished(&mut self, place: TenantPlace) {
        self.change(place, |tenant| tenant.in_flight -= 1);
    }

    /// Its items leave their slots.
    pub(super) fn parked(&mut self, place: TenantPlace, items: usize) {
        self.change(place, |tenant| {
            tenant.in_flight -= items;
            tenant.parked += items;
        });
    }

    pub(super) fn finished_parked(&mut self, place: TenantPlace) {
        self.get(place).parked -= 1;
    }

    pub(super) fn parked_of(&mut self, place: TenantPlace) -> usize {
        self.get(place).parked
    }

    /// Fewest items in slots of a tenant with a subscription in that ring; `None` if there is none.
    pub(super) fn least(&self, ring: Ring) -> Option<usize> {
        self.order[ring as usize].first().map(|(in_flight, ..)| *in_flight)
    }

    /// Takes the next subscription out of a ring.
    pub(super) fn pop(&mut self, ring: Ring) -> Option<QueuePlace> {
        let &(_, _, place) = self.order[ring as usize].first()?;
        self.turns += 1;
        let turn = self.turns;
        let mut popped = None;
        self.change(place, |tenant| {
            popped = tenant.rings[ring as usize].pop_first();
            tenant.turn = turn;
        });
        popped.map(|(_, subscription)| subscription)
    }

    /// Empties the rings.
    pub(super) fn clear(&mut self) {
        self.order = Default::default();
        for tenant in self.tenants.iter_mut().flatten() {
            tenant.rings = Default::default();
            tenant.waiting = 0;
        }
    }

    /// The subscription at a turn.
    #[cfg(test)]
    pub(super) fn at(&self, place: TenantPlace, ring: Ring, turn: Turn) -> Option<QueuePlace> {
        self.tenants[place].as_ref()?.rings[ring as usize].get(&turn).copied()
    }

    /// Subscriptions in a ring, of all tenants.
    #[cfg(test)]
    pub(super) fn in_ring(&self, ring: Ring) -> usize {
        self.tenants.iter().flatten().map(|tenant| tenant.rings[ring as usize].len()).sum()
    }

    fn get(&mut self, place: TenantPlace) -> &mut TenantShare {
        self.tenants[place].as_mut().expect("the tenant of a subscription exists")
    }

    /// Changes a tenant, and updates its position in the order.
    fn change(&mut self, place: TenantPlace, change: impl FnOnce(&mut TenantShare)) {
        let tenant = self.tenants[place].as_mut().expect("the tenant of a subscription exists");
        let before = (tenant.in_flight, tenant.turn, place);
        let listed_before: [bool; RINGS] = std::array::from_fn(|ring| !tenant.rings[ring].is_empty());
        change(tenant);
        let now = (tenant.in_flight, tenant.turn, place);
        for (ring, was_listed) in listed_before.into_iter().enumerate() {
            let is_listed = !tenant.rings[ring].is_empty();
            if was_listed && (!is_listed || before != now) {
                self.order[ring].remove(&before);
            }
            if is_listed && (!was_listed || before != now) {
                self.order[ring].insert(now);
            }
        }
    }
}
