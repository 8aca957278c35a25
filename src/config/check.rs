//! inside
//! From the raw file to the validated configuration: every fault with file, line, column and field,
//! as many as can be found in one run. It must never read a file; `keys_from` files come in as texts.

use std::collections::BTreeSet;

use super::raw;
use super::sheet::Sheet;
use super::{Brake, Config, GateConfig, Heartbeat, Server, StoreConfig, StoreUrl, Tls, Token, UnknownWorkspace, WhenLost, values};
use crate::time::Span;
use crate::words::Role;

mod audit;
mod budget;
mod features;
mod gather;
mod keys;
mod levers;
mod notices;
mod policies;
mod providers;
mod registered;
mod vault;

pub use super::sheet::{ConfigError, Place, Warning};
pub use features::{WORKSPACE_USABLE, features_from};
pub use gather::{KeysFile, Row, Rows};
pub use keys::{Fault, key_of, reference};
pub use registered::{Registered, register, take_in};

const TABLES: [&str; 21] = [
    "server",
    "store",
    "gate",
    "metrics",
    "vault",
    "providers",
    "policies",
    "brake",
    "features",
    "features_from",
    "keys",
    "keys_from",
    "workspaces",
    "audit",
    "receivers",
    "levers",
    "routes",
    "notify",
    "cluster",
    "heartbeat",
    "reports",
];

/// The patterns of `[[keys_from]]`, as written. Empty if the text is faulty; [`parse`] tells why.
#[must_use]
pub fn keys_from(text: &str) -> Vec<String> {
    let mut sheet = Sheet::new(text, "", "");
    let elements = sheet.elements("keys_from");
    elements.iter().filter_map(|element| sheet.read::<raw::KeysFrom>(element)).map(|raw| raw.path.into_inner()).collect()
}

/// Checks a configuration text. `file` is what errors call it, `base_dir` what relative paths are
/// joined with, `keys_files` the files that [`features_from`] and the patterns of [`keys_from`] led
/// to, in their order.
///
/// # Errors
/// Everything found wrong, in the order of the file.
pub fn parse(text: &str, file: &str, base_dir: &str, keys_files: &[KeysFile]) -> Result<(Config, Vec<Warning>), Vec<ConfigError>> {
    let mut sheet = Sheet::new(text, file, base_dir);
    if !sheet.errors.is_empty() {
        return Err(sheet.errors);
    }
    sheet.refuse_unknown(&TABLES);
    let config = assemble(&mut sheet, keys_files);
    let Sheet { mut errors, warnings, .. } = sheet;
    if errors.is_empty() {
        return Ok((config, warnings));
    }
    errors.sort();
    Err(errors)
}

fn assemble(sheet: &mut Sheet<'_>, keys_files: &[KeysFile]) -> Config {
    let (providers, credentials_expire_at) = providers::providers(sheet);
    let policies = policies::policies(sheet);
    for element in sheet.elements("keys_from") {
        if let Some(raw) = sheet.read::<raw::KeysFrom>(&element) {
            sheet.path(&raw.path);
        }
    }
    let keys = gather::keys(sheet, &providers, &policies, keys_files);
    let features = features::features(sheet, keys_files);
    let (workspaces, workspace_features) = features::workspaces(sheet, &keys, &features);
    let (operator_key, recovery_key) = vault::vault(sheet, &providers, &keys);
    let receivers = notices::receivers(sheet);
    let routes = notices::routes(sheet, &receivers, &providers);
    let config = Config {
        server: server(sheet),
        store: store(sheet),
        gate: gate(sheet),
        per_key_limit: {
            let raw: raw::Metrics = sheet.section("metrics");
            raw.per_key_limit.and_then(|n| sheet.int(&n, 0, 1_000_000)).unwrap_or(5000)
        },
        operator_key,
        recovery_key,
        brake: brake(sheet),
        features,
        workspace_features,
        workspaces,
        audit: audit::audit(sheet, &providers),
        notify: notices::notify(sheet, &receivers),
        reports: notices::reports(sheet, &receivers),
        receivers,
        routes,
        levers: levers::levers(sheet, &providers),
        cluster_lease: {
            let raw: raw::Cluster = sheet.section("cluster");
            raw.lease.and_then(|t| sheet.span_within(&t, Span::from_secs(1), Span::from_hours(1))).unwrap_or(Span::from_secs(10))
        },
        heartbeat: heartbeat(sheet),
        providers,
        credentials_expire_at,
        policies,
        keys,
    };
    budget::warn(sheet, &config);
    config
}

