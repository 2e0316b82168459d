//! Sizes in bytes as text with a unit: `"900KB"`. For serde's `with` on optional fields.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];
/// Number of the units of ten, which come first.
const UNITS_OF_TEN: usize = 5;
/// The largest size; the server's limits are signed.
pub const MOST: u64 = 9_000_000 * 1_000_000_000_000;

/// A text that is not a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error("is not a size; write a whole number and a unit, like \"100MB\"")]
    Unreadable,
    #[error("is too large; write at most \"{}\"", text(MOST))]
    TooLarge,
}

/// The size with the largest unit of ten that loses nothing.
pub fn text(bytes: u64) -> String {
    let units = UNITS[..UNITS_OF_TEN].iter().rev();
    let fits = units.into_iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    let (name, unit) = fits.unwrap_or(&UNITS[0]);
    format!("{}{name}", bytes / unit)
}

/// The size as people write it in settings, with the unit of the shortest number that loses nothing: `2GiB`, `900KB`.
pub fn exact(bytes: u64) -> String {
    let (number, name) = shortest(bytes);
    format!("{number}{name}")
}

/// A measured size for people: as [`exact`], or with one decimal (`1.9MB`) if that number is long.
pub fn shown(bytes: u64) -> String {
    const LONG: u64 = 10_000;
    let largest = UNITS[1..UNITS_OF_TEN].iter().rev().find(|(_, unit)| bytes >= *unit);
    match largest {
        Some((name, unit)) if shortest(bytes).0 >= LONG => {
            let tenths = bytes / (unit / 10);
            format!("{}.{}{name}", tenths / 10, tenths % 10)
        }
        None | Some(_) => exact(bytes),
    }
}

fn shortest(bytes: u64) -> (u64, &'static str) {
    let fitting = UNITS.into_iter().filter(|(_, unit)| bytes.is_multiple_of(*unit));
    fitting.map(|(name, unit)| (bytes / unit, name)).min_by_key(|(number, _)| *number).unwrap_or((bytes, "B"))
}

/// The size of something that exceeds a limit, for people: exact if it would look like the limit otherwise.
pub fn beyond(bytes: u64, limit: u64) -> String {
    let text = shown(bytes);
    let is_close = bytes.saturating_sub(limit) < limit.div_ceil(10);
    if is_close && text.contains('.') { format!("{bytes}B") } else { text }
}

/// Reads a whole number with a unit.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = Some(unit.trim()).filter(|unit| !unit.is_empty()).unwrap_or("B");
    let (_, unit) =
        UNITS.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or(SizeError::Unreadable)?;
    if number.is_empty() {
        return Err(SizeError::Unreadable);
    }
    // It has only digits, so it fails only if it is too large.
    let size = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    size.filter(|size| *size <= MOST).ok_or(SizeError::TooLarge)
}

pub fn serialize<S: Serializer>(size: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match size {
        Some(bytes) => serializer.serialize_some(&text(*bytes)),
        None => serializer.serialize_none(),
    }
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = Option::<String>::deserialize(deserializer).map_err(|error| {
        D::Error::custom(format!("{error}; write a whole number and a unit, like \"100MB\""))
    })?;
    let Some(text) = text else { return Ok(None) };
    parse(&text).map(Some).map_err(|error| D::Error::custom(format!("{text:?} {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_reads_back() {
        for (text, bytes) in [("900KB", 900_000), ("1GB", 1_000_000_000), ("1234B", 1_234), ("0B", 0)] {
            assert_eq!((parse(text), super::text(bytes).as_str()), (Ok(bytes), text));
        }
        for (text, bytes) in [("2 MiB", 2 << 20), ("7", 7), ("1kb", 1_000), ("9000000TB", MOST)] {
            assert_eq!(parse(text), Ok(bytes));
            assert_eq!(parse(&super::text(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn a_size_that_is_too_large_is_not_called_unreadable() {
        for text in ["9000001TB", "99999999999GB", "18446744073709551616", &"9".repeat(400)] {
            assert_eq!(parse(text), Err(SizeError::TooLarge), "{text}");
        }
        for text in ["", "GB", "-1GB", "1.5GB", "1 bag", "1e9", "\u{661}GB"] {
            assert_eq!(parse(text), Err(SizeError::Unreadable), "{text}");
        }
        let error = format!("{:?} {}", "99999999TB", SizeError::TooLarge);
        assert_eq!(error, r#""99999999TB" is too large; write at most "9000000TB""#);
    }

    #[test]
    fn people_see_the_units_of_the_settings() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1_000, "1KB"),
            (1_024, "1KiB"),
            (1_099, "1099B"),
            (123_456, "123.4KB"),
            (512_000_000, "512MB"),
            (2 << 30, "2GiB"),
            (2_000_000_000, "2GB"),
            (1_999_999_999, "1.9GB"),
            (64 << 20, "64MiB"),
        ] {
            assert_eq!(shown(bytes), text);
        }
        assert_eq!(exact(123_456), "123456B");
        assert_eq!(beyond(900_001, 900_000), "900001B");
        assert_eq!(beyond(1_950_000, 1_940_000), "1950KB");
        assert_eq!(beyond(2_500_000, 1_000_000), "2500KB");
    }

    proptest::proptest! {
        #[test]
        fn a_size_for_people_is_never_larger_and_never_looks_like_a_limit_that_it_exceeds(
            bytes in 0..MOST, more in 1_u64..10_000,
        ) {
            let shown = shown(bytes);
            if !shown.contains('.') {
                proptest::prop_assert_eq!(parse(&shown), Ok(bytes));
            }
            proptest::prop_assert_ne!(beyond(bytes + more, bytes), shown);
        }
    }
}
