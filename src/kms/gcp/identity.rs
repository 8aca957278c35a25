//! outside
//! Who we are towards Google: builds credentials from the configured source and knows the name of
//! the identity. It must never show a key file's content, in errors neither.

use google_cloud_auth::credentials::{Credentials, anonymous, external_account, impersonated, mds, service_account, user_account};
use serde_json::Value;

use crate::config::GcpCredentials;

/// Why an identity cannot be built from what is configured.
#[derive(Debug, thiserror::Error)]
pub enum GcpSetupError {
    #[error("provider `{0}` is not of kind gcp")]
    WrongKind(String),
    #[error("endpoint `{0}` of a gcp provider is not an http or https address")]
    Endpoint(String),
    #[error("cannot read the credentials file `{path}`: {why}")]
    Unreadable { path: String, why: std::io::Error },
    #[error("credentials file `{0}` is not a JSON object")]
    NotJson(String),
    #[error("credentials file `{path}` has no text field `{field}`")]
    MissingField { path: String, field: &'static str },
    #[error(
        "credentials file `{path}` is of type `{found}`, expected service_account, authorized_user, impersonated_service_account or external_account"
    )]
    UnknownType { path: String, found: String },
    #[error("credentials file `{0}` is refused by the client library: a field has a wrong form")]
    Refused(String),
    #[error("impersonation of `{0}` needs an identity of our own, and credentials are anonymous")]
    AnonymousImpersonation(String),
    #[error("impersonation of `{0}` is refused by the client library")]
    Impersonation(String),
}

/// How we are called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Name {
    Known(Box<str>),
    /// The metadata server knows.
    Metadata,
}

/// Credentials and the name behind them. Building starts the library's refresh task, so it needs a
/// tokio runtime.
#[derive(Debug)]
pub struct Identity {
    pub credentials: Credentials,
    pub name: Name,
}

/// Builds the identity of a provider, impersonating another service account if asked to.
///
/// # Errors
/// If the credentials file cannot be read or has a wrong form.
pub async fn build(source: &GcpCredentials, impersonate: Option<&str>) -> Result<Identity, GcpSetupError> {
    let own = own_identity(source).await?;
    let Some(target) = impersonate else { return Ok(own) };
    if *source == GcpCredentials::Anonymous {
        return Err(GcpSetupError::AnonymousImpersonation(target.to_owned()));
    }
    let built = impersonated::Builder::from_source_credentials(own.credentials).with_target_principal(target).build();
    let credentials = built.map_err(|_| GcpSetupError::Impersonation(target.to_owned()))?;
    Ok(Identity { credentials, name: Name::Known(target.into()) })
}

async fn own_identity(source: &GcpCredentials) -> Result<Identity, GcpSetupError> {
    let file = match source {
        GcpCredentials::Anonymous => {
            return Ok(Identity { credentials: anonymous::Builder::new().build(), name: Name::Known("anonymous".into()) });
        }
        GcpCredentials::File(path) => Some((path.clone(), read(path).await.map_err(|why| unreadable(path, why))?)),
        GcpCredentials::Default => default_file().await?,
    };
    match file {
        Some((path, text)) => from_json(&path, &text),
        None => {
            let built = mds::Builder::default().build();
            Ok(Identity { credentials: built.map_err(|_| GcpSetupError::Refused("metadata server".to_owned()))?, name: Name::Metadata })
        }
    }
}

async fn read(path: &str) -> std::io::Result<String> {
    tokio::fs::read_to_string(path).await
}

fn unreadable(path: &str, why: std::io::Error) -> GcpSetupError {
    GcpSetupError::Unreadable { path: path.to_owned(), why }
}

/// Application Default Credentials: the variable's file, else gcloud's file, else the metadata server.
async fn default_file() -> Result<Option<(String, String)>, GcpSetupError> {
    if let Ok(path) = std::env::var("GOOGLE_APPLICATION_CREDENTIALS") {
        let text = read(&path).await.map_err(|why| unreadable(&path, why))?;
        return Ok(Some((path, text)));
    }
    let Ok(home) = std::env::var("HOME") else { return Ok(None) };
    let path = format!("{home}/.config/gcloud/application_default_credentials.json");
    match read(&path).await {
        Ok(text) => Ok(Some((path, text))),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(unreadable(&path, why)),
    }
}

