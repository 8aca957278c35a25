//! RSA material of one key version.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey,
};

pub struct Rsa {
    private: OaepPrivateDecryptingKey,
    public: OaepPublicEncryptingKey,
    /// Modulus and exponent, big-endian without a leading zero.
    pub n: Vec<u8>,
    pub e: Vec<u8>,
}

fn algorithm(name: &str) -> Option<&'static OaepAlgorithm> {
    match name {
        "RSA-OAEP" => Some(&OAEP_SHA1_MGF1SHA1),
        "RSA-OAEP-256" => Some(&OAEP_SHA256_MGF1SHA256),
        _ => None,
    }
}

/// Making a key costs a good part of a second, so clouds of one process share them by number; within
/// one cloud no number comes twice.
static MADE: Mutex<BTreeMap<u64, Arc<Rsa>>> = Mutex::new(BTreeMap::new());

impl Rsa {
    pub fn numbered(number: u64) -> Arc<Self> {
        let made = MADE.lock().unwrap().get(&number).cloned();
        made.unwrap_or_else(|| {
            let fresh = Arc::new(Self::generate());
            Arc::clone(MADE.lock().unwrap().entry(number).or_insert(fresh))
        })
    }
    fn generate() -> Self {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let public = private.public_key();
        let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> = public.as_der().unwrap();
        let (n, e) = modulus_and_exponent(der.as_ref());
        Self { n, e, private: OaepPrivateDecryptingKey::new(private).unwrap(), public: OaepPublicEncryptingKey::new(public).unwrap() }
    }
    /// `None` if the algorithm is not one of RSA's.
    pub fn encrypt(&self, name: &str, plain: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; self.public.ciphertext_size()];
        self.public.encrypt(algorithm(name)?, plain, &mut out, None).ok().map(|bytes| bytes.to_vec())
    }
    /// `None` if the bytes do not belong to this key and algorithm.
    pub fn decrypt(&self, name: &str, wrapped: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; self.private.min_output_size()];
        self.private.decrypt(algorithm(name)?, wrapped, &mut out, None).ok().map(|bytes| bytes.to_vec())
    }
}

/// One DER element: tag, content, rest.
fn element(der: &[u8]) -> (u8, &[u8], &[u8]) {
    let (tag, first) = (der[0], usize::from(der[1]));
    let (start, length) = if first < 0x80 {
        (2, first)
    } else {
        let bytes = first & 0x7f;
        (2 + bytes, der[2..2 + bytes].iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte)))
    };
    (tag, &der[start..start + length], &der[start + length..])
}

/// From SubjectPublicKeyInfo: SEQUENCE { algorithm, BIT STRING { SEQUENCE { n, e } } }.
fn modulus_and_exponent(spki: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (_, outer, _) = element(spki);
    let (_, _, rest) = element(outer);
    let (tag, bits, _) = element(rest);
    assert_eq!(tag, 3, "a bit string");
    let (_, pair, _) = element(&bits[1..]);
    let (_, n, rest) = element(pair);
    let (_, e, _) = element(rest);
    let trimmed = |bytes: &[u8]| bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
    (trimmed(n), trimmed(e))
}
