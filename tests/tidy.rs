//! The rules of the house, read from the source: inside files see no world, modules import only what
//! stands above them, matches over our own words name every word, files stay short, and documents
//! name only what exists.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// An import that the order of modules does not allow: file, module, reason.
const AGAINST_THE_ORDER: &[(&str, &str, &str)] = &[];

/// A catch-all over our own words: file, function or type named in the finding, reason.
const CATCH_ALLS: &[(&str, &str, &str)] = &[];

/// Crates that one inside file may use beside serde and thiserror: path prefix, crate. The bodies that
/// audit logs and hints come in are JSON of other people's making: reading them is a decision of the
/// inside, and serde_json is pure.
const ALSO: &[(&str, &str)] = &[("config", "toml"), ("watch/restore.rs", "serde_json"), ("audit", "serde_json")];

/// Longest file, its tests not counted.
const LINES: usize = 500;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

struct Source {
    /// Relative to `src/`.
    name: String,
    text: String,
}

impl Source {
    /// Parsed where a rule needs it: that is the slow part.
    fn file(&self) -> syn::File {
        syn::parse_file(&self.text).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
    fn inside(&self) -> bool {
        self.text.starts_with("//! inside\n")
    }
    /// `kms::aws::errors` of `kms/aws/errors.rs`.
    fn module(&self) -> Vec<String> {
        self.name.trim_end_matches(".rs").split('/').map(str::to_owned).collect()
    }
    /// The stage that the file belongs to.
    fn stage(&self) -> String {
        self.module()[0].clone()
    }
}

/// Every file of the crate but its map, its entry and its tests.
fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut found = vec![];
    for path in files(&src, "rs") {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        if ["lib.rs", "main.rs"].contains(&name.as_str()) || name.ends_with("tests.rs") || name.contains("/tests/") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        found.push(Source { name, text });
    }
    assert!(found.len() > 50, "only {} files", found.len());
    found
}

/// Modules in the order of `lib.rs`.
fn order() -> Vec<String> {
    let map = syn::parse_file(&std::fs::read_to_string(root().join("src/lib.rs")).unwrap()).unwrap();
    map.items.iter().filter_map(|item| if let syn::Item::Mod(m) = item { Some(m.ident.to_string()) } else { None }).collect()
}

fn is_test(attrs: &[syn::Attribute]) -> bool {
    attrs
        .iter()
        .any(|a| a.path().is_ident("test") || a.path().is_ident("cfg") && a.parse_args::<syn::Path>().is_ok_and(|p| p.is_ident("test")))
}

fn attrs_of(item: &syn::Item) -> &[syn::Attribute] {
    use syn::Item::*;
    match item {
        Const(i) => &i.attrs,
        Enum(i) => &i.attrs,
        Fn(i) => &i.attrs,
        Impl(i) => &i.attrs,
        Macro(i) => &i.attrs,
        Mod(i) => &i.attrs,
        Static(i) => &i.attrs,
        Struct(i) => &i.attrs,
        Trait(i) => &i.attrs,
        Type(i) => &i.attrs,
        Use(i) => &i.attrs,
        _ => &[],
    }
}

/// Every path that a file names outside its tests, with its line.
#[derive(Default)]
struct Paths(Vec<(usize, Vec<String>)>);

impl Paths {
    fn of(file: &syn::File) -> Self {
        let mut paths = Self::default();
        paths.visit_file(file);
        paths
    }

    fn tree(&mut self, line: usize, before: &[String], tree: &syn::UseTree) {
        let mut path = before.to_vec();
        match tree {
            syn::UseTree::Path(p) => {
                path.push(p.ident.to_string());
                self.tree(line, &path, &p.tree);
            }
            syn::UseTree::Group(g) => g.items.iter().for_each(|tree| self.tree(line, before, tree)),
            syn::UseTree::Name(n) => {
                path.push(n.ident.to_string());
                self.0.push((line, path));
            }
            syn::UseTree::Rename(r) => {
                path.push(r.ident.to_string());
                self.0.push((line, path));
            }
            syn::UseTree::Glob(_) => self.0.push((line, path)),
        }
    }

