//! outside
//! Writer of the Prometheus text format 0.0.4: one family after the other, labels escaped. A family
//! without samples leaves no trace, so that an absent fact is an absent series.

use std::fmt::Write as _;

/// Type of a family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Gauge,
    Counter,
}

/// Text under construction.
#[derive(Debug)]
pub struct Text {
    out: String,
}

/// One family; the header is written with its first sample.
#[derive(Debug)]
pub struct Family<'a> {
    out: &'a mut String,
    name: &'static str,
    kind: Kind,
    help: &'static str,
    begun: bool,
}

impl Text {
    /// Goes on after `out`.
    #[must_use]
    pub const fn appending(out: String) -> Self {
        Self { out }
    }

    /// Begins a family. `help` has neither backslash nor newline.
    pub const fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> Family<'_> {
        Family { out: &mut self.out, name, kind, help, begun: false }
    }

    #[must_use]
    pub fn finish(self) -> String {
        self.out
    }
}

impl Family<'_> {
    /// Writes one sample.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.head(labels);
        let _ = writeln!(self.out, " {value}");
    }

    /// Writes one sample of a whole number.
    pub fn count(&mut self, labels: &[(&str, &str)], value: u64) {
        self.head(labels);
        let _ = writeln!(self.out, " {value}");
    }

    fn head(&mut self, labels: &[(&str, &str)]) {
        if !self.begun {
            self.begun = true;
            let kind = match self.kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
            };
            let _ = writeln!(self.out, "# HELP {} {}\n# TYPE {} {kind}", self.name, self.help, self.name);
        }
        self.out.push_str(self.name);
        let mut separator = '{';
        for (name, value) in labels {
            self.out.push(separator);
            separator = ',';
            self.out.push_str(name);
            self.out.push_str("=\"");
            escape(self.out, value);
            self.out.push('"');
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
    }
}

fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_a_family_without_samples_leaves_no_trace() {
        let mut text = Text::appending(String::new());
        let _ = text.family("a", Kind::Gauge, "none");
        let mut family = text.family("b_total", Kind::Counter, "some");
        family.count(&[("x", "q\"\\\n")], 3);
        family.sample(&[], 0.5);
        assert_eq!(text.finish(), "# HELP b_total some\n# TYPE b_total counter\nb_total{x=\"q\\\"\\\\\\n\"} 3\nb_total 0.5\n");
    }
}
