//! outside
//! Bytes as the store writes them: hex, and fields framed so that no two different rows ever give
//! the same bytes. Knows no table and holds no secret.

use aws_lc_rs::digest;
use std::fmt::Write as _;

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// `None` for anything but an even count of hex digits.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at.checked_add(2)?)?, 16).ok()).collect()
}

pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Fields one after the other, each with its length; an absent field differs from an empty one.
pub(super) struct Framed(Vec<u8>);

impl Framed {
    /// `domain` keeps the bytes of one purpose from ever passing for another's.
    pub(super) fn new(domain: &str) -> Self {
        Self(Vec::with_capacity(256)).field(Some(domain.as_bytes()))
    }
    pub(super) fn field(mut self, bytes: Option<&[u8]>) -> Self {
        match bytes {
            None => self.0.push(0),
            Some(bytes) => {
                self.0.push(1);
                self.0.extend_from_slice(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
                self.0.extend_from_slice(bytes);
            }
        }
        self
    }
    pub(super) fn text(self, text: Option<&str>) -> Self {
        self.field(text.map(str::as_bytes))
    }
    pub(super) fn number(self, number: u64) -> Self {
        self.field(Some(&number.to_be_bytes()))
    }
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_reads_back_and_refuses_what_is_not_hex() {
        assert_eq!(unhex(&hex(&[0, 15, 255])), Some(vec![0, 15, 255]));
        for bad in ["0", "0g", "é0"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }

    #[test]
    fn moving_a_byte_between_fields_changes_the_frame() {
        let frame = |a: Option<&str>, b: Option<&str>| Framed::new("t").text(a).text(b).bytes().to_vec();
        assert_ne!(frame(Some("ab"), Some("c")), frame(Some("a"), Some("bc")));
        assert_ne!(frame(None, Some("")), frame(Some(""), None));
    }
}
