//! One row per code and per sentence of the tables, and the ways around them.

use super::*;

fn refusal(status: u16, code: &str, inner: &str, message: &str) -> Refusal {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Refusal { status, code: some(code), inner: some(inner), message: message.to_owned() }
}

#[test]
fn every_code_of_the_table_has_its_row() {
    let rows = [
        ("KeyDisabled", K::Disabled, true),
        ("KeyExpired", K::Expired, false),
        ("KeyNotYetValid", K::Expired, false),
        ("ObjectIsBeingDeleted", K::PendingDeletion, true),
        ("ObjectIsDeletedButRecoverable", K::PendingDeletion, true),
        ("ObjectIsBeingRecovered", K::Unclassified, false),
        ("KeyNotFound", K::Destroyed, false),
        ("ForbiddenByRbac", K::AccessDenied, true),
        ("ForbiddenByPolicy", K::AccessDenied, true),
        ("AccessDenied", K::AccessDenied, true),
        ("ForbiddenByFirewall", K::NetworkBlocked, false),
        ("ForbiddenByConnection", K::NetworkBlocked, false),
        ("ForbiddenByNetworkSecurityPerimeter", K::NetworkBlocked, false),
        ("KeyOperationForbidden", K::Misconfigured, false),
        ("BadParameter", K::Misconfigured, false),
        ("Unauthorized", K::Credentials, false),
        ("Throttled", K::Throttled, false),
        ("TooManyRequests", K::Throttled, false),
        ("ServiceUnavailable", K::ProviderFault, false),
        ("InternalError", K::ProviderFault, false),
        ("InternalServerError", K::ProviderFault, false),
        ("BadGateway", K::ProviderFault, false),
        ("GatewayTimeout", K::ProviderFault, false),
        ("RequestTimeout", K::ProviderFault, false),
    ];
    assert_eq!(rows.map(|row| row.0).to_vec(), CODES.iter().map(|row| row.0).collect::<Vec<_>>());
    for (code, kind, stated) in rows {
        // As an inner code it overrules the outer one; alone it speaks for itself. 418 says nothing.
        assert_eq!(judge(Asked::Data, &refusal(418, "Forbidden", code, "")), (kind, stated), "inner {code}");
        assert_eq!(judge(Asked::Data, &refusal(418, code, "", "")), (kind, stated), "outer {code}");
    }
}

#[test]
fn every_sentence_of_the_tables_has_its_row() {
    let rows = [
        ("Operation unwrapKey is not allowed on a disabled key.", K::Disabled, true),
        ("Operation wrapKey is not allowed on an expired key.", K::Expired, false),
        ("The key is not yet valid.", K::Expired, false),
        ("Key is currently being deleted.", K::PendingDeletion, true),
        ("Key k is currently in a deleted but recoverable state", K::PendingDeletion, true),
        ("Client address is not authorized and caller is not a trusted service.", K::NetworkBlocked, false),
        ("Public network access is disabled and request is not from a trusted service", K::NetworkBlocked, false),
        ("Request was not allowed by NSP rules and so on", K::NetworkBlocked, false),
        ("Operation unwrapKey is not permitted on this key.", K::Misconfigured, false),
        ("The application 'x' does not have keys unwrapKey permission on key vault 'v'", K::AccessDenied, true),
        ("Caller is not authorized to perform action on resource.", K::AccessDenied, true),
        ("Not authorized to access Microsoft.KeyVault/managedHsm/keys/unwrap/action on /keys/k", K::AccessDenied, true),
    ];
    assert_eq!(rows.len(), SENTENCES.len());
    for ((message, kind, stated), (sentence, _)) in rows.into_iter().zip(SENTENCES) {
        assert!(message.contains(sentence), "{message}");
        assert_eq!(judge(Asked::Data, &refusal(403, "Forbidden", "", message)), (kind, stated), "{message}");
    }
    let first_party = refusal(403, "Forbidden", "AccessDenied", "Access denied to first party service. Caller: name=x");
    assert_eq!((judge(Asked::Data, &first_party), FINER.len()), ((K::Credentials, false), 1));
}