    /// Paths inside of macros and attributes, which syn leaves as tokens.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = vec![];
        let (mut line, mut colons) = (0, 0);
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(line, &mut path);
                        line = ident.span().start().line;
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(p) if p.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.end(line, &mut path);
                    colons = 0;
                    self.tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.end(line, &mut path);
                    colons = 0;
                }
            }
        }
        self.end(line, &mut path);
    }

    fn end(&mut self, line: usize, path: &mut Vec<String>) {
        if path.len() > 1 {
            self.0.push((line, std::mem::take(path)));
        }
        path.clear();
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test(attrs_of(item)) {
            visit::visit_item(self, item);
        }
    }
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(item.span().start().line, &[], &item.tree);
    }
    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.0.push((path.span().start().line, path.segments.iter().map(|s| s.ident.to_string()).collect()));
        }
        visit::visit_path(self, path);
    }
    fn visit_macro(&mut self, m: &'ast syn::Macro) {
        self.tokens(m.tokens.clone());
    }
    fn visit_meta_list(&mut self, list: &'ast syn::MetaList) {
        self.tokens(list.tokens.clone());
    }
}

/// Names under which dependencies are written in code.
fn dependencies() -> BTreeSet<String> {
    let manifest: toml::Table = std::fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    manifest["dependencies"].as_table().unwrap().keys().map(|name| name.replace('-', "_")).collect()
}

fn fail_on(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn every_file_says_on_which_side_it_stands_and_what_it_decides() {
    let mut findings = vec![];
    for source in sources() {
        let mut lines = source.text.lines();
        if !matches!(lines.next(), Some("//! inside" | "//! outside")) {
            findings.push(format!("{}: the first line is neither `//! inside` nor `//! outside`", source.name));
        }
        if !lines.next().is_some_and(|line| line.starts_with("//! ")) {
            findings.push(format!("{}: the second line does not say what the file decides", source.name));
        }
    }
    fail_on(&findings);
}

/// Why an inside file may not name this path of std.
fn of_the_world(path: &[String]) -> Option<&'static str> {
    let second = path.get(1).map_or("", String::as_str);
    let third = path.get(2).map_or("", String::as_str);
    match (second, third) {
        ("fs" | "env" | "thread" | "process" | "os", _) => Some("the world"),
        ("net", _) => Some("the network (core::net has the addresses)"),
        ("time", "Instant" | "SystemTime" | "UNIX_EPOCH") => Some("a clock"),
        ("io", "stdin" | "stdout" | "stderr") => Some("the world"),
        _ => None,
    }
}

#[test]
fn inside_files_see_no_world_and_no_crate_but_the_few() {
    let dependencies = dependencies();
    let mut findings = vec![];
    for source in sources().iter().filter(|source| source.inside()) {
        for (line, path) in Paths::of(&source.file()).0 {
            let first = path[0].as_str();
            let place = format!("src/{}:{line}: {}", source.name, path.join("::"));
            if ["std", "core", "alloc"].contains(&first) {
                if first == "std"
                    && let Some(why) = of_the_world(&path)
                {
                    findings.push(format!("{place}: {why}"));
                }
            } else if dependencies.contains(first)
                && !["serde", "thiserror"].contains(&first)
                && !ALSO.iter().any(|(of, name)| source.name.starts_with(of) && *name == first)
            {
                findings.push(format!("{place}: not a crate of the inside"));
            }
        }
    }
    fail_on(&findings);
}

/// The path seen from the root of the crate; `None` if it does not lead there.
fn from_root(source: &Source, path: &[String]) -> Option<Vec<String>> {
    let mut at = source.module();
    let mut rest = path;
    match rest.first()?.as_str() {
        "crate" => return Some(rest[1..].to_vec()),
        "self" => rest = &rest[1..],
        "super" => {}
        _ => return None,
    }
    while rest.first().is_some_and(|s| s == "super") {
        at.pop();
        rest = &rest[1..];
    }
    at.extend(rest.iter().cloned());
    Some(at)
}

#[test]
fn modules_import_only_what_stands_above_them_and_the_inside_only_the_inside() {
    let order = order();
    let place_of = |stage: &str| order.iter().position(|m| m == stage);
    let sources = sources();
    let sides: BTreeMap<String, bool> = sources.iter().map(|s| (s.module().join("::"), s.inside())).collect();
    let (mut findings, mut used) = (BTreeSet::new(), BTreeSet::new());
    for source in sources.iter().filter(|source| source.inside()) {
        let stage = source.stage();
        for (line, path) in Paths::of(&source.file()).0 {
            let Some(target) = from_root(source, &path) else { continue };
            let Some(other) = target.first().filter(|m| place_of(m).is_some()) else { continue };
            let shown = format!("src/{}:{line}: crate::{}", source.name, target.join("::"));
            if *other != stage && place_of(other) > place_of(&stage) {
                match AGAINST_THE_ORDER.iter().position(|(file, module, _)| source.name == *file && other == module) {
                    Some(n) => drop(used.insert(n)),
                    None => drop(findings.insert(format!("{shown}: `{other}` stands below `{stage}` in lib.rs"))),
                }
            }
            // The deepest file that the path goes through.
            let deepest = (1..=target.len()).rev().find_map(|n| sides.get(&target[..n].join("::")));
            if deepest == Some(&false) {
                findings.insert(format!("{shown}: an outside file"));
            }
        }
    }
    for (n, (file, module, _)) in AGAINST_THE_ORDER.iter().enumerate() {
        if !used.contains(&n) {
            findings.insert(format!("AGAINST_THE_ORDER names {file} -> {module}, which no longer is"));
        }
    }
    fail_on(&findings.into_iter().collect::<Vec<_>>());
}

