//! outside
//! The journal read from the store itself, beside a running daemon or without one. Reads only.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::json;

use super::JournalAct;
use super::exit::CliError;
use super::show::Shown;
use crate::config::{Config, StoreUrl};
use crate::store::sqlite::{self, Head, Verified, VerifyError};

/// # Errors
/// If the store cannot be read, or a given head is malformed.
pub async fn journal(config: &Config, act: &JournalAct) -> Result<Shown, CliError> {
    let StoreUrl::Sqlite(path) = &config.store.url else {
        return Err(CliError::OtherStore("the journal of a PostgreSQL store is read through the daemon: GET /v1/activity".to_owned()));
    };
    let path = Path::new(path);
    match act {
        JournalAct::Verify { head } => {
            let known = head.iter().map(|text| head_of(text)).collect::<Result<Vec<_>, _>>()?;
            Ok(told(&sqlite::verify(path, &known).await?))
        }
        JournalAct::Export { after } => match sqlite::export(path, *after, &mut std::io::BufWriter::new(std::io::stdout())).await {
            Ok(_) => Ok(Shown::nothing()),
            // Whoever read has seen enough.
            Err(VerifyError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(Shown::nothing()),
            Err(error) => Err(error.into()),
        },
    }
}

fn head_of(text: &str) -> Result<Head, CliError> {
    let head = text.split_once(':').and_then(|(sequence, hash)| Some(Head { sequence: sequence.parse().ok()?, hash: hash.to_owned() }));
    head.ok_or_else(|| CliError::Usage(format!("--head `{text}` is not SEQUENCE:HASH")))
}

fn told(verified: &Verified) -> Shown {
    let (json, text) = match verified {
        Verified::Whole { rows, head } => (
            json!({ "result": "whole", "rows": rows, "head": { "sequence": head.sequence, "hash": head.hash } }),
            format!("whole: {rows} records, head {}:{}\n", head.sequence, head.hash),
        ),
        Verified::Altered { sequence, what } => {
            (json!({ "result": "altered", "sequence": sequence, "what": what }), format!("ALTERED at record {sequence}: {what}\n"))
        }
        Verified::TornTail { rows, head, closed_at } => (
            json!({ "result": "torn_tail_closed", "rows": rows, "closed_at": closed_at,
                    "head": { "sequence": head.sequence, "hash": head.hash } }),
            format!(
                "torn tail, closed {closed_at}: records at the end were lost once, the {rows} that are there are whole; head {}:{}\n",
                head.sequence, head.hash
            ),
        ),
    };
    Shown::good(json, text).with_code(verified.exit_code())
}
