//! inside
//! Forms of single texts: secret references, addresses, mail addresses, cron lines. Says what is
//! wrong with a text in words that never repeat it, because it may be a secret in the wrong place.

use super::{SecretRef, SmtpSecurity, UrlRef};

/// Why a text has not the form that it should have.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadText {
    #[error("expected a secret reference env:NAME, file:PATH or credential:NAME; what stands here is not shown")]
    NotASecretRef,
    #[error("the name of the variable may hold only letters, digits and `_`")]
    BadVariable,
    #[error("the name of the credential may hold only letters, digits and `._-`")]
    BadCredential,
    #[error("the path of the secret is empty")]
    EmptyPath,
    #[error("expected an address that begins with one of: {0}")]
    Scheme(&'static str),
    #[error("a user part (user:password@) in an address is refused; use a secret reference")]
    UserPart,
    #[error("the host of the address is missing or malformed")]
    Host,
    #[error("the port of the address is not a number from 1 to 65535")]
    Port,
    #[error("the address has a space or a control character")]
    Space,
    #[error("expected host and port only")]
    PathPart,
    #[error("expected a mail address NAME@DOMAIN")]
    Mail,
    #[error("{0}")]
    Cron(String),
    #[error("expected an IANA time zone such as \"UTC\" or \"America/New_York\"")]
    Timezone,
}

/// Parts of an address before its path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Authority {
    pub scheme: String,
    pub host: String,
    pub port: Option<u16>,
    /// What follows host and port, beginning with `/`, `?` or `#`.
    pub rest: String,
}

/// Where a secret is to be found. A relative `file:` is joined with `base_dir`.
///
/// # Errors
/// If the text is no reference.
pub fn secret_ref(text: &str, base_dir: &str) -> Result<SecretRef, BadText> {
    let named = |name: &str, extra: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c));
    match text.split_once(':') {
        Some(("env", name)) if named(name, "_") => Ok(SecretRef::Env(name.to_owned())),
        Some(("env", _)) => Err(BadText::BadVariable),
        Some(("credential", name)) if named(name, "._-") && !name.starts_with('.') => Ok(SecretRef::Credential(name.to_owned())),
        Some(("credential", _)) => Err(BadText::BadCredential),
        Some(("file", "")) => Err(BadText::EmptyPath),
        Some(("file", path)) => Ok(SecretRef::File(super::sheet::join(base_dir, path))),
        Some(_) | None => Err(BadText::NotASecretRef),
    }
}

/// An `http(s)://` address, or a reference to one.
///
/// # Errors
/// If the text is neither.
pub fn url_ref(text: &str, base_dir: &str) -> Result<UrlRef, BadText> {
    match text.split_once(':') {
        Some(("env" | "file" | "credential", _)) => secret_ref(text, base_dir).map(UrlRef::Secret),
        Some(_) | None => {
            authority(text, &["http", "https"], "http://, https://, env:, file:, credential:")?;
            Ok(UrlRef::Plain(text.to_owned()))
        }
    }
}

/// Splits an address and refuses a user part.
///
/// # Errors
/// If the scheme is not among `schemes` or a part is malformed.
pub fn authority(text: &str, schemes: &[&str], allowed: &'static str) -> Result<Authority, BadText> {
    if text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '\\') {
        return Err(BadText::Space);
    }
    let (scheme, after) = text.split_once("://").ok_or(BadText::Scheme(allowed))?;
    if !schemes.contains(&scheme) {
        return Err(BadText::Scheme(allowed));
    }
    let end = after.find(['/', '?', '#']).unwrap_or(after.len());
    let (place, rest) = after.split_at_checked(end).unwrap_or((after, ""));
    if place.contains('@') {
        return Err(BadText::UserPart);
    }
    let (host, port) = split_port(place)?;
    Ok(Authority { scheme: scheme.to_owned(), host: host.to_ascii_lowercase(), port, rest: rest.to_owned() })
}

fn split_port(place: &str) -> Result<(&str, Option<u16>), BadText> {
    let (host, port) = if place.starts_with('[') {
        let close = place.find(']').ok_or(BadText::Host)?;
        let (host, after) = place.split_at_checked(close.saturating_add(1)).ok_or(BadText::Host)?;
        let inner = host.trim_start_matches('[').trim_end_matches(']');
        inner.parse::<core::net::Ipv6Addr>().map_err(|_| BadText::Host)?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(BadText::Port),
        }
    } else {
        match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        }
    };
    let shaped = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if host.is_empty() || (!host.starts_with('[') && !host.chars().all(shaped)) {
        return Err(BadText::Host);
    }
    match port {
        None => Ok((host, None)),
        Some(port) => match port.parse::<u16>() {
            Ok(0) | Err(_) => Err(BadText::Port),
            Ok(port) => Ok((host, Some(port))),
        },
    }
}