/// Names of the enums that the inside declares, those of the macro `vocabulary!` too.
fn own_enums() -> BTreeSet<String> {
    struct Enums(BTreeSet<String>);
    impl<'ast> Visit<'ast> for Enums {
        fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
            self.0.insert(item.ident.to_string());
        }
        fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
            if item.mac.path.is_ident("vocabulary") {
                let name = item.mac.tokens.clone().into_iter().find_map(|t| if let TokenTree::Ident(i) = t { Some(i) } else { None });
                self.0.extend(name.map(|n| n.to_string()));
            }
        }
    }
    let mut enums = Enums(BTreeSet::new());
    sources().iter().filter(|s| s.inside()).for_each(|s| enums.visit_file(&s.file()));
    assert!(enums.0.contains("FailureKind") && enums.0.contains("Verdict"));
    enums.0
}

struct Matches<'a> {
    enums: &'a BTreeSet<String>,
    /// Stands for `Self` while in its impl.
    own: Option<String>,
    found: Vec<(usize, String)>,
}

impl Matches<'_> {
    fn names_an_own_word(&self, pat: &syn::Pat) -> Option<String> {
        struct Words<'b>(&'b BTreeSet<String>, Option<String>, Option<String>);
        impl<'ast> Visit<'ast> for Words<'_> {
            fn visit_path(&mut self, path: &'ast syn::Path) {
                let names: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
                let names_before_last = &names[..names.len().saturating_sub(1)];
                if let Some(word) = names_before_last.iter().find_map(|n| {
                    let name = if n == "Self" { self.1.clone()? } else { n.clone() };
                    self.0.contains(&name).then_some(name)
                }) {
                    self.2 = Some(word);
                }
            }
        }
        let mut words = Words(self.enums, self.own.clone(), None);
        words.visit_pat(pat);
        words.2
    }
}

/// `_`, or a name for everything that is left.
fn is_catch_all(pat: &syn::Pat) -> bool {
    match pat {
        syn::Pat::Wild(_) => true,
        syn::Pat::Ident(p) => p.subpat.is_none() && p.ident.to_string().starts_with(|c: char| c.is_lowercase() || c == '_'),
        syn::Pat::Or(p) => p.cases.iter().any(is_catch_all),
        syn::Pat::Paren(p) => is_catch_all(&p.pat),
        _ => false,
    }
}

impl<'ast> Visit<'ast> for Matches<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test(attrs_of(item)) {
            visit::visit_item(self, item);
        }
    }
    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let own = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|s| s.ident.to_string()),
            _ => None,
        };
        let before = std::mem::replace(&mut self.own, own);
        visit::visit_item_impl(self, item);
        self.own = before;
    }
    fn visit_expr_match(&mut self, m: &'ast syn::ExprMatch) {
        let word = m.arms.iter().find_map(|arm| self.names_an_own_word(&arm.pat));
        if let Some(word) = word {
            for arm in m.arms.iter().filter(|arm| is_catch_all(&arm.pat)) {
                self.found.push((arm.span().start().line, word.clone()));
            }
        }
        visit::visit_expr_match(self, m);
    }
}

#[test]
fn matches_over_our_own_words_name_every_word() {
    let enums = own_enums();
    let (mut findings, mut used) = (vec![], BTreeSet::new());
    for source in sources().iter().filter(|source| source.inside()) {
        let mut matches = Matches { enums: &enums, own: None, found: vec![] };
        matches.visit_file(&source.file());
        for (line, word) in matches.found {
            match CATCH_ALLS.iter().position(|(file, name, _)| *file == source.name && *name == word) {
                Some(n) => drop(used.insert(n)),
                None => findings.push(format!("src/{}:{line}: a catch-all in a match over {word}", source.name)),
            }
        }
    }
    for (n, (file, word, _)) in CATCH_ALLS.iter().enumerate() {
        if !used.contains(&n) {
            findings.push(format!("CATCH_ALLS names {file} over {word}, which no longer is"));
        }
    }
    fail_on(&findings);
}