fn from_json(path: &str, text: &str) -> Result<Identity, GcpSetupError> {
    let json: Value = serde_json::from_str(text).ok().filter(Value::is_object).ok_or_else(|| GcpSetupError::NotJson(path.to_owned()))?;
    let field = |field: &'static str| {
        let text = json.get(field).and_then(Value::as_str).map(str::to_owned);
        text.ok_or_else(|| GcpSetupError::MissingField { path: path.to_owned(), field })
    };
    let kind = field("type")?;
    let (name, built) = match kind.as_str() {
        "service_account" => {
            field("private_key")?;
            (field("client_email")?, service_account::Builder::new(json.clone()).build())
        }
        // No e-mail in the file; the client id tells one such file from another.
        "authorized_user" => {
            field("refresh_token")?;
            (format!("authorized_user:{}", field("client_id")?), user_account::Builder::new(json.clone()).build())
        }
        "impersonated_service_account" => {
            (impersonated_name(&field("service_account_impersonation_url")?), impersonated::Builder::new(json.clone()).build())
        }
        "external_account" => {
            let name = match field("service_account_impersonation_url") {
                Ok(url) => impersonated_name(&url),
                Err(_) => format!("external_account:{}", field("audience")?),
            };
            (name, external_account::Builder::new(json.clone()).build())
        }
        found => return Err(GcpSetupError::UnknownType { path: path.to_owned(), found: found.chars().take(40).collect() }),
    };
    // The library's own text may quote the field that it did not like; it stays out.
    let credentials = built.map_err(|_| GcpSetupError::Refused(path.to_owned()))?;
    Ok(Identity { credentials, name: Name::Known(name.into()) })
}

/// `.../serviceAccounts/NAME:generateAccessToken`
fn impersonated_name(url: &str) -> String {
    let name = url.rsplit('/').next().unwrap_or(url);
    name.split(':').next().unwrap_or(name).to_owned()
}

/// The e-mail of the machine's service account, from the metadata server.
///
/// # Errors
/// The library's text if the server does not tell.
pub async fn metadata_email() -> Result<Box<str>, String> {
    // The library shows the address only through a signer; nothing is signed.
    let signer = mds::Builder::default().build_signer().map_err(|error| error.to_string())?;
    signer.client_email().await.map(Into::into).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bad_credentials_file_is_named_with_its_field_and_never_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.json").to_string_lossy().into_owned();
        let source = GcpCredentials::File(path.clone());
        let secret = "s3cr3t-material";
        for (content, expected) in [
            ("[1]".to_owned(), "is not a JSON object"),
            (format!("{{\"{secret}"), "is not a JSON object"),
            (format!(r#"{{"private_key":"{secret}"}}"#), "no text field `type`"),
            (format!(r#"{{"type":"service_account","client_email":"a@b","secret":"{secret}"}}"#), "no text field `private_key`"),
            (format!(r#"{{"type":"service_account","private_key":"{secret}"}}"#), "no text field `client_email`"),
            (format!(r#"{{"type":"service_account","client_email":"a@b","private_key":"{secret}"}}"#), "refused by the client library"),
            (format!(r#"{{"type":"authorized_user","refresh_token":"{secret}"}}"#), "no text field `client_id`"),
            (format!(r#"{{"type":"authorized_user","refresh_token":"{secret}","client_id":"c"}}"#), "refused by the client library"),
            (r#"{"type":"external_account"}"#.to_owned(), "no text field `audience`"),
            (r#"{"type":"gdch_service_account"}"#.to_owned(), "is of type `gdch_service_account`"),
        ] {
            std::fs::write(&path, &content).unwrap();
            let error = build(&source, None).await.unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(&path), "{error}");
            assert!(!error.contains(secret), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(build(&source, None).await, Err(GcpSetupError::Unreadable { .. })));
    }

    #[tokio::test]
    async fn every_kind_of_file_names_its_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.json").to_string_lossy().into_owned();
        let url = "https://iamcredentials.example/v1/projects/-/serviceAccounts/probe@p.iam.gserviceaccount.com:generateAccessToken";
        let user =
            r#"{"type":"authorized_user","client_id":"c1","client_secret":"s","refresh_token":"r","token_uri":"http://127.0.0.1:1/token"}"#;
        for (content, name) in [
            (r#"{"type":"service_account","client_email":"a@b","private_key":"p","private_key_id":"i","project_id":"p"}"#.to_owned(), "a@b"),
            (user.to_owned(), "authorized_user:c1"),
            (
                format!(r#"{{"type":"impersonated_service_account","service_account_impersonation_url":"{url}","source_credentials":{user}}}"#),
                "probe@p.iam.gserviceaccount.com",
            ),
            (
                r#"{"type":"external_account","audience":"//iam/pool","subject_token_type":"t","token_url":"http://127.0.0.1:1/t","credential_source":{"file":"/nonexistent"}}"#
                    .to_owned(),
                "external_account://iam/pool",
            ),
        ] {
            std::fs::write(&path, &content).unwrap();
            let identity = build(&GcpCredentials::File(path.clone()), None).await.unwrap();
            assert_eq!(identity.name, Name::Known(name.into()));
            let other = build(&GcpCredentials::File(path.clone()), Some("other@p")).await.unwrap();
            assert_eq!(other.name, Name::Known("other@p".into()));
        }
    }

    #[tokio::test]
    async fn an_anonymous_identity_can_impersonate_nobody() {
        let error = build(&GcpCredentials::Anonymous, Some("sa@p")).await.unwrap_err();
        assert_eq!(error.to_string(), "impersonation of `sa@p` needs an identity of our own, and credentials are anonymous");
        assert_eq!(build(&GcpCredentials::Anonymous, None).await.unwrap().name, Name::Known("anonymous".into()));
    }
}
