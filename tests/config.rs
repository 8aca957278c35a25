//! The configuration as a person meets it: each mistake with the exact text of its error, the contract
//! accepted as it stands, and no text that makes the reader panic.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::path::Path;
use std::sync::Arc;

use cmek_watchdog::config::check::{KeysFile, Rows, parse};
use cmek_watchdog::config::load::{Loaded, from_text, load};
use cmek_watchdog::config::{Config, Needs, ProviderDetail, StoreUrl};
use cmek_watchdog::key::KeyId;
use cmek_watchdog::policy::Policy;
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{Access, FailureKind, FeatureClass};
use proptest::prelude::*;

const CONTRACT: &str = include_str!("data/contract.toml");
const BASE: &str = "/etc/cmek-watchdog";

fn good(text: &str) -> (Config, Vec<String>) {
    match parse(text, "config.toml", BASE, &[]) {
        Ok((config, warnings)) => (config, warnings.iter().map(ToString::to_string).collect()),
        Err(errors) => panic!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    }
}

fn key<'a>(config: &'a Config, id: &str) -> &'a cmek_watchdog::config::Key {
    &config.keys[&KeyId::new(id).unwrap()]
}

/// With `BLESS=1` in the environment the `.err` files are written instead of compared.
#[test]
fn every_mistake_is_told_with_its_place_and_the_allowed_values() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/testdata");
    let mut cases = 0;
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "toml")) {
        cases += 1;
        let text = std::fs::read_to_string(path).unwrap();
        let errors = parse(&text, "config.toml", BASE, &[]).expect_err(&path.display().to_string());
        let told: String = errors.iter().map(|error| format!("{error}\n")).collect();
        assert!(!told.contains("hunter2"), "{}: shows a secret: {told}", path.display());
        let expected = path.with_extension("err");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&expected, &told).unwrap();
        }
        assert_eq!(told, std::fs::read_to_string(&expected).unwrap_or_default(), "{}", path.display());
    }
    assert!(cases >= 24, "only {cases} cases");
}

#[test]
fn the_contract_is_accepted_as_it_stands_and_without_a_warning_beyond_the_local_vault() {
    let (config, warnings) = good(CONTRACT);
    assert_eq!(
        warnings,
        ["config.toml:25:44: vault.operator_key.key: a key of the embedded software KMS protects no better than the file that it lies in"]
    );
    assert_eq!(config.providers.len(), 4);
    assert_eq!(config.keys.len(), 2);
    assert_eq!(key(&config, "acme-prod").account, "444455556666");
    assert_eq!(config.store.url, StoreUrl::Sqlite("/etc/cmek-watchdog/state.db".into()));
    assert_eq!(config.brake.fraction_permille, 200);
    assert_eq!(config.policies["default"], Arc::new(Policy::default()));
    assert_eq!(config.reports[0].timezone, "America/New_York");
}

