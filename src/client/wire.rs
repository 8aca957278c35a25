//! outside
//! The client's requests: list, stream, acknowledgement, lease, key set. Each names its path when it
//! fails; the token is in no error and no log.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde::Deserialize;
use url::Url;

use super::{ClientError, Settings};
use crate::key::WorkspaceId;
use crate::words::{Access, Sequence};

/// For connecting, and for a whole answer that is not the stream.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Wire {
    http: reqwest::Client,
    base: Url,
}

#[derive(Deserialize)]
struct Row {
    workspace: WorkspaceId,
    access: Access,
    sequence: Sequence,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Row>,
    next: Option<String>,
}

/// A lease as given.
#[derive(Deserialize)]
pub struct Given {
    pub lease: String,
}

impl Wire {
    /// # Errors
    /// If address or token cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        if settings.address.cannot_be_a_base() || !matches!(settings.address.scheme(), "http" | "https") {
            return Err(ClientError::Address);
        }
        let mut headers = HeaderMap::new();
        if let Some(token) = &settings.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| ClientError::Token)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = reqwest::Client::builder().default_headers(headers).connect_timeout(DEADLINE);
        let http = http.redirect(reqwest::redirect::Policy::none()).build().map_err(|error| ClientError::Http(error.to_string()))?;
        Ok(Self { http, base: settings.address.clone() })
    }

    fn url(&self, path: &[&str]) -> Result<Url, ClientError> {
        let mut url = self.base.clone();
        url.path_segments_mut().map_err(|()| ClientError::Address)?.pop_if_empty().extend(path);
        Ok(url)
    }

    async fn answered(&self, request: reqwest::RequestBuilder, path: &str) -> Result<reqwest::Response, ClientError> {
        let unreachable = |error: reqwest::Error| ClientError::Unreachable { path: path.to_owned(), why: error.without_url().to_string() };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if status.is_success() { Ok(response) } else { Err(ClientError::Refused { path: path.to_owned(), status: status.as_u16() }) }
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, request: reqwest::RequestBuilder, path: &str) -> Result<T, ClientError> {
        let response = self.answered(request.timeout(DEADLINE), path).await?;
        let unusable = |error: reqwest::Error| ClientError::Unusable { path: path.to_owned(), why: error.without_url().to_string() };
        response.json().await.map_err(unusable)
    }

    /// All workspaces, page by page.
    ///
    /// # Errors
    /// If any page cannot be read.
    pub async fn list(&self) -> Result<BTreeMap<WorkspaceId, (u64, Access)>, ClientError> {
        let mut all = BTreeMap::new();
        let mut after: Option<String> = None;
        loop {
            let mut url = self.url(&["v1", "workspaces"])?;
            url.query_pairs_mut().append_pair("limit", "1000");
            if let Some(after) = &after {
                url.query_pairs_mut().append_pair("after", after);
            }
            let page: Page = self.json(self.http.get(url), "/v1/workspaces").await?;
            all.extend(page.items.into_iter().map(|row| (row.workspace, (row.sequence.0, row.access))));
            after = page.next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// The stream, from after this number on.
    ///
    /// # Errors
    /// If it is not opened.
    pub async fn stream(&self, last: Option<&str>) -> Result<reqwest::Response, ClientError> {
        let mut request = self.http.get(self.url(&["v1", "stream"])?).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let path = "/v1/stream";
        // The head alone has a deadline; the body never ends.
        match tokio::time::timeout(DEADLINE, self.answered(request, path)).await {
            Ok(answered) => answered,
            Err(_) => Err(ClientError::Unreachable { path: path.to_owned(), why: "no answer in time".to_owned() }),
        }
    }

    /// # Errors
    /// If it is not taken.
    pub async fn ack(&self, workspace: &WorkspaceId, consumer: &str, sequence: u64) -> Result<(), ClientError> {
        let url = self.url(&["v1", "workspaces", workspace.as_str(), "acks"])?;
        let body = serde_json::json!({ "consumer": consumer, "sequence": sequence });
        let path = "/v1/workspaces/{ws}/acks";
        self.answered(self.http.post(url).timeout(DEADLINE).json(&body), path).await.map(|_| ())
    }

    /// # Errors
    /// 403 unless the workspace is open.
    pub async fn lease(&self, workspace: &WorkspaceId) -> Result<Given, ClientError> {
        let url = self.url(&["v1", "workspaces", workspace.as_str(), "lease"])?;
        self.json(self.http.get(url), "/v1/workspaces/{ws}/lease").await
    }

    /// # Errors
    /// If it cannot be read.
    pub async fn key_set(&self) -> Result<jsonwebtoken::jwk::JwkSet, ClientError> {
        let url = self.url(&[".well-known", "jwks.json"])?;
        self.json(self.http.get(url), "/.well-known/jwks.json").await
    }
}
