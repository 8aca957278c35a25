//! inside
//! One configuration text under examination: where each value stands, what was found wrong with it,
//! and the readers of single values. It must never show the text of a value that may be a secret.

use core::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::raw::{Int, Text};
use crate::key::BadName;
use crate::time::Span;

/// More faults than this in one text help nobody.
const MOST_FAULTS: usize = 200;

/// Where in which file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Place {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Dotted, such as `policies.default.on.disabled.access`; empty for a fault of the whole text.
    pub path: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)?;
        if self.path.is_empty() { Ok(()) } else { write!(f, ": {}", self.path) }
    }
}

/// A fault that refuses the configuration.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
#[error("{place}: {message}")]
pub struct ConfigError {
    pub place: Place,
    pub message: String,
}

/// Something to tell that refuses nothing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Warning {
    pub place: Place,
    pub message: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// A parsed text and the faults found in it so far.
pub struct Sheet<'a> {
    file: &'a str,
    text: &'a str,
    base_dir: &'a str,
    /// Offset of the first character of each line.
    lines: Vec<usize>,
    root: DeTable<'a>,
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<Warning>,
}

impl<'a> Sheet<'a> {
    /// Parses a text; faults of the TOML itself are among `errors`.
    #[must_use]
    pub fn new(text: &'a str, file: &'a str, base_dir: &'a str) -> Self {
        let (root, faults) = DeTable::parse_recoverable(text);
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at.saturating_add(1))).collect();
        let mut sheet = Self { file, text, base_dir, lines, root: DeTable::new(), errors: Vec::new(), warnings: Vec::new() };
        for fault in faults {
            sheet.error(fault.span().unwrap_or_default(), tidy(fault.message()));
        }
        sheet.root = root.into_inner();
        sheet
    }

    #[must_use]
    pub const fn root(&self) -> &DeTable<'a> {
        &self.root
    }

    /// Line, column and dotted path of a range of the text. Walks the whole text: for faults only.
    #[must_use]
    pub fn place(&self, at: &Range<usize>) -> Place {
        self.place_of(at, path_of(&self.root, at))
    }

    /// Line and column of a range whose path is known.
    #[must_use]
    pub fn place_of(&self, at: &Range<usize>, path: String) -> Place {
        let start = at.start.min(self.text.len());
        let line = self.lines.partition_point(|first| *first <= start);
        let first = self.lines.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let before = self.text.get(first..start).unwrap_or("");
        Place { file: self.file.to_owned(), line, column: before.chars().count().saturating_add(1), path }
    }

    pub fn error(&mut self, at: Range<usize>, message: impl Into<String>) {
        if self.errors.len() < MOST_FAULTS {
            let error = ConfigError { place: self.place(&at), message: message.into() };
            if !self.errors.contains(&error) {
                self.errors.push(error);
            }
        }
    }

    pub fn warn(&mut self, at: &Range<usize>, message: impl Into<String>) {
        if self.warnings.len() < MOST_FAULTS {
            self.warnings.push(Warning { place: self.place(at), message: message.into() });
        }
    }

    /// A warning about another file.
    pub fn warn_elsewhere(&mut self, place: Place, message: String) {
        if self.warnings.len() < MOST_FAULTS {
            self.warnings.push(Warning { place, message });
        }
    }

    /// Reads one table into its raw twin; a fault is noted and gives `None`.
    pub fn read<T: DeserializeOwned>(&mut self, value: &Spanned<DeValue<'a>>) -> Option<T> {
        read_table(value).map_err(|(at, why)| self.error(at, why)).ok()
    }

    /// Line, column and path of a range within one value whose own path is known.
    #[must_use]
    pub fn place_in(&self, at: &Range<usize>, value: &Spanned<DeValue<'a>>, path: &str) -> Place {
        let mut best = (usize::MAX, path.to_owned());
        walk(value, path, at, &mut best);
        self.place_of(at, best.1)
    }

    /// A top-level table, or its default if the file has none or a faulty one.
    pub fn section<T: DeserializeOwned + Default>(&mut self, name: &str) -> T {
        match self.root.get(name).cloned() {
            Some(value) => self.read(&value).unwrap_or_default(),
            None => T::default(),
        }
    }

    /// Names and values of a top-level table of tables.
    pub fn entries(&mut self, name: &str) -> Vec<(Text, Spanned<DeValue<'a>>)> {
        let Some(value) = self.root.get(name).cloned() else { return Vec::new() };
        let DeValue::Table(table) = value.get_ref() else {
            self.error(value.span(), format!("expected a table, found {}", article(value.get_ref().type_str())));
            return Vec::new();
        };
        table.iter().map(|(key, value)| (Spanned::new(key.span(), key.get_ref().to_string()), value.clone())).collect()
    }

    /// Elements of a top-level array of tables.
    pub fn elements(&mut self, name: &str) -> Vec<Spanned<DeValue<'a>>> {
        let Some(value) = self.root.get(name).cloned() else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            self.error(value.span(), format!("expected an array of tables, `[[{name}]]`"));
            return Vec::new();
        };
        array.iter().cloned().collect()
    }

    /// Notes every top-level table that is not among `allowed`.
    pub fn refuse_unknown(&mut self, allowed: &[&str]) {
        let unknown: Vec<_> = self.root.keys().filter(|key| !allowed.contains(&key.get_ref().as_ref())).map(Spanned::span).collect();
        for at in unknown {
            self.error(at, format!("unknown table, expected one of: {}", allowed.join(", ")));
        }
    }

    /// One of a closed set of words.
    pub fn choice<T: Copy>(&mut self, text: &Text, allowed: &[(&str, T)]) -> Option<T> {
        let found = allowed.iter().find(|(word, _)| word == text.get_ref()).map(|(_, value)| *value);
        if found.is_none() {
            let words: Vec<&str> = allowed.iter().map(|(word, _)| *word).collect();
            self.error(text.span(), unknown_value(text.get_ref(), &words));
        }
        found
    }

    /// A length of time above zero.
    pub fn span(&mut self, text: &Text) -> Option<Span> {
        let span = self.span_or_zero(text)?;
        if span == Span::ZERO {
            self.error(text.span(), "must be longer than zero");
            return None;
        }
        Some(span)
    }

    /// A length of time that may be zero.
    pub fn span_or_zero(&mut self, text: &Text) -> Option<Span> {
        match text.get_ref().parse() {
            Ok(span) => Some(span),
            Err(fault) => {
                self.error(text.span(), fault.to_string());
                None
            }
        }
    }

    /// A length of time within bounds.
    pub fn span_within(&mut self, text: &Text, least: Span, most: Span) -> Option<Span> {
        let span = self.span(text)?;
        if span < least || span > most {
            let bounds = if most == Span::MAX { format!("at least {least}") } else { format!("from {least} to {most}") };
            self.error(text.span(), format!("`{}` is out of bounds, expected {bounds}", text.get_ref()));
            return None;
        }
        Some(span)
    }

    /// A length of time, or a word that means none.
    pub fn span_unless(&mut self, text: &Text, none: &str) -> Option<Option<Span>> {
        if text.get_ref() == none {
            return Some(None);
        }
        match text.get_ref().parse() {
            Ok(Span::ZERO) => self.error(text.span(), "must be longer than zero"),
            Ok(span) => return Some(Some(span)),
            Err(fault) => self.error(text.span(), format!("{fault}; or \"{none}\"")),
        }
        None
    }

    /// A whole number within bounds.
    pub fn int<T: TryFrom<i64>>(&mut self, number: &Int, least: i64, most: i64) -> Option<T> {
        let value = *number.get_ref();
        let found = if (least..=most).contains(&value) { T::try_from(value).ok() } else { None };
        if found.is_none() {
            self.error(number.span(), format!("{value} is out of bounds, expected {least} to {most}"));
        }
        found
    }

    /// An id of ours.
    pub fn name<T: std::str::FromStr<Err = BadName>>(&mut self, text: &Text) -> Option<T> {
        match text.get_ref().parse() {
            Ok(name) => Some(name),
            Err(fault) => {
                self.error(text.span(), fault.to_string());
                None
            }
        }
    }

    /// A name that has no type of its own. It may become part of an address or a metric label.
    pub fn label(&mut self, text: &Text) {
        let shaped = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let name = text.get_ref();
        if name.is_empty() || name.len() > 128 || !name.chars().all(shaped) {
            self.error(text.span(), "a name has 1 to 128 letters, digits or `._-`");
        }
    }

    /// A path, joined with the folder of the configuration file unless absolute.
    pub fn path(&mut self, text: &Text) -> Option<String> {
        if text.get_ref().is_empty() {
            self.error(text.span(), "the path is empty");
            return None;
        }
        Some(join(self.base_dir, text.get_ref()))
    }

    #[must_use]
    pub const fn base_dir(&self) -> &'a str {
        self.base_dir
    }
}

