#![allow(clippy::disallowed_methods, reason = "a clock that follows the paused timer")]

use super::*;
use crate::key::{KeyRef, KeyVersion};
use crate::kms::{BoxFuture, KeyFacts, Unwrapped, Wrapped};
use crate::probe::LegResult;
use crate::time::Wall;
use crate::words::{Leg, ProviderKind};
use std::sync::atomic::{AtomicU32, Ordering};

/// What one kind of call does: after how long, and whether it fails.
#[derive(Clone, Default)]
struct Does {
    after: Span,
    fails: Option<KmsError>,
}

fn hangs() -> Does {
    Does { after: Span::from_days(365), fails: None }
}

fn takes(secs: u64) -> Does {
    Does { after: Span::from_secs(secs), fails: None }
}

fn fails(kind: FailureKind) -> Does {
    Does { after: Span::ZERO, fails: Some(KmsError::new(kind, false, "Scripted", "")) }
}

/// A KMS that does what it is told, and counts.
#[derive(Default)]
struct Scripted {
    wrap: Does,
    unwrap: Does,
    describe: Does,
    whoami: Mutex<Does>,
    asked: AtomicU32,
    name: Mutex<String>,
}

async fn done<T>(does: Does, value: T) -> Answer<T> {
    tokio::time::sleep(does.after.to_std()).await;
    Answer { result: does.fails.map_or(Ok(value), Err), meta: CallMeta { took: does.after, ..CallMeta::default() } }
}

fn wrapped() -> Wrapped {
    Wrapped { bytes: Arc::from([1_u8]), digest: [7; 32], version: Some(KeyVersion::new("1")), sealed_with: "".into() }
}

impl Kms for Scripted {
    fn wrap_key<'a>(&'a self, _: &'a KeyTarget) -> BoxFuture<'a, Answer<Wrapped>> {
        Box::pin(done(self.wrap.clone(), wrapped()))
    }
    fn unwrap_key<'a>(&'a self, _: &'a KeyTarget, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Unwrapped>> {
        Box::pin(done(self.unwrap.clone(), Unwrapped { digest: wrapped.digest, version: wrapped.version.clone() }))
    }
    fn describe_key<'a>(&'a self, _: &'a KeyTarget) -> BoxFuture<'a, Answer<KeyFacts>> {
        Box::pin(done(self.describe.clone(), KeyFacts::default()))
    }
    fn whoami<'a>(&'a self, _: &'a KeyTarget) -> BoxFuture<'a, Answer<Box<str>>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let who = self.name.lock().unwrap().clone();
        Box::pin(done(self.whoami.lock().unwrap().clone(), who.into()))
    }
}

fn target() -> KeyTarget {
    KeyTarget::plain(KeyRef::parse(ProviderKind::Local, "demo").unwrap())
}

fn plan() -> Plan {
    Plan {
        target: Arc::new(target()),
        unwrap_first: false,
        describe: true,
        current: None,
        older: vec![],
        missing: Vec::new(),
        rotation: false,
        deadline: Span::from_secs(30),
        call_timeout: Span::from_secs(10),
    }
}

/// A clock that moves with the paused timer.
fn clock() -> impl Fn() -> Now + Send + Sync + 'static {
    let start = tokio::time::Instant::now();
    move || {
        let ms = u64::try_from(start.elapsed().as_millis()).unwrap();
        Now { mono: Mono(1_000_000 + ms), wall: Wall(1_764_056_760_000 + i64::try_from(ms).unwrap()) }
    }
}

async fn round(kms: &Scripted, plan: Plan) -> Evidence {
    legs(kms, plan, &clock()).await
}

fn shown(evidence: &Evidence) -> Vec<(Leg, LegOutcome, Option<FailureKind>, Option<u64>)> {
    evidence.legs.iter().map(|l: &LegResult| (l.leg, l.outcome, l.failure_kind, l.duration_ms.map(|d| d.0))).collect()
}

