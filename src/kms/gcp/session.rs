//! outside
//! One client per identity, built when first needed and shared by all keys under it. A client of its
//! own per key would cost a connection pool each; one that is never renewed would stay without a token
//! for ever, because the library's refresh task ends at the first error that it takes for permanent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use google_cloud_auth::credentials::Credentials;
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_kms_v1::client::KeyManagementService;

use super::identity::{self, GcpSetupError, Name};
use super::wire::{build_failed, check_tls, token_error, token_failed};
use super::{MARK, Stage, errors};
use crate::config::GcpCredentials;
use crate::kms::KmsError;
use crate::time::{Mono, Span};
use crate::words::FailureKind;

/// A refused token is asked for again no sooner than this.
const RESPITE: Span = Span::from_secs(1);
/// A token request without an answer is given up after this, and another one started.
const HUNG: Span = Span::from_mins(1);

/// A client and the identity behind it.
pub struct Session {
    pub client: KeyManagementService,
    credentials: Credentials,
    name: Name,
    /// Told by the metadata server, kept.
    email: tokio::sync::OnceCell<Box<str>>,
}

/// What is known of one identity.
#[derive(Default)]
struct Slot {
    session: Option<Arc<Session>>,
    /// When the session, or the failed attempt, began.
    since: Mono,
    refused: Option<KmsError>,
}

type SharedSlot = Arc<tokio::sync::Mutex<Slot>>;

/// Clients by the service account that they impersonate; `None` is our own identity. As many as the
/// configured keys name.
pub struct Sessions {
    endpoint: Option<String>,
    credentials: GcpCredentials,
    call_timeout: Span,
    respite: Span,
    hung_after: Span,
    slots: Mutex<BTreeMap<Option<Box<str>>, SharedSlot>>,
}

impl Sessions {
    pub fn new(endpoint: Option<String>, credentials: GcpCredentials, call_timeout: Span) -> Self {
        Self { endpoint, credentials, call_timeout, respite: RESPITE, hung_after: HUNG, slots: Mutex::new(BTreeMap::new()) }
    }

    fn slot(&self, impersonate: Option<&str>) -> SharedSlot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(impersonate.map(Into::into)).or_default())
    }

    /// The client of an identity, with a token at hand. `stage` is told as soon as there is a token.
    pub async fn of(&self, impersonate: Option<&str>, stage: &Stage) -> Result<Arc<Session>, KmsError> {
        let slot = self.slot(impersonate);
        let mut slot = slot.lock().await;
        let now = crate::clock::now().mono;
        if let Some(refused) = slot.refused.clone().filter(|_| now.since(slot.since) < self.respite) {
            return Err(refused);
        }
        let session = match slot.session.clone() {
            Some(session) => session,
            None => {
                slot.since = now;
                let begun = self.begin(impersonate, stage).await;
                let session = begun.inspect_err(|error| slot.refused = Some(error.clone()))?;
                slot.session.insert(session).clone()
            }
        };
        match session.credentials.headers(Extensions::new()).await {
            Ok(_) => {
                stage.has_token();
                slot.refused = None;
                Ok(session)
            }
            Err(error) => {
                let refused = token_failed(&error);
                if !error.is_transient() {
                    *slot = Slot { session: None, since: now, refused: Some(refused.clone()) };
                }
                Err(refused)
            }
        }
    }

    /// A call's time ran out before it had a token.
    pub fn hung(&self, impersonate: Option<&str>) {
        if let Ok(mut slot) = self.slot(impersonate).try_lock()
            && crate::clock::now().mono.since(slot.since) >= self.hung_after
        {
            *slot = Slot::default();
        }
    }

    async fn begin(&self, impersonate: Option<&str>, stage: &Stage) -> Result<Arc<Session>, KmsError> {
        check_tls()?;
        let identity = identity::build(&self.credentials, impersonate).await.map_err(|error| setup_error(&error))?;
        let mut marks = HeaderMap::new();
        marks.insert(HeaderName::from_static("x-goog-request-reason"), HeaderValue::from_static(MARK));
        let mut builder = KeyManagementService::builder()
            .with_credentials(identity.credentials.clone())
            .with_retry_policy(NeverRetry)
            .with_attempt_timeout(self.call_timeout.to_std())
            .with_extension(marks);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        // A token first: without one the client's building would wait on the metadata server.
        identity.credentials.headers(Extensions::new()).await.map_err(|error| token_failed(&error))?;
        stage.has_token();
        let client = builder.build().await.map_err(|error| build_failed(&error))?;
        let email = tokio::sync::OnceCell::new();
        Ok(Arc::new(Session { client, credentials: identity.credentials, name: identity.name, email }))
    }
}