/// The contract with every field that stands there as a comment.
fn contract_in_full() -> String {
    let mut full = String::new();
    for line in CONTRACT.lines() {
        let bare = line.strip_prefix("# ").filter(|rest| {
            rest.starts_with("[[") || rest.split_once(" = ").is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        });
        let emulator = line.contains("static_token") || line.contains("verify_challenge_resource");
        full.push_str(if emulator { line } else { bare.unwrap_or(line) });
        full.push('\n');
    }
    full.replace("9f86d0...", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")
}

#[test]
fn every_commented_field_of_the_contract_is_known() {
    let full = contract_in_full();
    for field in
        ["\ntls = ", "\ntokens = ", "\nendpoint = ", "\nreader_role = ", "\n[[keys_from]]", "\nmatch = ", "\nca_file = ", "\nusername = "]
    {
        assert!(full.contains(field), "{field}");
    }
    let (config, _) = good(&full);
    assert_eq!(config.server.tokens[0].name, "gateway");
    assert_eq!(config.server.tls.as_ref().unwrap().cert, "/etc/cmek-watchdog/file.pem");
    let target = &key(&config, "acme-prod").target;
    assert_eq!(target.encryption_context["purpose"], "cmek-watchdog-probe");
    assert_eq!(target.assume_role.as_ref().unwrap().external_id.as_deref(), Some("env:ACME_EXTERNAL_ID"));
    assert_eq!(config.routes[0].matching.workspace.as_deref(), Some("wrkspc_*"));
    assert!(config.heartbeat.url.is_some());
}

#[test]
fn an_azure_emulator_by_loopback_address_is_accepted() {
    let (config, _) = good(
        "[providers.az]\nkind = \"azure\"\ncredentials = { static_token = \"env:TOKEN\" }\nca_file = \"ca.pem\"\n\
         verify_challenge_resource = false\ncontrol_key = \"https://localhost:8443/keys/control\"\n\
         [[keys]]\nid = \"a\"\nprovider = \"az\"\nkey = \"https://127.0.0.1:8443/keys/a\"\n",
    );
    let ProviderDetail::Azure { verify_challenge_resource, ca_file, .. } = &config.providers["az"].detail else { panic!() };
    assert!(!verify_challenge_resource);
    assert_eq!(ca_file.as_deref(), Some("/etc/cmek-watchdog/ca.pem"));
}

#[test]
fn an_empty_file_is_a_valid_configuration_with_the_defaults() {
    let (config, warnings) = good("");
    assert!(warnings.is_empty() && config.keys.is_empty() && config.providers.is_empty());
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:9847");
    assert_eq!(config.server.run_dir, "/etc/cmek-watchdog/run");
    assert_eq!(config.store.url, StoreUrl::Sqlite("/etc/cmek-watchdog/state.db".into()));
    assert_eq!(config.gate.max_age, Span::from_hours(1));
    assert_eq!(config.per_key_limit, 5000);
    assert_eq!(config.cluster_lease, Span::from_secs(10));
    assert_eq!(config.features.class(Some("models")), (FeatureClass::Control, true));
    assert_eq!(config.features.class(Some("safety_metadata")), (FeatureClass::SafetyMetadata, true));
    assert_eq!(config.policies["default"], Arc::new(Policy::default()));
}

#[test]
fn a_policy_starts_at_the_built_in_defaults_and_not_at_another_policy() {
    let (config, _) = good(
        "[policies.default]\nprobe_interval = \"5m\"\n[policies.strict]\nunlock = \"manual\"\n\
         [policies.strict.on]\nexpired = { access = \"locked\" }\nunclassified = { access = \"locked\" }\ntimeout = { access = \"hold\" }\n",
    );
    let strict = &config.policies["strict"];
    assert_eq!(strict.probe_interval, Span::from_secs(60));
    assert_eq!(strict.on[&FailureKind::Expired].access, Some(Access::Locked));
    assert_eq!((strict.on[&FailureKind::Expired].looks, strict.on[&FailureKind::Expired].over), (2, Span::from_secs(5)));
    assert_eq!(strict.on[&FailureKind::Disabled], Policy::default().on[&FailureKind::Disabled]);
    assert_eq!(strict.on[&FailureKind::Unclassified].over, Span::from_mins(10));
    assert!(!strict.on.contains_key(&FailureKind::Timeout), "a kind that only holds takes no slot");
    assert_eq!(config.policies["default"].probe_interval, Span::from_mins(5));
}

#[test]
fn what_is_odd_but_allowed_is_a_warning() {
    let (config, warnings) = good(
        r#"[providers.small]
kind = "aws"
region = "us-east-2"
endpoint = "http://emulator:4566"
calls_per_second = 1
[policies.busy]
probe_interval = "1s"
suspect_interval = "2s"
lock_after_stale = "1s"
[[keys]]
id = "a"
provider = "small"
policy = "busy"
key = "arn:aws:kms:us-east-2:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab"
[[workspaces]]
id = "later"
needs = "any"
[receivers.lonely]
kind = "alertmanager"
url = "http://127.0.0.1:9093"
"#,
    );
    assert_eq!(
        warnings,
        [
            "config.toml:4:12: providers.small.endpoint: calls and their credentials travel unencrypted to a host beyond loopback",
            "config.toml:1:1: providers.small: no control_key: a denial cannot be told from trouble of our own identity",
            "config.toml:6:1: policies.busy: suspect_interval is longer than probe_interval: a suspect key is looked at less often than a healthy one",
            "config.toml:6:1: policies.busy: lock_after_stale is shorter than two probe intervals: one missed round could lock",
            "config.toml:16:6: workspaces[0].id: no key of the configuration names workspace `later`",
            "config.toml:1:12: providers.small: the keys need 3 calls a second in steady state (reckoned with one old version a key) and calls_per_second is 1: the promised time to lock cannot be kept",
            "config.toml:18:12: receivers.lonely: no route and no report names this receiver: it is never sent anything",
        ]
    );
    assert_eq!(config.workspaces["later"], Needs::Any);
}

#[test]
fn the_files_that_come_with_the_crate_are_good() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let quick = load(&root.join("config/quickstart.toml")).unwrap().config;
    let run = root.join("config/run");
    assert_eq!(Path::new(&quick.server.run_dir), run);
    assert_eq!(quick.store.url, StoreUrl::Sqlite(run.join("state.db").to_string_lossy().into_owned()));
    assert!(quick.server.insecure_loopback);
    let policy = &quick.policies["default"];
    let first_look_to_lock = policy.on[&FailureKind::Disabled].spacing(policy.suspect_interval);
    assert!(policy.probe_interval.plus(first_look_to_lock).plus(policy.call_timeout) <= Span::from_secs(15));
    assert!(policy.revoked_interval.plus(policy.unlock_after.over).plus(policy.call_timeout) <= Span::from_secs(15));

    let contract = good(CONTRACT).0;
    let example = parse(&std::fs::read_to_string(root.join("config/example.toml")).unwrap(), "x", BASE, &[]).unwrap().0;
    assert_eq!(example, contract, "the example is the contract in other words");

    let claude = load(&root.join("config/features.claude.toml")).unwrap().config;
    assert_eq!(claude.features.0.len(), 20);
    assert_eq!(claude.features.class(Some("user_profiles")), (FeatureClass::Control, true));
}

