//! inside
//! Time as a value: monotonic instants for every deadline, wall time for display and dates, spans.
//! Nothing here reads a clock; all arithmetic saturates, so no clock step can make it panic.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Milliseconds on a clock that never goes back and counts suspend (`CLOCK_BOOTTIME` + 2^40).
/// Means nothing outside the process that read it, hence never stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Mono(pub u64);

/// Unix milliseconds. Stored and shown; it never confirms anything by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Wall(pub i64);

/// A length of time in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Span(pub u64);

/// One reading of both clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    pub mono: Mono,
    pub wall: Wall,
}

/// Text that is not a length of time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is not a duration; write a whole number and a unit, such as \"500ms\", \"30s\", \"5m\", \"12h\" or \"7d\"")]
pub struct BadSpan(pub String);

/// Text that is not an RFC 3339 time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is not an RFC 3339 time")]
pub struct BadTime(pub String);

impl Mono {
    #[must_use]
    pub const fn plus(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
    #[must_use]
    pub const fn minus(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
    /// Time from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Wall {
    #[must_use]
    pub fn plus(self, span: Span) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.0).unwrap_or(i64::MAX)))
    }
    #[must_use]
    pub fn minus(self, span: Span) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.0).unwrap_or(i64::MAX)))
    }
    /// Time from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Span {
        Span(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Span {
    pub const ZERO: Self = Self(0);
    pub const MAX: Self = Self(u64::MAX);
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }
    #[must_use]
    pub const fn from_mins(mins: u64) -> Self {
        Self::from_secs(mins.saturating_mul(60))
    }
    #[must_use]
    pub const fn from_hours(hours: u64) -> Self {
        Self::from_mins(hours.saturating_mul(60))
    }
    #[must_use]
    pub const fn from_days(days: u64) -> Self {
        Self::from_hours(days.saturating_mul(24))
    }
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
    #[must_use]
    pub const fn times(self, factor: u64) -> Self {
        Self(self.0.saturating_mul(factor))
    }
    /// Division by a count; a count of zero gives `self`.
    #[must_use]
    pub const fn over(self, count: u64) -> Self {
        match self.0.checked_div(count) {
            Some(ms) => Self(ms),
            None => self,
        }
    }
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "seconds for metrics and display")]
    pub const fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1000.0
    }
    /// For timers outside the core.
    #[must_use]
    pub const fn to_std(self) -> core::time::Duration {
        core::time::Duration::from_millis(self.0)
    }
}

impl Now {
    /// The one way back from a stored time: an age clamped to `[0, cap]`, so that a clock set back
    /// gives age 0 and a clock set forward never more than `cap`.
    #[must_use]
    pub fn mono_of(self, stored: Wall, cap: Span) -> Mono {
        let age = self.wall.since(stored);
        self.mono.minus(if age > cap { cap } else { age })
    }
    #[must_use]
    pub fn plus(self, span: Span) -> Self {
        Self { mono: self.mono.plus(span), wall: self.wall.plus(span) }
    }
}

impl std::str::FromStr for Span {
    type Err = BadSpan;
    fn from_str(text: &str) -> Result<Self, BadSpan> {
        let bad = || BadSpan(text.to_owned());
        let digits = text.len().saturating_sub(text.trim_start_matches(|c: char| c.is_ascii_digit()).len());
        let (number, unit) = text.split_at_checked(digits).ok_or_else(bad)?;
        let number: u64 = number.parse().map_err(|_| bad())?;
        let factor = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(bad)
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (unit, text) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")] {
            if self.0 >= unit && self.0.checked_rem(unit) == Some(0) {
                return write!(f, "{}{text}", self.0.checked_div(unit).unwrap_or(0));
            }
        }
        write!(f, "{}ms", self.0)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// Reads a span from a whole number of milliseconds (JSON) or from text such as `"30s"` (TOML).
impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a duration such as \"30s\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, ms: u64) -> Result<Span, E> {
                Ok(Span(ms))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

const DAY_MS: i64 = 86_400_000;

/// Year, month and day of a count of days since 1970-01-01 (proleptic Gregorian calendar).
fn civil_of(days: i64) -> (i64, i64, i64) {
    let shifted = days.saturating_add(719_468);
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = day_of_era
        .saturating_sub(day_of_era.div_euclid(1460))
        .saturating_add(day_of_era.div_euclid(36_524))
        .saturating_sub(day_of_era.div_euclid(146_096))
        .div_euclid(365);
    let leap_days = year_of_era.div_euclid(4).saturating_sub(year_of_era.div_euclid(100));
    let day_of_year = day_of_era.saturating_sub(year_of_era.saturating_mul(365).saturating_add(leap_days));
    let march_month = day_of_year.saturating_mul(5).saturating_add(2).div_euclid(153);
    let first = march_month.saturating_mul(153).saturating_add(2).div_euclid(5);
    let day = day_of_year.saturating_sub(first).saturating_add(1);
    let month = if march_month < 10 { march_month.saturating_add(3) } else { march_month.saturating_sub(9) };
    let year = year_of_era.saturating_add(era.saturating_mul(400)).saturating_add(i64::from(month <= 2));
    (year, month, day)
}

/// Days since 1970-01-01 of a date.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = year.saturating_sub(i64::from(month <= 2));
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let march_month = if month > 2 { month.saturating_sub(3) } else { month.saturating_add(9) };
    let day_of_year = march_month.saturating_mul(153).saturating_add(2).div_euclid(5).saturating_add(day).saturating_sub(1);
    let day_of_era = year_of_era
        .saturating_mul(365)
        .saturating_add(year_of_era.div_euclid(4))
        .saturating_sub(year_of_era.div_euclid(100))
        .saturating_add(day_of_year);
    era.saturating_mul(146_097).saturating_add(day_of_era).saturating_sub(719_468)
}

