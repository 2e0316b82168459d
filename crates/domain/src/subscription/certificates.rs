//! Certificates in PEM (RFC 7468). They are stored and shown in plain text, so nothing else of the text is kept.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Limit of each PEM text, because every envelope of the subscription contains it.
pub(super) const MAX_PEM_BYTES: usize = 32 * 1024;
/// Characters per line (RFC 7468 section 2).
const LINE: usize = 64;

/// The certificate blocks of a PEM text. Every text can be read, also one that an older version stored; the rest of the
/// text is dropped at once, and `problem` says what was wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Certificates {
    pem: String,
    problem: Option<PemProblem>,
}

/// A PEM text with other content than certificates, explanatory text and white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PemProblem {
    #[error("contains a private key; write it in delivery.tls.key, and here only CERTIFICATE blocks")]
    PrivateKey,
    #[error("contains a PEM block that is not a certificate; write only CERTIFICATE blocks")]
    OtherBlock,
    #[error("contains an invalid CERTIFICATE block; write each block from its BEGIN line to its END line")]
    Malformed,
    #[error(
        "must be PEM of at most {MAX_PEM_BYTES} bytes; write the text from -----BEGIN CERTIFICATE----- to its END line"
    )]
    Size,
}

impl Certificates {
    /// The certificate blocks, in PEM.
    pub fn as_str(&self) -> &str {
        &self.pem
    }

    /// The problem of the text that was read.
    pub fn problem(&self) -> Option<PemProblem> {
        self.problem
    }

    fn read(text: &str) -> Self {
        let (mut pem, mut problem) = (String::new(), None);
        // A key counts wherever it is, also if its boundaries are damaged. The size counts least: the rest of the text
        // may have caused it.
        let mut found = |new: PemProblem| problem = problem.or(Some(new));
        if text.to_ascii_uppercase().contains("PRIVATE KEY") {
            found(PemProblem::PrivateKey);
        }
        let mut block: Option<String> = None;
        for line in text.lines().map(str::trim) {
            match (boundary(line), &mut block) {
                (None, None) => {}
                (None, Some(body)) => body.push_str(line),
                (Some(Boundary::End), open) => match open.take().map(|body| normalized(&body)) {
                    Some(Some(certificate)) => pem.push_str(&certificate),
                    Some(None) | None => found(PemProblem::Malformed),
                },
                (Some(other), open) => {
                    if open.take().is_some() {
                        found(PemProblem::Malformed);
                    }
                    match other {
                        Boundary::Begin => *open = Some(String::new()),
                        Boundary::End | Boundary::Other => found(PemProblem::OtherBlock),
                    }
                }
            }
        }
        if block.is_some() {
            found(PemProblem::Malformed);
        }
        if pem.is_empty() || text.len() > MAX_PEM_BYTES {
            found(PemProblem::Size);
        }
        Self { pem, problem }
    }
}

impl From<&str> for Certificates {
    fn from(text: &str) -> Self {
        Self::read(text)
    }
}

impl Serialize for Certificates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.pem)
    }
}

impl<'de> Deserialize<'de> for Certificates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::read(&text))
    }
}

/// An encapsulation boundary.
#[derive(Clone, Copy)]
enum Boundary {
    Begin,
    End,
    /// Of another block, or damaged.
    Other,
}

fn boundary(line: &str) -> Option<Boundary> {
    match line {
        "-----BEGIN CERTIFICATE-----" => Some(Boundary::Begin),
        "-----END CERTIFICATE-----" => Some(Boundary::End),
        _ if line.contains("-----") => Some(Boundary::Other),
        _ => None,
    }
}

/// The block of a certificate, with lines of the usual length. `None` if the text is not the base64 of a certificate.
fn normalized(base64: &str) -> Option<String> {
    let compact: String = base64.split_whitespace().collect();
    let der = STANDARD.decode(compact).ok().filter(|der| is_certificate(der))?;
    let text = STANDARD.encode(der);
    let mut block = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        block.push_str(line);
        block.push('\n');
        rest = after;
    }
    block.push_str("-----END CERTIFICATE-----\n");
    Some(block)
}

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// True for the outer form of a certificate (RFC 5280 section 4.1): a sequence of two sequences and a bit string. No form
/// of a private key has it: PKCS#1, PKCS#8 and SEC1 begin with an integer, an encrypted key ends with an octet string.
fn is_certificate(der: &[u8]) -> bool {
    let parts = || {
        let (content, after) = element(der, SEQUENCE)?;
        let (_, rest) = element(content, SEQUENCE)?;
        let (_, rest) = element(rest, SEQUENCE)?;
        let (_, rest) = element(rest, BIT_STRING)?;
        Some(after.is_empty() && rest.is_empty())
    };
    parts().unwrap_or_default()
}