/// The product's own list of what lies under a customer-managed key, and of what stays readable.
#[test]
fn the_ready_set_names_every_feature_of_the_platform() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let claude = load(&root.join("config/features.claude.toml")).unwrap().config;
    let expected = [
        (FeatureClass::Content, &["messages", "files", "skills", "context_management", "managed_agents"][..]),
        (FeatureClass::Write, &["batch", "web_search", "web_fetch", "code_execution", "bash", "text_editor", "mcp_connector"]),
        (FeatureClass::Write, &["structured_outputs", "advisor", "computer_use", "browser_use"]),
        (FeatureClass::Control, &["models", "user_profiles", "activity_feed"]),
        (FeatureClass::SafetyMetadata, &["safety_metadata"]),
    ];
    for (class, names) in expected {
        for name in names {
            assert_eq!(claude.features.class(Some(name)), (class, true), "{name}");
        }
    }
    assert_eq!(claude.features.0.len(), expected.iter().map(|(_, names)| names.len()).sum::<usize>());
}

#[test]
fn features_come_from_a_file_and_a_table_and_a_workspace_change_single_classes() {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::copy(root.join("config/features.claude.toml"), folder.path().join("f.toml")).unwrap();
    let main = folder.path().join("config.toml");
    let rest = "[features]\nskills = { class = \"control\" }\nours = { class = \"write\" }\n\
                [[keys_from]]\npath = \"keys.toml\"\n[providers.local]\nkind = \"local\"\ncontrol_key = \"operator\"\n\
                [[workspaces]]\nid = \"w\"\nfeatures = { batch = { class = \"content\" }, files = { class = \"content\" } }\n";
    std::fs::write(&main, format!("features_from = \"f.toml\"\n{rest}")).unwrap();
    std::fs::write(folder.path().join("keys.toml"), "[[keys]]\nid = \"k\"\nprovider = \"local\"\nkey = \"k\"\nworkspaces = [\"w\"]\n")
        .unwrap();
    let loaded = load(&main).unwrap();
    let config = &loaded.config;
    let class = |ws: &str, feature: &str| config.features_of(ws).class(Some(feature));
    assert_eq!(class("w", "batch"), (FeatureClass::Content, true));
    assert_eq!(class("other", "batch"), (FeatureClass::Write, true));
    assert_eq!((class("w", "skills"), class("w", "ours")), ((FeatureClass::Control, true), (FeatureClass::Write, true)));
    assert_eq!(config.features.0.len(), 21);
    assert_eq!(config.workspace_features.values().map(|own| own.0.len()).sum::<usize>(), 1, "only what differs is kept");

    // The last good configuration stands for itself, whatever becomes of the files.
    std::fs::remove_file(folder.path().join("f.toml")).unwrap();
    std::fs::remove_file(folder.path().join("keys.toml")).unwrap();
    let kept = from_text(&loaded.text, "config.toml", &folder.path().to_string_lossy()).unwrap();
    assert_eq!(kept.config, loaded.config);
    let gone = load(&main).unwrap_err().to_string();
    assert!(gone.contains("f.toml: cannot be read: entity not found"), "{gone}");

    // A fault in the file is told with that file's name and line.
    std::fs::write(folder.path().join("f.toml"), "[features]\nbatch = { class = \"wirte\" }\n[gate]\n").unwrap();
    let told = load(&main).unwrap_err().to_string();
    assert!(told.contains("f.toml:2:19: features.batch.class: unknown value \"wirte\", expected one of: content"), "{told}");
    assert!(told.contains("f.toml:3:2: gate: unknown table, expected one of: features"), "{told}");
}

