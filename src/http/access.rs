//! outside
//! Who may pass a door: the peer of the control socket, the bearer of a token, or anyone on a
//! loopback address where the configuration allows that. Every refusal is counted and logged, the
//! token itself never.

use std::net::SocketAddr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};

use super::Doors;
use super::problem::Problem;
use crate::config::{Server, Token};
use crate::metrics::{Metrics, RefusedReason};
use crate::words::Role;

/// The other end of the connection, set by the accept loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A process on this machine that may open the control socket.
    Socket {
        uid: u32,
    },
    Tcp {
        from: SocketAddr,
        tls: bool,
    },
}

/// May read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reader {
    pub actor: String,
}

/// May operate; `actor` goes into the journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operator {
    pub actor: String,
}

impl FromRequestParts<Doors> for Reader {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, doors: &Doors) -> Result<Self, Problem> {
        let who = Asking::of(parts, &parts.headers).permit(doors, Role::Read)?;
        Ok(Self { actor: who })
    }
}

impl FromRequestParts<Doors> for Operator {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, doors: &Doors) -> Result<Self, Problem> {
        let who = Asking::of(parts, &parts.headers).permit(doors, Role::Operate)?;
        Ok(Self { actor: who })
    }
}

/// May read and write safety metadata; `actor` goes into the journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Safety {
    pub actor: String,
}

impl FromRequestParts<Doors> for Safety {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, doors: &Doors) -> Result<Self, Problem> {
        let asking = Asking::of(parts, &parts.headers);
        let config = doors.app.config.load();
        let judged = asking.safety(&config.server).map_err(|refused| refused.told(&doors.app.metrics, asking))?;
        Ok(Self { actor: judged })
    }
}

/// What is known of a request before anything of it is believed.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    pub peer: Option<Peer>,
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub headers: &'a HeaderMap,
}

impl<'a> Asking<'a> {
    fn of(parts: &'a Parts, headers: &'a HeaderMap) -> Self {
        Self { peer: parts.extensions.get::<Peer>().copied(), method: &parts.method, uri: &parts.uri, headers }
    }

    /// Lets the request pass in a role, or refuses it; the refusal is counted and logged. Returns who asks.
    ///
    /// # Errors
    /// 401 without or with a wrong token, 403 with too low a role or an origin that is not ours, 415
    /// where only JSON is safe.
    pub fn permit(self, doors: &Doors, role: Role) -> Result<String, Problem> {
        let config = doors.app.config.load();
        self.judge(&config.server, role).map_err(|refused| refused.told(&doors.app.metrics, self))
    }

    /// As [`Self::permit`], without making a name: for the gate, whose callers are not journaled.
    ///
    /// # Errors
    /// As [`Self::permit`].
    pub fn permit_gate(self, server: &Server, metrics: &Metrics) -> Result<(), Problem> {
        if server.tokens.is_empty() || matches!(self.peer, Some(Peer::Socket { .. })) {
            return Ok(());
        }
        self.bearer(&server.tokens, Role::Read).map(|_| ()).map_err(|refused| refused.told(metrics, self))
    }

    fn judge(self, server: &Server, role: Role) -> Result<String, Refused> {
        if let Some(Peer::Socket { uid }) = self.peer {
            return Ok(format!("uid:{uid}"));
        }
        if !server.tokens.is_empty() {
            return self.bearer(&server.tokens, role).map(|token| token.name.clone());
        }
        match role {
            Role::Read => Ok("anonymous".to_owned()),
            Role::Operate if server.insecure_loopback => self.insecure(server).map(|()| "loopback".to_owned()),
            Role::Operate | Role::Safety | Role::Hint => Err(Refused::OperateNeedsToken),
        }
    }

    /// Only a token of role `safety`, at every door: whoever operates the daemon, by the control socket
    /// or without a token on loopback, is not thereby a reader of safety metadata.
    fn safety(self, server: &Server) -> Result<String, Refused> {
        let is_socket = matches!(self.peer, Some(Peer::Socket { .. }));
        if server.tokens.is_empty() || (is_socket && !self.headers.contains_key(header::AUTHORIZATION)) {
            return Err(Refused::WrongRole(Role::Safety));
        }
        self.bearer(&server.tokens, Role::Safety).map(|token| token.name.clone())
    }

