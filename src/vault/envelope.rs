//! inside
//! The sealed form of one row and what it is bound to: workspace, id, schema, revision, time and data
//! key. It must never be readable in another place than the one it was written to (docs/VAULT.md).

use std::sync::Arc;

use super::wraps::DataKeyId;
use crate::key::WorkspaceId;
use crate::time::Wall;

/// First bytes of every envelope; also the version of its layout.
pub const MAGIC: &[u8; 4] = b"CWV1";
/// First field of every context; also its version.
pub const CONTEXT: &str = "cmek-watchdog vault context 1";
pub const NONCE_LEN: usize = 12;
pub const TAG_LEN: usize = 16;

/// What a row is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Record,
    Preservation,
}

impl Kind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Preservation => "preservation",
        }
    }
}

/// Where a row belongs. All of it is bound into the envelope.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub kind: Kind,
    pub workspace: WorkspaceId,
    pub id: Arc<str>,
    pub schema: u32,
    /// 1 for the first writing, one more each time.
    pub revision: u64,
    pub written_at: Wall,
    pub data_key: DataKeyId,
}

impl Place {
    /// The authenticated context: each field with its length before it, so that no two places give
    /// the same bytes.
    #[must_use]
    pub fn context(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let numbers = [u64::from(self.schema), self.revision, self.written_at.0.cast_unsigned()];
        for text in [CONTEXT, self.kind.as_str(), self.workspace.as_str(), &self.id, self.data_key.as_str()] {
            field(&mut out, text.as_bytes());
        }
        for number in numbers {
            field(&mut out, &number.to_be_bytes());
        }
        out
    }
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// An envelope taken apart. Nothing in it is believed before it has opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Envelope<'a> {
    pub data_key: &'a str,
    pub nonce: &'a [u8; NONCE_LEN],
    /// Ciphertext and tag.
    pub sealed: &'a [u8],
}

/// Magic, length of the data key's id, the id, nonce, ciphertext, tag.
#[must_use]
pub fn join(data_key: &DataKeyId, nonce: &[u8; NONCE_LEN], sealed: &[u8]) -> Vec<u8> {
    let id = data_key.as_str().as_bytes();
    let mut out = Vec::with_capacity(MAGIC.len().saturating_add(1 + id.len()).saturating_add(NONCE_LEN).saturating_add(sealed.len()));
    out.extend_from_slice(MAGIC);
    out.push(u8::try_from(id.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(id);
    out.extend_from_slice(nonce);
    out.extend_from_slice(sealed);
    out
}

/// `None` if the bytes are no envelope of ours.
#[must_use]
pub fn split(bytes: &[u8]) -> Option<Envelope<'_>> {
    let (len, rest) = bytes.strip_prefix(MAGIC.as_slice())?.split_first()?;
    let (id, rest) = rest.split_at_checked(usize::from(*len))?;
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
    if sealed.len() < TAG_LEN {
        return None;
    }
    Some(Envelope { data_key: std::str::from_utf8(id).ok()?, nonce, sealed })
}