const LOCAL: &str = "[providers.local]\nkind = \"local\"\ncontrol_key = \"operator\"\n";

fn toml_file(name: &str, text: &str) -> KeysFile {
    KeysFile { name: name.into(), rows: Rows::Toml(text.into()) }
}

#[test]
fn a_bad_row_is_that_key_alone() {
    let rows = r#"
[[keys]]
id = "good"
provider = "local"
key = "good"
workspaces = ["w"]
[[keys]]
id = "typo"
provider = "local"
key = "typo"
workspaces = ["w2"]
wrokspaces = []
[[keys]]
id = "nowhere"
provider = "gone"
key = "https://user:hunter2@kv.vault.azure.net/keys/k"
[[keys]]
provider = "local"
key = "nameless"
[[keys]]
id = "again"
provider = "local"
key = "good"
"#;
    let (config, warnings) = parse(LOCAL, "config.toml", BASE, &[toml_file("keys.d/a.toml", rows)]).unwrap();
    let refused = |id: &str| key(&config, id).refused.clone();
    assert_eq!(refused("good"), None);
    let typo = refused("typo").unwrap();
    assert!(typo.starts_with("keys.d/a.toml:12:1: keys[1].wrokspaces: unknown field wrokspaces, expected one of: id, provider"), "{typo}");
    assert_eq!(key(&config, "typo").workspaces[0].as_str(), "w2");
    assert_eq!(refused("nowhere").unwrap(), "keys.d/a.toml:14: provider: unknown provider \"gone\", expected one of: local");
    assert_eq!(refused("again").unwrap(), "keys.d/a.toml:21: the same key of the same provider is already registered as `good`");
    assert_eq!(config.keys.len(), 4, "the row without an id is left out");
    assert!(warnings.iter().any(|w| w.to_string().contains("keys[3]: ") && w.message.contains("missing field id")), "{warnings:?}");
    assert!(!format!("{config:?} {warnings:?}").contains("hunter2"));
}

