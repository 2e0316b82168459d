//! The arrivals: for each webhook-id the first arrival and the number of arrivals.

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

    /// An id of the bench itself.
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
    /// It had the access token of the bench and a signature.
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

/// The expected ids compared with the arrivals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Account {
    pub(crate) expected: u64,
    /// Never arrived: lost.
    pub(crate) missing: u64,
    /// Arrivals beyond the first of an id.
    pub(crate) doubles: u64,
    /// Arrivals that were not expected.
    pub(crate) unexpected: u64,
    /// Arrivals after a later one of their stream, if the streams are ordered.
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
    /// Counts an arrival. Returns the number of distinct ids, if this one is new.
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

    /// The number of distinct ids.
    pub(crate) fn distinct(&self) -> usize {
        self.seen.len()
    }

    /// The first arrival, and the last arrival of a new id.
    pub(crate) fn span(&self) -> Option<(Instant, Instant)> {
        Some((self.first?, self.last?))
    }

    pub(crate) fn first_arrival(&self, id: WebhookId) -> Option<Instant> {
        self.seen.get(&id).map(|seen| seen.first)
    }

    /// The number at the end of the path of the first arrival.
    pub(crate) fn first_path(&self, id: WebhookId) -> Option<u32> {
        self.seen.get(&id).map(|seen| seen.path)
    }

    /// The number of deliveries with token and signature, repetitions included.
    pub(crate) fn with_credentials(&self) -> u64 {
        self.with_credentials
    }

    /// Counts an issued access token.
    pub(crate) fn issued_token(&mut self) {
        self.tokens += 1;
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(crate) fn account(&self, expected: &[WebhookId]) -> Account {
        let arrived = expected.iter().filter(|id| self.seen.contains_key(id)).count();
        let unexpected = self.seen.len() - arrived;
        Account {
            expected: expected.len() as u64,
            missing: (expected.len() - arrived) as u64,
            doubles: self.seen.values().map(|seen| u64::from(seen.times) - 1).sum(),
            unexpected: unexpected as u64 + self.unreadable,
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
    fn an_account_has_the_missing_the_doubled_and_the_unexpected() {
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
    fn only_an_envelope_id_is_read() {
        assert_eq!(WebhookId::read(b"env_0000000000000000000000000000000a"), Some(id(10)));
        for text in ["env_a", "000000000000000000000000000000000000", "env_g000000000000000000000000000000a"]
        {
            assert_eq!(WebhookId::read(text.as_bytes()), None, "{text}");
        }
    }
}
