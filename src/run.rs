//! outside
//! The one loop: wake-ups, results, operators -> `Watch::handle` -> perform the effects. It knows no
//! order of its own: what may be shown, written or sent, and when, is decided in the core.

mod audit;
mod calendar;
mod effects;
mod heartbeat;
mod reload;
mod start;
mod supervise;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch as signal};

use crate::cli::log::Log;
use crate::clock;
use crate::http::Ask;
use crate::operate::Answered;
use crate::time::{Mono, Now, Span};
use crate::watch::{Effects, Event, Ticket, Watch};

pub use reload::LastGood;
pub use start::Fault;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct RunOptions {
    pub config_path: PathBuf,
    /// A bad configuration file ends the start even if a last good one is stored.
    pub strict: bool,
    /// How the log is written; set up already.
    pub log: Log,
}

/// Events taken in one turn at most.
const TURN: usize = 256;
/// The loop wakes at least so often: a machine that slept is noticed, health and watchdog move.
const IDLE: Duration = Duration::from_secs(1);
/// Time that the last commits and notices get when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(5);
/// Room for results. Probes under way and one send per receiver always fit.
const RESULTS: usize = 8192;
const ASKS: usize = 256;

/// Runs the daemon until it is told to stop. A start that fails says why on one line each.
#[must_use]
pub fn main(options: RunOptions) -> ExitCode {
    match begin(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::from(fault.exit_code())
        }
    }
}

fn begin(options: RunOptions) -> Result<(), Fault> {
    // Every client brings the same provider; the first to ask decides, and there is only one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    supervise::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("doors").build().map_err(Fault::runtime)?;
    runtime.block_on(start::run(options))
}

/// The loop's ends of all channels.
struct Loop {
    watch: Watch,
    effects: effects::Performer,
    asks: mpsc::Receiver<Ask>,
    results: mpsc::Receiver<Event>,
    stored: mpsc::Receiver<Event>,
    stop: signal::Receiver<bool>,
    waiting: BTreeMap<Ticket, oneshot::Sender<Answered>>,
    tickets: u64,
}

impl Loop {
    /// Runs on a thread of its own, so that no crowd at the doors delays a look or a lock.
    async fn run(mut self) {
        let mut last_words: Option<Mono> = None;
        loop {
            let now = clock::now();
            if let Some(since) = last_words {
                let over = Span(u64::try_from(FAREWELL.as_millis()).unwrap_or(5000));
                if self.effects.idle() || now.mono.since(since) > over {
                    break;
                }
            } else if *self.stop.borrow() {
                last_words = Some(now.mono);
            }
            let first = self.wait(now, last_words.is_some()).await;
            let now = clock::now();
            let mut out = Effects::default();
            self.take(now, first, &mut out);
            self.drain(now, &mut out);
            self.watch.seal(now, &mut out);
            self.perform(now, out, last_words.is_some());
        }
        tracing::info!("the loop has ended");
    }

    fn pause(&self, now: Now) -> Duration {
        let until = self.watch.next_deadline(now).map_or(IDLE, |at| at.since(now.mono).to_std());
        until.min(IDLE)
    }

    async fn wait(&mut self, now: Now, stopping: bool) -> Option<Incoming> {
        let pause = self.pause(now);
        tokio::select! {
            biased;
            Some(event) = self.stored.recv() => Some(Incoming::Event(event)),
            Some(ask) = self.asks.recv() => Some(Incoming::Ask(ask)),
            Some(event) = self.results.recv() => Some(Incoming::Event(event)),
            _ = self.stop.changed(), if !stopping => None,
            () = tokio::time::sleep(pause) => None,
        }
    }

    fn take(&mut self, now: Now, incoming: Option<Incoming>, out: &mut Effects) {
        match incoming {
            None => self.watch.handle(now, Event::Wake, out),
            Some(Incoming::Event(event)) => self.watch.handle(now, event, out),
            Some(Incoming::Ask(ask)) => {
                self.tickets = self.tickets.saturating_add(1);
                let ticket = Ticket(self.tickets);
                self.waiting.insert(ticket, ask.answer);
                self.watch.handle(now, Event::Operator { ticket, operation: Box::new(ask.operation) }, out);
            }
        }
    }

    /// What else has come in is part of the same turn, and of the same commit.
    fn drain(&mut self, now: Now, out: &mut Effects) {
        for _ in 0..TURN {
            let next = self
                .stored
                .try_recv()
                .map(Incoming::Event)
                .or_else(|_| self.asks.try_recv().map(Incoming::Ask))
                .or_else(|_| self.results.try_recv().map(Incoming::Event));
            match next {
                Ok(incoming) => self.take(now, Some(incoming), out),
                Err(_) => break,
            }
        }
    }

    fn perform(&mut self, now: Now, mut out: Effects, stopping: bool) {
        let replies = std::mem::take(&mut out.replies);
        if stopping {
            out.probes.clear();
            out.sends.clear();
            out.levers.clear();
        }
        self.effects.perform(out);
        // Last: who is answered finds what was answered at every door.
        for (ticket, answer) in replies {
            if let Some(caller) = self.waiting.remove(&ticket) {
                // A caller that went away needs no answer.
                let _ = caller.send(answer);
            }
        }
        self.effects.progressed(now, &self.watch);
    }
}

enum Incoming {
    Event(Event),
    Ask(Ask),
}

/// What the rest of the daemon keeps of the loop.
struct Handle {
    asks: mpsc::Sender<Ask>,
    thread: std::thread::JoinHandle<()>,
    stop: signal::Sender<bool>,
}

/// Starts the loop on its own thread with its own runtime.
fn spawn(watch: Watch, parts: effects::Parts, stores: effects::Stores) -> Result<Handle, Fault> {
    let (asks_in, asks) = mpsc::channel(ASKS);
    let (stop, stopped) = signal::channel(false);
    let thread = std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async move {
                let (results_in, results) = mpsc::channel(RESULTS);
                let (stored_in, stored) = mpsc::channel(16);
                let effects = effects::Performer::new(parts, stores, results_in, stored_in);
                Loop { watch, effects, asks, results, stored, stop: stopped, waiting: BTreeMap::new(), tickets: 0 }.run().await;
            });
        })
        .map_err(Fault::runtime)?;
    Ok(Handle { asks: asks_in, thread, stop })
}

/// Shared parts that a reload may swap.
type Swap<T> = Arc<arc_swap::ArcSwap<T>>;