    /// Finds the token by its digest. Every token is compared, each in constant time.
    fn bearer(self, tokens: &'a [Token], role: Role) -> Result<&'a Token, Refused> {
        let mut values = self.headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next().ok_or(Refused::NoToken)?;
        if values.next().is_some() {
            return Err(Refused::BadToken);
        }
        let text = value.to_str().map_err(|_| Refused::BadToken)?;
        let (scheme, secret) = text.split_once(' ').ok_or(Refused::BadToken)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Refused::NoToken);
        }
        let digest = hex_digest(secret.trim().as_bytes());
        let mut found: Option<&Token> = None;
        let mut fitting: Option<&Token> = None;
        for token in tokens {
            if aws_lc_rs::constant_time::verify_slices_are_equal(&digest, token.sha256.as_bytes()).is_ok() {
                found = found.or(Some(token));
                if includes(token.role, role) {
                    fitting = fitting.or(Some(token));
                }
            }
        }
        match (found, fitting) {
            (_, Some(token)) => Ok(token),
            (Some(_), None) => Err(Refused::WrongRole(role)),
            (None, None) => Err(Refused::BadToken),
        }
    }

    /// Operating without a token: only for a program on this machine, never for a web page that a
    /// browser on it happens to show.
    fn insecure(self, server: &Server) -> Result<(), Refused> {
        let Some(Peer::Tcp { from, .. }) = self.peer else { return Err(Refused::OperateNeedsToken) };
        if !from.ip().to_canonical().is_loopback() {
            return Err(Refused::OperateNeedsToken);
        }
        let host = self.host().filter(|host| is_loopback_host(host)).ok_or(Refused::Host)?;
        let scheme = if server.tls.is_some() { "https://" } else { "http://" };
        for origin in self.headers.get_all(header::ORIGIN) {
            let same = origin.to_str().ok().and_then(|o| o.strip_prefix(scheme)).is_some_and(|o| o.eq_ignore_ascii_case(host));
            if !same {
                return Err(Refused::Origin);
            }
        }
        let has_body = self.headers.contains_key(header::TRANSFER_ENCODING)
            || self.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
            || self.headers.contains_key(header::CONTENT_TYPE);
        if has_body && !is_json(self.headers) { Err(Refused::MediaType) } else { Ok(()) }
    }

    /// The one host that the request names; HTTP/2 has it in the address.
    fn host(self) -> Option<&'a str> {
        let mut hosts = self.headers.get_all(header::HOST).iter();
        let named = match hosts.next() {
            Some(host) => Some(host.to_str().ok()?),
            None => None,
        };
        if hosts.next().is_some() {
            return None;
        }
        match (named, self.uri.authority()) {
            (Some(named), Some(authority)) if named != authority.as_str() => None,
            (Some(named), _) => Some(named),
            (None, authority) => authority.map(axum::http::uri::Authority::as_str),
        }
    }
}

/// Whether a token of role `held` opens a door of role `needed`.
#[must_use]
pub fn includes(held: Role, needed: Role) -> bool {
    held == needed || (held == Role::Operate && needed == Role::Read)
}

/// Whether the body is declared as JSON.
#[must_use]
pub fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(declared) = types.next().and_then(|v| v.to_str().ok()) else { return false };
    let essence = declared.split(';').next().unwrap_or("").trim();
    types.next().is_none() && essence.eq_ignore_ascii_case("application/json")
}

fn is_loopback_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(inside, _)| inside),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn hex_digest(secret: &[u8]) -> Vec<u8> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret);
    digest.as_ref().iter().flat_map(|byte| [hex(byte >> 4), hex(byte & 15)]).collect()
}

const fn hex(nibble: u8) -> u8 {
    if nibble < 10 { b'0'.saturating_add(nibble) } else { b'a'.saturating_add(nibble.saturating_sub(10)) }
}

/// Why a door stayed shut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refused {
    NoToken,
    BadToken,
    WrongRole(Role),
    OperateNeedsToken,
    Host,
    Origin,
    MediaType,
}

impl Refused {
    fn told(self, metrics: &Metrics, asking: Asking<'_>) -> Problem {
        let (reason, problem) = self.problem();
        metrics.http_refused(reason);
        let path = asking.uri.path();
        tracing::warn!(reason = reason.as_str(), method = %asking.method, path, peer = ?asking.peer, "request refused");
        problem
    }

    fn problem(self) -> (RefusedReason, Problem) {
        let forbidden = |detail: &str| Problem::new(StatusCode::FORBIDDEN, "forbidden", detail);
        let unauthorized = |detail: &str| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
        match self {
            Self::NoToken => (
                RefusedReason::NoToken,
                unauthorized("a token is needed: Authorization: Bearer TOKEN").challenge("Bearer realm=\"cmek-watchdog\""),
            ),
            Self::BadToken => (
                RefusedReason::BadToken,
                unauthorized("the token is not known").challenge("Bearer realm=\"cmek-watchdog\", error=\"invalid_token\""),
            ),
            Self::WrongRole(role) => (RefusedReason::WrongRole, forbidden(&format!("this needs a token of role `{role}`"))),
            Self::OperateNeedsToken => (
                RefusedReason::OperateNeedsToken,
                forbidden("operating needs the control socket or a token; this address only gives role `read`"),
            ),
            Self::Host => (RefusedReason::Host, forbidden("operating without a token needs a loopback Host header")),
            Self::Origin => (RefusedReason::Origin, forbidden("operating without a token is refused to web pages of another origin")),
            Self::MediaType => (
                RefusedReason::MediaType,
                Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "the body must be application/json"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_loopback_hosts() {
        for host in ["localhost", "LOCALHOST:9847", "127.0.0.1:9847", "127.9.9.9", "[::1]:9847", "[::1]", "[::ffff:127.0.0.1]:1"] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:80", "127.0.0.1.nip.io", "10.0.0.1", "[::2]", "[", "0.0.0.0"] {
            assert!(!is_loopback_host(host), "{host}");
        }
    }

    #[test]
    fn operate_includes_read_and_nothing_else_does() {
        for held in Role::ALL {
            for needed in Role::ALL {
                let expected = held == needed || (*held == Role::Operate && *needed == Role::Read);
                assert_eq!(includes(*held, *needed), expected, "{held} for {needed}");
            }
        }
    }

    #[test]
    fn the_digest_is_lower_case_hex_of_sha256() {
        assert_eq!(hex_digest(b"abc"), b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