fn server(sheet: &mut Sheet<'_>) -> Server {
    let raw: raw::Server = sheet.section("server");
    let mut listen = core::net::SocketAddr::from(([127, 0, 0, 1], 9847));
    let mut listen_at = 0..0;
    if let Some(text) = &raw.listen {
        listen_at = text.span();
        match text.get_ref().parse() {
            Ok(address) => listen = address,
            Err(_) => sheet.error(text.span(), "expected an IP address and a port, such as \"127.0.0.1:9847\" or \"[::1]:9847\""),
        }
    }
    let tls = raw.tls.as_ref().and_then(|tls| {
        let client_ca = tls.client_ca.as_ref().and_then(|text| sheet.path(text));
        Some(Tls { cert: sheet.path(&tls.cert)?, key: sheet.path(&tls.key)?, client_ca })
    });
    let tokens = tokens(sheet, &raw.tokens);
    if !listen.ip().is_loopback() && (raw.tls.is_none() || raw.tokens.is_empty()) {
        sheet.error(listen_at, "listening beyond loopback needs `tls` and at least one of `tokens`");
    }
    if let Some(flag) = &raw.insecure_loopback
        && *flag.get_ref()
        && !listen.ip().is_loopback()
    {
        sheet.error(flag.span(), "insecure_loopback is allowed only while `listen` is a loopback address");
    }
    let run_dir = raw.run_dir.as_ref().and_then(|text| sheet.path(text));
    Server {
        listen,
        tls,
        insecure_loopback: raw.insecure_loopback.is_some_and(toml::Spanned::into_inner),
        run_dir: run_dir.unwrap_or_else(|| super::sheet::join(sheet.base_dir(), "run")),
        tokens,
    }
}

fn tokens(sheet: &mut Sheet<'_>, raw: &[raw::Token]) -> Vec<Token> {
    let roles: Vec<(&str, Role)> = Role::ALL.iter().map(|role| (role.as_str(), *role)).collect();
    let mut names = BTreeSet::new();
    let mut tokens = Vec::new();
    for token in raw {
        sheet.label(&token.name);
        if !names.insert(token.name.get_ref().clone()) {
            sheet.error(token.name.span(), "two tokens have this name");
        }
        let sha256 = token.sha256.get_ref();
        if sha256.len() != 64 || !sha256.chars().all(|c| c.is_ascii_hexdigit()) {
            sheet.error(token.sha256.span(), "expected the SHA-256 of the token in 64 hex digits; what stands here is not shown");
        }
        if let Some(role) = sheet.choice(&token.role, &roles) {
            tokens.push(Token { name: token.name.get_ref().clone(), role, sha256: sha256.to_ascii_lowercase() });
        }
    }
    tokens
}

fn store(sheet: &mut Sheet<'_>) -> StoreConfig {
    let raw: raw::Store = sheet.section("store");
    let mut url = StoreUrl::Sqlite(super::sheet::join(sheet.base_dir(), "state.db"));
    if let Some(text) = &raw.url {
        match store_url(text.get_ref(), sheet.base_dir()) {
            Ok(found) => url = found,
            Err(why) => sheet.error(text.span(), why),
        }
    }
    let words = [("refuse", WhenLost::Refuse), ("locked_until_proven", WhenLost::LockedUntilProven)];
    let when_lost = raw.when_lost.as_ref().and_then(|text| sheet.choice(text, &words));
    StoreConfig { url, when_lost: when_lost.unwrap_or(WhenLost::Refuse) }
}

