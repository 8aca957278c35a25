//! outside
//! Metrics: counters and histograms of the aggregates in a registry of our own, per-key and
//! per-workspace families written straight from the snapshot at each scrape, so that API and
//! metrics cannot tell two states. It must never wait for the core and never grow without a bound.

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::config::Config;
use crate::published::Snapshot;
use crate::time::{Now, Span, Wall};
use crate::words::{AuditMeaning, AuditTrouble, FailureKind, Leg, LegOutcome};

pub mod families;
pub mod text;

/// Declares a closed set of label values.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($variant,)+ }
        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// The label value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

label! {
    /// What the gate answered.
    GateResult {
        Allowed = "allowed", Denied = "denied", CannotTell = "cannot_tell", UnknownAllowed = "unknown_allowed",
        UnknownDenied = "unknown_denied", BadRequest = "bad_request",
    }
}
label! {
    /// How the delivery of a notice ended.
    NoticeOutcome { Delivered = "delivered", Failed = "failed", Retried = "retried", Folded = "folded", Dropped = "dropped", }
}
label! {
    /// Part of the way from a revocation to refused requests.
    Stage { Detect = "detect", Confirm = "confirm", Apply = "apply", Acknowledge = "acknowledge", }
}
label! {
    /// What a lockout latency counts from: the provider's own time of the change, our last good look,
    /// or the moment in which the lock was shown to services.
    Start { Provider = "provider", LastGood = "last_good", Published = "published", }
}
label! {
    /// What is asked of the vault.
    VaultOperation { Put = "put", Get = "get", List = "list", Preserve = "preserve", }
}
label! {
    /// Why a door refused a request or a connection.
    RefusedReason {
        NoToken = "no_token", BadToken = "bad_token", WrongRole = "wrong_role", OperateNeedsToken = "operate_needs_token",
        Host = "host", Origin = "origin", MediaType = "media_type", BodyTooLarge = "body_too_large", Busy = "busy",
        TooMany = "too_many", RequestTimeout = "request_timeout", Connections = "connections", SlowClient = "slow_client", Tls = "tls",
        HeadTooLarge = "head_too_large", Malformed = "malformed",
    }
}

label! {
    /// What became of a pushed hint.
    HintOutcome {
        Accepted = "accepted", Unmatched = "unmatched", Validation = "validation", Malformed = "malformed", Refused = "refused", Busy = "busy",
    }
}

const PROBE_BUCKETS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const LATENCY_BUCKETS: &[f64] = &[0.005, 0.05, 0.25, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];

/// All counters of the process. One per daemon; shared by reference.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    legs: IntCounterVec,
    leg_seconds: HistogramVec,
    kms_calls: IntCounterVec,
    missed_windows: IntCounterVec,
    gate: Vec<IntCounter>,
    unknown_features: IntCounter,
    notices: IntCounterVec,
    latency: HistogramVec,
    reload_ok: IntGauge,
    reloads: IntCounterVec,
    refused: Vec<IntCounter>,
    store_write_failures: IntCounter,
    audit_events: IntCounterVec,
    audit_malformed: IntCounterVec,
    audit_faults: IntCounterVec,
    hints: IntCounterVec,
    heartbeat: prometheus::Gauge,
    probe_task_panics: IntCounter,
    stream_subscribers: IntGauge,
    stream_cut_offs: IntCounter,
    consumers_behind: IntGauge,
    stream_events: IntCounter,
    leases: IntCounterVec,
    vault: Vault,
}

/// The vault's own; absent from a scrape until there is a vault.
#[derive(Debug)]
struct Vault {
    readable: IntGaugeVec,
    key_healthy: IntGaugeVec,
    records: IntGaugeVec,
    data_keys: IntGaugeVec,
    operations: IntCounterVec,
    rewraps: IntCounterVec,
}

impl Vault {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone())).map(|()| vec)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone())).map(|()| vec)
        };
        Ok(Self {
            readable: gauges("cmek_vault_readable", "Whether a key of the vault opens it, as last seen.", &[])?,
            key_healthy: gauges("cmek_vault_key_healthy", "Whether a key of the vault wraps and unwraps, as last seen.", &["role"])?,
            records: gauges("cmek_vault_records", "Sealed rows of the vault by kind.", &["kind"])?,
            data_keys: gauges("cmek_vault_data_keys", "Data keys that lie under what they should, and that do not yet.", &["state"])?,
            operations: counters(
                "cmek_vault_operations_total",
                "What callers asked of the vault, and how it ended.",
                &["operation", "result"],
            )?,
            rewraps: counters("cmek_vault_rewraps_total", "Data keys wrapped anew, by result.", &["result"])?,
        })
    }
}

