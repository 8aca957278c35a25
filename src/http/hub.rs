//! outside
//! Between the loop and those who follow the stream: each event is written once and shared by all,
//! the newest are kept for those who come back. The loop only hands over and never waits; a reader
//! that lags is cut off, never waited for. Decides nothing about what is told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};

use crate::http::acks::Acks;
use crate::key::WorkspaceId;
use crate::metrics::Metrics;
use crate::notify::body::{Pushed, Topic};
use crate::time::{Mono, Now};

/// Frames that a reader may lag behind before it is cut off.
pub const LAG: usize = 1024;
/// Frames kept for those who come back.
const RING: usize = 4096;
/// Turns of the loop that may wait for the hub.
const TURNS: usize = 1024;

/// One event as it goes over the wire, the same bytes for every reader.
#[derive(Debug)]
pub struct Frame {
    pub id: Option<u64>,
    /// Journal head when it was pushed: the place of a frame without a number.
    after: u64,
    pub workspaces: Vec<WorkspaceId>,
    pub bytes: Bytes,
}

impl Frame {
    /// Whether one who has seen everything up to `last` still needs it.
    fn needed(&self, last: u64) -> bool {
        self.id.map_or(self.after >= last, |id| id > last)
    }

    /// The lowest `last` that may do without it.
    const fn spares(&self) -> u64 {
        match self.id {
            Some(id) => id,
            None => self.after.saturating_add(1),
        }
    }
}

/// What one turn of the loop told.
#[derive(Debug)]
struct Turn {
    at: Mono,
    events: Vec<Pushed>,
    head: Option<u64>,
}

#[derive(Debug)]
struct Kept {
    ring: VecDeque<Arc<Frame>>,
    /// Whoever has seen less than this cannot go on without a gap.
    floor: u64,
    head: u64,
    /// `None` at the end: followers hear that the stream is over.
    live: Option<broadcast::Sender<Arc<Frame>>>,
}

/// Shared by the doors; the loop has a [`Feed`].
#[derive(Debug)]
pub struct Hub {
    kept: Mutex<Kept>,
    /// Everything up to here has been handed to every reader.
    handed: AtomicU64,
    places: Arc<Semaphore>,
    /// Names this run: numbers of another run's store mean nothing here.
    pub run: String,
}

/// The loop's end.
#[derive(Clone, Debug)]
pub struct Feed {
    turns: mpsc::Sender<Turn>,
    lost: Arc<AtomicBool>,
}

impl Feed {
    /// Hands one turn over. With no room it is lost, and every reader will be told to begin anew.
    pub fn hand(&self, now: Mono, events: Vec<Pushed>, head: Option<u64>) {
        if events.is_empty() && head.is_none() {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(_)) = self.turns.try_send(Turn { at: now, events, head }) {
            self.lost.store(true, Ordering::Release);
        }
    }
}

/// How a reader begins.
#[derive(Debug)]
pub struct Start {
    /// What it missed, oldest first; `None` = it has to read the list again.
    pub missed: Option<Vec<Arc<Frame>>>,
    pub head: u64,
    pub live: broadcast::Receiver<Arc<Frame>>,
    pub place: OwnedSemaphorePermit,
}

/// Why nobody can begin to follow now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoPlace {
    #[error("too many follow the stream")]
    Full,
    #[error("the daemon is stopping")]
    Over,
}

impl Hub {
    /// `head` is the journal's at the start; `most` bounds the readers.
    #[must_use]
    pub fn new(head: u64, most: usize, now: Now) -> Self {
        let (live, _) = broadcast::channel(LAG);
        // Numbers up to here are of an earlier run, whose frames are gone.
        let kept = Kept { ring: VecDeque::new(), floor: head.saturating_add(1), head, live: Some(live) };
        let run = format!("{:x}-{:x}", now.wall.0, std::process::id());
        Self { kept: Mutex::new(kept), handed: AtomicU64::new(head), places: Arc::new(Semaphore::new(most)), run }
    }

    /// Starts the task that takes from the loop; ends, and ends all streams, when the loop does.
    pub fn start(self: &Arc<Self>, metrics: Arc<Metrics>, acks: Arc<Acks>) -> Feed {
        let (turns, mut queue) = mpsc::channel::<Turn>(TURNS);
        let lost = Arc::new(AtomicBool::new(false));
        let feed = Feed { turns, lost: Arc::clone(&lost) };
        let hub = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(turn) = queue.recv().await {
                if lost.swap(false, Ordering::AcqRel) {
                    hub.gap();
                }
                acks.shown(turn.at, &turn.events);
                metrics.stream_events(turn.events.len());
                hub.push(turn.events, turn.head);
            }
            hub.end();
        });
        feed
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events were lost between the loop and here: nobody may go on as if nothing had been.
    fn gap(&self) {
        tracing::error!("the loop told more than could be passed on; all who follow the stream begin anew");
        let mut kept = self.kept();
        kept.ring.clear();
        kept.floor = kept.head.saturating_add(1);
        let (live, _) = broadcast::channel(LAG);
        // Readers of the old channel find it closed and come back.
        kept.live = Some(live);
    }

    /// One turn's events to all readers, in order.
    pub fn push(&self, events: Vec<Pushed>, head: Option<u64>) {
        let mut kept = self.kept();
        for event in events {
            let Some(frame) = frame(event, kept.head) else { continue };
            kept.head = kept.head.max(frame.id.unwrap_or(0));
            let frame = Arc::new(frame);
            kept.ring.push_back(Arc::clone(&frame));
            if kept.ring.len() > RING
                && let Some(old) = kept.ring.pop_front()
            {
                kept.floor = kept.floor.max(old.spares());
            }
            if let Some(live) = &kept.live {
                // Without readers nobody takes it; it lies in the ring.
                let _ = live.send(frame);
            }
        }
        kept.head = kept.head.max(head.unwrap_or(0));
        // After the last send: who has read all that was sent has seen everything up to here.
        self.handed.store(kept.head, Ordering::Release);
    }

    /// Begins to follow: what was missed and what comes, without a gap and in one moment.
    ///
    /// # Errors
    /// If there is no place, or the stream is over.
    pub fn follow(&self, last: Option<u64>) -> Result<Start, NoPlace> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| NoPlace::Full)?;
        let kept = self.kept();
        let live = kept.live.as_ref().ok_or(NoPlace::Over)?.subscribe();
        let missed = last
            .filter(|last| (kept.floor..=kept.head).contains(last))
            .map(|last| kept.ring.iter().filter(|frame| frame.needed(last)).cloned().collect());
        Ok(Start { missed, head: kept.head, live, place })
    }

    /// Everything up to this journal number was handed to every reader.
    pub fn handed(&self) -> u64 {
        self.handed.load(Ordering::Acquire)
    }

    /// Ends every stream: the daemon stops.
    pub fn end(&self) {
        self.kept().live = None;
    }
}

