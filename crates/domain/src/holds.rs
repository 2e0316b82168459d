//! The holds that a process knows: the subscriptions that get no deliveries for a while, because their endpoints asked for
//! a pause.
//!
//! Callers pass the time as the duration since a fixed start; it never goes back.

use std::collections::HashMap;
use std::time::Duration;

use super::subscription::Identity;

#[cfg(test)]
mod tests;

/// Most holds that are known; further ones are applied, but not shown.
const MOST: usize = 10_000;
/// A hold that ends less than this after the known one changes nothing: concurrent deliveries get similar answers.
const ALIKE: Duration = Duration::from_secs(1);
/// A hold that begins less than this after the last one ended continues it: the endpoint was tried, and asked again.
const CONTINUED: Duration = Duration::from_secs(10);

/// A hold of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// When it began, with those that it continues.
    pub since: Duration,
    pub until: Duration,
    /// The status of the answer.
    pub status: u16,
    /// The revision of the subscription that is held.
    pub revision: u64,
}

/// What an answer did to the hold of its subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldChange {
    Began,
    Prolonged,
    /// Nothing that others need to know.
    None,
}

/// A hold, and what this process has done about it.
#[derive(Debug, Clone, Copy)]
struct Known {
    hold: Hold,
    /// The broker has it, for all processes.
    stored: bool,
    /// This process reported its beginning, and reports its end.
    reported: bool,
}

#[derive(Debug, Default)]
pub struct Holds {
    known: HashMap<Identity, Known>,
}

impl Holds {
    /// An endpoint asked this process for a pause until `until`.
    pub fn asked(
        &mut self,
        subscription: &Identity,
        until: Duration,
        status: u16,
        revision: u64,
        now: Duration,
    ) -> HoldChange {
        if let Some(known) = self.known.get_mut(subscription)
            && now < known.hold.until + CONTINUED
        {
            if until <= known.hold.until + ALIKE && now < known.hold.until {
                return HoldChange::None;
            }
            known.hold = Hold { since: known.hold.since, until, status, revision };
            known.stored = false;
            return HoldChange::Prolonged;
        }
        let hold = Hold { since: now, until, status, revision };
        if self.add(subscription, Known { hold, stored: false, reported: false }, now) {
            HoldChange::Began
        } else {
            HoldChange::None
        }
    }

    /// Another process stored a hold. Returns whether that is new here.
    pub fn heard(&mut self, subscription: &Identity, heard: Hold, now: Duration) -> bool {
        if let Some(known) = self.known.get_mut(subscription) {
            known.stored |= heard.until + ALIKE >= known.hold.until;
            let longer = heard.until > known.hold.until;
            let since = known.hold.since.min(heard.since);
            if longer {
                known.hold = heard;
            }
            known.hold.since = since;
            return longer;
        }
        self.add(subscription, Known { hold: heard, stored: true, reported: false }, now)
    }

    fn add(&mut self, subscription: &Identity, known: Known, now: Duration) -> bool {
        if self.known.len() >= MOST {
            self.known.retain(|_, known| now < known.hold.until);
        }
        let fits = self.known.len() < MOST;
        if fits {
            self.known.insert(subscription.clone(), known);
        }
        fits
    }

    /// The broker has stored the hold.
    pub fn stored(&mut self, subscription: &Identity) {
        if let Some(known) = self.known.get_mut(subscription) {
            known.stored = true;
        }
    }

    /// This process reports the beginning of the hold.
    pub fn reported(&mut self, subscription: &Identity) {
        if let Some(known) = self.known.get_mut(subscription) {
            known.reported = true;
        }
    }

    /// Ends a hold. Returns whether this process reported its beginning.
    pub fn end(&mut self, subscription: &Identity) -> bool {
        self.known.remove(subscription).is_some_and(|known| known.reported)
    }

    /// Removes the holds that are over and were not continued. Returns those whose beginning this process reported.
    pub fn passed(&mut self, now: Duration) -> Vec<Identity> {
        let mut reported = Vec::new();
        self.known.retain(|subscription, known| {
            let passed = known.hold.until + CONTINUED <= now;
            if passed && known.reported {
                reported.push(subscription.clone());
            }
            !passed
        });
        reported.sort_unstable();
        reported
    }

    /// The hold of a subscription, if it is not over.
    pub fn get(&self, subscription: &Identity, now: Duration) -> Option<Hold> {
        self.known.get(subscription).map(|known| known.hold).filter(|hold| now < hold.until)
    }

    /// The holds that are not over, in no particular order.
    pub fn all(&self, now: Duration) -> impl Iterator<Item = (&Identity, Hold)> {
        let current = self.known.iter().filter(move |(_, known)| now < known.hold.until);
        current.map(|(subscription, known)| (subscription, known.hold))
    }

    /// The holds that are not over and that the broker had, in no particular order.
    pub fn all_stored(&self, now: Duration) -> impl Iterator<Item = &Identity> {
        let stored = self.known.iter().filter(move |(_, known)| known.stored && now < known.hold.until);
        stored.map(|(subscription, _)| subscription)
    }
}
