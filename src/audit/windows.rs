//! inside
//! Bounded windows of a log that is read by time. Each begins an overlap before the end of the last
//! one, because logs are written late; what is read twice is known by its id. No window is open-ended,
//! and none is given up before its last page.

use super::{Cursor, Gap};
use crate::time::{Span, Wall};

/// How one log is cut into windows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Windows {
    pub overlap: Span,
    pub longest: Span,
    /// A first start looks back so far.
    pub look_back: Span,
    /// What is older is gone.
    pub kept: Span,
}

impl Windows {
    /// The window under way, or the next one; and what can no longer be read.
    #[must_use]
    pub fn next(&self, cursor: &Cursor, now: Wall) -> (Gap, Option<Gap>) {
        if let Some(window) = cursor.window {
            return (window, None);
        }
        let until = cursor.until.unwrap_or_else(|| now.minus(self.look_back)).min(now);
        let oldest = now.minus(self.kept);
        let (from, gap) = if until < oldest { (oldest, Some(Gap { from: until, to: oldest })) } else { (until, None) };
        let to = from.plus(self.longest).min(now);
        (Gap { from: from.minus(self.overlap).max(oldest), to }, gap)
    }

    /// Where reading goes on, and whether at once. The last page of a window moves the mark to its end.
    #[must_use]
    pub fn after(&self, cursor: &Cursor, window: Gap, token: Option<String>, now: Wall) -> (Cursor, bool) {
        match token {
            // A token that repeats would turn in a circle.
            Some(token) if cursor.page.as_ref() != Some(&token) => {
                (Cursor { until: cursor.until, window: Some(window), page: Some(token) }, true)
            }
            // A window that was cut to its length is followed at once; one that reached the present is not,
            // however long its pages took.
            Some(_) | None => {
                let cut = window.to.since(window.from) >= self.longest && window.to < now.minus(Span::from_secs(1));
                (Cursor { until: Some(window.to), window: None, page: None }, cut)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: Windows =
        Windows { overlap: Span::from_mins(15), longest: Span::from_hours(1), look_back: Span::from_hours(1), kept: Span::from_days(89) };

    const HOUR: i64 = 3_600_000;

    #[test]
    fn windows_are_bounded_overlap_and_leave_nothing_out() {
        let now = Wall(1_000 * HOUR);
        let mut cursor = Cursor { until: Some(now.minus(Span::from_hours(5))), ..Cursor::default() };
        let (mut windows, mut reached) = (Vec::new(), cursor.until.unwrap());
        for _ in 0..20 {
            let (found, gap) = W.next(&cursor, now);
            assert_eq!(gap, None);
            assert!(found.to.since(found.from) <= W.longest.plus(W.overlap) && found.from <= reached.minus(W.overlap));
            reached = found.to;
            windows.push(found);
            let (next, more) = W.after(&cursor, found, None, now);
            cursor = next;
            if !more {
                break;
            }
        }
        assert_eq!((windows.len(), reached), (5, now));
    }

    #[test]
    fn pages_stay_in_their_window_and_a_token_that_repeats_ends_it() {
        let now = Wall(1_000 * HOUR);
        let cursor = Cursor::default();
        let (first, _) = W.next(&cursor, now);
        let (next, more) = W.after(&cursor, first, Some("t1".into()), now);
        assert!(more && next.until.is_none());
        assert_eq!(W.next(&next, now.plus(Span::from_hours(2))).0, first, "the window of a token does not move");
        let (end, _) = W.after(&next, first, Some("t1".into()), now);
        assert_eq!((end.until, end.page), (Some(first.to), None));
    }

    #[test]
    fn what_is_older_than_the_log_keeps_is_a_gap() {
        let now = Wall(10_000 * HOUR);
        let cursor = Cursor { until: Some(Wall(0)), ..Cursor::default() };
        let (found, gap) = W.next(&cursor, now);
        assert_eq!(gap, Some(Gap { from: Wall(0), to: now.minus(W.kept) }));
        assert_eq!(found.from, now.minus(W.kept));
    }
}
