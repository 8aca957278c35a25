use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn addresses_that_cannot_be_used_are_refused_without_being_shown() {
    for (url, expected) in [
        ("ftp://example.com/secret", BadReceiver::Address),
        ("not an address", BadReceiver::Address),
        ("https://user:secret@example.com/", BadReceiver::UserInfo),
        ("https://user@example.com/", BadReceiver::UserInfo),
    ] {
        let error = Door::new(url).unwrap_err();
        assert_eq!(error, expected, "{url}");
        assert!(!error.to_string().contains("secret"));
    }
    let door = Door::new("https://example.com/hook/secret").unwrap();
    assert_eq!(format!("{door:?}"), "Door(address hidden)");
}

#[test]
fn a_status_decides_between_delivered_later_and_never() {
    let after = Some(Span::from_secs(3));
    for code in 200..=599_u16 {
        let got = outcome(StatusCode::from_u16(code).unwrap(), after, "why");
        match code {
            200..=299 => assert_eq!(got, Delivery::Delivered),
            408 | 425 | 429 | 500..=599 => assert_eq!(got, Delivery::Retry { after, reason: format!("HTTP {code}: why") }),
            300..=399 => assert!(matches!(got, Delivery::Retry { .. }), "{code}"),
            _ => assert_eq!(got, Delivery::Refused { reason: format!("HTTP {code}: why") }),
        }
    }
}

#[test]
fn retry_after_is_seconds_or_a_date_and_nothing_else() {
    let now: Wall = "2026-11-25T07:46:00Z".parse().unwrap();
    for (text, expected) in [
        ("120", Some(Span::from_secs(120))),
        ("Wed, 25 Nov 2026 07:47:30 GMT", Some(Span::from_secs(90))),
        ("Wed, 25 Nov 2026 07:00:00 GMT", Some(Span::ZERO)),
        ("soon", None),
        ("-1", None),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, text.parse().unwrap());
        assert_eq!(retry_after(&headers, now), expected, "{text}");
    }
}

/// A server that answers one connection with `answer` and says what it was asked.
async fn one_answer(answer: Vec<u8>) -> (String, tokio::task::JoinHandle<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook/topsecret", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 65_536];
        let read = socket.read(&mut request).await.unwrap();
        request.truncate(read);
        let _gone = socket.write_all(&answer).await;
        String::from_utf8_lossy(&request).into_owned()
    });
    (url, task)
}

async fn post(url: &str) -> Delivery {
    Door::new(url).unwrap().post(HeaderMap::new(), b"{}".to_vec(), Wall(0)).await
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let answer = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_vec();
    let (url, asked) = one_answer(answer).await;
    assert_eq!(post(&url).await, Delivery::Retry { after: None, reason: "HTTP 302: redirects are not followed".to_owned() });
    assert!(asked.await.unwrap().starts_with("POST /hook/topsecret HTTP/1.1\r\n"));
}

#[tokio::test]
async fn an_endless_answer_is_cut_at_the_bound() {
    let mut answer = b"HTTP/1.1 500 No\r\n\r\nfirst line\n".to_vec();
    answer.extend(std::iter::repeat_n(b'x', 4_000_000));
    let (url, _asked) = one_answer(answer).await;
    assert_eq!(post(&url).await, Delivery::Retry { after: None, reason: "HTTP 500: first line".to_owned() });
}

#[tokio::test]
async fn a_transport_fault_is_a_retry_whose_reason_hides_the_address() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook/topsecret", listener.local_addr().unwrap());
    drop(listener);
    let Delivery::Retry { reason, .. } = post(&url).await else { panic!("not a retry") };
    assert!(reason.starts_with("no connection: ") && !reason.contains("topsecret"), "{reason}");
    assert!(Door::new(&url).unwrap().reach().await.unwrap_err().starts_with("no connection: "));
    let (url, _asked) = one_answer(Vec::new()).await;
    let Delivery::Retry { reason, .. } = post(&url).await else { panic!("not a retry") };
    assert!(!reason.contains("topsecret"), "{reason}");
}

#[tokio::test]
async fn a_server_that_answers_anything_is_within_reach() {
    let (url, asked) = one_answer(b"HTTP/1.1 405 No\r\ncontent-length: 0\r\n\r\n".to_vec()).await;
    assert_eq!(Door::new(&url).unwrap().reach().await, Ok(()));
    assert!(asked.await.unwrap().starts_with("HEAD "), "nothing is posted by a check");
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let door = Door::within(&url, Duration::from_millis(50)).unwrap();
    let given_up = door.post(HeaderMap::new(), b"{}".to_vec(), Wall(0)).await;
    assert_eq!(given_up, Delivery::Retry { after: None, reason: "no answer in time".to_owned() });
}