fn provider() -> ProviderId {
    ProviderId::new("local").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_good_round_has_every_leg_and_a_fresh_canary() {
    let evidence = round(&Scripted::default(), plan()).await;
    assert!(evidence.legs.iter().all(|leg| leg.outcome == LegOutcome::Ok), "{:?}", evidence.legs);
    assert!(evidence.fresh.is_some() && evidence.identity.is_none());
}

#[tokio::test]
async fn the_real_clock_drives_a_round_too() {
    let evidence = drive(&Scripted::default(), plan()).await;
    assert_eq!(evidence.legs.len(), 3);
    assert!(evidence.fresh.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_is_a_timeout_after_its_own_limit_and_the_next_leg_goes_on() {
    let kms = Scripted { wrap: hangs(), ..Scripted::default() };
    let evidence = round(&kms, Plan { current: Some(wrapped()), ..plan() }).await;
    assert_eq!(
        shown(&evidence),
        [
            (Leg::Wrap, LegOutcome::Failed, Some(FailureKind::Timeout), Some(10_000)),
            (Leg::Unwrap, LegOutcome::Ok, None, Some(0)),
            (Leg::Describe, LegOutcome::Ok, None, Some(0)),
        ]
    );
    assert_eq!(evidence.legs[0].code.as_deref(), Some("timeout"));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_the_probe_cuts_a_call_short_and_leaves_the_rest_not_run() {
    let kms = Scripted { wrap: takes(8), unwrap: takes(8), ..Scripted::default() };
    let evidence = round(&kms, Plan { deadline: Span::from_secs(12), ..plan() }).await;
    assert_eq!(
        shown(&evidence),
        [
            (Leg::Wrap, LegOutcome::Ok, None, Some(8000)),
            (Leg::Unwrap, LegOutcome::Failed, Some(FailureKind::Timeout), Some(4000)),
            (Leg::Describe, LegOutcome::NotRun, None, None),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_every_call_hangs_ends_at_its_deadline() {
    let started = tokio::time::Instant::now();
    let kms = Scripted { wrap: hangs(), unwrap: hangs(), describe: hangs(), whoami: Mutex::new(hangs()), ..Scripted::default() };
    let older = vec![wrapped(), wrapped(), wrapped()];
    let identities = Identities::with_clock(clock());
    let evidence = identities.drive(&provider(), &kms, Plan { current: Some(wrapped()), older, ..plan() }).await;
    assert_eq!(started.elapsed(), Span::from_secs(30).to_std());
    assert_eq!(evidence.identity, None);
}

#[tokio::test(start_paused = true)]
async fn many_probes_at_once_ask_who_we_are_once() {
    let kms = Scripted { whoami: Mutex::new(takes(1)), name: Mutex::new("us".into()), ..Scripted::default() };
    let identities = Identities::with_clock(clock());
    let id = provider();
    let rounds = futures_util::future::join_all((0..50).map(|_| identities.drive(&id, &kms, plan()))).await;
    assert!(rounds.iter().all(|evidence| evidence.identity.as_deref() == Some("us")));
    assert_eq!(kms.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_kept_five_minutes_and_then_asked_for_again() {
    let kms = Scripted { name: Mutex::new("old".into()), ..Scripted::default() };
    let identities = Identities::with_clock(clock());
    assert_eq!(identities.drive(&provider(), &kms, plan()).await.identity.as_deref(), Some("old"));
    *kms.name.lock().unwrap() = "new".into();
    tokio::time::sleep(Span::from_secs(299).to_std()).await;
    assert_eq!(identities.drive(&provider(), &kms, plan()).await.identity.as_deref(), Some("old"));
    tokio::time::sleep(Span::from_secs(2).to_std()).await;
    assert_eq!(identities.drive(&provider(), &kms, plan()).await.identity.as_deref(), Some("new"));
    assert_eq!(kms.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_denial_or_a_fault_of_our_credentials_asks_anew_and_other_faults_do_not() {
    for (kind, asked, who) in [
        (FailureKind::AccessDenied, 2, "new"),
        (FailureKind::Credentials, 2, "new"),
        (FailureKind::Disabled, 1, "old"),
        (FailureKind::Timeout, 1, "old"),
    ] {
        let good = Scripted { name: Mutex::new("old".into()), ..Scripted::default() };
        let identities = Identities::with_clock(clock());
        identities.drive(&provider(), &good, plan()).await;
        tokio::time::sleep(Span::from_secs(1).to_std()).await;
        let bad = Scripted { unwrap: fails(kind), name: Mutex::new("new".into()), ..Scripted::default() };
        let evidence = identities.drive(&provider(), &bad, plan()).await;
        let total = good.asked.load(Ordering::SeqCst) + bad.asked.load(Ordering::SeqCst);
        assert_eq!((total, evidence.identity.as_deref()), (asked, Some(who)), "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_denied_round_that_itself_asked_does_not_ask_twice() {
    let kms = Scripted { unwrap: fails(FailureKind::AccessDenied), name: Mutex::new("us".into()), ..Scripted::default() };
    let identities = Identities::with_clock(clock());
    assert_eq!(identities.drive(&provider(), &kms, plan()).await.identity.as_deref(), Some("us"));
    assert_eq!(kms.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_question_gives_none_is_not_repeated_at_once_and_is_repeated_soon() {
    let kms = Scripted { whoami: Mutex::new(fails(FailureKind::Unreachable)), name: Mutex::new("us".into()), ..Scripted::default() };
    let identities = Identities::with_clock(clock());
    assert_eq!(identities.drive(&provider(), &kms, plan()).await.identity, None);
    assert_eq!(identities.drive(&provider(), &kms, plan()).await.identity, None);
    assert_eq!(kms.asked.load(Ordering::SeqCst), 1);
    *kms.whoami.lock().unwrap() = Does::default();
    tokio::time::sleep(Span::from_secs(6).to_std()).await;
    assert_eq!(identities.drive(&provider(), &kms, plan()).await.identity.as_deref(), Some("us"));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_identity_service_neither_stops_the_legs_nor_outlives_a_call() {
    let kms = Scripted { whoami: Mutex::new(hangs()), ..Scripted::default() };
    let started = tokio::time::Instant::now();
    let evidence = Identities::with_clock(clock()).drive(&provider(), &kms, plan()).await;
    assert!(evidence.fresh.is_some() && evidence.identity.is_none());
    assert_eq!(started.elapsed(), Span::from_secs(10).to_std());
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_hanging_question_do_not_wait_one_after_the_other() {
    let kms = Scripted { whoami: Mutex::new(hangs()), ..Scripted::default() };
    let started = tokio::time::Instant::now();
    let identities = Identities::with_clock(clock());
    let id = provider();
    futures_util::future::join_all((0..50).map(|_| identities.drive(&id, &kms, plan()))).await;
    assert_eq!(kms.asked.load(Ordering::SeqCst), 1);
    assert_eq!(started.elapsed(), Span::from_secs(10).to_std());
}

#[tokio::test(start_paused = true)]
async fn providers_roles_tenants_and_impersonation_are_told_apart() {
    let kms = Scripted { name: Mutex::new("us".into()), ..Scripted::default() };
    let identities = Identities::with_clock(clock());
    let role = AssumeRole { arn: "arn:aws:iam::444455556666:role/probe".into(), external_id: None };
    let targets = [
        target(),
        KeyTarget { assume_role: Some(role), ..target() },
        KeyTarget { tenant: Some("t".into()), ..target() },
        KeyTarget { impersonate: Some("a@b".into()), ..target() },
    ];
    for name in ["one", "two"] {
        for target in targets.clone() {
            let id = ProviderId::new(name).unwrap();
            identities.drive(&id, &kms, Plan { target: Arc::new(target), ..plan() }).await;
        }
    }
    assert_eq!(kms.asked.load(Ordering::SeqCst), 8);
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_bounded() {
    let kms = Scripted { name: Mutex::new("us".into()), ..Scripted::default() };
    let identities = Identities::with_clock(clock());
    for number in 0..MOST + 1 {
        if number == MOST {
            tokio::time::sleep(Span::from_mins(6).to_std()).await;
        }
        let target = KeyTarget { tenant: Some(number.to_string()), ..target() };
        identities.whoami(&provider(), &kms, &target, Span::from_secs(1), None).await;
    }
    assert_eq!(identities.slots.lock().unwrap().len(), 1);
}
