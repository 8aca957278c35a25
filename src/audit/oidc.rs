//! outside
//! Signed tokens of pushing services: checked against the issuer's published keys, audience, issuer
//! and the one sender that is expected. Keys are fetched from the configured address only, and kept.

use std::collections::BTreeMap;
use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};

use crate::clock;
use crate::time::{Mono, Span};

/// Keys are fetched anew after so long, or for a key id that is not known.
const FRESH: Span = Span::from_hours(1);
/// But not more often than this: a stranger's token must not make us fetch.
const RESPITE: Span = Span::from_secs(30);
const MOST_BYTES: usize = 256 * 1024;

/// Why a token is not accepted. The text never repeats the token.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TokenFault {
    #[error("not a signed token")]
    Form,
    #[error("its algorithm is not RS256 or ES256")]
    Algorithm,
    #[error("its key is not among the issuer's")]
    UnknownKey,
    #[error("the issuer's keys cannot be fetched: {0}")]
    Keys(String),
    #[error("it is refused: {0}")]
    Refused(String),
    #[error("it speaks for another sender")]
    Sender,
}

/// What a token has to say.
#[derive(Clone, Copy, Debug)]
pub struct Claimed<'a> {
    pub audience: &'a str,
    pub issuer: &'a str,
    /// E-mail of the service account, or id of the application.
    pub subject: &'a str,
}

#[derive(serde::Deserialize)]
struct Claims {
    email: Option<String>,
    email_verified: Option<bool>,
    azp: Option<String>,
    appid: Option<String>,
    sub: Option<String>,
}

impl Claims {
    fn speaks_for(&self, subject: &str) -> bool {
        let by_mail = self.email.as_deref() == Some(subject) && self.email_verified == Some(true);
        by_mail || [&self.azp, &self.appid, &self.sub].into_iter().any(|claim| claim.as_deref() == Some(subject))
    }
}

/// Published keys by their address.
#[derive(Default)]
pub struct Keys(tokio::sync::Mutex<BTreeMap<String, (Mono, JwkSet)>>);

impl Keys {
    /// Checks one token.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub async fn check(&self, token: &str, address: &str, claimed: &Claimed<'_>) -> Result<(), TokenFault> {
        let header = decode_header(token).map_err(|_| TokenFault::Form)?;
        if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256) {
            return Err(TokenFault::Algorithm);
        }
        let id = header.kid.ok_or(TokenFault::UnknownKey)?;
        let key = self.key(address, &id).await?;
        let mut wanted = Validation::new(header.alg);
        wanted.set_audience(&[claimed.audience]);
        wanted.set_issuer(&[claimed.issuer]);
        wanted.set_required_spec_claims(&["exp", "aud", "iss"]);
        let told = decode::<Claims>(token, &key, &wanted).map_err(|error| TokenFault::Refused(error.to_string()))?;
        if told.claims.speaks_for(claimed.subject) { Ok(()) } else { Err(TokenFault::Sender) }
    }

    async fn key(&self, address: &str, id: &str) -> Result<DecodingKey, TokenFault> {
        let mut sets = self.0.lock().await;
        let now = clock::now().mono;
        let known = sets.get(address);
        let found = known.is_some_and(|(_, set)| set.find(id).is_some());
        let age = known.map(|(at, _)| now.since(*at));
        if age.is_none_or(|age| age >= FRESH || (!found && age >= RESPITE)) {
            let set = fetch(address).await?;
            sets.insert(address.to_owned(), (now, set));
        }
        let jwk = sets.get(address).and_then(|(_, set)| set.find(id)).ok_or(TokenFault::UnknownKey)?;
        DecodingKey::from_jwk(jwk).map_err(|_| TokenFault::UnknownKey)
    }
}

async fn fetch(address: &str) -> Result<JwkSet, TokenFault> {
    let fault = |error: &dyn std::fmt::Display| TokenFault::Keys(super::clip(&error.to_string(), 200));
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(5))
        .build()
        .map_err(|error| fault(&error))?;
    let answer = client.get(address).send().await.and_then(reqwest::Response::error_for_status).map_err(|error| fault(&error))?;
    if answer.content_length().is_some_and(|length| length > MOST_BYTES as u64) {
        return Err(TokenFault::Keys("too long".to_owned()));
    }
    let bytes = answer.bytes().await.map_err(|error| fault(&error))?;
    if bytes.len() > MOST_BYTES {
        return Err(TokenFault::Keys("too long".to_owned()));
    }
    serde_json::from_slice(&bytes).map_err(|_| TokenFault::Keys("not a key set".to_owned()))
}