#[test]
fn the_tenant_of_a_vault_is_its_account_unless_one_is_written() {
    let key_row = |id: &str, more: &str| {
        format!("[[keys]]\nid = \"{id}\"\nprovider = \"az\"\nkey = \"https://kv.vault.azure.net/keys/{id}\"\n{more}\n")
    };
    let text = format!(
        "[providers.az]\nkind = \"azure\"\n{}{}{}",
        key_row("a", ""),
        key_row("b", "tenant = \"t-1\""),
        key_row("c", "tenant = \"t-1\"\naccount = \"acme\"")
    );
    let (config, _) = good(&text);
    assert_eq!(["a", "b", "c"].map(|id| key(&config, id).account.clone()), ["kv.vault.azure.net", "t-1", "acme"]);
}

#[test]
fn a_key_that_is_its_own_witness_is_a_warning() {
    let (_, warnings) = good(&format!("{LOCAL}[[keys]]\nid = \"a\"\nprovider = \"local\"\nkey = \"operator\"\n"));
    assert_eq!(
        warnings,
        ["config.toml:7:7: keys[0].key: this key is also the control_key of its provider: its own fault would look like ours"]
    );
}

#[test]
fn a_password_over_plain_smtp_beyond_this_machine_is_a_warning() {
    let text = "[receivers.m]\nkind = \"email\"\nsmtp = \"smtp://mail.example.com\"\nfrom = \"a@b.example\"\nto = [\"a@b.example\"]\nusername = \"u\"\npassword = \"env:P\"\n[[routes]]\nreceivers = [\"m\"]\n";
    assert_eq!(good(text).1.len(), 1);
    assert!(good(&text.replace("smtp://", "smtps://")).1.is_empty());
}

#[test]
fn thousands_of_keys_and_faults_are_read_in_one_go() {
    let rows = |bad: &str| -> String {
        (0..20_000).map(|n| format!("[[keys]]\nid = \"k{n}\"\nprovider = \"local\"\nkey = \"k{n}\"\n{bad}")).collect()
    };
    let (config, _) = parse(&format!("{LOCAL}{}", rows("")), "config.toml", BASE, &[]).unwrap();
    assert_eq!(config.keys.len(), 20_000);
    let (config, warnings) = parse(LOCAL, "config.toml", BASE, &[toml_file("k.toml", &rows("colour = 1\n"))]).unwrap();
    assert_eq!(config.keys.values().filter(|key| key.refused.is_some()).count(), 20_000);
    assert_eq!(warnings.len(), 200);
}

#[test]
fn an_id_in_two_files_is_refused_and_both_are_named() {
    let row = |key: &str| format!("[[keys]]\nid = \"a\"\nprovider = \"local\"\nkey = \"{key}\"\n");
    let files = [toml_file("one.toml", &row("k1")), toml_file("two.toml", &format!("\n{}", row("k2")))];
    let (config, _) = parse(LOCAL, "config.toml", BASE, &files).unwrap();
    assert_eq!(key(&config, "a").refused.as_deref(), Some("key `a` is registered in both one.toml:2 and two.toml:3"));
    let (config, _) = parse(&format!("{LOCAL}{}", row("k0")), "config.toml", BASE, &files[..1]).unwrap();
    assert_eq!(key(&config, "a").refused.as_deref(), Some("key `a` is registered in both config.toml:5 and one.toml:2"));
}

#[test]
fn a_keys_file_that_is_no_toml_refuses_the_whole() {
    let errors = parse(LOCAL, "config.toml", BASE, &[toml_file("a.toml", "[[keys]\n"), toml_file("b.toml", "[server]\n")]).unwrap_err();
    let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(told.len() >= 2 && told[0].starts_with("a.toml:1:"), "{told:?}");
    assert!(told.contains(&"b.toml:1:2: server: unknown table, expected one of: keys".to_owned()), "{told:?}");
}

/// A folder with a configuration and its key files.
fn folder(main: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Result<Loaded, String>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("keys.d")).unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let path = folder.path().join("config.toml");
    std::fs::write(&path, main).unwrap();
    let shown = format!("{}/", folder.path().display());
    let loaded = load(&path).map_err(|error| error.to_string().replace(&shown, ""));
    (folder, loaded)
}

