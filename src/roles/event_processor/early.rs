//! An ordered event's envelopes without a strict order do not wait for earlier events: they are committed at once, and
//! the event waits with the others.
//!
//! Such an event does not return to its stream while this process runs, also if the outbox or a dead-letter stream has no
//! room for the rest: when it came again after the duplicate window, these envelopes would be stored twice. So their number
//! is bounded, and with it their part of the memory for events that wait. An event without such a place waits as a whole.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::committer::Planned;
use crate::domain::backlog::BacklogLimits;
use crate::nats::EnvelopeMessage;
use crate::nats::subjects::SubjectNames;

/// The envelopes of an event that wait for its turn in the order.
pub(super) struct Later {
    envelopes: Vec<EnvelopeMessage>,
    limits: Vec<(usize, BacklogLimits)>,
}

impl Planned {
    /// Leaves the envelopes without a strict order, and sets the others aside, if there are both. An event that was
    /// delivered before may have been committed in part, long ago.
    pub(super) fn split(&mut self, names: &SubjectNames, places: &EarlyPlaces) {
        if !self.ordered || self.message.deliveries > 1 {
            return;
        }
        let is_strict = |envelope: &EnvelopeMessage| names.is_in_strict_lane(&envelope.subject);
        if self.envelopes.iter().all(is_strict) {
            return;
        }
        let Some(place) = places.take(&self.tenant, self.room.num_permits()) else { return };
        let mut limits = std::mem::take(&mut self.limits).into_iter().peekable();
        let mut later = Later { envelopes: Vec::new(), limits: Vec::new() };
        for (at, envelope) in std::mem::take(&mut self.envelopes).into_iter().enumerate() {
            let own = limits.next_if(|(of, _)| *of == at).map(|(_, own)| own);
            let (envelopes, limits) = if is_strict(&envelope) {
                (&mut later.envelopes, &mut later.limits)
            } else {
                (&mut self.envelopes, &mut self.limits)
            };
            limits.extend(own.map(|own| (envelopes.len(), own)));
            envelopes.push(envelope);
        }
        self.later = Some(later);
        self.early = Some(place);
        self.ordered = false;
    }

    /// Whether some of its envelopes are committed, so that it must not return to its stream.
    pub(super) fn is_committed_in_part(&self) -> bool {
        self.early.is_some() && self.later.is_none()
    }

    /// The envelopes that were left are committed: those that were set aside are next. Returns false if there are none.
    pub(super) fn continues(&mut self) -> bool {
        let Some(later) = self.later.take() else { return false };
        self.envelopes = later.envelopes;
        self.limits = later.limits;
        self.ordered = true;
        true
    }
}

/// The places for events that are committed in two steps. Cheap to clone; all clones share the places.
#[derive(Clone)]
pub(super) struct EarlyPlaces {
    most: Size,
    used: Arc<Mutex<Used>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    events: usize,
    bytes: usize,
}

#[derive(Default)]
struct Used {
    all: Size,
    by_tenant: HashMap<Box<str>, Size>,
}

/// A place; dropping it frees it.
pub(super) struct EarlyPlace {
    places: EarlyPlaces,
    tenant: Box<str>,
    bytes: usize,
}

impl EarlyPlaces {
    pub(super) fn new(events: usize, bytes: usize) -> Self {
        Self { most: Size { events, bytes }, used: Arc::default() }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, unless the tenant already uses as much as is free: so some is always left for others.
    fn take(&self, tenant: &str, bytes: usize) -> Option<EarlyPlace> {
        let mut used = self.used();
        let of_tenant = used.by_tenant.get(tenant).copied().unwrap_or_default();
        let free = Size {
            events: self.most.events.saturating_sub(used.all.events),
            bytes: self.most.bytes.saturating_sub(used.all.bytes),
        };
        if of_tenant.events + 1 > free.events || of_tenant.bytes + bytes > free.bytes {
            return None;
        }
        used.all.events += 1;
        used.all.bytes += bytes;
        let of_tenant = used.by_tenant.entry(tenant.into()).or_default();
        of_tenant.events += 1;
        of_tenant.bytes += bytes;
        Some(EarlyPlace { places: self.clone(), tenant: tenant.into(), bytes })
    }
}

impl Drop for EarlyPlace {
    fn drop(&mut self) {
        let mut used = self.places.used();
        used.all.events -= 1;
        used.all.bytes -= self.bytes;
        if let Some(of_tenant) = used.by_tenant.get_mut(&self.tenant) {
            of_tenant.events -= 1;
            of_tenant.bytes -= self.bytes;
            if of_tenant.events == 0 {
                used.by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_leaves_places_to_others_and_a_dropped_place_is_free() {
        let places = EarlyPlaces::new(8, 1_000);
        let acme: Vec<_> = std::iter::from_fn(|| places.take("acme", 1)).collect();
        assert_eq!(acme.len(), 4);
        let bee: Vec<_> = std::iter::from_fn(|| places.take("bee", 1)).collect();
        assert_eq!(bee.len(), 2);
        let cat: Vec<_> = std::iter::from_fn(|| places.take("cat", 1)).collect();
        assert_eq!(cat.len(), 1);
        drop((acme, cat));
        assert!(places.take("bee", 1).is_some());
        drop(bee);
        let used = places.used();
        assert_eq!((used.all.events, used.all.bytes, used.by_tenant.len()), (0, 0, 0));
    }

    #[test]
    fn places_are_bounded_in_bytes() {
        let places = EarlyPlaces::new(1_000, 100);
        assert!(places.take("acme", 101).is_none());
        let large = places.take("acme", 40);
        assert!(large.is_some());
        assert!(places.take("acme", 40).is_none());
        let other = places.take("bee", 40);
        assert!(other.is_some());
        drop((large, other));
        assert!(places.take("acme", 100).is_some());
    }
}
