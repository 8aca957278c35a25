//! outside
//! What a command shows: one JSON value, the same as text for people, and the exit code.
//! Writes to stdout once; a reader that has gone away is no fault.

use std::io::Write as _;

use serde_json::Value;

/// What came of a command.
#[derive(Clone, PartialEq, Debug)]
pub struct Shown {
    pub json: Value,
    pub text: String,
    /// For stderr, one line each, not with `--json`.
    pub notes: Vec<String>,
    pub code: u8,
}

impl Shown {
    #[must_use]
    pub const fn good(json: Value, text: String) -> Self {
        Self { json, text, notes: Vec::new(), code: 0 }
    }

    /// Already written by the command itself.
    #[must_use]
    pub const fn nothing() -> Self {
        Self { json: Value::Null, text: String::new(), notes: Vec::new(), code: 0 }
    }

    #[must_use]
    pub const fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    #[must_use]
    pub fn with_notes(mut self, notes: Vec<String>) -> Self {
        self.notes = notes;
        self
    }

    /// Writes it and gives the exit code.
    #[must_use]
    pub fn print(&self, json: bool) -> u8 {
        if json {
            if !self.json.is_null() {
                to_stdout(&format!("{:#}\n", self.json));
            }
        } else {
            to_stderr(&self.notes);
            to_stdout(&self.text);
        }
        self.code
    }
}

/// Writes a text to stdout.
pub fn to_stdout(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes lines to stderr.
pub fn to_stderr(lines: &[String]) {
    let mut out = std::io::stderr().lock();
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
}

/// Columns under a heading, two blanks apart, each line after `indent`. Control characters of
/// foreign texts are taken out, so that no answer can move the cursor.
#[must_use]
pub fn table(indent: &str, rows: &[Vec<String>]) -> String {
    let cell = |text: &String| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|text| text.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}")).collect();
        out.push_str(format!("{indent}{}", line.join("  ")).trim_end());
        out.push('\n');
    }
    out
}

/// A text, or `-` for an absent one.
#[must_use]
pub fn or_dash<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A row of a table.
#[must_use]
pub fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_control_characters_are_taken_out() {
        let rows = [row(&["leg", "outcome"]), row(&["unwrap", "ok"]), row(&["x\u{1b}[2J", ""])];
        assert_eq!(table("  ", &rows), "  leg     outcome\n  unwrap  ok\n  x [2J\n");
        assert_eq!(table("", &[]), "");
    }
}
