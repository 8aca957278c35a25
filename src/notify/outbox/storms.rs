//! inside
//! The pace of one receiver: how many messages it gets one by one, and when many become one. It
//! must never hold a message back longer than the pace says, and never send two where one will do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::notify::Notice;
use crate::notify::about::closes;
use crate::notify::storm::{Pace, Storm, lasting};
use crate::time::{Mono, Now, Span};

const HOUR: Span = Span::from_hours(1);
/// Most matters of their own that one message ends: each costs the receiver a call.
pub(super) const MOST_ENDS: usize = 50;

/// What may go now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    One,
    Many,
    Wait,
}

/// How a receiver is spoken to.
#[derive(Clone, Debug, Default)]
pub(super) struct Weather {
    /// `None`: one by one, whatever comes.
    pub pace: Option<Pace>,
    /// The receiver keeps an incident per matter: what a storm opened must be closed by it.
    pub incidents: bool,
    /// Starts of the messages of the last hour.
    recent: VecDeque<Mono>,
    /// While a storm lasts: when its next message may go.
    next: Option<Mono>,
    /// When something critical was last told.
    loud: Option<Mono>,
    /// Matters that were told of under a storm and have not ended, with the storm's id. Stored.
    open: BTreeMap<String, Arc<str>>,
}

impl Weather {
    /// Decides about the head of a line in which `waiting` rows are ready. The first critical word
    /// among lesser ones does not wait for the pace: what stands before it goes along.
    pub fn step(&mut self, now: Now, waiting: usize, critical: impl FnOnce() -> bool) -> Step {
        let Some(pace) = self.pace else { return Step::One };
        let step = self.paced(now, waiting, pace);
        let hushed = self.loud.is_some_and(|at| now.mono.since(at) < pace.every) || self.recent.len() >= pace.per_hour;
        if step == Step::Wait && !hushed && critical() {
            return if waiting > 1 { Step::Many } else { Step::One };
        }
        step
    }

    fn paced(&mut self, now: Now, waiting: usize, pace: Pace) -> Step {
        while self.recent.front().is_some_and(|at| now.mono.since(*at) >= HOUR) {
            self.recent.pop_front();
        }
        let lately = self.recent.iter().rev().take_while(|at| now.mono.since(**at) < pace.within).count();
        let hour = self.recent.len() >= pace.per_hour;
        match self.next {
            Some(next) if now.mono < next => Step::Wait,
            Some(_) if waiting > pace.above || hour => {
                self.next = Some(now.mono.plus(pace.every));
                if waiting > 1 { Step::Many } else { Step::One }
            }
            Some(_) => {
                self.next = None;
                Step::One
            }
            None if waiting > pace.above => {
                self.next = Some(now.mono.plus(pace.within));
                Step::Many
            }
            None if lately >= pace.above || hour => {
                self.next = Some(now.mono.plus(if hour { pace.every } else { pace.within }));
                Step::Wait
            }
            None => Step::One,
        }
    }

    /// A message begins.
    pub fn sends(&mut self, now: Now, critical: bool) {
        if critical {
            self.loud = Some(now.mono);
        }
        if let Some(pace) = self.pace {
            self.recent.push_back(now.mono);
            while self.recent.len() > pace.per_hour {
                self.recent.pop_front();
            }
        }
    }

    pub fn next_message(&self) -> Option<Mono> {
        self.next
    }

    pub fn restore(&mut self, matter: String, storm: Arc<str>) {
        self.open.insert(matter, storm);
    }

    /// What a message for many has to say of the storm. A running storm goes on under its id.
    pub fn storm(&self, members: Vec<Arc<Notice>>) -> Storm {
        let first = members.first().map_or("none", |notice| &notice.id.0);
        let id = self.open.values().next().cloned().unwrap_or_else(|| format!("storm_{first}").into());
        let mut open = self.open.clone();
        let mut ends: Vec<String> = Vec::new();
        if self.incidents {
            for notice in &members {
                for matter in lasting(notice) {
                    if !closes(notice.event) {
                        ends.retain(|ended| *ended != matter);
                        open.insert(matter, Arc::clone(&id));
                    } else if open.remove(&matter).is_none() && !ends.contains(&matter) {
                        ends.push(matter);
                    }
                }
            }
        }
        Storm { id, members, open: open.len(), ends }
    }

    /// How many matters of their own a closing notice ends for the receiver.
    pub fn own_ends(&self, notice: &Notice) -> usize {
        if !self.incidents || !closes(notice.event) {
            return 0;
        }
        lasting(notice).iter().filter(|matter| !self.open.contains_key(*matter)).count()
    }

    /// An ordinary notice that ends the last open matter of a storm ends the storm too.
    pub fn ending(&self, notice: &Notice) -> Option<Storm> {
        if self.open.is_empty() {
            return None;
        }
        let mine = lasting(notice);
        let left = self.open.keys().filter(|matter| !mine.contains(matter)).count();
        let id = self.open.values().next().cloned()?;
        (left == 0).then_some(Storm { id, members: Vec::new(), open: 0, ends: Vec::new() })
    }

    /// A message for many was taken: its matters are open under the storm, or over. Gives what is to
    /// be written down.
    pub fn told(&mut self, storm: &Storm) -> Vec<(String, Option<String>)> {
        let mut written = BTreeMap::new();
        if self.incidents {
            for notice in &storm.members {
                for matter in lasting(notice) {
                    if closes(notice.event) {
                        if self.open.remove(&matter).is_some() {
                            written.insert(matter, None);
                        }
                    } else {
                        self.open.insert(matter.clone(), Arc::clone(&storm.id));
                        written.insert(matter, Some(storm.id.to_string()));
                    }
                }
            }
        }
        written.into_iter().collect()
    }

    /// A single notice was taken: its matter has its own incident now, or none.
    pub fn told_alone(&mut self, notice: &Notice) -> Vec<(String, Option<String>)> {
        if self.open.is_empty() {
            return Vec::new();
        }
        lasting(notice).into_iter().filter(|matter| self.open.remove(matter).is_some()).map(|matter| (matter, None)).collect()
    }
}