/// A configured identity that cannot be built any more, such as a key file taken away.
fn setup_error(error: &GcpSetupError) -> KmsError {
    let kind = match error {
        GcpSetupError::AnonymousImpersonation(_) | GcpSetupError::WrongKind(_) | GcpSetupError::Endpoint(_) => FailureKind::Misconfigured,
        GcpSetupError::Unreadable { .. }
        | GcpSetupError::NotJson(_)
        | GcpSetupError::MissingField { .. }
        | GcpSetupError::UnknownType { .. }
        | GcpSetupError::Refused(_)
        | GcpSetupError::Impersonation(_) => FailureKind::Credentials,
    };
    errors::judge_words("SETUP", (kind, "identity"), &error.to_string())
}

impl Session {
    /// How we are called on keys reached through this session.
    pub async fn name(&self) -> Result<Box<str>, KmsError> {
        match &self.name {
            Name::Known(name) => Ok(name.clone()),
            Name::Metadata => {
                let told = self.email.get_or_try_init(identity::metadata_email).await;
                told.cloned().map_err(|text| token_error(&text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hung_token_request_is_given_up_after_its_time_and_not_before() {
        let mut sessions = Sessions::new(None, GcpCredentials::Anonymous, Span::from_secs(1));
        let first = sessions.of(None, &Stage::default()).await.unwrap();
        sessions.hung(None);
        assert!(Arc::ptr_eq(&first, &sessions.of(None, &Stage::default()).await.unwrap()));
        sessions.hung_after = Span::ZERO;
        sessions.hung(None);
        assert!(!Arc::ptr_eq(&first, &sessions.of(None, &Stage::default()).await.unwrap()));
    }

    #[tokio::test]
    async fn a_refused_identity_is_tried_again_after_a_respite_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.json").to_string_lossy().into_owned();
        let mut sessions = Sessions::new(None, GcpCredentials::File(path.clone()), Span::from_secs(1));
        sessions.respite = Span::from_hours(1);
        let refused = sessions.of(None, &Stage::default()).await.err().unwrap();
        assert_eq!((refused.kind, refused.code.as_ref()), (FailureKind::Credentials, "identity"));
        let user =
            r#"{"type":"authorized_user","client_id":"c","client_secret":"s","refresh_token":"r","token_uri":"http://127.0.0.1:1/t"}"#;
        std::fs::write(&path, user).unwrap();
        assert_eq!(sessions.of(None, &Stage::default()).await.err(), Some(refused));
        sessions.respite = Span::ZERO;
        let refused = sessions.of(None, &Stage::default()).await.err().unwrap();
        assert_eq!((refused.kind, refused.code.as_ref()), (FailureKind::Credentials, "token"), "{refused:?}");
    }

    #[tokio::test]
    async fn identities_share_no_session() {
        let sessions = Sessions::new(None, GcpCredentials::Anonymous, Span::from_secs(1));
        let own = sessions.of(None, &Stage::default()).await.unwrap();
        assert_eq!(own.name().await.unwrap().as_ref(), "anonymous");
        let refused = sessions.of(Some("sa@p"), &Stage::default()).await.err().unwrap();
        assert_eq!(refused.kind, FailureKind::Misconfigured);
    }

    /// A token endpoint that refuses twice, then gives tokens.
    async fn moody_token_server() -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/token", listener.local_addr().unwrap());
        let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let app = axum::Router::new().fallback(move || {
            let refuse = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
            async move {
                let status = if refuse { axum::http::StatusCode::BAD_REQUEST } else { axum::http::StatusCode::OK };
                let refusal = serde_json::json!({"error": "invalid_grant"});
                let token = serde_json::json!({"access_token": "t", "token_type": "Bearer", "expires_in": 3600});
                (status, axum::Json(if refuse { refusal } else { token }))
            }
        });
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        address
    }

    #[tokio::test]
    async fn a_token_refused_for_a_while_does_not_blind_us_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.json").to_string_lossy().into_owned();
        let uri = moody_token_server().await;
        let user =
            serde_json::json!({"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r", "token_uri": uri});
        std::fs::write(&path, user.to_string()).unwrap();
        let mut sessions = Sessions::new(None, GcpCredentials::File(path), Span::from_secs(5));
        sessions.respite = Span::ZERO;
        for _ in 0..2 {
            let refused = sessions.of(None, &Stage::default()).await.err().unwrap();
            assert_eq!((refused.kind, refused.code.as_ref()), (FailureKind::Credentials, "invalid_grant"));
            assert!(!refused.message.contains("will also fail"), "{refused:?}");
        }
        let session = sessions.of(None, &Stage::default()).await.unwrap();
        assert!(Arc::ptr_eq(&session, &sessions.of(None, &Stage::default()).await.unwrap()));
    }
}