fn with_keys_from(pattern: &str) -> String {
    format!("{LOCAL}[[keys_from]]\npath = \"{pattern}\"\n")
}

#[test]
fn keys_come_from_toml_and_csv_files_and_the_stored_text_needs_none_of_them() {
    let csv =
        "id,provider,key,workspaces,policy,owner\nc1,local,c1,w1; w2,,sec@acme.example\nc2,local\nc3,local,c 3,,,\n\"bad id\",local,x,,,\n";
    let toml = "[[keys]]\nid = \"t1\"\nprovider = \"local\"\nkey = \"t1\"\n";
    let (dir, loaded) = folder(&with_keys_from("keys.d/*"), &[("keys.d/b.csv", csv), ("keys.d/a.toml", toml)]);
    let loaded = loaded.unwrap();
    let c1 = key(&loaded.config, "c1");
    assert_eq!(c1.workspaces.iter().map(|w| w.as_str()).collect::<Vec<_>>(), ["w1", "w2"]);
    assert_eq!((c1.owner.as_deref(), c1.policy.as_str(), &c1.refused), (Some("sec@acme.example"), "default", &None));
    assert!(key(&loaded.config, "c2").refused.as_ref().unwrap().ends_with("b.csv:3: the row has 2 fields and the header line 6"));
    assert!(key(&loaded.config, "c3").refused.as_ref().unwrap().contains("b.csv:4: key: not a key of provider kind local"));
    assert!(loaded.warnings.iter().any(|w| w.contains("b.csv:5:1: ")), "{:?}", loaded.warnings);
    assert_eq!(loaded.config.keys.len(), 4);

    std::fs::remove_dir_all(dir.path().join("keys.d")).unwrap();
    let base = dir.path().to_string_lossy().into_owned();
    let again = from_text(&loaded.text, "config.toml", &base).unwrap();
    assert_eq!(again.config, loaded.config);
    assert_eq!(again.text, loaded.text);
    let cut = &loaded.text[..loaded.text.len() - 9];
    assert_eq!(from_text(cut, "config.toml", &base).unwrap_err().to_string(), "the stored configuration is damaged");
}

#[test]
fn faults_of_files_are_told_one_a_line() {
    let gone = load(Path::new("/nonexistent/config.toml")).unwrap_err().to_string();
    assert_eq!(gone, "/nonexistent/config.toml: cannot be read: entity not found");
    for (pattern, file, text, expected) in [
        ("keys.d/x.toml", "other", "", "keys.d/x.toml: cannot be read: entity not found"),
        ("keys.d/*", "keys.d/x.json", "{}", "keys.d/x.json: keys_from reads only files that end in .toml or .csv"),
        ("keys.d/[", "other", "", "config.toml: keys_from: the pattern `keys.d/[` is malformed: invalid range pattern"),
        (
            "keys.d/*",
            "keys.d/x.csv",
            "id,key\n",
            "keys.d/x.csv:1:1: the header line lacks the column `provider`; allowed are: id, provider, key, workspaces, policy, owner",
        ),
        (
            "keys.d/*",
            "keys.d/x.csv",
            "id,provider,key,colour\n",
            "keys.d/x.csv:1:1: unknown column colour, expected one of: id, provider, key, workspaces, policy, owner",
        ),
        ("keys.d/*", "keys.d/x.csv", "id,provider,key,id\n", "keys.d/x.csv:1:1: the column id is there twice"),
    ] {
        assert_eq!(folder(&with_keys_from(pattern), &[(file, text)]).1.unwrap_err(), expected, "{pattern}");
    }
    let both = folder(&format!("{}[gate]\nmax_age = \"0s\"\n", with_keys_from("x.toml")), &[]).1.unwrap_err();
    assert_eq!(both, "x.toml: cannot be read: entity not found\nconfig.toml:7:11: gate.max_age: must be longer than zero");
    let none = folder(&with_keys_from("keys.d/*.toml"), &[]).1.unwrap();
    assert!(none.warnings[0].ends_with("keys_from: the pattern `keys.d/*.toml` leads to no file"));
}

