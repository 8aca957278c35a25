//! outside
//! Calendar jobs. The cron library only wakes us once a minute, in UTC; whether a report is due is
//! decided by its own cron expression in its own time zone, so that a change of summer time moves
//! nothing. Never the clock of a probe.

use std::collections::BTreeMap;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, oneshot};
use tokio_cron_scheduler::{Job, JobScheduler};

use crate::clock;
use crate::config::{Config, Report};
use crate::http::Ask;
use crate::operate::{Action, Operation};
use crate::run::Swap;

/// Starts the once-a-minute wake-up. Without it the daemon goes on; reports are then missing, and
/// the log says so.
pub async fn start(config: Swap<Config>, asks: mpsc::Sender<Ask>) -> Option<JobScheduler> {
    let last: Arc<Mutex<BTreeMap<String, DateTime<Utc>>>> = Arc::default();
    let result = async {
        let scheduler = JobScheduler::new().await?;
        let job = Job::new_async("0 * * * * *", move |_, _| {
            let (config, asks, last) = (config.load_full(), asks.clone(), Arc::clone(&last));
            Box::pin(async move { tick(&config, &asks, &last).await })
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

async fn tick(config: &Config, asks: &mpsc::Sender<Ask>, last: &Mutex<BTreeMap<String, DateTime<Utc>>>) {
    let Some(now) = DateTime::from_timestamp_millis(clock::now().wall.0) else { return };
    for report in &config.reports {
        let before = {
            let Ok(mut last) = last.lock() else { return };
            last.insert(report.name.clone(), now).unwrap_or(now - chrono::Duration::seconds(60))
        };
        if is_due(report, before, now) {
            let (answer, _) = oneshot::channel();
            let action = Action::Report { name: report.name.clone(), receivers: report.receivers.clone() };
            let operation = Operation { actor: "calendar".to_owned(), action };
            if asks.send(Ask { operation, answer }).await.is_err() {
                return;
            }
        }
    }
}

/// Whether a report's time lies in `(before, now]`.
fn is_due(report: &Report, before: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    let (Ok(zone), Ok(cron)) = (report.timezone.parse::<chrono_tz::Tz>(), croner::Cron::from_str(&report.cron)) else {
        tracing::warn!(report = report.name, "the report's cron expression or time zone is not understood");
        return false;
    };
    cron.find_next_occurrence(&before.with_timezone(&zone), false).is_ok_and(|next| next.with_timezone(&Utc) <= now)
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

    #[test]
    fn nine_in_the_morning_stays_nine_over_the_change_of_summer_time() {
        let digest = report("0 0 9 * * *", "Europe/Berlin");
        for (day, utc) in [("2027-03-27", "08:00"), ("2027-03-28", "07:00"), ("2027-10-30", "07:00"), ("2027-10-31", "08:00")] {
            let due = at(&format!("{day}T{utc}:00Z"));
            let times =
                (-180..=180).filter(|m| is_due(&digest, due + chrono::Duration::minutes(m - 1), due + chrono::Duration::minutes(*m)));
            assert_eq!(times.collect::<Vec<_>>(), [0], "{day}");
        }
    }

    #[test]
    fn an_expression_that_is_not_understood_is_never_due() {
        assert!(!is_due(&report("nonsense", "UTC"), at("2027-01-01T00:00:00Z"), at("2027-01-02T00:00:00Z")));
        assert!(!is_due(&report("0 0 9 * * *", "Mars/Olympus"), at("2027-01-01T00:00:00Z"), at("2027-01-02T00:00:00Z")));
    }
}
