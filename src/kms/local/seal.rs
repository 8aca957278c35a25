//! outside
//! The wrapped form: header (magic, key uid, version), nonce, AES-256-GCM of the bytes. Header and
//! context are bound in as additional data. It knows no states and never keeps a plaintext.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::rows::Material;

/// Also the version of this layout.
const MAGIC: &[u8; 4] = b"CWL1";
const UID_LEN: usize = 16;
const HEADER_LEN: usize = MAGIC.len() + UID_LEN + 4;

/// What a wrapped form says about itself. It is proven only once `open` has succeeded.
pub(super) struct Header {
    pub uid: [u8; UID_LEN],
    pub version: u32,
}

pub(super) fn header(bytes: &[u8]) -> Option<Header> {
    let (uid, rest) = bytes.strip_prefix(MAGIC.as_slice())?.split_first_chunk::<UID_LEN>()?;
    let (version, _) = rest.split_first_chunk::<4>()?;
    Some(Header { uid: *uid, version: u32::from_be_bytes(*version) })
}

/// `None` only if the system gives no random bytes or the bytes are longer than GCM allows.
pub(super) fn seal(material: &Material, uid: &[u8; UID_LEN], version: u32, context: &str, plain: &[u8]) -> Option<Vec<u8>> {
    let mut head = Vec::with_capacity(HEADER_LEN);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(uid);
    head.extend_from_slice(&version.to_be_bytes());
    let mut nonce = [0_u8; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut nonce).ok()?;
    let mut sealed = Zeroizing::new(plain.to_vec());
    let tag = key(material)?
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound(&head, context)), sealed.as_mut_slice())
        .ok()?;
    let mut out = head;
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&sealed);
    out.extend_from_slice(tag.as_ref());
    Some(out)
}

/// `None` if anything was altered: header, nonce, bytes, tag, context, or the material is another.
pub(super) fn open(material: &Material, bytes: &[u8], context: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (head, rest) = bytes.split_at_checked(HEADER_LEN)?;
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
    let mut buffer = Zeroizing::new(sealed.to_vec());
    let opened = key(material)?.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(bound(head, context)), buffer.as_mut_slice());
    let length = opened.ok()?.len();
    buffer.truncate(length);
    Some(buffer)
}

fn key(material: &Material) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, material.bytes()).ok().map(LessSafeKey::new)
}

/// The header has a fixed length, so header and context cannot be shifted into each other.
fn bound(head: &[u8], context: &str) -> Vec<u8> {
    [head, context.as_bytes()].concat()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}