/// The content of the DER element at the start, if it has this tag, and the bytes after it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7F => (usize::from(length), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length - 0x80))?;
            (bytes.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    (first == tag).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).expect("a short content").to_be_bytes();
        [&[tag, 0x82, length[0], length[1]], content].concat()
    }

    fn block(label: &str, der: &[u8]) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
    }

    /// A text with the outer form of a certificate, which holds `content`.
    pub(crate) fn certificate(content: &[u8]) -> String {
        block("CERTIFICATE", &certificate_der(content))
    }

    fn certificate_der(content: &[u8]) -> Vec<u8> {
        let parts = [der(SEQUENCE, content), der(SEQUENCE, &[]), der(BIT_STRING, &[0])].concat();
        der(SEQUENCE, &parts)
    }

    /// The outer forms of private keys, each with `HUSH` in it: PKCS#8 (also PKCS#1 and SEC1), and encrypted PKCS#8.
    fn keys() -> [Vec<u8>; 2] {
        let plain = [der(0x02, &[0]), der(SEQUENCE, &[]), der(0x04, b"HUSH")].concat();
        let encrypted = [der(SEQUENCE, &[]), der(0x04, b"HUSH")].concat();
        [der(SEQUENCE, &plain), der(SEQUENCE, &encrypted)]
    }

    #[test]
    fn blocks_are_kept_and_texts_around_them_are_dropped() {
        let one = Certificates::from(certificate(b"one").as_str());
        assert_eq!(one.problem(), None);
        assert_eq!(Certificates::from(one.as_str()), one, "the normal form reads back");
        let two = format!("subject=CN = a\n\n{}# the issuer\n{}\n", certificate(b"one"), certificate(b"two"));
        let read = Certificates::from(two.as_str());
        assert_eq!(read.problem(), None);
        assert!(!read.as_str().contains("issuer") && read.as_str().starts_with(one.as_str()));
        for same in [
            certificate(b"one").replace('\n', "\r\n"),
            certificate(b"one").replace('\n', "\n  "),
            one.as_str().trim_end().to_owned(),
        ] {
            assert_eq!(Certificates::from(same.as_str()), one, "{same:?}");
        }
        let long = Certificates::from(certificate(&[7; 1_000]).as_str());
        assert!(long.as_str().lines().all(|line| line.len() <= LINE));
    }

    /// Every place and form of a key: nothing of it is kept, and the problem is named.
    #[test]
    fn nothing_but_certificates_is_kept() {
        let cert = certificate(b"one");
        let kept = Certificates::from(cert.as_str()).as_str().to_owned();
        let labels = [
            "PRIVATE KEY",
            "RSA PRIVATE KEY",
            "EC PRIVATE KEY",
            "ENCRYPTED PRIVATE KEY",
            "OPENSSH PRIVATE KEY",
        ];
        for key in keys() {
            let hidden = STANDARD.encode(&key);
            for label in labels {
                let key = block(label, &key);
                let one_line = key.replace('\n', " ");
                let cut = key.lines().take(2).collect::<Vec<_>>().join("\n");
                for text in [
                    format!("{cert}{key}"),
                    format!("{key}{cert}"),
                    format!("{cert}{key}{cert}"),
                    format!("{cert}# {one_line}"),
                    format!("{cert}{cut}"),
                    format!("{cert}{}", key.to_lowercase()),
                    key.clone(),
                ] {
                    let read = Certificates::from(text.as_str());
                    assert_eq!(read.problem(), Some(PemProblem::PrivateKey), "{text}");
                    assert!(!read.as_str().contains(&hidden), "{text}");
                    assert!(kept.repeat(2).starts_with(read.as_str()), "{text}");
                }
                // A key in the middle of a block, and one that begins inside.
                let inside = cert.replace("\n-----END", &format!("\n{key}\n-----END"));
                assert_eq!(Certificates::from(inside.as_str()).as_str(), "");
            }
            // A key that is called a certificate.
            let disguised = format!("{cert}{}", block("CERTIFICATE", &key));
            let read = Certificates::from(disguised.as_str());
            assert_eq!((read.problem(), read.as_str()), (Some(PemProblem::Malformed), &*kept));
        }
    }

    #[test]
    fn other_and_invalid_texts_are_named() {
        let cert = certificate(b"one");
        for (text, problem) in [
            (String::new(), PemProblem::Size),
            ("no PEM".to_owned(), PemProblem::Size),
            (cert.repeat(400), PemProblem::Size),
            (format!("{cert}{}", block("X509 CRL", &[0])), PemProblem::OtherBlock),
            (format!("{cert}{}", block("DH PARAMETERS", &[0])), PemProblem::OtherBlock),
            (cert.replace("-----END", "----END"), PemProblem::Malformed),
            (cert.replace("-----BEGIN CERTIFICATE-----", ""), PemProblem::Malformed),
            (cert.replace("-----END CERTIFICATE-----", ""), PemProblem::Malformed),
            (cert.replace("\n-----END", "=\n-----END"), PemProblem::Malformed),
            (block("CERTIFICATE", &[]), PemProblem::Malformed),
            (block("CERTIFICATE", &[&certificate_der(b"one")[..], b"HUSH"].concat()), PemProblem::Malformed),
        ] {
            assert_eq!(Certificates::from(text.as_str()).problem(), Some(problem), "{text}");
        }
    }
}
