use super::*;

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
