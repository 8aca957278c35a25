//! outside
//! The one place that reads clocks. `CLOCK_BOOTTIME` counts suspend, so a deadline that passed while
//! the machine slept is seen as passed at once.

use crate::time::{Mono, Now, Wall};

/// Offset that keeps subtraction of spans from a young machine's clock above zero.
const OFFSET_MS: u64 = 1 << 40;

/// Reads both clocks.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub fn now() -> Now {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let boot_ms =
        u64::try_from(boot.tv_sec).unwrap_or(0).saturating_mul(1000).saturating_add(u64::try_from(boot.tv_nsec).unwrap_or(0) / 1_000_000);
    let wall =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
    Now { mono: Mono(boot_ms.saturating_add(OFFSET_MS)), wall: Wall(wall) }
}

/// The monotonic clock alone: what a check of the gate reads.
#[must_use]
pub fn now_mono() -> Mono {
    Mono(now_nanos().checked_div(1_000_000).unwrap_or(0).saturating_add(OFFSET_MS))
}

/// Nanoseconds since the machine started, time of sleep included.
#[must_use]
pub fn now_nanos() -> u64 {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(boot.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(u64::try_from(boot.tv_nsec).unwrap_or(0))
}
