use super::*;
use crate::notify::sample::locked;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn settings() -> EmailSettings {
    EmailSettings {
        security: SmtpSecurity::StartTls,
        host: "mail.example.com".to_owned(),
        port: 587,
        from: "Key watchdog <watch@example.com>".to_owned(),
        to: vec!["sre@example.com".to_owned()],
        username: None,
        password: None,
        ca_pem: None,
    }
}

#[test]
fn settings_that_cannot_be_used_are_refused_by_name() {
    let cases: [(EmailSettings, &str); 7] = [
        (EmailSettings { to: vec!["a@b\r\nBcc: c@d".to_owned()], ..settings() }, "to `a@b  Bcc: c@d` is not an e-mail address"),
        (EmailSettings { from: "nobody".to_owned(), ..settings() }, "from `nobody` is not an e-mail address"),
        (EmailSettings { to: Vec::new(), ..settings() }, "to is empty"),
        (
            EmailSettings { username: Some("u".to_owned()), ..settings() },
            "password is given without username, or username without password",
        ),
        (EmailSettings { ca_pem: Some("not pem".to_owned()), ..settings() }, "ca_file holds no certificate in PEM form"),
        (
            EmailSettings { ca_pem: Some("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----".to_owned()), ..settings() },
            "ca_file holds no certificate in PEM form",
        ),
        (
            EmailSettings {
                security: SmtpSecurity::Plain,
                username: Some("u".to_owned()),
                password: Some("hunter2".to_owned()),
                ..settings()
            },
            "username and password need starttls or tls: they would be sent in the clear",
        ),
    ];
    for (bad, expected) in cases {
        assert_eq!(Email::new(&bad).unwrap_err().to_string(), expected);
    }
}

#[test]
fn the_password_is_never_shown() {
    let full = EmailSettings { username: Some("u".to_owned()), password: Some("hunter2".to_owned()), ..settings() };
    assert_eq!(format!("{:?}", Email::new(&full).unwrap()), "Email(mail.example.com:587, StartTls, 1 recipients)");
}

#[test]
fn a_message_id_is_made_of_the_notice_id_alone() {
    assert_eq!(message_id(&NoticeId("01J/x y>".into()), "example.com"), "<01J-x-y-@example.com>");
}

#[test]
fn what_is_remembered_of_half_delivered_notices_is_bounded() {
    let email = Email::new(&settings()).unwrap();
    for n in 0..1_000 {
        email.remember(&NoticeId(format!("n{n}").into()), std::iter::once("a@example.com".to_owned()));
    }
    assert_eq!(email.have.lock().unwrap().len(), REMEMBERED);
}

/// A mail server of a script: says its lines in turn, each after something was said to it, then
/// falls silent or, at the end of a script with `close`, hangs up.
async fn scripted(lines: &'static [&'static str], close: bool) -> Email {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut heard = [0; 4096];
                for line in lines {
                    socket.write_all(line.as_bytes()).await.unwrap();
                    let _said = socket.read(&mut heard).await;
                }
                if !close {
                    while socket.read(&mut heard).await.is_ok_and(|read| read > 0) {}
                }
            });
        }
    });
    let plain = EmailSettings { security: SmtpSecurity::Plain, host: "127.0.0.1".to_owned(), port, ..settings() };
    Email { deadline: Duration::from_millis(200), ..Email::new(&plain).unwrap() }
}

#[tokio::test]
async fn a_server_that_hangs_in_the_mail_is_given_up_and_holds_nothing() {
    let email = scripted(&["220 hi\r\n", "250 hi\r\n", "250 ok\r\n", "250 ok\r\n", "354 go\r\n"], false).await;
    for _ in 0..3 {
        let late = Delivery::Retry { after: None, reason: "127.0.0.1 did not finish in time".to_owned() };
        assert_eq!(email.send(&locked()).await, late);
    }
    let silent = scripted(&[], false).await;
    assert_eq!(silent.check().await, Err("127.0.0.1 did not answer in time".to_owned()));
}

#[tokio::test]
async fn a_server_that_hangs_up_or_talks_nonsense_is_tried_again() {
    for lines in [&["220 hi\r\n"][..], &["220 hi\r\n", "250 hi\r\n"], &["220 hi\r\n", "250 hi\r\n", "what?\r\n"], &["554 go away\r\n"]] {
        let email = scripted(lines, true).await;
        assert!(matches!(email.send(&locked()).await, Delivery::Retry { .. }), "{lines:?}");
    }
}

#[tokio::test]
async fn an_international_recipient_is_refused_by_a_server_that_cannot_take_it() {
    let plain = EmailSettings { to: vec!["jörg@example.com".to_owned()], ..settings() };
    let mut email = scripted(&["220 hi\r\n", "250 hi\r\n", "250 ok\r\n", "221 bye\r\n"], true).await;
    email.to = Email::new(&plain).unwrap().to;
    let reason = "jörg@example.com: the mail server does not take international addresses".to_owned();
    assert_eq!(email.send(&locked()).await, Delivery::Refused { reason });
}
