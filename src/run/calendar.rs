//! outside
//! Calendar jobs. The cron library only wakes us once a minute, in UTC; whether a report is due is
//! decided by its own cron expression in its own time zone, so that a change of summer time moves
//! nothing. Never the clock of a probe.

use std::str::FromStr as _;

use chrono::{DateTime, Timelike as _, Utc};
use tokio::sync::{mpsc, oneshot};
use tokio_cron_scheduler::{Job, JobScheduler};

use crate::clock;
use crate::config::{Config, Quiet, Report};
use crate::http::Ask;
use crate::operate::{Action, Operation};
use crate::run::Swap;
use crate::time::Wall;

/// Starts the once-a-minute wake-up. Without it the daemon goes on; reports are then missing, and
/// the log says so.
pub async fn start(config: Swap<Config>, asks: mpsc::Sender<Ask>) -> Option<JobScheduler> {
    // What was missed while the daemon was down is due now, and quiet hours may be on.
    tick(&config.load_full(), &asks).await;
    let result = async {
        let scheduler = JobScheduler::new().await?;
        let job = Job::new_async("0 * * * * *", move |_, _| {
            let (config, asks) = (config.load_full(), asks.clone());
            Box::pin(async move { tick(&config, &asks).await })
        })?;
        scheduler.add(job).await?;
        scheduler.start().await?;
        Ok::<_, tokio_cron_scheduler::JobSchedulerError>(scheduler)
    };
    match result.await {
        Ok(scheduler) => Some(scheduler),
        Err(error) => {
            tracing::error!(%error, "calendar jobs do not run: no digest will be sent");
            None
        }
    }
}

async fn tick(config: &Config, asks: &mpsc::Sender<Ask>) {
    let Some(now) = DateTime::from_timestamp_millis(clock::now().wall.0) else { return };
    let until = config.notify.quiet.as_ref().and_then(|quiet| quiet_until(quiet, now));
    let mut actions = vec![Action::Quiet { until: until.map(|until| Wall(until.timestamp_millis())) }];
    for report in &config.reports {
        let slot = last_slot(report, now);
        actions.extend(slot.map(|slot| Action::Report { name: report.name.clone(), receivers: report.receivers.clone(), slot }));
    }
    for action in actions {
        let (answer, _) = oneshot::channel();
        let operation = Operation { actor: "calendar".to_owned(), action };
        if asks.send(Ask { operation, answer }).await.is_err() {
            return;
        }
    }
}

/// The newest time of a report that the clock on the wall of its zone has passed. It is reckoned
/// without the zone's offset: a time that the change to summer time skips is passed by the first
/// moment after, and one that the change back repeats has the same name both times.
fn last_slot(report: &Report, now: DateTime<Utc>) -> Option<String> {
    let (Ok(zone), Ok(cron)) = (report.timezone.parse::<chrono_tz::Tz>(), croner::Cron::from_str(&report.cron)) else {
        tracing::warn!(report = report.name, "the report's cron expression or time zone is not understood");
        return None;
    };
    let wall = now.with_timezone(&zone).naive_local().and_utc();
    let slot = cron.find_previous_occurrence(&wall, true).ok()?;
    Some(slot.format("%Y-%m-%dT%H:%M:%S").to_string())
}

