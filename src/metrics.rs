//! outside
//! Metrics: counters in the prometheus crate, per-key families written from the snapshot.