#[test]
fn what_is_too_long_or_no_text_or_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("long.toml"), vec![b'#'; 4 * 1024 * 1024 + 1]).unwrap();
    std::fs::write(at("bytes.toml"), [0xff, 0xfe, 0x00]).unwrap();
    let told = |name: &str| load(&at(name)).unwrap_err().to_string();
    assert!(told("long.toml").ends_with("long.toml: is longer than 4 MiB"));
    assert!(told("bytes.toml").ends_with("bytes.toml: is not UTF-8 text"));
    assert!(told("").ends_with(": is not a regular file"));
    std::fs::write(at("bom.toml"), "\u{feff}[gate]\nmax_age = \"2h\"\n").unwrap();
    assert_eq!(load(&at("bom.toml")).unwrap().config.gate.max_age, Span::from_hours(2));
}

#[test]
fn the_same_text_gives_an_equal_configuration_and_a_changed_one_does_not() {
    assert_eq!(good(CONTRACT).0, good(CONTRACT).0);
    assert_ne!(good(CONTRACT).0, good(&CONTRACT.replace("probe_interval = \"60s\"", "probe_interval = \"61s\"")).0);
    let full = contract_in_full();
    assert_eq!(good(&full).0, good(&full).0);
}

#[test]
fn a_flood_of_faults_is_cut() {
    let text: String = (0..1000).map(|n| format!("[[keys]]\nid = \"a {n}\"\nprovider = \"p\"\nkey = \"k\"\n")).collect();
    assert_eq!(parse(&text, "config.toml", BASE, &[]).unwrap_err().len(), 200);
}

/// One careless edit of the contract.
fn edited(full: &str, line: usize, kind: u8, with: &str) -> String {
    let lines: Vec<&str> = full.lines().collect();
    let at = line % lines.len();
    let changed = match kind {
        0 => None,
        1 => Some(lines[at].split_once('=').map_or_else(|| with.to_owned(), |(key, _)| format!("{key}= {with}"))),
        2 => Some(format!("{}{with}", lines[at])),
        3 => Some(lines[at].chars().filter(|c| !with.contains(*c)).collect()),
        _ => Some(format!("{}\n{}", lines[at], lines[at])),
    };
    let changed: Vec<&str> =
        lines.iter().enumerate().filter_map(|(index, line)| if index == at { changed.as_deref() } else { Some(*line) }).collect();
    changed.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,400}") {
        let _ = parse(&text, "f", "", &[]);
        let _ = from_text(&text, "f", "/nonexistent");
    }

    #[test]
    fn no_edit_of_the_contract_makes_the_reader_panic_and_each_fault_has_a_place(
        line in 0usize..400, kind in 0u8..5, other in 0usize..400, other_kind in 0u8..5,
        with in prop_oneof![
            Just("\"\"".to_owned()), Just("-1".to_owned()), Just("[]".to_owned()), Just("{}".to_owned()), Just("\"0s\"".to_owned()),
            Just("nan".to_owned()), Just("99999999999999999999".to_owned()), Just("[{}]".to_owned()), Just("true".to_owned()),
            Just("\"\\u0000é\"".to_owned()), Just("[[[]]]".to_owned()), Just("\"https://a@b:c/\"".to_owned()), "\\PC{0,20}",
        ],
    ) {
        let full = contract_in_full();
        let text = edited(&edited(&full, line, kind, &with), other, other_kind, &with);
        match parse(&text, "f", BASE, &[toml_file("k", &text)]) {
            Ok((config, _)) => prop_assert!(config.policies.contains_key("default")),
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                for error in errors {
                    prop_assert!(error.place.line >= 1 && error.place.column >= 1 && !error.message.is_empty());
                    prop_assert!(error.place.line <= text.matches('\n').count() + 1);
                }
            }
        }
    }
}
