//! outside
//! Notices by e-mail: one SMTP conversation per notice on a fresh connection, each recipient with
//! an outcome of its own. It must never send in the clear where TLS is demanded, never lose the mail
//! of the good recipients for a bad one, and never mail the same person twice for one notice while
//! it runs.

use lettre::address::Address;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message, MultiPart};
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailParameter};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::config::SmtpSecurity;
use crate::kms::BoxFuture;
use crate::notify::{Delivery, Notice, NoticeId, Receiver, compose, render};

/// From the first packet to the last answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// For connecting alone.
const CONNECT: Duration = Duration::from_secs(10);
/// How many notices are remembered with the recipients that have them already.
const REMEMBERED: usize = 64;

/// Everything the receiver needs, secrets resolved.
#[derive(Clone, PartialEq, Eq)]
pub struct EmailSettings {
    pub security: SmtpSecurity,
    pub host: String,
    pub port: u16,
    /// `Name <user@host>` or `user@host`.
    pub from: String,
    pub to: Vec<String>,
    pub username: Option<String>,
    pub password: Option<String>,
    /// Trusted beside the system's own certificates.
    pub ca_pem: Option<String>,
}

/// An e-mail receiver that cannot be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadEmail {
    #[error("{field} `{text}` is not an e-mail address")]
    Address { field: &'static str, text: String },
    #[error("to is empty")]
    NoRecipient,
    #[error("password is given without username, or username without password")]
    Credentials,
    #[error("username and password need starttls or tls: they would be sent in the clear")]
    Clear,
    #[error("ca_file holds no certificate in PEM form")]
    Ca,
    #[error("TLS for host {host} cannot be set up: {why}")]
    Tls { host: String, why: String },
}

/// One mail server and its recipients.
pub struct Email {
    host: String,
    port: u16,
    security: SmtpSecurity,
    tls: Option<TlsParameters>,
    hello: ClientId,
    from: Mailbox,
    to: Vec<Mailbox>,
    credentials: Option<Credentials>,
    deadline: Duration,
    /// Who has which notice already, after a mail that went to some of them.
    have: Mutex<VecDeque<(NoticeId, BTreeSet<String>)>>,
}

impl std::fmt::Debug for Email {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Email({}:{}, {:?}, {} recipients)", self.host, self.port, self.security, self.to.len())
    }
}

/// How one recipient fared.
#[derive(Debug)]
enum Outcome {
    Took,
    Later(String),
    Never(String),
}

impl Email {
    /// # Errors
    /// If an address, the certificate or the credentials cannot be used.
    pub fn new(settings: &EmailSettings) -> Result<Self, BadEmail> {
        let mailbox =
            |field, text: &String| text.parse::<Mailbox>().map_err(|_| BadEmail::Address { field, text: compose::one_line(text, 200) });
        let to = settings.to.iter().map(|text| mailbox("to", text)).collect::<Result<Vec<_>, _>>()?;
        if to.is_empty() {
            return Err(BadEmail::NoRecipient);
        }
        let credentials = match (&settings.username, &settings.password) {
            (Some(user), Some(password)) => Some(Credentials::new(user.clone(), password.clone())),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err(BadEmail::Credentials),
        };
        if credentials.is_some() && settings.security == SmtpSecurity::Plain && !loopback(&settings.host) {
            return Err(BadEmail::Clear);
        }
        let from = mailbox("from", &settings.from)?;
        let hello = ClientId::default();
        let tls = match settings.security {
            SmtpSecurity::Plain => None,
            SmtpSecurity::StartTls | SmtpSecurity::Tls => Some(tls_parameters(&settings.host, settings.ca_pem.as_deref())?),
        };
        let (host, port, security) = (settings.host.clone(), settings.port, settings.security);
        Ok(Self { host, port, security, tls, hello, from, to, credentials, deadline: DEADLINE, have: Mutex::default() })
    }

    /// Connects, with TLS as demanded and authenticated as demanded. The error is a reason.
    async fn connect(&self) -> Result<AsyncSmtpConnection, String> {
        let implicit = self.tls.clone().filter(|_| self.security == SmtpSecurity::Tls);
        let address = (self.host.as_str(), self.port);
        let opened = AsyncSmtpConnection::connect_tokio1(address, Some(CONNECT), &self.hello, implicit, None).await;
        let mut connection = opened.map_err(|error| format!("no connection to {}:{}: {}", self.host, self.port, words(&error)))?;
        if self.security == SmtpSecurity::StartTls {
            let Some(tls) = self.tls.clone() else { return Err("TLS is not set up".to_owned()) };
            if !connection.can_starttls() {
                return Err(format!("{} offers no STARTTLS; nothing was sent", self.host));
            }
            connection
                .starttls(tls, &self.hello)
                .await
                .map_err(|error| format!("STARTTLS with {} failed: {}", self.host, words(&error)))?;
        }
        if let Some(credentials) = &self.credentials {
            let mechanisms = [Mechanism::Plain, Mechanism::Login];
            connection
                .auth(&mechanisms, credentials)
                .await
                .map_err(|error| format!("{} refuses our login: {}", self.host, words(&error)))?;
        }
        Ok(connection)
    }