#[test]
fn no_file_is_longer_than_one_can_read() {
    let mut findings = vec![];
    for source in sources() {
        let all = source.text.lines().count();
        if all <= LINES {
            continue;
        }
        let tests: usize = source
            .file()
            .items
            .iter()
            .filter(|item| is_test(attrs_of(item)))
            .map(|item| item.span().end().line - item.span().start().line + 1)
            .sum();
        let lines = all - tests;
        if lines > LINES {
            findings.push(format!("src/{}: {lines} lines", source.name));
        }
    }
    fail_on(&findings);
}

#[test]
fn every_configuration_mistake_has_its_text_and_every_text_its_mistake() {
    for folder in ["config/testdata", "tests/testdata"] {
        let folder = root().join(folder);
        let stems = |extension| files(&folder, extension).into_iter().map(|p| p.with_extension("")).collect::<BTreeSet<_>>();
        let (mistakes, texts) = (stems("toml"), stems("err"));
        let alone: Vec<_> = mistakes.symmetric_difference(&texts).collect();
        assert!(alone.is_empty(), "without a twin: {alone:?}");
    }
    assert!(files(&root().join("config/testdata"), "toml").len() >= 20);
}

/// Words of `text` that begin with `cmek_`.
fn metric_words(text: &str) -> BTreeSet<String> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut words = BTreeSet::new();
    for (at, _) in text.match_indices("cmek_") {
        let whole = !text[..at].ends_with(|c: char| part(c) || c == '-' || c == '/');
        let word: String = text[at..].chars().take_while(|c| part(*c)).collect();
        if whole && word != "cmek_" {
            words.insert(word);
        }
    }
    words
}

/// Metric names that the code registers or writes: string literals of `metrics`.
fn metrics() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in sources().iter().filter(|s| s.stage() == "metrics") {
        for (at, _) in source.text.match_indices("\"cmek_") {
            names.insert(source.text[at + 1..].chars().take_while(|c| *c != '"').collect());
        }
    }
    assert!(names.len() > 25, "{names:?}");
    names
}

#[test]
fn documents_alerts_and_dashboard_name_only_metrics_that_exist_and_every_metric_is_documented() {
    let metrics = metrics();
    let known = |word: &str| {
        metrics.contains(word)
            || ["_bucket", "_sum", "_count"].iter().any(|end| word.strip_suffix(end).is_some_and(|name| metrics.contains(name)))
            // The crate, and the outward codes of a refused workspace.
            || word == "cmek_watchdog"
            || cmek_watchdog::words::Code::ALL.iter().any(|code| code.as_str() == word)
    };
    let mut findings = vec![];
    let mut paths = vec![root().join("README.md"), root().join("CHANGELOG.md"), root().join("alerts/grafana-dashboard.json")];
    paths.extend(files(&root().join("docs"), "md"));
    paths.extend(files(&root().join("alerts"), "yaml"));
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        findings.extend(metric_words(&text).iter().filter(|word| !known(word)).map(|word| format!("{}: {word}", path.display())));
    }
    let documented = metric_words(&std::fs::read_to_string(root().join("docs/METRICS.md")).unwrap());
    findings.extend(metrics.difference(&documented).map(|name| format!("docs/METRICS.md does not have {name}")));
    fail_on(&findings);
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_')
        .collect::<String>()
        .replace(' ', "-")
}

#[test]
fn every_alert_has_a_runbook_heading_a_test_that_it_fires_and_one_that_it_does_not() {
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap();
    let (rules, tests, runbook) =
        (read("alerts/cmek-watchdog.rules.yaml"), read("alerts/tests/cmek-watchdog.test.yaml"), read("docs/RUNBOOK.md"));
    let headings: BTreeSet<String> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).map(anchor).collect();
    let mut alerts = 0;
    let mut used = BTreeSet::new();
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        alerts += 1;
        let link = rule.split_once("runbook_url: docs/RUNBOOK.md#").unwrap_or_else(|| panic!("{name} has no runbook")).1;
        let link = link.lines().next().unwrap();
        assert!(headings.contains(link), "{name}: docs/RUNBOOK.md has no heading for #{link}");
        used.insert(link.to_owned());
        assert!(rule.contains("severity: "), "{name} has no severity");
        assert!(tests.contains(&format!("ALERTS{{alertname=\"{name}\", alertstate=\"firing\", severity=")), "{name} is never seen to fire");
    }
    assert!(alerts >= 14, "{alerts}");
    for heading in &used {
        let section = runbook.split("\n## ").find(|s| anchor(s.lines().next().unwrap_or_default()) == *heading).unwrap();
        for part in ["**Means.**", "**Look.**", "**Do.**"] {
            assert!(section.contains(part), "docs/RUNBOOK.md#{heading} lacks {part}");
        }
    }
}

