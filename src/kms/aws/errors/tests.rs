//! outside
//! One row per text that the table knows, in AWS's words and reworded, and the lines of the case file.

use super::*;

const KEY: &str = "arn:aws:kms:us-east-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const OURS: &str = "arn:aws:sts::111122223333:assumed-role/kms-watchdog/probe";
const THEIRS: &str = "arn:aws:sts::444455556666:assumed-role/acme-cmek-access/kms-watchdog";
const THIRD: &str = "arn:aws:sts::777788889999:assumed-role/acme-hub/kms-watchdog";

fn told(code: &str, message: &str) -> Refusal {
    Refusal { status: Some(400), code: Some(code.to_owned()), message: message.to_owned(), request_id: Some("r".to_owned()), proxy: None }
}

fn verdict(refusal: &Refusal, operation: &str, our_accounts: &[&str]) -> Option<(Kind, bool)> {
    let our_accounts: Vec<String> = our_accounts.iter().map(|a| (*a).to_owned()).collect();
    let whose = Whose { operation, key_account: "444455556666", our_accounts: &our_accounts };
    classify(refusal, &whose).map(|e| (e.kind, e.stated))
}

fn decrypt(code: &str, message: &str) -> Option<(Kind, bool)> {
    verdict(&told(code, message), "kms:Decrypt", &["111122223333"])
}

#[test]
fn each_layer_of_policy_is_laid_at_its_owners_door() {
    let denied = (Kind::AccessDenied, true);
    let unclear = (Kind::AccessDenied, false);
    let us = (Kind::Credentials, false);
    for (who, why, expected) in [
        (OURS, "because no identity-based policy allows the kms:Decrypt action", us),
        (OURS, "with an explicit deny in an identity-based policy", us),
        (OURS, "with an explicit deny in an identity-based policy: arn:aws:iam::111122223333:policy/deny", us),
        (OURS, "because no permissions boundary allows the kms:Decrypt action", us),
        (OURS, "with an explicit deny in a permissions boundary", us),
        (OURS, "because no service control policy allows the kms:Decrypt action", us),
        (OURS, "with an explicit deny in a service control policy", us),
        (
            OURS,
            "with an explicit deny in a service control policy: arn:aws:organizations::999900001111:policy/o-x/service_control_policy/p-x",
            us,
        ),
        (OURS, "because no session policy allows the kms:Decrypt action", us),
        (THEIRS, "with an explicit deny in a session policy", us),
        (OURS, "because no resource-based policy allows the kms:Decrypt action", denied),
        (OURS, "with an explicit deny in a resource-based policy", denied),
        (OURS, "with an explicit deny in a resource control policy", denied),
        (
            OURS,
            "with an explicit deny in a resource control policy: arn:aws:organizations::999900001111:policy/o-x/resource_control_policy/p-x",
            denied,
        ),
        (
            OURS,
            "with an explicit deny in a resource control policy: arn:aws:organizations::111122223333:policy/o-x/resource_control_policy/p-x",
            us,
        ),
        (THEIRS, "because no identity-based policy allows the kms:Decrypt action", denied),
        (THEIRS, "with an explicit deny in a permissions boundary", denied),
        (THEIRS, "with an explicit deny in a service control policy", denied),
        (THIRD, "because no identity-based policy allows the kms:Decrypt action", unclear),
        (OURS, "because no VPC endpoint policy allows the kms:Decrypt action", (Kind::NetworkBlocked, false)),
        (OURS, "with an explicit deny in a VPC endpoint policy", (Kind::NetworkBlocked, false)),
        (OURS, "", unclear),
        (
            OURS,
            "because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access",
            unclear,
        ),
        (OURS, "because of a policy of a new sort", unclear),
        (OURS, "because no identity-based policy and no resource-based policy allows the kms:Decrypt action", unclear),
    ] {
        let message = format!("User: {who} is not authorized to perform: kms:Decrypt on resource: {KEY} {why}");
        assert_eq!(decrypt("AccessDeniedException", &message), Some(expected), "{message}");
        let china = message.replace("arn:aws:", "arn:aws-cn:").replace("us-east-1", "cn-north-1");
        assert_eq!(decrypt("AccessDenied", &china), Some(expected), "{china}");
    }
}

