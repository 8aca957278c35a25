//! outside
//! TLS of the TCP door: certificate, key and, where configured, the authority of client
//! certificates, which are then required. Key material never reaches an error text.

use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::config::Tls;

/// Why TLS cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum TlsFault {
    #[error("server.tls.{field}: {path}: {source}")]
    File { field: &'static str, path: String, source: pem::Error },
    #[error("server.tls.{field}: {path} holds no certificate")]
    Empty { field: &'static str, path: String },
    #[error("server.tls: certificate and key do not fit together: {0}")]
    Mismatch(rustls::Error),
    #[error("server.tls.client_ca: {path} cannot be used: {why}")]
    ClientCa { path: String, why: String },
}

/// Reads the files and builds the TLS side of the listener.
///
/// # Errors
/// If a file is missing, holds no PEM of the right kind, or the parts do not fit together; the error
/// names the field and the file.
pub fn server_config(tls: &Tls) -> Result<ServerConfig, TlsFault> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = certificates("cert", &tls.cert)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|source| TlsFault::File { field: "key", path: tls.key.clone(), source })?;
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().map_err(TlsFault::Mismatch)?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            let bad = |why: String| TlsFault::ClientCa { path: path.clone(), why };
            for certificate in certificates("client_ca", path)? {
                roots.add(certificate).map_err(|error| bad(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| bad(error.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(TlsFault::Mismatch)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(field: &'static str, path: &str) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = read.map_err(|source| TlsFault::File { field, path: path.to_owned(), source })?;
    if all.is_empty() { Err(TlsFault::Empty { field, path: path.to_owned() }) } else { Ok(all) }
}
