use super::*;

fn ours() -> OurProjects {
    OurProjects::new(Some("100000000001"), &["watchdog-prod".to_owned()])
}

fn told(status: &str, message: &str) -> Refusal {
    Refusal { http: Some(400), status: Some(status.to_owned()), message: message.to_owned(), ..Refusal::default() }
}

fn violated(types: &[&str], message: &str) -> Refusal {
    Refusal { violations: types.iter().map(|t| (*t).to_owned()).collect(), ..told("FAILED_PRECONDITION", message) }
}

fn reasoned(reason: &str, consumer: Option<&str>, permission: Option<&str>) -> Refusal {
    let info = Reason {
        reason: reason.to_owned(),
        domain: "googleapis.com".to_owned(),
        consumer: consumer.map(str::to_owned),
        permission: permission.map(str::to_owned),
    };
    Refusal { reason: Some(info), ..told("PERMISSION_DENIED", "a text that nobody reads") }
}

fn judged(refusal: &Refusal) -> (FailureKind, bool, String) {
    let error = judge(refusal, &ours());
    (error.kind, error.stated, error.code.into())
}

fn kind(refusal: &Refusal) -> (FailureKind, bool) {
    let (kind, stated, _) = judged(refusal);
    (kind, stated)
}

/// One message for each row of the table: what it must give.
#[rustfmt::skip]
const SAMPLES: &[(&str, &str, FailureKind, bool, &str)] = &[
    ("EXTERNAL_PERMISSION_DENIED", "Permission was denied when accessing the key.", AccessDenied, true, "EXTERNAL_PERMISSION_DENIED"),
    ("EXTERNAL_NOT_FOUND", "Could not find a key.", Destroyed, false, "EXTERNAL_NOT_FOUND"),
    ("FAILED_PRECONDITION", "projects/p/x/cryptoKeyVersions/7 is not enabled, current state is: DESTROY_SCHEDULED.", PendingDeletion, true, "FAILED_PRECONDITION"),
    ("FAILED_PRECONDITION", "CryptoKey projects/p/x has purpose MAC. This operation requires ENCRYPT_DECRYPT.", Misconfigured, false, "wrong_purpose"),
    ("FAILED_PRECONDITION", "Google Cloud KMS API has not been used in this project before, see https://x/overview?project=watchdog-prod then retry.", Misconfigured, false, "SERVICE_DISABLED"),
    ("FAILED_PRECONDITION", "This API method requires billing to be enabled on project #100000000001 by visiting", Misconfigured, false, "BILLING_DISABLED"),
    ("PERMISSION_DENIED", "Cloud Key Management Service (KMS) API has not been used in project 100000000001 before or it is disabled.", Misconfigured, false, "SERVICE_DISABLED"),
    ("PERMISSION_DENIED", "This API method requires billing to be enabled. Please enable billing on project #300000000003", AccessDenied, false, "BILLING_DISABLED"),
    ("PERMISSION_DENIED", "Refused. vpcServiceControlsUniqueIdentifier: x-1", NetworkBlocked, false, "VPC_SERVICE_CONTROLS"),
    ("PERMISSION_DENIED", "Request is prohibited by organization's policy.", NetworkBlocked, false, "SECURITY_POLICY_VIOLATED"),
    ("PERMISSION_DENIED", "Request had insufficient authentication scopes.", Credentials, false, "ACCESS_TOKEN_SCOPE_INSUFFICIENT"),
    ("PERMISSION_DENIED", "Caller does not have required permission to use project watchdog-prod. Grant the caller", Credentials, false, "USER_PROJECT_DENIED"),
    ("PERMISSION_DENIED", "Permission 'cloudkms.cryptoKeyVersions.useToDecrypt' denied on resource 'projects/p/x' (or it may not exist).", AccessDenied, false, "PERMISSION_DENIED"),
    ("NOT_FOUND", "The request concerns location 'eu' but was sent to location 'us'.", Misconfigured, false, "wrong_location"),
    ("NOT_FOUND", "KeyRing projects/p/locations/l/keyRings/r not found.", Misconfigured, false, "NOT_FOUND"),
    ("NOT_FOUND", "Location projects/p/locations/nowhere not found.", Misconfigured, false, "NOT_FOUND"),
    ("INVALID_ARGUMENT", "The checksum in field plaintext_crc32c did not match the data in field plaintext.", Unreachable, false, "crc32c_mismatch"),
    ("INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", Credentials, false, "API_KEY_INVALID"),
    ("UNAUTHENTICATED", "Invalid JWT: Token must be in a reasonable timeframe.", Credentials, false, "clock"),
    ("TOKEN", "invalid_grant: must be a short-lived token and in a reasonable timeframe", Credentials, false, "clock"),
    ("TOKEN", "{\"error\":\"invalid_grant\"}", Credentials, false, "invalid_grant"),
    ("TOKEN", "Permission 'iam.serviceAccounts.getAccessToken' denied on resource", Credentials, false, "IAM_PERMISSION_DENIED"),
    ("CLIENT", "unexpected error: No CA certificates were loaded from the system", Misconfigured, false, "tls_roots"),
    ("CONNECT", "client error (Connect): dns error: failed to lookup address information", Unreachable, false, "dns"),
];