#[test]
fn without_our_accounts_nothing_is_stated_by_the_principal() {
    let text = |who: &str| {
        format!("User: {who} is not authorized to perform: kms:Decrypt because no identity-based policy allows the kms:Decrypt action")
    };
    assert_eq!(verdict(&told("AccessDeniedException", &text(THEIRS)), "kms:Decrypt", &[]), Some((Kind::AccessDenied, false)));
    assert_eq!(verdict(&told("AccessDeniedException", &text(OURS)), "kms:Decrypt", &[]), Some((Kind::Credentials, false)));
}

#[test]
fn a_refused_metadata_right_states_nothing() {
    let text = format!(
        "User: {OURS} is not authorized to perform: kms:DescribeKey because no resource-based policy allows the kms:DescribeKey action"
    );
    assert_eq!(verdict(&told("AccessDeniedException", &text), "kms:DescribeKey", &["111122223333"]), Some((Kind::AccessDenied, false)));
}

#[test]
fn a_refused_role_is_the_customers_word_only_if_the_role_is_the_customers() {
    let text = |role: &str, why: &str| {
        format!("User: {OURS} is not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::{role}:role/cmek-probe{why}")
    };
    for (role, why, expected) in [
        ("444455556666", "", (Kind::AccessDenied, false)),
        ("444455556666", " because no role trust policy allows the sts:AssumeRole action", (Kind::AccessDenied, true)),
        ("444455556666", " because no identity-based policy allows the sts:AssumeRole action", (Kind::Credentials, false)),
        ("444455556666", " because no VPC endpoint policy allows the sts:AssumeRole action", (Kind::NetworkBlocked, false)),
        ("111122223333", "", (Kind::Credentials, false)),
        ("111122223333", " because no role trust policy allows the sts:AssumeRole action", (Kind::Credentials, false)),
    ] {
        assert_eq!(verdict(&told("AccessDenied", &text(role, why)), "sts:AssumeRole", &["111122223333"]), Some(expected), "{role}{why}");
    }
    let bare = told("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity");
    assert_eq!(verdict(&bare, "sts:AssumeRoleWithWebIdentity", &["111122223333"]), Some((Kind::Credentials, false)));
}

#[test]
fn a_key_store_is_known_by_its_words_in_any_letter_case_and_wording() {
    let store = (Kind::KeyStoreUnavailable, false);
    for (message, expected) in [
        (
            "The external key store proxy rejected the request because the external key is not enabled in the external key manager.",
            (Kind::Disabled, true),
        ),
        ("The external key is disabled in the external key manager.", (Kind::Disabled, true)),
        ("The external key store proxy rejected the request because it could not find the external key.", (Kind::Destroyed, false)),
        ("The external key does not exist in the external key manager.", (Kind::Destroyed, false)),
        ("In the external key manager the external key was not found.", (Kind::Destroyed, false)),
        (
            "The external key store proxy denied access to the operation. Verify that the user and the external key are both authorized",
            (Kind::AccessDenied, true),
        ),
        ("The external key store proxy rejected the request due to a very high request rate.", (Kind::Throttled, false)),
        ("The external key store proxy is throttling requests.", (Kind::Throttled, false)),
        ("The external key store proxy answered: too many requests.", (Kind::Throttled, false)),
        (
            "The external key store proxy rejected the request because the specified ciphertext or additional authenticated data is corrupted",
            (Kind::Misconfigured, false),
        ),
        (
            "The external key store proxy rejected the request because the external key does not support the requested operation.",
            (Kind::Misconfigured, false),
        ),
        ("The external key store proxy did not respond to the request in the time allotted.", store),
        ("The external key store proxy is in an unhealthy state.", store),
        ("The external key store proxy rejected the request because it was unable to authenticate AWS KMS.", store),
        ("The external key store proxy rejected the request because of an invalid URI path.", store),
        ("AWS KMS cannot interpret the response from the external key store proxy.", store),
        ("The EXTERNAL KEY manager sulks in some way nobody has written down.", store),
        ("KMS cannot communicate with your CloudHSM cluster", store),
        ("Your HSM cluster has no active HSMs.", store),
        ("The custom keystore is disconnected.", store),
        ("XKS proxy says no.", store),
        ("The key store is not connected.", store),
    ] {
        for text in [message.to_owned(), message.to_uppercase()] {
            assert_eq!(decrypt("KMSInvalidStateException", &text), Some(expected), "{text}");
        }
    }
    assert_eq!(decrypt("KMSInternalException", "AWS KMS cannot communicate with the external key store proxy."), Some(store));
    assert_eq!(decrypt("KMSInternalException", ""), Some((Kind::ProviderFault, false)));
    assert_eq!(decrypt("DependencyTimeoutException", "The CloudHSM cluster did not answer."), Some(store));
}