#[test]
fn what_a_customers_key_manager_answers_is_never_taken_for_azures_own() {
    for sentence in EXTERNAL {
        for (status, code, kind) in [
            (502, "BadGateway", K::KeyStoreUnavailable),
            (503, "ServiceUnavailable", K::KeyStoreUnavailable),
            (408, "RequestTimeout", K::KeyStoreUnavailable),
            (401, "Unauthorized", K::KeyStoreUnavailable),
            (500, "InternalServerError", K::KeyStoreUnavailable),
            (429, "Throttled", K::Throttled),
            (403, "Forbidden", K::AccessDenied),
            (404, "KeyNotFound", K::Destroyed),
            (400, "BadRequest", K::Misconfigured),
        ] {
            let answer = refusal(status, code, "", &format!("the {sentence} said no"));
            assert_eq!(judge(Asked::Data, &answer), (kind, false), "{sentence} {status}");
        }
    }
}

#[test]
fn the_missing_right_decides_what_a_denial_means() {
    for (message, asked, expected) in [
        ("x\r\nAction: 'Microsoft.KeyVault/vaults/keys/unwrap/action'\r\n", Asked::Data, (K::AccessDenied, true)),
        ("x\r\nAction: 'Microsoft.KeyVault/vaults/keys/wrap/action'\r\n", Asked::Data, (K::AccessDenied, true)),
        ("x\r\nAction: 'Microsoft.KeyVault/vaults/keys/read'\r\n", Asked::Metadata, (K::AccessDenied, false)),
        ("x\r\nAction: 'Microsoft.KeyVault/vaults/keys/read'\r\n", Asked::Data, (K::AccessDenied, false)),
        ("Not authorized to access Microsoft.KeyVault/managedHsm/keys/read/action on /keys/k", Asked::Metadata, (K::AccessDenied, false)),
        ("Not authorized to access Microsoft.KeyVault/managedHsm/keys/create on '/keys'", Asked::Data, (K::Misconfigured, false)),
        ("'appid=a' does not have keys get permission on key vault 'v'", Asked::Metadata, (K::AccessDenied, false)),
        ("'appid=a' does not have keys list permission on key vault 'v'", Asked::Metadata, (K::AccessDenied, false)),
        ("'appid=a' does not have keys wrapKey permission on key vault 'v'", Asked::Data, (K::AccessDenied, true)),
        ("'appid=a' does not have keys purge permission on key vault 'v'", Asked::Data, (K::Misconfigured, false)),
        ("no right named", Asked::Data, (K::AccessDenied, true)),
        ("no right named", Asked::Metadata, (K::AccessDenied, false)),
    ] {
        assert_eq!(judge(asked, &refusal(403, "Forbidden", "ForbiddenByRbac", message)), expected, "{message}");
    }
}

#[test]
fn a_bare_status_states_nothing() {
    for status in 300..600 {
        for asked in [Asked::Data, Asked::Metadata, Asked::Token] {
            let page = read_refusal(status, b"<html><body><h1>No</h1></body></html>");
            let (kind, stated) = judge(asked, &page);
            assert!(!stated && !matches!(kind, K::Disabled | K::PendingDeletion | K::Destroyed | K::AccessDenied), "{status} {kind}");
            let unknown = judge(asked, &refusal(status, "SomethingNew", "", ""));
            assert!(!unknown.1 && !matches!(unknown.0, K::Disabled | K::PendingDeletion | K::Destroyed), "{status} {unknown:?}");
        }
    }
    assert_eq!(judge(Asked::Data, &refusal(403, "Forbidden", "ForbiddenBySomethingNew", "")), (K::AccessDenied, false));
}

