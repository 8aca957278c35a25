//! inside
//! Which receivers hear of a notice: severity and patterns of the routes, in the order of the file.
//! It must never send, and never let the end of a lock reach fewer people than its beginning.

use crate::config::{Match, Route};
use crate::key::ReceiverId;
use crate::notify::Notice;
use crate::notify::about::heard_as;

/// The receivers of every route that matches, each once, in the order of the configuration.
#[must_use]
pub fn receivers_for(notice: &Notice, routes: &[Route]) -> Vec<ReceiverId> {
    let severity = heard_as(notice);
    let mut found: Vec<ReceiverId> = Vec::new();
    for route in routes.iter().filter(|route| severity >= route.severity && matches(notice, &route.matching)) {
        for receiver in &route.receivers {
            if !found.contains(receiver) {
                found.push(receiver.clone());
            }
        }
    }
    found
}

fn matches(notice: &Notice, wanted: &Match) -> bool {
    let one = |pattern: &Option<String>, value: Option<&str>| match pattern {
        None => true,
        Some(pattern) => value.is_some_and(|value| fits(pattern, value)),
    };
    let workspace = wanted.workspace.as_ref().is_none_or(|pattern| notice.workspaces.iter().any(|ws| fits(pattern, ws.as_str())));
    let kind = one(&wanted.kind, Some(notice.event.as_str())) && one(&wanted.key, notice.key.as_ref().map(|key| key.as_str()));
    workspace && kind && one(&wanted.provider, notice.provider.as_ref().map(|p| p.as_str())) && one(&wanted.owner, notice.owner.as_deref())
}

/// Shell-style pattern with `*` only (any run of characters, none included). Case counts.
#[must_use]
pub fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut left) = text.strip_prefix(head) else { return false };
    let Some((middle, tail)) = rest.rsplit_once('*') else { return left.ends_with(rest) };
    for part in middle.split('*').filter(|part| !part.is_empty()) {
        match left.split_once(part) {
            Some((_, after)) => left = after,
            None => return false,
        }
    }
    left.ends_with(tail)
}

#[cfg(test)]
mod tests;
