//! What may be replayed by the pace, and beyond it where used-up envelopes would stop it without end.

use super::ReplayRoom;

/// By which room an envelope is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    Paced,
    /// It counts as unfinished until it is delivered or has failed.
    Beyond,
}

/// The room of a subscription, or of an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    paced: ReplayRoom,
    beyond: ReplayRoom,
}

impl Allowance {
    pub const NONE: Self = Self { paced: ReplayRoom::NONE, beyond: ReplayRoom::NONE };

    /// `beyond`: the room where used-up envelopes may use up that of the pace; otherwise `None`.
    pub fn new(paced: ReplayRoom, beyond: Option<ReplayRoom>) -> Self {
        Self { paced, beyond: beyond.unwrap_or(ReplayRoom::NONE) }
    }

    /// At most this many by the pace.
    #[must_use]
    pub fn at_most(mut self, messages: u64) -> Self {
        self.paced.messages = self.paced.messages.min(messages);
        self
    }

    pub fn is_none(&self) -> bool {
        self.paced.is_none() && self.beyond.is_none()
    }

    pub fn fit(&self, size: u64) -> Option<Fit> {
        if self.paced.fits(size) { Some(Fit::Paced) } else { self.beyond.fits(size).then_some(Fit::Beyond) }
    }

    /// The same for one that is replayed beyond the pace in any case.
    pub fn fit_beyond(&self, size: u64) -> Option<Fit> {
        self.beyond.fits(size).then_some(Fit::Beyond)
    }

    /// Takes the room of one envelope.
    pub fn take(&mut self, size: u64, fit: Fit) {
        // Both are of the same place, so what one takes is not free for the other.
        let messages = (self.paced.messages, self.beyond.messages);
        self.paced.take(size);
        self.beyond.take(size);
        match fit {
            Fit::Paced => self.beyond.messages = messages.1,
            Fit::Beyond => self.paced.messages = messages.0,
        }
    }

    /// How many envelopes of this size to read for it; at least one.
    pub fn count(&self, average: u64) -> u64 {
        let count = |room: &ReplayRoom| if room.is_none() { 0 } else { room.count(average) };
        count(&self.paced).saturating_add(count(&self.beyond)).max(1)
    }
}