#[test]
fn error_bodies_of_every_shape_are_read() {
    let deep = br#"{"error":{"code":"A","message":"m","innererror":{"code":"B","innererror":{"code":"C"}}}}"#;
    assert_eq!(read_refusal(403, deep), refusal(403, "A", "C", "m"));
    assert_eq!(read_refusal(403, br#"{"error":{"code":"A","innererror":{}}}"#), refusal(403, "A", "", ""));
    assert_eq!(read_refusal(502, b"<h2>Bad\r\n Gateway</h2><hr>"), refusal(502, "", "", "Bad Gateway"));
    for odd in [&b""[..], b"null", b"[]", b"{\"error\":null}", b"{\"error\":\"x\"}", b"\xff\xfe"] {
        assert_eq!((read_refusal(500, odd).code, read_refusal(500, odd).inner), (None, None));
    }
}

#[test]
fn sign_in_failures_are_ours_unless_the_customers_tenant_decided() {
    let fault = |status, body: &str| SignInFault::refused("login.microsoftonline.com", status, body.as_bytes());
    for code in TENANTS_DECISION {
        let fault = fault(400, &format!(r#"{{"error":"x","error_description":"{code}: text\r\nTrace ID: 1"}}"#));
        assert_eq!(judge_sign_in(true, &fault), K::AccessDenied, "{code}");
        assert_eq!(judge_sign_in(false, &fault), K::Credentials, "{code}");
    }
    for code in WRONG_TENANT {
        let fault = fault(400, &format!(r#"{{"error":"x","error_codes":[{}]}}"#, code.trim_start_matches("AADSTS")));
        assert_eq!((judge_sign_in(true, &fault), judge_sign_in(false, &fault)), (K::Misconfigured, K::Misconfigured), "{code}");
    }
    for (status, body, kind) in [
        (401, r#"{"error":"invalid_client","error_codes":[7000222]}"#, K::Credentials),
        (400, "not json", K::Credentials),
        (429, "{}", K::Throttled),
        (503, "{\"error\":\"temporarily_unavailable\"}", K::ProviderFault),
    ] {
        assert_eq!((judge_sign_in(true, &fault(status, body)), judge_sign_in(false, &fault(status, body))), (kind, kind), "{body}");
    }
    let metadata = SignInFault::refused("169.254.169.254", 500, b"");
    assert_eq!(judge_sign_in(true, &metadata), K::Credentials);
    let unreached = SignInFault::Unreached { host: "h".into(), why: "w".into() };
    assert_eq!(judge_sign_in(true, &unreached), K::Credentials);
}

#[test]
fn the_sdks_own_refusals_are_ours() {
    let here = Circumstances { asked: Asked::Data, their_tenant: false, private_endpoint: false };
    for (message, kind) in [
        ("challenge resource 'https://evil/.default' doesn't match the requested domain 'v'", K::Misconfigured),
        ("authorized requests are not permitted for non-TLS protected endpoints", K::Misconfigured),
        ("no scope or resource in authentication challenge: Bearer", K::Unclassified),
        ("something new", K::Unclassified),
    ] {
        let error = classify(here, &Error::with_message(ErrorKind::Other, message));
        assert_eq!((error.kind, error.stated), (kind, false), "{message}");
    }
    let undecodable = classify(here, &Error::with_message(ErrorKind::DataConversion, "expected value"));
    assert_eq!((undecodable.kind, &*undecodable.code), (K::Unclassified, "undecodable"));
    let credential = classify(here, &Error::with_message(ErrorKind::Credential, "no tenant ID specified"));
    assert_eq!((credential.kind, &*credential.code), (K::Credentials, "sign_in"));
}

#[test]
fn connection_faults_have_their_words() {
    use std::io::{Error as IoError, ErrorKind as Io};
    let at = |asked, private_endpoint, cause: IoError| {
        let error = classify(Circumstances { asked, their_tenant: false, private_endpoint }, &Error::new(ErrorKind::Connection, cause));
        (error.kind, error.code.to_string())
    };
    let word = |kind: K, code: &str| (kind, code.to_owned());
    assert_eq!(at(Asked::Data, false, Io::ConnectionRefused.into()), word(K::Unreachable, "refused"));
    assert_eq!(at(Asked::Data, true, Io::ConnectionRefused.into()), word(K::Unreachable, "refused"));
    assert_eq!(at(Asked::Data, false, Io::ConnectionReset.into()), word(K::Unreachable, "reset"));
    assert_eq!(at(Asked::Data, false, Io::HostUnreachable.into()), word(K::Unreachable, "no_route"));
    assert_eq!(at(Asked::Data, false, IoError::other(NameFault::Nonexistent)), word(K::Unreachable, "nxdomain"));
    assert_eq!(at(Asked::Data, false, IoError::other(NameFault::Unknown)), word(K::Unreachable, "dns"));
    assert_eq!(at(Asked::Data, false, IoError::other(Oversized)), word(K::Unclassified, "oversized"));
    let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    assert_eq!(at(Asked::Data, false, IoError::other(unknown)), word(K::NetworkBlocked, "tls_unknown_issuer"));
    let deep = IoError::other(IoError::new(Io::InvalidData, rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)));
    assert_eq!(at(Asked::Data, false, deep), word(K::NetworkBlocked, "tls_unknown_issuer"));
    assert_eq!(at(Asked::Data, false, IoError::other(IoError::from(Io::ConnectionRefused))), word(K::Unreachable, "refused"));
    let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
    assert_eq!(at(Asked::Metadata, false, IoError::other(expired)), word(K::Unreachable, "tls"));
    assert_eq!(at(Asked::Token, false, Io::ConnectionRefused.into()), word(K::Credentials, "sign_in"));
}