/// Reads one table into its raw twin.
///
/// # Errors
/// Where the first fault stands and what it is.
pub fn read_table<T: DeserializeOwned>(value: &Spanned<DeValue<'_>>) -> Result<T, (Range<usize>, String)> {
    T::deserialize(toml::de::ValueDeserializer::from(value.clone()))
        .map_err(|fault| (fault.span().unwrap_or_else(|| value.span()), tidy(fault.message())))
}

/// A path below a folder unless it is absolute.
#[must_use]
pub fn join(base_dir: &str, path: &str) -> String {
    Path::new(base_dir).join(path).to_string_lossy().into_owned()
}

/// The sentence about a word outside its set.
#[must_use]
pub fn unknown_value(found: &str, allowed: &[&str]) -> String {
    let shown: String = found.chars().take(60).collect();
    format!("unknown value \"{}\", expected one of: {}", shown.escape_debug(), allowed.join(", "))
}

fn article(kind: &str) -> String {
    let an = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if an { "an" } else { "a" })
}

/// Puts a fault of the TOML reader into our words and leaves out the value that it quotes, which may
/// be a secret in the wrong place.
fn tidy(message: &str) -> String {
    let wrong = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    if let Some((found, expected)) = wrong.and_then(|rest| rest.rsplit_once(", expected ")) {
        let found = found.split(['`', '"']).next().unwrap_or("").trim();
        let found = match found {
            "map" => "table",
            "sequence" => "array",
            "floating point" => "number with a fraction",
            other => other,
        };
        let expected = match expected {
            "i64" => "a whole number",
            "f64" => "a number",
            "a map" => "a table",
            "a sequence" => "an array",
            other if other.starts_with("struct ") => "a table",
            other => other,
        };
        return format!("expected {expected}, found {}", article(found));
    }
    let plain = message.replace('`', "").replace('\n', "; ").replace("expected one of ", "expected one of: ");
    // What the reader takes for a number or a date is most often a text without quotes.
    if plain.starts_with("invalid float") || plain.starts_with("invalid integer") || plain.starts_with("invalid datetime") {
        return format!("{}; a text stands in quotes", plain.replace(", expected nothing", ""));
    }
    plain
}

