//! The time of an event.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// True for an RFC 3339 timestamp: a calendar date in the years 0000 to 9999, `T` (or `t`, or a space, section 5.6), a
/// time up to 23:59:59 with any fraction, and `Z`, `z` or an offset up to ±23:59. The second 60 is valid as a leap
/// second: the last second of a month in UTC.
///
/// The outbox's databases check the same (`crates/outbox/src/*/0002_*.sql`).
pub(crate) fn is_timestamp(text: &str) -> bool {
    // The parser accepts any byte between date and time.
    matches!(text.as_bytes().get(10), Some(b'T' | b't' | b' '))
        && OffsetDateTime::parse(text, &Rfc3339).is_ok()
}

#[cfg(test)]
mod tests {
    use super::is_timestamp;

    #[test]
    fn only_rfc_3339_is_a_timestamp() {
        for good in [
            "2026-01-31T12:00:00Z",
            "2026-01-31t12:00:00z",
            "2026-01-31 12:00:00Z",
            "2024-02-29T00:00:00.123456789012+23:59",
            "0000-01-01T00:00:00-00:00",
            "2026-06-30T23:59:60Z",
            "2026-07-01T01:59:60+02:00",
        ] {
            assert!(is_timestamp(good), "{good}");
        }
        for bad in [
            "",
            "2026-01-31",
            "2026-01-31x12:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:00:60Z",
            "2026-02-29T12:00:00Z",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00:00 Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00+24:00",
            "2026-01-31T12:00:00+0100",
            "10000-01-01T00:00:00Z",
            "2026-W05-6T12:00:00Z",
        ] {
            assert!(!is_timestamp(bad), "{bad}");
        }
    }
}