/// Whether a host is this machine by its very name: `localhost`, `127.0.0.0/8` or `[::1]`.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let v4 = host.parse::<core::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
    v4 || host.eq_ignore_ascii_case("localhost") || host == "[::1]" || host == "::1"
}

/// Security, host and port of an SMTP address.
///
/// # Errors
/// If the scheme is not one of the three, or more than host and port is given.
pub fn smtp(text: &str) -> Result<(SmtpSecurity, String, u16), BadText> {
    let parts = authority(text, &["smtp", "smtp+starttls", "smtps"], "smtp://, smtp+starttls://, smtps://")?;
    if !matches!(parts.rest.as_str(), "" | "/") {
        return Err(BadText::PathPart);
    }
    let (security, usual) = match parts.scheme.as_str() {
        "smtps" => (SmtpSecurity::Tls, 465),
        "smtp+starttls" => (SmtpSecurity::StartTls, 587),
        _ => (SmtpSecurity::Plain, 25),
    };
    Ok((security, parts.host, parts.port.unwrap_or(usual)))
}

/// A mail address, with or without a display name before `<...>`.
///
/// # Errors
/// If there is not exactly one name and one domain, or there is a line break.
pub fn mail(text: &str) -> Result<String, BadText> {
    let inner = match text.split_once('<') {
        Some((_, rest)) => rest.strip_suffix('>').ok_or(BadText::Mail)?,
        None => text,
    };
    let (name, domain) = inner.rsplit_once('@').ok_or(BadText::Mail)?;
    let shaped = |s: &str| !s.is_empty() && !s.chars().any(|c| c.is_whitespace() || c.is_control() || "<>@,;\"".contains(c));
    if shaped(name) && shaped(domain) && !text.chars().any(char::is_control) { Ok(text.to_owned()) } else { Err(BadText::Mail) }
}

/// Time zone by form only; whether it exists is known outside.
///
/// # Errors
/// If the text is empty or has other characters than the names of the IANA list.
pub fn timezone(text: &str) -> Result<String, BadText> {
    let shaped = |c: char| c.is_ascii_alphanumeric() || "_+-/".contains(c);
    if !text.is_empty() && text.chars().all(shaped) { Ok(text.to_owned()) } else { Err(BadText::Timezone) }
}

struct CronField {
    name: &'static str,
    least: u32,
    most: u32,
    words: &'static [&'static str],
}

const MONTHS: &[&str] = &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const DAYS: &[&str] = &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
const CRON: [CronField; 7] = [
    CronField { name: "second", least: 0, most: 59, words: &[] },
    CronField { name: "minute", least: 0, most: 59, words: &[] },
    CronField { name: "hour", least: 0, most: 23, words: &[] },
    CronField { name: "day of month", least: 1, most: 31, words: &[] },
    CronField { name: "month", least: 1, most: 12, words: MONTHS },
    CronField { name: "day of week", least: 0, most: 7, words: DAYS },
    CronField { name: "year", least: 1970, most: 9999, words: &[] },
];

/// A cron line of six fields (seconds first) or seven (year last), by form and bounds.
///
/// # Errors
/// Names the field that cannot be.
pub fn cron(text: &str) -> Result<String, BadText> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    if !(6..=7).contains(&fields.len()) {
        return Err(BadText::Cron(format!(
            "expected 6 or 7 fields (second minute hour day-of-month month day-of-week [year]), found {}",
            fields.len()
        )));
    }
    for (field, rule) in fields.iter().zip(&CRON) {
        if !field.split(',').all(|part| cron_part(part, rule)) {
            return Err(BadText::Cron(format!("the field {} is malformed or outside {} to {}", rule.name, rule.least, rule.most)));
        }
    }
    Ok(text.to_owned())
}