/// The dotted path of the deepest value whose key or text covers a range.
fn path_of(root: &DeTable<'_>, at: &Range<usize>) -> String {
    let mut best = (usize::MAX, String::new());
    walk_table(root, "", at, &mut best);
    best.1
}

fn consider(span: &Range<usize>, at: &Range<usize>, path: &str, best: &mut (usize, String)) {
    let width = span.end.saturating_sub(span.start);
    if span.start <= at.start && at.end <= span.end && width <= best.0 {
        *best = (width, path.to_owned());
    }
}

fn walk_table(table: &DeTable<'_>, prefix: &str, at: &Range<usize>, best: &mut (usize, String)) {
    for (key, value) in table {
        let plain = !key.get_ref().is_empty() && key.get_ref().chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        let name = if plain { key.get_ref().to_string() } else { format!("{:?}", key.get_ref()) };
        let path = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        consider(&key.span(), at, &path, best);
        walk(value, &path, at, best);
    }
}

fn walk(value: &Spanned<DeValue<'_>>, path: &str, at: &Range<usize>, best: &mut (usize, String)) {
    consider(&value.span(), at, path, best);
    if let DeValue::Table(table) = value.get_ref() {
        walk_table(table, path, at, best);
    } else if let DeValue::Array(array) = value.get_ref() {
        for (index, element) in array.iter().enumerate() {
            walk(element, &format!("{path}[{index}]"), at, best);
        }
    }
}