    async fn deliver(&self, notice: &Notice) -> Delivery {
        let message = match self.message(notice) {
            Ok(message) => message,
            Err(reason) => return Delivery::Refused { reason },
        };
        match tokio::time::timeout(self.deadline, self.converse(notice, &message)).await {
            Ok(delivery) => delivery,
            Err(_) => Delivery::Retry { after: None, reason: format!("{} did not finish in time", self.host) },
        }
    }

    /// One conversation: every recipient that does not have the notice yet is offered it.
    async fn converse(&self, notice: &Notice, message: &[u8]) -> Delivery {
        let open: Vec<&Address> = self.open_for(&notice.id);
        if open.is_empty() {
            return Delivery::Delivered;
        }
        let mut connection = match self.connect().await {
            Ok(connection) => connection,
            Err(reason) => return Delivery::Retry { after: None, reason },
        };
        let outcomes = transaction(&mut connection, &self.from.email, &open, message).await;
        let took = outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Took)).map(|(address, _)| address.to_string());
        self.remember(&notice.id, took);
        // Only now the goodbye: however long it takes, what was taken is remembered.
        let _farewell = tokio::time::timeout(Duration::from_secs(2), connection.quit()).await;
        self.verdict(&notice.id, outcomes)
    }

    fn verdict(&self, id: &NoticeId, outcomes: Vec<(&Address, Outcome)>) -> Delivery {
        let (mut later, mut never) = (Vec::new(), Vec::new());
        for (address, outcome) in outcomes {
            match outcome {
                Outcome::Took => {}
                Outcome::Later(reason) => later.push(format!("{address}: {reason}")),
                Outcome::Never(reason) => {
                    tracing::warn!(notice = %id.0, recipient = %address, %reason, "mail server refuses this recipient for good");
                    never.push((address.to_string(), format!("{address}: {reason}")));
                }
            }
        }
        if !later.is_empty() {
            // A recipient that is refused for good is not asked again with the others.
            self.remember(id, never.into_iter().map(|(address, _)| format!("refused:{address}")));
            return Delivery::Retry { after: None, reason: later.join("; ") };
        }
        let had = self.forget(id);
        if had.iter().any(|address| !address.starts_with("refused:")) {
            return Delivery::Delivered;
        }
        Delivery::Refused { reason: never.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>().join("; ") }
    }

    /// Recipients whose outcome for this notice is not settled.
    fn open_for(&self, id: &NoticeId) -> Vec<&Address> {
        let have = self.have.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = have.iter().find(|(known, _)| known == id).map(|(_, settled)| settled);
        let open =
            |address: &Address| settled.is_none_or(|s| !s.contains(&address.to_string()) && !s.contains(&format!("refused:{address}")));
        self.to.iter().map(|mailbox| &mailbox.email).filter(|address| open(address)).collect()
    }

    fn remember(&self, id: &NoticeId, addresses: impl Iterator<Item = String>) {
        let mut have = self.have.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, settled)) = have.iter_mut().find(|(known, _)| known == id) {
            settled.extend(addresses);
            return;
        }
        have.push_back((id.clone(), addresses.collect()));
        while have.len() > REMEMBERED {
            have.pop_front();
        }
    }

    fn forget(&self, id: &NoticeId) -> BTreeSet<String> {
        let mut have = self.have.lock().unwrap_or_else(PoisonError::into_inner);
        let position = have.iter().position(|(known, _)| known == id);
        position.and_then(|position| have.remove(position)).map(|(_, settled)| settled).unwrap_or_default()
    }

    /// The message as sent: the same bytes on every attempt but for the multipart boundary.
    fn message(&self, notice: &Notice) -> Result<Vec<u8>, String> {
        let text = render::text(notice).map_err(|error| error.to_string())?;
        let html = render::html(notice).map_err(|error| error.to_string())?;
        let millis = u64::try_from(notice.timestamp.0).unwrap_or(0);
        let mut builder = Message::builder()
            .from(self.from.clone())
            .subject(compose::subject(notice))
            .date(SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH))
            .message_id(Some(message_id(&notice.id, self.from.email.domain())));
        for mailbox in &self.to {
            builder = builder.to(mailbox.clone());
        }
        for (name, value) in [
            ("X-Cmek-Notice", compose::one_line(&notice.id.0, 200)),
            ("X-Cmek-Type", notice.event.to_string()),
            ("X-Cmek-Key", notice.key.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)),
            ("Auto-Submitted", "auto-generated".to_owned()),
        ] {
            let name = HeaderName::new_from_ascii(name.to_owned()).map_err(|_| format!("header {name} cannot be written"))?;
            builder = builder.raw_header(HeaderValue::new(name, value));
        }
        let built = builder
            .multipart(MultiPart::alternative_plain_html(text, html))
            .map_err(|error| format!("the mail cannot be written: {error}"))?;
        Ok(built.formatted())
    }

    async fn try_login(&self) -> Result<(), String> {
        let mut connection = self.connect().await?;
        let _farewell = connection.quit().await;
        Ok(())
    }
}

