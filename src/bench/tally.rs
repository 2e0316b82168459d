//! What arrived: each webhook-id once, with its first arrival and how often it came.

use std::collections::HashMap;
use std::time::Instant;

/// The 128 bits of an envelope's id, `env_<32 hex digits>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WebhookId(u128);

impl WebhookId {
    pub fn read(text: &[u8]) -> Option<Self> {
        let digits = text.strip_prefix(b"env_").filter(|digits| digits.len() == 32)?;
        let mut bits = 0u128;
        for digit in digits {
            bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
        }
        Some(Self(bits))
    }

    /// An id of the bench's own making.
    pub fn text(number: u64) -> String {
        format!("env_{number:032x}")
    }
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    first: Instant,
    times: u32,
}

/// Deliveries since the last `clear`.
#[derive(Debug, Default)]
pub struct Tally {
    seen: HashMap<WebhookId, Seen>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Requests without a readable webhook-id.
    unreadable: u64,
}

/// What of the expected ids arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Account {
    pub expected: u64,
    /// Never arrived: lost.
    pub missing: u64,
    /// Arrivals beyond the first of an id.
    pub doubles: u64,
    /// Arrivals that nobody was to expect.
    pub unexpected: u64,
}

impl Tally {
    /// Counts an arrival. Returns how many distinct ids have arrived, if this one is new.
    pub fn arrived(&mut self, id: Option<WebhookId>, now: Instant) -> Option<usize> {
        let Some(id) = id else {
            self.unreadable += 1;
            return None;
        };
        let seen = self.seen.entry(id).or_insert(Seen { first: now, times: 0 });
        seen.times += 1;
        if seen.times > 1 {
            return None;
        }
        self.first.get_or_insert(now);
        self.last = Some(now);
        Some(self.seen.len())
    }

    /// Distinct ids.
    pub fn distinct(&self) -> usize {
        self.seen.len()
    }

    /// The first arrival of all, and the last one of an id that was new.
    pub fn span(&self) -> Option<(Instant, Instant)> {
        Some((self.first?, self.last?))
    }

    pub fn first_arrival(&self, id: WebhookId) -> Option<Instant> {
        self.seen.get(&id).map(|seen| seen.first)
    }

    pub fn account(&self, expected: &[WebhookId]) -> Account {
        let arrived = expected.iter().filter(|id| self.seen.contains_key(id)).count();
        let strangers = self.seen.len() - arrived;
        Account {
            expected: expected.len() as u64,
            missing: (expected.len() - arrived) as u64,
            doubles: self.seen.values().map(|seen| u64::from(seen.times) - 1).sum(),
            unexpected: strangers as u64 + self.unreadable,
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> WebhookId {
        WebhookId::read(WebhookId::text(number).as_bytes()).unwrap()
    }

    #[test]
    fn an_account_tells_the_missing_the_doubled_and_the_unexpected() {
        let (mut tally, now) = (Tally::default(), Instant::now());
        assert_eq!(tally.arrived(Some(id(1)), now), Some(1));
        assert_eq!(tally.arrived(Some(id(2)), now), Some(2));
        assert_eq!(tally.arrived(Some(id(2)), now), None);
        assert_eq!(tally.arrived(Some(id(9)), now), Some(3));
        assert_eq!(tally.arrived(None, now), None);
        let account = tally.account(&[id(1), id(2), id(3)]);
        assert_eq!(account, Account { expected: 3, missing: 1, doubles: 1, unexpected: 2 });
    }

    #[test]
    fn only_an_envelopes_id_is_read() {
        assert_eq!(WebhookId::read(b"env_0000000000000000000000000000000a"), Some(id(10)));
        for text in ["env_a", "000000000000000000000000000000000000", "env_g000000000000000000000000000000a"]
        {
            assert_eq!(WebhookId::read(text.as_bytes()), None, "{text}");
        }
    }
}
