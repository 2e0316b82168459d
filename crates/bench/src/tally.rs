//! What arrived: each webhook-id once, with its first arrival and how often it came.

use std::collections::HashMap;
use std::time::Instant;

/// The 128 bits of an envelope's id, `env_<32 hex digits>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct WebhookId(u128);

impl WebhookId {
    pub(crate) fn read(text: &[u8]) -> Option<Self> {
        let digits = text.strip_prefix(b"env_").filter(|digits| digits.len() == 32)?;
        let mut bits = 0u128;
        for digit in digits {
            bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
        }
        Some(Self(bits))
    }

    /// An id of the bench's own making.
    pub(crate) fn text(number: u64) -> String {
        format!("env_{number:032x}")
    }
}

/// One received delivery.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) id: Option<WebhookId>,
    /// The number at the end of the path; 0 without one.
    pub(crate) path: u32,
    /// It carried the bench's access token and a signature.
    pub(crate) with_credentials: bool,
    pub(crate) at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    first: Instant,
    path: u32,
    times: u32,
}

/// Deliveries since the last `clear`.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    seen: HashMap<WebhookId, Seen>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Requests without a readable webhook-id.
    unreadable: u64,
    with_credentials: u64,
    tokens: u64,
}

/// What of the expected ids arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Account {
    pub(crate) expected: u64,
    /// Never arrived: lost.
    pub(crate) missing: u64,
    /// Arrivals beyond the first of an id.
    pub(crate) doubles: u64,
    /// Arrivals that nobody was to expect.
    pub(crate) unexpected: u64,
    /// Arrivals behind a later one of their stream, where there is an order to keep.
    pub(crate) out_of_order: u64,
}

impl std::ops::AddAssign for Account {
    fn add_assign(&mut self, other: Self) {
        self.expected += other.expected;
        self.missing += other.missing;
        self.doubles += other.doubles;
        self.unexpected += other.unexpected;
        self.out_of_order += other.out_of_order;
    }
}

impl Tally {
    /// Counts an arrival. Returns how many distinct ids have arrived, if this one is new.
    pub(crate) fn arrived(&mut self, arrival: Arrival) -> Option<usize> {
        let Arrival { id, path, with_credentials, at: now } = arrival;
        self.with_credentials += u64::from(with_credentials);
        let Some(id) = id else {
            self.unreadable += 1;
            return None;
        };
        let seen = self.seen.entry(id).or_insert(Seen { first: now, path, times: 0 });
        seen.times += 1;
        if seen.times > 1 {
            return None;
        }
        self.first.get_or_insert(now);
        self.last = Some(now);
        Some(self.seen.len())
    }

    /// Distinct ids.
    pub(crate) fn distinct(&self) -> usize {
        self.seen.len()
    }

    /// The first arrival of all, and the last one of an id that was new.
    pub(crate) fn span(&self) -> Option<(Instant, Instant)> {
        Some((self.first?, self.last?))
    }

    pub(crate) fn first_arrival(&self, id: WebhookId) -> Option<Instant> {
        self.seen.get(&id).map(|seen| seen.first)
    }

    /// Where an id came first: the number at the end of the path.
    pub(crate) fn first_path(&self, id: WebhookId) -> Option<u32> {
        self.seen.get(&id).map(|seen| seen.path)
    }

    /// Deliveries, each time of each id counted, that carried token and signature.
    pub(crate) fn with_credentials(&self) -> u64 {
        self.with_credentials
    }

    /// Counts an access token that was given out.
    pub(crate) fn gave_token(&mut self) {
        self.tokens += 1;
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(crate) fn account(&self, expected: &[WebhookId]) -> Account {
        let arrived = expected.iter().filter(|id| self.seen.contains_key(id)).count();
        let strangers = self.seen.len() - arrived;
        Account {
            expected: expected.len() as u64,
            missing: (expected.len() - arrived) as u64,
            doubles: self.seen.values().map(|seen| u64::from(seen.times) - 1).sum(),
            unexpected: strangers as u64 + self.unreadable,
            out_of_order: 0,
        }
    }

    pub(crate) fn clear(&mut self) {
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
        let mut arrived =
            |id, path, with_credentials| tally.arrived(Arrival { id, path, with_credentials, at: now });
        assert_eq!(arrived(Some(id(1)), 7, true), Some(1));
        assert_eq!(arrived(Some(id(2)), 7, true), Some(2));
        assert_eq!(arrived(Some(id(2)), 8, true), None);
        assert_eq!(arrived(Some(id(9)), 0, false), Some(3));
        assert_eq!(arrived(None, 0, false), None);
        assert_eq!((tally.with_credentials(), tally.first_path(id(2))), (3, Some(7)));
        let account = tally.account(&[id(1), id(2), id(3)]);
        assert_eq!(account, Account { expected: 3, missing: 1, doubles: 1, unexpected: 2, out_of_order: 0 });
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