/// RFC 3339 in UTC with milliseconds, `2026-11-25T07:31:00.000Z`.
impl std::fmt::Display for Wall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (year, month, day) = civil_of(self.0.div_euclid(DAY_MS));
        let ms = self.0.rem_euclid(DAY_MS);
        let (hour, minute) = (ms.div_euclid(3_600_000), ms.div_euclid(60_000).rem_euclid(60));
        let (second, milli) = (ms.div_euclid(1000).rem_euclid(60), ms.rem_euclid(1000));
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
    }
}

/// Reads RFC 3339 with `Z` or a numeric offset.
impl std::str::FromStr for Wall {
    type Err = BadTime;
    fn from_str(text: &str) -> Result<Self, BadTime> {
        parse_rfc3339(text).ok_or_else(|| BadTime(text.to_owned()))
    }
}

fn parse_rfc3339(text: &str) -> Option<Wall> {
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let mut parts = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    let zone_at = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at_checked(zone_at)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut parts = clock.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    let milli: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !in_range || civil_of(days_of(year, month, day)) != (year, month, day) {
        return None;
    }
    let offset_minutes = if zone.eq_ignore_ascii_case("z") {
        0
    } else {
        let (hours, minutes) = zone.get(1..)?.split_once(':')?;
        let minutes = hours.parse::<i64>().ok()?.checked_mul(60)?.checked_add(minutes.parse().ok()?)?;
        if zone.starts_with('-') { minutes.checked_neg()? } else { minutes }
    };
    let seconds = hour.checked_mul(3600)?.checked_add(minute.checked_sub(offset_minutes)?.checked_mul(60)?)?.checked_add(second)?;
    days_of(year, month, day).checked_mul(DAY_MS)?.checked_add(seconds.checked_mul(1000)?)?.checked_add(milli).map(Wall)
}

impl Serialize for Wall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Wall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_prints_and_reads_rfc3339() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_764_056_760_123, "2025-11-25T07:46:00.123Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Wall(ms).to_string(), text);
            assert_eq!(text.parse(), Ok(Wall(ms)));
        }
        assert_eq!("2025-11-25T09:46:00.1239+02:00".parse(), Ok(Wall(1_764_056_760_123)));
        for bad in ["2025-02-30T00:00:00Z", "2025-11-25", "2025-11-25T25:00:00Z", "x", ""] {
            assert!(bad.parse::<Wall>().is_err(), "{bad}");
        }
    }

    #[test]
    fn span_reads_the_units_of_the_contract() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("12h", 43_200_000), ("7d", 604_800_000)] {
            assert_eq!(text.parse(), Ok(Span(ms)));
            assert_eq!(Span(ms).to_string(), text);
        }
        for bad in ["", "s", "5", "-5s", "5 s", "1.5s", "99999999999999999999d", "18446744073709551615d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_wall_time_survives_its_own_text(ms in -60_000_000_000_000i64..250_000_000_000_000) {
            proptest::prop_assert_eq!(Wall(ms).to_string().parse(), Ok(Wall(ms)));
        }

        #[test]
        fn a_stored_time_never_lies_in_the_future_nor_beyond_the_cap(mono in 0u64..1<<50, wall in proptest::num::i64::ANY, stored in proptest::num::i64::ANY, cap in 0u64..1<<40) {
            let now = Now { mono: Mono(mono), wall: Wall(wall) };
            let at = now.mono_of(Wall(stored), Span(cap));
            proptest::prop_assert!(at <= now.mono && now.mono.since(at) <= Span(cap));
        }
    }
}