impl Metrics {
    /// # Errors
    /// If a metric cannot be registered; that would be a fault of this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone())).map(|()| vec)
        };
        let counter = |name: &str, help: &str| {
            let one = IntCounter::new(name, help)?;
            registry.register(Box::new(one.clone())).map(|()| one)
        };
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let vec = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
            registry.register(Box::new(vec.clone())).map(|()| vec)
        };
        let gate = counters("cmek_gate_decisions_total", "Answers of the gate by result.", &["result"])?;
        let refused = counters("cmek_http_refused_total", "Requests and connections refused at the doors, by reason.", &["reason"])?;
        let reload_ok = IntGauge::new("cmek_config_last_reload_successful", "Whether the last load of the configuration succeeded.")?;
        registry.register(Box::new(reload_ok.clone()))?;
        reload_ok.set(1);
        let heartbeat = "When the dead man's switch was last told that all is well; 0 = never.";
        let heartbeat = prometheus::Gauge::new("cmek_heartbeat_last_success_timestamp_seconds", heartbeat)?;
        registry.register(Box::new(heartbeat.clone()))?;
        let build = Opts::new("cmek_build_info", "Version of this build; always 1.").const_label("version", env!("CARGO_PKG_VERSION"));
        let build = IntGauge::with_opts(build)?;
        registry.register(Box::new(build.clone()))?;
        build.set(1);
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let stream_subscribers = IntGauge::new("cmek_stream_subscribers", "Readers of the event stream.")?;
        registry.register(Box::new(stream_subscribers.clone()))?;
        let consumers_behind =
            IntGauge::new("cmek_consumers_behind", "Consumers that have not acknowledged a lockout in time, by workspace.")?;
        registry.register(Box::new(consumers_behind.clone()))?;
        let leg_labels = ["provider", "leg", "outcome", "failure_kind"];
        let latency_help = "Time from a revocation to each stage of its lockout.";
        Ok(Self {
            legs: counters("cmek_probe_legs_total", "Legs of probes by outcome and failure kind.", &leg_labels)?,
            leg_seconds: histogram("cmek_probe_duration_seconds", "Duration of one leg.", &["provider", "leg"], PROBE_BUCKETS)?,
            kms_calls: counters("cmek_kms_calls_total", "Calls made to a provider, by operation.", &["provider", "operation"])?,
            missed_windows: counters("cmek_probe_missed_windows_total", "Probe windows that passed without a look.", &["provider"])?,
            gate: GateResult::ALL.iter().map(|r| gate.with_label_values(&[r.as_str()])).collect(),
            unknown_features: counter("cmek_gate_unknown_features_total", "Gate questions about a feature that is not configured.")?,
            notices: counters("cmek_notices_total", "Notices by receiver and outcome.", &["receiver", "outcome"])?,
            latency: histogram("cmek_lockout_latency_seconds", latency_help, &["stage", "start"], LATENCY_BUCKETS)?,
            reload_ok,
            reloads: counters("cmek_config_reloads_total", "Loads of the configuration after the start, by result.", &["result"])?,
            refused: RefusedReason::ALL.iter().map(|r| refused.with_label_values(&[r.as_str()])).collect(),
            heartbeat,
            store_write_failures: counter("cmek_store_write_failures_total", "Transactions that the store did not take.")?,
            audit_events: counters("cmek_audit_events_total", "Events of audit sources by what they mean.", &["source", "meaning"])?,
            audit_malformed: counters("cmek_audit_malformed_total", "Entries of audit sources that could not be read.", &["source"])?,
            audit_faults: counters(
                "cmek_audit_faults_total",
                "Calls to audit sources that gave nothing, by reason.",
                &["source", "reason"],
            )?,
            hints: counters("cmek_hints_total", "Pushed hints by what became of them.", &["source", "outcome"])?,
            probe_task_panics: counter("cmek_probe_task_panics_total", "Probes whose adapter panicked; each counts as unclassified.")?,
            stream_subscribers,
            consumers_behind,
            stream_cut_offs: counter("cmek_stream_cut_offs_total", "Readers of the event stream that did not keep up.")?,
            stream_events: counter("cmek_stream_events_total", "Events told on the stream; each counts once for all readers.")?,
            leases: counters("cmek_leases_total", "Asks for a lease, by result.", &["result"])?,
            vault: Vault::new(&registry)?,
            registry,
        })
    }

    /// `None` removes the series: no vault is configured.
    pub fn vault_readable(&self, readable: Option<bool>) {
        match readable {
            Some(readable) => self.vault.readable.with_label_values::<&str>(&[]).set(i64::from(readable)),
            None => {
                self.vault.readable.reset();
                self.vault.key_healthy.reset();
            }
        }
    }

    /// One look at a key of the vault.
    pub fn vault_key_healthy(&self, role: &str, healthy: bool) {
        self.vault.key_healthy.with_label_values(&[role]).set(i64::from(healthy));
    }

    /// How many rows the vault holds.
    pub fn vault_records(&self, records: u64, preservations: u64) {
        for (kind, count) in [("record", records), ("preservation", preservations)] {
            self.vault.records.with_label_values(&[kind]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Data keys that lie under what they should, and that do not yet.
    pub fn vault_data_keys(&self, current: usize, stale: usize) {
        for (state, count) in [("current", current), ("stale", stale)] {
            self.vault.data_keys.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// One operation asked of the vault ended.
    pub fn vault_operation(&self, operation: VaultOperation, result: &str) {
        self.vault.operations.with_label_values(&[operation.as_str(), result]).inc();
    }

    /// One data key was wrapped anew, or could not be.
    pub fn vault_rewrap(&self, ok: bool) {
        self.vault.rewraps.with_label_values(&[if ok { "ok" } else { "failed" }]).inc();
    }

    /// One leg of a probe as it ended; `took` is absent for a leg that was not run.
    pub fn leg(&self, provider: &str, leg: Leg, outcome: LegOutcome, kind: Option<FailureKind>, took: Option<Span>) {
        let kind = kind.map_or("", FailureKind::as_str);
        self.legs.with_label_values(&[provider, leg.as_str(), outcome.as_str(), kind]).inc();
        if let Some(took) = took {
            self.leg_seconds.with_label_values(&[provider, leg.as_str()]).observe(took.as_secs_f64());
        }
    }

    /// One call sent to a provider.
    pub fn kms_call(&self, provider: &str, operation: &str) {
        self.kms_calls.with_label_values(&[provider, operation]).inc();
    }

    /// A window in which a key was not looked at.
    pub fn missed_window(&self, provider: &str) {
        self.missed_windows.with_label_values(&[provider]).inc();
    }

    /// One answer of the gate.
    pub fn gate_decision(&self, result: GateResult) {
        if let Some(counter) = self.gate.get(result as usize) {
            counter.inc();
        }
    }

    /// A gate question about a feature that is not configured.
    pub fn unknown_feature(&self) {
        self.unknown_features.inc();
    }

    /// The end of one attempt to deliver a notice.
    pub fn notice(&self, receiver: &str, outcome: NoticeOutcome) {
        self.notices.with_label_values(&[receiver, outcome.as_str()]).inc();
    }

    /// How long a lockout took to reach a stage.
    pub fn lockout_latency(&self, stage: Stage, start: Start, span: Span) {
        self.latency.with_label_values(&[stage.as_str(), start.as_str()]).observe(span.as_secs_f64());
    }

    /// A load of the configuration ended.
    pub fn config_reload(&self, ok: bool) {
        self.reload_ok.set(i64::from(ok));
        self.reloads.with_label_values(&[if ok { "ok" } else { "failed" }]).inc();
    }

    /// A door refused a request or a connection.
    pub fn http_refused(&self, reason: RefusedReason) {
        if let Some(counter) = self.refused.get(reason as usize) {
            counter.inc();
        }
    }

    /// The store did not take a transaction.
    pub fn store_write_failure(&self) {
        self.store_write_failures.inc();
    }

    /// One event of an audit source, or of a hint.
    pub fn audit_event(&self, source: &str, meaning: AuditMeaning) {
        self.audit_events.with_label_values(&[source, meaning.as_str()]).inc();
    }

    /// Entries of an audit source that could not be read.
    pub fn audit_malformed(&self, source: &str, count: u64) {
        self.audit_malformed.with_label_values(&[source]).inc_by(count);
    }

    /// A call to an audit source gave nothing.
    pub fn audit_fault(&self, source: &str, reason: AuditTrouble) {
        self.audit_faults.with_label_values(&[source, reason.as_str()]).inc();
    }

    /// A pushed hint came to its end.
    pub fn hint(&self, source: &str, outcome: HintOutcome) {
        self.hints.with_label_values(&[source, outcome.as_str()]).inc();
    }

    /// The dead man's switch took a call.
    pub fn heartbeat(&self, at: Wall) {
        self.heartbeat.set(Span(u64::try_from(at.0).unwrap_or(0)).as_secs_f64());
    }

    /// A probe's adapter panicked.
    pub fn probe_task_panic(&self) {
        self.probe_task_panics.inc();
    }

    /// Readers of the stream that came (1) or went (-1).
    pub fn stream_subscriber(&self, by: i64) {
        self.stream_subscribers.add(by);
    }

    /// A reader of the stream did not keep up.
    pub fn stream_cut_off(&self) {
        self.stream_cut_offs.inc();
    }

    /// Events told on the stream.
    pub fn stream_events(&self, count: usize) {
        self.stream_events.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Pairs of consumer and workspace that are behind, counted for this scrape.
    pub fn consumers_behind(&self, count: u64) {
        self.consumers_behind.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// An ask for a lease ended: `given`, `refused` or `unavailable`.
    pub fn lease(&self, result: &str) {
        self.leases.with_label_values(&[result]).inc();
    }

    /// The whole scrape as Prometheus text 0.0.4.
    #[must_use]
    pub fn render(&self, snapshot: &Snapshot, config: &Config, now: Now) -> String {
        let mut out = String::with_capacity(64 * 1024);
        if let Err(error) = prometheus::TextEncoder::new().encode_utf8(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "aggregate metrics could not be encoded");
            out.clear();
        }
        let mut text = text::Text::appending(out);
        families::write(&mut text, snapshot, config, now);
        text.finish()
    }
}