#[test]
fn an_invalid_state_is_read_from_its_text_and_unknown_text_states_nothing() {
    for (text, expected) in [
        ("is pending deletion.", (Kind::PendingDeletion, true)),
        ("is pending replica deletion.", (Kind::PendingDeletion, true)),
        ("is PendingDeletion", (Kind::PendingDeletion, true)),
        ("is PendingReplicaDeletion", (Kind::PendingDeletion, true)),
        ("is disabled.", (Kind::Disabled, true)),
        ("is pending import.", (Kind::Expired, false)),
        ("is PendingImport.", (Kind::Expired, false)),
        ("is creating.", (Kind::Expired, false)),
        ("is unavailable.", (Kind::KeyStoreUnavailable, false)),
        ("is updating.", (Kind::Unclassified, false)),
        ("is in a state that is new.", (Kind::Unclassified, false)),
        ("", (Kind::Unclassified, false)),
    ] {
        assert_eq!(decrypt("KMSInvalidStateException", &format!("{KEY} {text}")), Some(expected), "{text}");
    }
}

#[test]
fn a_missing_key_is_no_statement_and_a_missing_alias_no_accusation() {
    for (text, kind) in [
        (format!("Key '{KEY}' does not exist"), Kind::Destroyed),
        (format!("{KEY} is not found."), Kind::Destroyed),
        ("Alias 'alias/ws' does not exist".to_owned(), Kind::Misconfigured),
        ("Alias arn:aws:kms:us-east-1:444455556666:alias/ws is not found.".to_owned(), Kind::Misconfigured),
        ("Invalid keyId 'x'".to_owned(), Kind::Misconfigured),
        (String::new(), Kind::Misconfigured),
    ] {
        assert_eq!(decrypt("NotFoundException", &text), Some((kind, false)), "{text}");
    }
}

#[test]
fn codes_mean_the_same_in_every_spelling_of_aws() {
    for (code, kind) in [
        ("ExpiredToken", Kind::Credentials),
        ("ExpiredTokenException", Kind::Credentials),
        ("InvalidClientTokenId", Kind::Credentials),
        ("RequestExpired", Kind::Credentials),
        ("OptInRequired", Kind::Credentials),
        ("Throttling", Kind::Throttled),
        ("TooManyRequestsException", Kind::Throttled),
        ("RequestTimeoutException", Kind::Timeout),
        ("ServiceUnavailableException", Kind::ProviderFault),
        ("InternalFailure", Kind::ProviderFault),
        ("KeyUnavailableException", Kind::ProviderFault),
        ("CloudHsmClusterNotActiveException", Kind::KeyStoreUnavailable),
        ("XksProxyUriUnreachableException", Kind::KeyStoreUnavailable),
        ("IncorrectKeyException", Kind::Misconfigured),
        ("InvalidAction", Kind::Misconfigured),
        ("TeapotException", Kind::Unclassified),
    ] {
        assert_eq!(decrypt(code, ""), Some((kind, false)), "{code}");
    }
    assert_eq!(decrypt("DryRunOperationException", ""), None);
    assert_eq!(decrypt("ConflictException", ""), None);
    assert_eq!(
        decrypt("SignatureDoesNotMatch", "Credential should be scoped to correct service: 'kms'."),
        Some((Kind::Misconfigured, false))
    );
    assert_eq!(decrypt("AccessDeniedException", "The security token included in the request is expired"), Some((Kind::Credentials, false)));
    assert_eq!(
        decrypt("AccessDeniedException", "Unable to determine service/operation name to be authorized"),
        Some((Kind::Misconfigured, false))
    );
}

