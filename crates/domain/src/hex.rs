//! Hexadecimal digits of ids, of which each envelope has several: without the machinery of formatting.

/// The 32 lower-case digits of 16 bytes.
pub(crate) struct Digits([u8; 32]);

impl Digits {
    pub(crate) fn of(bytes: [u8; 16]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; 32];
        for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
            *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        }
        Self(digits)
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("digits are ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_two_digits() {
        for first in 0..=255_u8 {
            let bytes: [u8; 16] = std::array::from_fn(|at| first.wrapping_add(at as u8 * 17));
            assert_eq!(Digits::of(bytes).as_str(), format!("{:032x}", u128::from_be_bytes(bytes)));
        }
    }
}
