//! A decorator that looks at every answer of the adapter under test: what is known about the call
//! must be there and be believable.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use cmek_watchdog::key::KeyTarget;
use cmek_watchdog::kms::{Answer, BoxFuture, KeyFacts, Kms, Unwrapped, Wrapped};

/// Milliseconds by which a rounded duration may exceed the one measured around the call.
const ROUNDING_MS: u128 = 10;

pub struct Ledger {
    inner: Arc<dyn Kms>,
    request_id: bool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    answers: usize,
    faults: Vec<String>,
    /// Sums over all calls, in milliseconds; the rounding of one call evens out in them.
    took: u128,
    around: u128,
}

impl Ledger {
    pub fn new(inner: Arc<dyn Kms>, request_id: bool) -> Self {
        Self { inner, request_id, seen: Mutex::default() }
    }
    pub fn answers(&self) -> usize {
        self.seen.lock().unwrap().answers
    }
    pub fn faults(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let mut faults = seen.faults.clone();
        if seen.around > 500 && seen.took < seen.around / 4 {
            faults.push(format!("the calls say they took {} ms of {} ms in all", seen.took, seen.around));
        }
        faults
    }
    async fn watch<T>(&self, what: &str, call: BoxFuture<'_, Answer<T>>) -> Answer<T> {
        let started = Instant::now();
        let answer = call.await;
        let around = started.elapsed().as_millis();
        let mut faults = Vec::new();
        if u128::from(answer.meta.took.as_millis()) > around + ROUNDING_MS {
            faults.push(format!("{what} says it took {} ms of {around} ms", answer.meta.took.as_millis()));
        }
        if self.request_id && answer.meta.request_id.as_deref().is_none_or(str::is_empty) {
            faults.push(format!("{what} has no request id"));
        }
        if let Err(error) = &answer.result {
            if error.code.is_empty() {
                faults.push(format!("{what} failed without a code: {error:?}"));
            }
            if error.message.chars().count() > 500 {
                faults.push(format!("{what} failed with a message beyond its bound"));
            }
        }
        let mut seen = self.seen.lock().unwrap();
        seen.answers += 1;
        seen.took += u128::from(answer.meta.took.as_millis());
        seen.around += around;
        seen.faults.extend(faults);
        answer
    }
}

impl Kms for Ledger {
    fn wrap_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Wrapped>> {
        Box::pin(self.watch("wrap", self.inner.wrap_key(key)))
    }
    fn unwrap_key<'a>(&'a self, key: &'a KeyTarget, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Unwrapped>> {
        Box::pin(self.watch("unwrap", self.inner.unwrap_key(key, wrapped)))
    }
    fn describe_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<KeyFacts>> {
        Box::pin(self.watch("describe", self.inner.describe_key(key)))
    }
    fn whoami<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Box<str>>> {
        // Who we are may be known without a call, so no request id is asked for.
        self.inner.whoami(key)
    }
}