#[test]
fn every_dependency_has_its_reason_and_no_reason_is_left_over() {
    let page = std::fs::read_to_string(root().join("docs/decisions/0004-other-dependencies.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|row| row.split_once(" | "));
    let named: BTreeSet<String> =
        rows.flat_map(|(names, _)| names.split(", ").map(|n| n.trim_matches('`').replace('-', "_")).collect::<Vec<_>>()).collect();
    assert_eq!(named, dependencies(), "docs/decisions/0004-other-dependencies.md and Cargo.toml differ");
}

/// Links between our own documents lead somewhere.
#[test]
fn links_of_the_documents_lead_to_files_that_exist() {
    let mut paths = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    paths.extend(files(&root().join("docs"), "md"));
    let mut findings = vec![];
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices("](") {
            let target: String = text[at + 2..].chars().take_while(|c| *c != ')').collect();
            let (file, heading) = target.split_once('#').map_or((target.as_str(), None), |(f, h)| (f, Some(h)));
            if file.contains("://") {
                continue;
            }
            let to = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            if !to.exists() {
                findings.push(format!("{}: {target}", path.display()));
            } else if let Some(heading) = heading {
                let there = std::fs::read_to_string(&to).unwrap();
                if !there.lines().any(|l| l.starts_with('#') && anchor(l.trim_start_matches('#')) == heading) {
                    findings.push(format!("{}: {target}: no such heading", path.display()));
                }
            }
        }
    }
    fail_on(&findings);
}

/// The rules themselves are tried on text that breaks them.
#[test]
fn the_rules_find_what_they_are_for() {
    let parse = |text: &str| syn::parse_file(text).unwrap();
    let paths = |text: &str| Paths::of(&parse(text)).0.into_iter().map(|(_, p)| p.join("::")).collect::<Vec<_>>();
    assert_eq!(paths("use crate::{kms::{self as k, Kms}, words::*};"), ["crate::kms::self", "crate::kms::Kms", "crate::words"]);
    assert!(paths("fn f() { let x = std::fs::read(a); }").contains(&"std::fs::read".to_owned()));
    assert!(paths("fn f() { m!(a, [std::env::var(b)]); }").contains(&"std::env::var".to_owned()));
    assert!(paths("#[cfg(test)] mod tests { use std::fs::File; } #[test] fn t() { std::fs::read(a); }").is_empty());
    assert!(of_the_world(&["std".into(), "time".into(), "Instant".into()]).is_some());
    assert!(of_the_world(&["std".into(), "time".into(), "Duration".into()]).is_none());

    let enums = BTreeSet::from(["Access".to_owned(), "Step".to_owned()]);
    let caught = |text: &str| {
        let mut matches = Matches { enums: &enums, own: None, found: vec![] };
        matches.visit_file(&parse(text));
        matches.found.len()
    };
    assert_eq!(caught("fn f(a: Access) { match a { Access::Open => 1, _ => 2 } }"), 1);
    assert_eq!(caught("fn f(a: Option<Access>) { match a { Some(Access::Open) => 1, other => 2 } }"), 1);
    assert_eq!(caught("impl Step { fn f(self) { match self { Self::A => 1, _ => 2 } } }"), 1);
    assert_eq!(caught("fn f(a: &str) { match a { \"x\" => Access::Open, _ => Access::Locked } }"), 0);
    assert_eq!(caught("fn f(a: Access) { match a { Access::Open => 1, Access::Locked => 2 } }"), 0);

    let source = Source { name: "kms/local.rs".into(), text: String::new() };
    let seen = |path: &str| from_root(&source, &path.split("::").map(str::to_owned).collect::<Vec<_>>()).map(|p| p.join("::"));
    assert_eq!(seen("super::Kms").as_deref(), Some("kms::Kms"));
    assert_eq!(seen("super::super::words::Access").as_deref(), Some("words::Access"));
    assert_eq!(seen("self::rows").as_deref(), Some("kms::local::rows"));
    assert_eq!(seen("Access::Open"), None);
    assert_eq!(anchor("What the watchdog's `on` says"), "what-the-watchdogs-on-says");
    assert_eq!(metric_words("a cmek_key_state{x} foo_cmek_bar"), BTreeSet::from(["cmek_key_state".to_owned()]));
}