#[test]
fn every_row_of_words_is_met_by_a_message_of_its_own() {
    assert_eq!(SAMPLES.len(), PHRASES.len());
    for (sample, row) in SAMPLES.iter().zip(PHRASES) {
        let (scope, message, kind, stated, code) = *sample;
        assert_eq!(scope, row.0);
        let found = PHRASES.iter().position(|other| other.0 == scope && message.contains(other.1));
        assert_eq!(found.map(|at| PHRASES[at].1), Some(row.1), "{message}");
        let error = match scope {
            "TOKEN" | "CLIENT" | "CONNECT" => judge_words(scope, (Unclassified, "none"), message),
            "EXTERNAL_PERMISSION_DENIED" | "EXTERNAL_NOT_FOUND" => judge(&violated(&["KEY_ENABLED", scope], message), &ours()),
            _ => judge(&told(scope, message), &ours()),
        };
        assert_eq!((error.kind, error.stated, error.code.as_ref()), (kind, stated, code), "{message}");
    }
}

#[test]
fn a_state_is_read_alike_from_the_violation_and_from_the_message() {
    for (state, expected) in [
        ("DISABLED", (Disabled, true)),
        ("DESTROY_SCHEDULED", (PendingDeletion, true)),
        ("PENDING_EXTERNAL_DESTRUCTION", (PendingDeletion, true)),
        ("DESTROYED", (Destroyed, true)),
        ("EXTERNAL_DESTRUCTION_FAILED", (Destroyed, true)),
        ("PENDING_GENERATION", (KeyStoreUnavailable, false)),
        ("PENDING_IMPORT", (Misconfigured, false)),
        ("IMPORT_FAILED", (Misconfigured, false)),
        ("GENERATION_FAILED", (Misconfigured, false)),
    ] {
        let message =
            format!("projects/other/locations/eu/keyRings/r/cryptoKeys/k/cryptoKeyVersions/31 is not enabled, current state is: {state}.");
        assert_eq!(kind(&violated(&[&format!("KEY_{state}")], "")), expected, "{state}");
        assert_eq!(kind(&told("FAILED_PRECONDITION", &message)), expected, "{state}");
        assert_eq!(of_state(state), Some(expected));
    }
    assert_eq!(of_state("ENABLED"), None);
    assert_eq!(of_state("A_STATE_OF_NEXT_YEAR"), Some((Unclassified, false)));
    assert_eq!(STATES.len(), 9);
    assert_eq!(kind(&told("FAILED_PRECONDITION", "current state is: ENABLED.")), (Unclassified, false));
    assert_eq!(kind(&told("FAILED_PRECONDITION", "current state is: ")), (Unclassified, false));
}

#[test]
fn the_word_disabled_alone_states_nothing() {
    for message in ["The API is disabled.", "Feature DISABLED", "disabled", "KEY_DISABLED"] {
        for status in ["FAILED_PRECONDITION", "PERMISSION_DENIED", "INVALID_ARGUMENT", "UNKNOWN", "UNAVAILABLE"] {
            assert!(!judged(&told(status, message)).1, "{status} {message}");
        }
    }
}