/// The end of the quiet hours, if they are on now: when the clock on the wall shows `to`.
fn quiet_until(quiet: &Quiet, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let zone = quiet.timezone.parse::<chrono_tz::Tz>().ok()?;
    let is_quiet = |at: DateTime<Utc>| {
        let local = at.with_timezone(&zone);
        let minute = u16::try_from(local.hour().saturating_mul(60).saturating_add(local.minute())).unwrap_or(0);
        if quiet.from < quiet.to { (quiet.from..quiet.to).contains(&minute) } else { minute >= quiet.from || minute < quiet.to }
    };
    if !is_quiet(now) {
        return None;
    }
    // A day has at most 25 hours; the next tick comes within a minute anyway.
    (1..=25 * 60).map(|minutes| now + chrono::Duration::minutes(minutes)).find(|at| !is_quiet(*at)).map(|at| {
        let into = i64::from(at.second()) * 1000;
        at - chrono::Duration::milliseconds(into)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(cron: &str, timezone: &str) -> Report {
        Report { name: "digest".to_owned(), cron: cron.to_owned(), timezone: timezone.to_owned(), receivers: vec![] }
    }

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().with_timezone(&Utc)
    }

    /// The moments at which a new slot is first seen, minute by minute, as the core sees them.
    fn served(report: &Report, from: &str, hours: i64) -> Vec<String> {
        let mut last = last_slot(report, at(from));
        let mut times = Vec::new();
        for minute in 1..=hours * 60 {
            let now = at(from) + chrono::Duration::minutes(minute);
            let slot = last_slot(report, now);
            if slot > last {
                last = slot;
                times.push(now.format("%Y-%m-%dT%H:%MZ").to_string());
            }
        }
        times
    }

    #[test]
    fn nine_in_the_morning_stays_nine_over_the_change_of_summer_time() {
        let digest = report("0 0 9 * * *", "Europe/Berlin");
        for (day, utc) in [("2027-03-27", "08:00"), ("2027-03-28", "07:00"), ("2027-10-30", "07:00"), ("2027-10-31", "08:00")] {
            assert_eq!(served(&digest, &format!("{day}T00:00:00Z"), 20), [format!("{day}T{utc}Z")], "{day}");
        }
    }

    #[test]
    fn a_time_that_summer_time_skips_is_served_at_the_first_moment_after() {
        for (zone, from, first) in [
            ("Europe/Berlin", "2027-03-27T12:00:00Z", "2027-03-28T01:00Z"),
            ("America/New_York", "2027-03-13T12:00:00Z", "2027-03-14T07:00Z"),
            ("Australia/Lord_Howe", "2027-10-02T06:00:00Z", "2027-10-02T15:30Z"),
        ] {
            let minutes = if zone == "Australia/Lord_Howe" { "15" } else { "30" };
            let times = served(&report(&format!("0 {minutes} 2 * * *"), zone), from, 24);
            assert_eq!(times, [first], "{zone}");
        }
    }

    #[test]
    fn a_time_that_comes_twice_is_served_once() {
        for (zone, from, first) in [
            ("Europe/Berlin", "2027-10-30T12:00:00Z", "2027-10-31T00:30Z"),
            ("America/New_York", "2027-11-06T12:00:00Z", "2027-11-07T05:30Z"),
        ] {
            let hour = if zone == "Europe/Berlin" { 2 } else { 1 };
            assert_eq!(served(&report(&format!("0 30 {hour} * * *"), zone), from, 24), [first], "{zone}");
        }
    }

    #[test]
    fn every_calendar_day_of_a_year_has_one_report_in_every_kind_of_zone() {
        for zone in
            ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Chatham", "Australia/Lord_Howe", "Africa/Casablanca"]
        {
            let digest = report("0 15 2 * * *", zone);
            let mut last = last_slot(&digest, at("2027-01-01T12:00:00Z"));
            let mut count = 0;
            for quarter in 1..=365 * 96 {
                let slot = last_slot(&digest, at("2027-01-01T12:00:00Z") + chrono::Duration::minutes(quarter * 15));
                if slot > last {
                    last = slot;
                    count += 1;
                }
            }
            assert_eq!(count, 365, "{zone}");
        }
    }

    #[test]
    fn a_slot_that_was_missed_is_the_newest_one_only() {
        let digest = report("0 0 9 * * *", "UTC");
        assert_eq!(last_slot(&digest, at("2027-01-05T08:59:00Z")).as_deref(), Some("2027-01-04T09:00:00"));
        assert_eq!(last_slot(&digest, at("2027-01-05T23:00:00Z")).as_deref(), Some("2027-01-05T09:00:00"));
    }

    #[test]
    fn an_expression_that_is_not_understood_is_never_due() {
        assert_eq!(last_slot(&report("nonsense", "UTC"), at("2027-01-02T00:00:00Z")), None);
        assert_eq!(last_slot(&report("0 0 9 * * *", "Mars/Olympus"), at("2027-01-02T00:00:00Z")), None);
    }

    #[test]
    fn quiet_hours_end_by_the_clock_on_the_wall() {
        let quiet = |from, to, zone: &str| Quiet { from, to, timezone: zone.to_owned() };
        let berlin = quiet(22 * 60, 7 * 60, "Europe/Berlin");
        assert_eq!(quiet_until(&berlin, at("2027-01-10T20:59:00Z")), None);
        assert_eq!(quiet_until(&berlin, at("2027-01-10T21:00:10Z")), Some(at("2027-01-11T06:00:00Z")));
        assert_eq!(quiet_until(&berlin, at("2027-01-11T05:59:59Z")), Some(at("2027-01-11T06:00:00Z")));
        assert_eq!(quiet_until(&berlin, at("2027-01-11T06:00:00Z")), None);
        // Over the night of the change an hour is missing, or comes twice.
        assert_eq!(quiet_until(&berlin, at("2027-03-27T22:00:00Z")), Some(at("2027-03-28T05:00:00Z")));
        assert_eq!(quiet_until(&berlin, at("2027-10-30T22:00:00Z")), Some(at("2027-10-31T06:00:00Z")));
        assert_eq!(quiet_until(&quiet(600, 720, "UTC"), at("2027-01-01T11:00:00Z")), Some(at("2027-01-01T12:00:00Z")));
    }
}
