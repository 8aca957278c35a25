use super::*;
use crate::config::GcpCredentials;
use crate::key::ProviderId;

#[tokio::test]
async fn debug_shows_neither_credentials_nor_clients() {
    let detail = ProviderDetail::Gcp {
        endpoint: None,
        credentials: GcpCredentials::Anonymous,
        project_number: Some("100000000001".to_owned()),
        our_accounts: Vec::new(),
    };
    let provider = Provider { id: ProviderId::new("g").unwrap(), detail, control_key: None, calls_per_second: 1 };
    let kms = GcpKms::new(&provider, Span::from_secs(1)).await.unwrap();
    assert_eq!(format!("{kms:?}"), r#"GcpKms { ours: OurProjects(["100000000001"]), call_timeout: Span(1000), .. }"#);
}

#[test]
fn checksums_are_those_of_castagnoli() {
    // RFC 3720, B.4: 32 bytes of zeroes.
    assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
}