#[test]
fn the_external_key_managers_faults_are_told_apart() {
    for (violation, message, expected) in [
        ("EXTERNAL_PERMISSION_DENIED", "Permission was denied when accessing the key.", (AccessDenied, true)),
        ("EXTERNAL_PERMISSION_DENIED", "Permission was denied when accessing the crypto space.", (AccessDenied, false)),
        ("EXTERNAL_PERMISSION_DENIED", "Permission was denied when accessing the EKM host.", (AccessDenied, false)),
        ("EXTERNAL_NOT_FOUND", "Could not find a key.", (Destroyed, false)),
        ("EXTERNAL_NOT_FOUND", "Could not find a crypto space.", (KeyStoreUnavailable, false)),
        ("EXTERNAL_NOT_FOUND", "Could not query EKM host.", (KeyStoreUnavailable, false)),
        ("UNREACHABLE_NETWORK", "", (KeyStoreUnavailable, false)),
        ("REQUEST_CANCELLED", "", (KeyStoreUnavailable, false)),
        ("TLS_CERT", "", (KeyStoreUnavailable, false)),
        ("UNEXPECTED_ERROR", "", (KeyStoreUnavailable, false)),
        ("DECRYPTION_FAILED", "", (Misconfigured, false)),
        ("AN_ERROR_DOMAIN_OF_NEXT_YEAR", "", (KeyStoreUnavailable, false)),
    ] {
        assert_eq!(kind(&violated(&["KEY_ENABLED", violation], message)), expected, "{violation} {message}");
    }
    // When the manager refuses a key, Cloud KMS disables the version too: the state is the finer word.
    assert_eq!(kind(&violated(&["KEY_DISABLED", "EXTERNAL_PERMISSION_DENIED"], "")), (Disabled, true));
    assert_eq!(kind(&violated(&["EXTERNAL_NEW"], "")), (KeyStoreUnavailable, false));
    // Without the mark of an enabled key an unknown violation says nothing.
    assert_eq!(kind(&violated(&["SOMETHING"], "")), (Unclassified, false));
    assert_eq!(kind(&violated(&["KEY_ENABLED"], "")), (Unclassified, false));
}

#[test]
fn a_blamed_project_is_our_fault_only_if_the_answer_names_it_as_ours() {
    for (reason, at_home) in [
        ("SERVICE_DISABLED", Misconfigured),
        ("BILLING_DISABLED", Misconfigured),
        ("CONSUMER_INVALID", Misconfigured),
        ("CONSUMER_SUSPENDED", Credentials),
        ("GCP_SUSPENDED", Credentials),
        ("RESOURCE_USAGE_RESTRICTION_VIOLATED", Misconfigured),
        ("accessNotConfigured", Misconfigured),
    ] {
        for consumer in ["projects/100000000001", "project_number:100000000001", "projects/watchdog-prod", "watchdog-prod"] {
            assert_eq!(kind(&reasoned(reason, Some(consumer), None)), (at_home, false), "{reason} {consumer}");
        }
        for consumer in [Some("projects/200000000002"), Some("projects/1000000000012"), Some("projects/watchdog-prod-2"), None] {
            assert_eq!(kind(&reasoned(reason, consumer, None)), (AccessDenied, false), "{reason} {consumer:?}");
        }
    }
    // The details decide when they name a consumer, whatever the message says.
    let mixed = Refusal { message: "project #100000000001".to_owned(), ..reasoned("BILLING_DISABLED", Some("projects/9"), None) };
    assert_eq!(kind(&mixed), (AccessDenied, false));
}