/// The wire form of server-sent events; `None` for what is no service's matter.
fn frame(event: Pushed, after: u64) -> Option<Frame> {
    let topic = Topic::of(event.body.event)?;
    let data = serde_json::to_string(&event.body).ok()?;
    let id = event.number.map_or_else(String::new, |id| format!("id: {id}\n"));
    let bytes = Bytes::from(format!("{id}event: {}\ndata: {data}\n\n", topic.as_str()));
    Some(Frame { id: event.number, after, workspaces: event.body.data.workspaces, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::body::Body;
    use crate::time::Wall;

    fn hub(head: u64) -> Hub {
        Hub::new(head, 3, Now { mono: Mono(0), wall: Wall(1) })
    }

    fn event(number: Option<u64>) -> Pushed {
        Pushed { number, body: Body::of(&crate::notify::sample::locked()) }
    }

    fn ids(start: &Start) -> Option<Vec<Option<u64>>> {
        start.missed.as_ref().map(|missed| missed.iter().map(|frame| frame.id).collect())
    }

    #[test]
    fn who_comes_back_gets_what_came_after_and_an_unknown_number_begins_anew() {
        let hub = hub(10);
        hub.push(vec![event(Some(12)), event(None)], Some(14));
        hub.push(vec![event(Some(15))], None);
        for (last, expected) in [
            (None, None),
            (Some(9), None),
            (Some(10), None),
            (Some(11), Some(vec![Some(12), None, Some(15)])),
            (Some(12), Some(vec![None, Some(15)])),
            (Some(14), Some(vec![Some(15)])),
            (Some(15), Some(vec![])),
            (Some(16), None),
        ] {
            assert_eq!(ids(&hub.follow(last).unwrap()), expected, "{last:?}");
        }
        assert_eq!(hub.handed(), 15);
    }

    #[test]
    fn what_has_left_the_ring_cannot_be_resumed_from() {
        let hub = hub(0);
        let many: Vec<Pushed> = (1..=u64::try_from(RING).unwrap() + 5).map(|n| event(Some(n))).collect();
        hub.push(many, None);
        assert_eq!(ids(&hub.follow(Some(4)).unwrap()), None);
        assert_eq!(ids(&hub.follow(Some(5)).unwrap()).unwrap().len(), RING);
    }

    #[test]
    fn an_unnumbered_frame_that_left_the_ring_counts_too() {
        let hub = hub(0);
        hub.push(vec![event(Some(1)), event(None)], None);
        hub.push((2..=u64::try_from(RING).unwrap() + 1).map(|n| event(Some(n))).collect(), None);
        assert_eq!(ids(&hub.follow(Some(1)).unwrap()), None, "the unnumbered one may not have been seen");
        assert!(ids(&hub.follow(Some(2)).unwrap()).is_some());
    }

    #[test]
    fn places_are_bounded_and_come_free() {
        let hub = hub(0);
        let held: Vec<Start> = (0..3).map(|_| hub.follow(None).unwrap()).collect();
        assert_eq!(hub.follow(None).unwrap_err(), NoPlace::Full);
        drop(held);
        assert!(hub.follow(None).is_ok());
        hub.end();
        assert_eq!(hub.follow(None).unwrap_err(), NoPlace::Over);
    }

    #[tokio::test]
    async fn a_loop_that_tells_too_much_is_not_held_up_and_everybody_begins_anew() {
        let hub = Arc::new(hub(0));
        hub.push(vec![event(Some(1))], None);
        let mut reader = hub.follow(Some(1)).unwrap();
        let feed = hub.start(Arc::new(Metrics::new().unwrap()), Arc::new(Acks::default()));
        for n in 0..=u64::try_from(TURNS).unwrap() {
            feed.hand(Mono(n), vec![event(Some(n + 2))], None);
        }
        drop(feed);
        while !matches!(reader.live.recv().await, Err(broadcast::error::RecvError::Closed)) {}
        assert!(hub.follow(Some(1)).is_err() || hub.follow(Some(1)).unwrap().missed.is_none(), "nobody goes on over the gap");
        while hub.follow(None).is_ok() {
            tokio::task::yield_now().await;
        }
        assert_eq!(hub.follow(None).unwrap_err(), NoPlace::Over, "and with the loop the stream ends");
    }
}