fn store_url(text: &str, base_dir: &str) -> Result<StoreUrl, &'static str> {
    if let Some(path) = text.strip_prefix("sqlite://") {
        if path.is_empty() || path.contains(['?', '#']) || path.contains(":memory:") {
            return Err("expected the path of a file after sqlite://, without options");
        }
        return Ok(StoreUrl::Sqlite(super::sheet::join(base_dir, path)));
    }
    let Some(rest) = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) else {
        return Err("expected sqlite://PATH or postgres://USER@HOST/DATABASE");
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (place, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let user = place.rsplit_once('@').map_or("", |(user, _)| user);
    if user.contains(':') || after.contains("password=") {
        return Err("a password in the address is refused; it comes from PGPASSWORD or a password file");
    }
    if place.contains(char::is_whitespace) || after.contains(char::is_whitespace) {
        return Err("the address has a space");
    }
    Ok(StoreUrl::Postgres(text.to_owned()))
}

fn gate(sheet: &mut Sheet<'_>) -> GateConfig {
    let raw: raw::Gate = sheet.section("gate");
    let words = [("deny", UnknownWorkspace::Deny), ("allow", UnknownWorkspace::Allow)];
    let unknown_workspace = raw.unknown_workspace.as_ref().and_then(|text| sheet.choice(text, &words));
    GateConfig {
        unknown_workspace: unknown_workspace.unwrap_or(UnknownWorkspace::Deny),
        max_age: raw.max_age.and_then(|text| sheet.span(&text)).unwrap_or(Span::from_hours(1)),
        ack_within: raw
            .ack_within
            .and_then(|text| sheet.span_within(&text, Span::from_secs(1), Span::from_hours(24)))
            .unwrap_or(Span::from_secs(30)),
        // Not shorter than a lease may be: a key is needed until the last one that it signed has ended.
        lease_key_max_age: raw
            .lease_key_max_age
            .and_then(|text| sheet.span_within(&text, Span::from_days(1), Span::from_days(365)))
            .unwrap_or(Span::from_days(30)),
    }
}

fn brake(sheet: &mut Sheet<'_>) -> Brake {
    let raw: raw::Brake = sheet.section("brake");
    let default = Brake::default();
    let fraction_permille = raw.fraction.and_then(|fraction| {
        let value = *fraction.get_ref();
        if value > 0.0 && value <= 1.0 {
            return Some(permille(value));
        }
        sheet.error(fraction.span(), format!("{value} is out of bounds, expected more than 0 and at most 1"));
        None
    });
    Brake {
        accounts: raw.accounts.and_then(|n| sheet.int(&n, 1, 1_000_000)).unwrap_or(default.accounts),
        fraction_permille: fraction_permille.unwrap_or(default.fraction_permille),
        most: raw.most.and_then(|n| sheet.int(&n, 1, 1_000_000)).unwrap_or(default.most),
        within: raw.within.and_then(|text| sheet.span(&text)).unwrap_or(default.within),
        release: raw.release.and_then(|text| sheet.span_unless(&text, "manual")).unwrap_or(default.release),
    }
}

/// A share between 0 and 1 in whole thousandths, at least one.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is within 0 and 1")]
fn permille(share: f64) -> u32 {
    ((share * 1000.0).round() as u32).max(1)
}

fn heartbeat(sheet: &mut Sheet<'_>) -> Heartbeat {
    let raw: raw::Heartbeat = sheet.section("heartbeat");
    let mut url = None;
    if let Some(text) = &raw.url {
        match values::url_ref(text.get_ref(), sheet.base_dir()) {
            Ok(found) => url = Some(found),
            Err(why) => sheet.error(text.span(), why.to_string()),
        }
    }
    let interval = raw.interval.and_then(|text| sheet.span_within(&text, Span::from_secs(1), Span::MAX));
    Heartbeat { url, interval: interval.unwrap_or(Span::from_secs(60)) }
}