#[test]
fn a_missing_right_on_the_key_is_a_denial_and_one_of_our_own_is_not() {
    for (permission, expected) in [
        ("cloudkms.cryptoKeyVersions.useToDecrypt", AccessDenied),
        ("cloudkms.cryptoKeyVersions.useToEncryptViaDelegation", AccessDenied),
        ("cloudkms.cryptoKeys.get", AccessDenied),
        ("iam.serviceAccounts.getAccessToken", Credentials),
        ("iam.serviceAccounts.implicitDelegation", Credentials),
        ("serviceusage.services.use", Credentials),
    ] {
        assert_eq!(kind(&reasoned("IAM_PERMISSION_DENIED", None, Some(permission))), (expected, false), "{permission}");
        let message = format!("Permission '{permission}' denied on resource '//x/projects/p' (or it may not exist).");
        assert_eq!(kind(&told("PERMISSION_DENIED", &message)), (expected, false), "{permission}");
    }
    // No right named: the domain tells.
    for (domain, expected) in [("iam.googleapis.com", Credentials), ("cloudkms.googleapis.com", AccessDenied)] {
        let info = Reason { reason: "IAM_PERMISSION_DENIED".to_owned(), domain: domain.to_owned(), ..Reason::default() };
        assert_eq!(kind(&Refusal { reason: Some(info), ..told("PERMISSION_DENIED", "") }), (expected, false), "{domain}");
    }
    assert_eq!(kind(&told("PERMISSION_DENIED", "The caller does not have permission")), (AccessDenied, false));
}

#[test]
fn a_code_alone_decides_when_nothing_finer_is_said() {
    for (status, expected) in [
        ("UNAUTHENTICATED", Credentials),
        ("RESOURCE_EXHAUSTED", Throttled),
        ("UNAVAILABLE", ProviderFault),
        ("INTERNAL", ProviderFault),
        ("DEADLINE_EXCEEDED", ProviderFault),
        ("ABORTED", ProviderFault),
        ("CANCELLED", ProviderFault),
        ("DATA_LOSS", ProviderFault),
        ("UNIMPLEMENTED", Misconfigured),
        ("OUT_OF_RANGE", Misconfigured),
        ("INVALID_ARGUMENT", Misconfigured),
        ("NOT_FOUND", Destroyed),
        ("FAILED_PRECONDITION", Unclassified),
    ] {
        assert_eq!(kind(&told(status, "")), (expected, false), "{status}");
    }
    // A status without a name: HTTP stands in for it.
    for (http, expected) in [
        (401, Credentials),
        (403, AccessDenied),
        (404, Destroyed),
        (400, Misconfigured),
        (503, ProviderFault),
        (429, Throttled),
        (409, Unclassified),
    ] {
        assert_eq!(kind(&Refusal { http: Some(http), ..told("UNKNOWN", "") }), (expected, false), "{http}");
    }
}

#[test]
fn an_answer_that_is_none_of_googles_never_speaks_about_the_key() {
    for (http, expected) in [
        (302, Misconfigured),
        (401, Credentials),
        (403, Unclassified),
        (404, Misconfigured),
        (407, Misconfigured),
        (408, Timeout),
        (418, Unclassified),
        (429, Throttled),
        (500, ProviderFault),
        (502, ProviderFault),
        (599, ProviderFault),
    ] {
        let page = Refusal { http: Some(http), message: "<html>current state is: DISABLED</html>".to_owned(), ..Refusal::default() };
        assert_eq!(judged(&page), (expected, false, format!("http_{http}")));
    }
    assert_eq!(kind(&Refusal::default()), (Unclassified, false));
}

#[test]
fn every_reason_of_the_table_is_reached_and_none_is_stated() {
    for (name, _) in REASONS {
        let (kind, stated, code) = judged(&reasoned(name, Some("projects/9"), None));
        assert!(!stated && code == *name && kind != Unclassified, "{name}");
    }
    assert_eq!(kind(&reasoned("A_REASON_OF_NEXT_YEAR", None, None)), (AccessDenied, false));
}

proptest::proptest! {
    #[test]
    fn no_answer_makes_the_judge_panic_and_only_key_words_are_stated(
        http in proptest::option::of(0u16..700), status in proptest::option::of("[A-Z_]{0,20}"), message in "\\PC{0,120}",
        reason in "[A-Z_]{0,20}", consumer in proptest::option::of("\\PC{0,20}"), violations in proptest::collection::vec("[A-Z]{0,12}", 0..3),
    ) {
        let info = Reason { reason, consumer, ..Reason::default() };
        let error = judge(&Refusal { http, status, message, reason: Some(info), violations }, &ours());
        proptest::prop_assert!(!error.stated || matches!(error.kind, Disabled | PendingDeletion | Destroyed | AccessDenied));
    }
}