/// One part of a comma list: `*`, `?`, `A`, `A-B`, each with an optional `/STEP`, or the marks L, W, #.
fn cron_part(part: &str, rule: &CronField) -> bool {
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (part, None),
    };
    if step.is_some_and(|step| step.parse::<u32>().map_or(true, |n| n == 0)) {
        return false;
    }
    let value = |text: &str| {
        let word = rule.words.iter().any(|word| word.eq_ignore_ascii_case(text));
        word || text.parse::<u32>().is_ok_and(|n| (rule.least..=rule.most).contains(&n))
    };
    let marked = matches!(rule.name, "day of month" | "day of week");
    match range.split_once('-') {
        Some((from, to)) => value(from) && value(to),
        None if matches!(range, "*" | "?") => true,
        None if marked && range == "L" => true,
        None if marked && range.ends_with(['L', 'W']) => value(range.trim_end_matches(['L', 'W'])),
        None => match range.split_once('#') {
            Some((day, nth)) if marked => value(day) && nth.parse::<u32>().is_ok_and(|n| (1..=5).contains(&n)),
            Some(_) => false,
            None => value(range),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_references_are_read_and_a_bare_secret_is_never_repeated() {
        assert_eq!(secret_ref("env:A_B", "/etc"), Ok(SecretRef::Env("A_B".into())));
        assert_eq!(secret_ref("file:s/x", "/etc"), Ok(SecretRef::File("/etc/s/x".into())));
        assert_eq!(secret_ref("file:/s/x", "/etc"), Ok(SecretRef::File("/s/x".into())));
        assert_eq!(secret_ref("credential:smtp-password", ""), Ok(SecretRef::Credential("smtp-password".into())));
        for bad in ["hunter2", "env:", "env:A B", "credential:../hunter2", "credential:.hunter2", "file:", "other:hunter2"] {
            let error = secret_ref(bad, "").unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn addresses_with_a_user_part_or_another_scheme_are_refused() {
        let http = |text: &str| url_ref(text, "");
        assert!(http("http://127.0.0.1:8099/hook").is_ok() && http("https://[::1]:8/x?y=z").is_ok() && http("env:HOOK").is_ok());
        assert_eq!(http("https://u:p@example.com/"), Err(BadText::UserPart));
        assert!(http("https://example.com/a@b").is_ok());
        for (bad, why) in [
            ("ftp://example.com", BadText::Scheme("http://, https://, env:, file:, credential:")),
            ("example.com", BadText::Scheme("http://, https://, env:, file:, credential:")),
            ("http://", BadText::Host),
            ("http://a b", BadText::Space),
            ("http://h:0/", BadText::Port),
            ("http://h:x/", BadText::Port),
            ("http://[::1/", BadText::Host),
            ("http://[::1]8/", BadText::Port),
            ("http://h%41/", BadText::Host),
        ] {
            assert_eq!(http(bad), Err(why), "{bad}");
        }
        assert!(is_loopback("127.9.0.1") && is_loopback("localhost") && is_loopback("[::1]"));
        assert!(!is_loopback("localhost.example.com") && !is_loopback("128.0.0.1"));
    }

    #[test]
    fn smtp_schemes_give_security_and_the_usual_port() {
        assert_eq!(smtp("smtp://127.0.0.1:2525"), Ok((SmtpSecurity::Plain, "127.0.0.1".into(), 2525)));
        assert_eq!(smtp("smtp+starttls://mail.example.com"), Ok((SmtpSecurity::StartTls, "mail.example.com".into(), 587)));
        assert_eq!(smtp("smtps://mail.example.com/"), Ok((SmtpSecurity::Tls, "mail.example.com".into(), 465)));
        assert_eq!(smtp("smtp://u:p@h"), Err(BadText::UserPart));
        assert_eq!(smtp("smtp://h/x"), Err(BadText::PathPart));
    }

    #[test]
    fn mail_addresses_cannot_carry_a_second_header() {
        assert!(mail("a@b.example").is_ok() && mail("Watch <a@b.example>").is_ok());
        for bad in ["a", "a@", "@b", "a@b\nBcc: c@d", "a b@c", "a@b, c@d", "X <a@b"] {
            assert_eq!(mail(bad), Err(BadText::Mail), "{bad}");
        }
    }

    #[test]
    fn cron_lines_are_judged_by_number_and_bounds_of_fields() {
        for good in ["0 0 9 * * Mon-Fri", "0 */5 * * * *", "0 0 0 L * ?", "0 0 0 1,15 JAN-MAR 5#2 2030", "0 0 0 15W * 0/2"] {
            assert!(cron(good).is_ok(), "{good}: {:?}", cron(good));
        }
        for bad in [
            "0 9 * * Mon",
            "61 0 0 * * *",
            "0 0 24 * * *",
            "0 0 0 0 * *",
            "0 0 0 * * Foo",
            "0 0 0 * * 1#6",
            "0 0/0 0 * * *",
            "",
            "L 0 0 * * *",
        ] {
            assert!(cron(bad).is_err(), "{bad}");
        }
        assert!(timezone("America/New_York").is_ok() && timezone("").is_err() && timezone("a b").is_err());
    }
}