/// MAIL, one RCPT each, then DATA for those that were taken.
async fn transaction<'a>(
    connection: &mut AsyncSmtpConnection,
    from: &Address,
    recipients: &[&'a Address],
    message: &[u8],
) -> Vec<(&'a Address, Outcome)> {
    let all = |outcome: &dyn Fn() -> Outcome| recipients.iter().map(|address| (*address, outcome())).collect();
    let international = |address: &Address| !address.to_string().is_ascii();
    let speaks_utf8 = connection.server_info().supports_feature(Extension::SmtpUtfEight);
    let utf8 = speaks_utf8 && (international(from) || recipients.iter().any(|address| international(address)));
    let options = if utf8 { vec![MailParameter::SmtpUtfEight] } else { Vec::new() };
    if let Err(error) = connection.command(Mail::new(Some(from.clone()), options)).await {
        return all(&|| judged(&error));
    }
    let mut outcomes: Vec<(&Address, Outcome)> = Vec::new();
    for address in recipients {
        let outcome = if international(address) && !speaks_utf8 {
            Outcome::Never("the mail server does not take international addresses".to_owned())
        } else {
            match connection.command(Rcpt::new((*address).clone(), Vec::new())).await {
                Ok(_taken) => Outcome::Took,
                Err(error) => judged(&error),
            }
        };
        outcomes.push((address, outcome));
    }
    if !outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Took)) {
        return outcomes;
    }
    let sent = match connection.command(Data).await {
        Ok(_go_on) => connection.message(message).await,
        Err(error) => Err(error),
    };
    if let Err(error) = sent {
        for (_, outcome) in outcomes.iter_mut().filter(|(_, outcome)| matches!(outcome, Outcome::Took)) {
            *outcome = judged(&error);
        }
    }
    outcomes
}

/// 5xx is for good, everything else may pass.
fn judged(error: &lettre::transport::smtp::Error) -> Outcome {
    if error.is_permanent() { Outcome::Never(words(error)) } else { Outcome::Later(words(error)) }
}

/// The server's own words, or the deepest cause; never the credentials, which no answer repeats.
fn words(error: &lettre::transport::smtp::Error) -> String {
    let mut parts = vec![error.to_string()];
    let mut at = std::error::Error::source(error);
    while let Some(cause) = at {
        let text = cause.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        at = cause.source();
    }
    compose::one_line(&parts.join(": "), 200)
}

/// `<notice id @ domain of from>`, the same on every attempt.
fn message_id(id: &NoticeId, domain: &str) -> String {
    let local: String = id.0.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    format!("<{local}@{domain}>")
}

fn tls_parameters(host: &str, ca_pem: Option<&str>) -> Result<TlsParameters, BadEmail> {
    let mut builder = TlsParameters::builder(host.to_owned());
    if let Some(pem) = ca_pem {
        // lettre takes a text without any certificate for an empty list of them.
        if !pem.contains("-----BEGIN CERTIFICATE-----") {
            return Err(BadEmail::Ca);
        }
        builder = builder.add_root_certificate(Certificate::from_pem(pem.as_bytes()).map_err(|_| BadEmail::Ca)?);
    }
    builder.build().map_err(|error| BadEmail::Tls { host: host.to_owned(), why: words(&error) })
}

fn loopback(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Receiver for Email {
    fn send<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Delivery> {
        Box::pin(self.deliver(notice))
    }
    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            tokio::time::timeout(self.deadline, self.try_login())
                .await
                .unwrap_or_else(|_| Err(format!("{} did not answer in time", self.host)))
        })
    }
}

#[cfg(test)]
mod tests;