#[test]
fn a_clock_that_is_off_is_named_as_the_clock() {
    let our_accounts = [];
    let whose = Whose { operation: "kms:Decrypt", key_account: "444455556666", our_accounts: &our_accounts };
    for text in [
        "Signature expired: 20261125T100000Z is now earlier than 20261125T101000Z (20261125T101500Z - 5 min.)",
        "Signature not yet current: 20261125T100000Z is still later than 20261125T091000Z",
        "Request has expired.",
        "x is now later than y",
        "The difference between the request time and the current time is too large: skewed",
    ] {
        let seen = classify(&told("InvalidSignatureException", text), &whose).unwrap();
        assert_eq!((seen.kind, seen.message.starts_with("clock: ")), (Kind::Credentials, true), "{text}");
    }
}

#[test]
fn without_a_code_the_status_accuses_nobody_of_anything_about_the_key() {
    let answer = |status, proxy: Option<&str>, message: &str| Refusal {
        status: Some(status),
        code: None,
        message: message.to_owned(),
        request_id: None,
        proxy: proxy.map(str::to_owned),
    };
    for (status, proxy, kind) in [
        (200, None, Kind::Unclassified),
        (200, Some("squid"), Kind::NetworkBlocked),
        (302, None, Kind::Unclassified),
        (400, None, Kind::Unclassified),
        (403, None, Kind::Unclassified),
        (403, Some("zscaler"), Kind::NetworkBlocked),
        (404, None, Kind::Unclassified),
        (407, None, Kind::NetworkBlocked),
        (408, None, Kind::Timeout),
        (429, None, Kind::Throttled),
        (500, None, Kind::ProviderFault),
        (503, Some("squid"), Kind::NetworkBlocked),
        (511, None, Kind::NetworkBlocked),
    ] {
        assert_eq!(verdict(&answer(status, proxy, ""), "kms:Decrypt", &[]), Some((kind, false)), "{status} {proxy:?}");
    }
    assert_eq!(
        verdict(&answer(403, None, "The security token included in the request is invalid"), "kms:Decrypt", &[]),
        Some((Kind::Credentials, false))
    );
    assert_eq!(verdict(&answer(404, None, ""), "imds:GET /latest", &[]), Some((Kind::Credentials, false)));
}

#[test]
fn a_failure_without_an_answer_is_never_more_than_a_doubt() {
    for (code, host, kind) in [
        ("dns", "kms.us-east-1.amazonaws.com", Kind::Unreachable),
        ("dns", "kms.us-west-2\u{a0}.amazonaws.com", Kind::Misconfigured),
        ("refused", "h", Kind::Unreachable),
        ("reset", "h", Kind::Unreachable),
        ("tls", "h", Kind::Unreachable),
        ("connect", "h", Kind::Unreachable),
        ("io", "h", Kind::Unreachable),
        ("timeout", "h", Kind::Timeout),
        ("connect_timeout", "h", Kind::Timeout),
        ("request", "h", Kind::Misconfigured),
        ("identity", "h", Kind::Credentials),
        ("?", "h", Kind::Unclassified),
    ] {
        let seen = classify_transport(code, "m", host);
        assert_eq!((seen.kind, seen.stated), (kind, false), "{code} {host}");
    }
}

#[test]
fn only_disabled_pending_deletion_or_a_refused_data_call_is_ever_stated() {
    let texts = [
        "is disabled",
        "is pending deletion",
        "external key is not enabled",
        "denied access external key",
        "no resource-based policy allows",
        "",
        "alias",
    ];
    let codes = [
        "DisabledException",
        "KMSInvalidStateException",
        "AccessDeniedException",
        "NotFoundException",
        "ThrottlingException",
        "ValidationException",
        "X",
    ];
    for code in codes {
        for text in texts {
            for operation in ["kms:Decrypt", "kms:DescribeKey", "sts:GetCallerIdentity", "sts:AssumeRole", "imds:GET"] {
                if let Some((kind, true)) = verdict(&told(code, text), operation, &["111122223333"]) {
                    assert!(
                        matches!(kind, Kind::Disabled | Kind::PendingDeletion | Kind::AccessDenied),
                        "{code} {text} {operation}: {kind}"
                    );
                }
            }
        }
    }
}
