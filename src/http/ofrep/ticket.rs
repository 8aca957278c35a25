//! outside
//! Tickets for event streams: a browser's `EventSource` cannot send a token, so that the address it
//! is given carries the right to listen, for one workspace and a short time. A ticket opens nothing
//! else, and tells nothing but that something changed.

use aws_lc_rs::hmac;

use crate::time::{Span, Wall};

/// Tickets end at whole slots, so that the same answer has the same address for a while.
const SLOT: Span = Span::from_mins(30);

/// Makes and checks tickets; the secret lives as long as the process.
pub struct Tickets(Option<hmac::Key>);

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    /// Without randomness there are no tickets; streams then need a token like everything else.
    pub fn new() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &aws_lc_rs::rand::SystemRandom::new());
        Self(key.ok())
    }

    /// A ticket that ends in 30 to 60 minutes.
    pub fn make(&self, workspace: &str, now: Wall) -> Option<String> {
        let slot = SLOT.0.max(1);
        let ends = u64::try_from(now.0).ok()?.checked_div(slot)?.checked_add(2)?.checked_mul(slot)?;
        let tag = hmac::sign(self.0.as_ref()?, said(workspace, ends).as_bytes());
        let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Some(format!("{ends}.{hex}"))
    }

    /// Until when a ticket of this workspace is good; nothing if it is not, or not any more.
    pub fn good_until(&self, ticket: &str, workspace: &str, now: Wall) -> Option<Wall> {
        let (ends, hex) = ticket.split_once('.')?;
        let ends: u64 = ends.parse().ok()?;
        let tag = unhex(hex)?;
        hmac::verify(self.0.as_ref()?, said(workspace, ends).as_bytes(), &tag).ok()?;
        let until = Wall(i64::try_from(ends).ok()?);
        (now < until).then_some(until)
    }
}

impl Default for Tickets {
    fn default() -> Self {
        Self::new()
    }
}

fn said(workspace: &str, ends: u64) -> String {
    format!("flag stream\n{ends}\n{workspace}")
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let pairs = (0..text.len()).step_by(2).map(|at| text.get(at..at.saturating_add(2)));
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_for_its_workspace_and_time_and_for_this_process() {
        let (tickets, now) = (Tickets::new(), Wall(1_764_000_000_000));
        let ticket = tickets.make("w", now).unwrap();
        let until = tickets.good_until(&ticket, "w", now).unwrap();
        assert!(until > now.plus(Span::from_mins(29)) && until <= now.plus(Span::from_mins(60)));
        assert_eq!(tickets.make("w", now.plus(Span(1))).unwrap(), ticket, "the same address for a while");
        assert_eq!(tickets.good_until(&ticket, "v", now), None);
        assert_eq!(tickets.good_until(&ticket, "w", until), None);
        assert_eq!(Tickets::new().good_until(&ticket, "w", now), None);
        let later = ticket.replacen("17", "27", 1);
        for bad in ["", ".", "x.y", &later, &ticket[..ticket.len() - 1], &format!("{ticket}0"), &ticket.replace('.', ".+")] {
            assert_eq!(tickets.good_until(bad, "w", now), None, "{bad}");
        }
        assert!(!format!("{tickets:?}").contains(&ticket[20..]));
    }
}
