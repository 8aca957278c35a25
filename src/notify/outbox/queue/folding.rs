//! inside
//! A line that grows too long: which rows are folded into a later word about the same matter, and
//! which are dropped. It must never fold or drop a lock notice that has no later word.

use super::*;

impl Queue {
    pub(super) fn excess(&self) -> usize {
        self.rows.len().saturating_sub(LOW_WATER)
    }

    pub(super) fn is_sending(&self, position: u64) -> bool {
        self.in_flight.is_some_and(|(sending, _)| sending == position)
            || self.group.as_ref().is_some_and(|group| group.rows.binary_search(&position).is_ok())
    }

    /// Folds up to `most` rows, oldest first, into the newest row about the same matter. A row that
    /// may not be dropped is folded only into one that may not be dropped either.
    pub(super) fn fold(&mut self, most: usize, only: impl Fn(&Held) -> bool, rows: &mut Vec<OutboxRow>, counts: &mut Counts) {
        let mut newest: BTreeMap<About, (u64, Option<u64>)> = BTreeMap::new();
        for (position, held) in &self.rows {
            if let Some(about) = About::of(&held.row.notice) {
                let last = newest.entry(about).or_default();
                last.0 = *position;
                if protected(&held.row.notice) {
                    last.1 = Some(*position);
                }
            }
        }
        let into = |position: u64, held: &Held| -> Option<u64> {
            let (any, grave) = newest.get(&About::of(&held.row.notice)?)?;
            let survivor = if protected(&held.row.notice) { (*grave)? } else { *any };
            (survivor > position).then_some(survivor)
        };
        let chosen: Vec<(u64, u64)> = self
            .rows
            .iter()
            .filter(|(position, held)| !self.is_sending(**position) && only(held))
            .filter_map(|(position, held)| into(*position, held).map(|survivor| (*position, survivor)))
            .take(most)
            .collect();
        for (position, survivor) in chosen {
            let spoken_for = self.rows.get(&position).map_or(0, |held| held.folded).saturating_add(1);
            if let Some(held) = self.rows.get_mut(&survivor) {
                held.folded = held.folded.saturating_add(spoken_for);
            }
            let into = self.rows.get(&survivor).map(|held| format!("folded into {}", held.row.id.0));
            rows.extend(self.take(position, OutboxState::Folded, into));
            counts.folded = counts.folded.saturating_add(1);
        }
    }

    /// After an outage: a long run about one matter becomes its newest notice.
    pub(super) fn fold_runs(&mut self, rows: &mut Vec<OutboxRow>, counts: &mut Counts) {
        let mut waiting: BTreeMap<About, usize> = BTreeMap::new();
        for about in self.rows.values().filter_map(|held| About::of(&held.row.notice)) {
            let count = waiting.entry(about).or_default();
            *count = count.saturating_add(1);
        }
        let runs: BTreeSet<About> = waiting.into_iter().filter(|(_, count)| *count > RUN).map(|(about, _)| about).collect();
        if !runs.is_empty() {
            self.fold(usize::MAX, |held| About::of(&held.row.notice).is_some_and(|about| runs.contains(&about)), rows, counts);
        }
    }

    pub(super) fn drop_some(&mut self, most: usize, only: impl Fn(&Held) -> bool, rows: &mut Vec<OutboxRow>, counts: &mut Counts) {
        let chosen: Vec<u64> = self
            .rows
            .iter()
            .filter(|(position, held)| !self.is_sending(**position) && !protected(&held.row.notice) && only(held))
            .map(|(position, _)| *position)
            .take(most)
            .collect();
        for position in chosen {
            let row = self.take(position, OutboxState::Dead, Some("dropped: the outbox is full or the notice too old".to_owned()));
            row.iter().for_each(|row| self.bury(row.clone()));
            rows.extend(row);
            counts.dropped = counts.dropped.saturating_add(1);
        }
    }
}
