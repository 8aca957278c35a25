//! What the program says about itself, and about arguments that make no sense.

use clap::CommandFactory;
use cmek_watchdog::cli::Cli;

use crate::desk::{CONFIG, Desk, run};

/// Every command that can be asked, as words.
fn commands() -> Vec<Vec<String>> {
    fn walk(command: &clap::Command, before: &[String], out: &mut Vec<Vec<String>>) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let path: Vec<String> = before.iter().cloned().chain([sub.get_name().to_owned()]).collect();
            out.push(path.clone());
            walk(sub, &path, out);
        }
    }
    let mut out = Vec::new();
    walk(&Cli::command(), &[], &mut out);
    out
}

#[test]
fn every_command_has_help_that_says_what_it_does() {
    let commands = commands();
    assert!(commands.len() > 30, "{commands:?}");
    for path in commands {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        let ran = run(&args).exits(0);
        let first = ran.out.lines().next().unwrap();
        assert!(first.len() > 9 && !first.starts_with("Usage"), "{path:?} does not say what it does: {first}");
        assert!(ran.out.contains(&format!("Usage: cmek-watchdog {}", path.join(" "))), "{path:?}: {}", ran.out);
        for option in ["--config <FILE>", "--json", "--log-format"] {
            assert!(ran.out.contains(option), "{path:?} lacks {option}");
        }
    }
}

#[test]
fn every_command_of_the_contract_is_there_and_none_that_does_nothing() {
    let names: Vec<String> = commands().iter().map(|path| path.join(" ")).collect();
    for name in [
        "run",
        "check",
        "probe",
        "status",
        "lock",
        "unlock",
        "plan",
        "journal verify",
        "journal export",
        "reload",
        "brake release",
        "version retire",
        "key retire",
        "receivers test",
        "token new",
        "local-kms create",
        "local-kms rotate",
        "local-kms disable",
        "local-kms enable",
        "local-kms schedule-deletion",
        "local-kms cancel-deletion",
        "local-kms deny",
        "local-kms allow",
        "local-kms list",
        "completions",
        "drill",
    ] {
        assert!(names.contains(&name.to_owned()), "{name} is missing");
    }
}

#[test]
fn the_help_at_the_top_names_every_exit_code_and_no_arguments_show_it() {
    let ran = run(&["--help"]).exits(0);
    for code in ["10 impaired", "11 revoked", "12 inconclusive", "66 unknown", "69 daemon", "74 store", "77 refused", "78 config"] {
        assert!(ran.out.contains(code), "{code}");
    }
    assert!(run(&[]).exits(2).err.contains("Usage:"));
    assert!(run(&["--version"]).exits(0).out.starts_with("cmek-watchdog 0."));
}

#[test]
fn usage_errors_exit_2_before_anything_is_done() {
    let desk = Desk::new(CONFIG);
    for args in [
        &["frobnicate"][..],
        &["probe"],
        &["lock", "w"],
        &["lock", "w", "--reason", ""],
        &["unlock", "w"],
        &["unlock", "w", "--reason", "r", "--override"],
        &["unlock", "w", "--reason", "r", "--until", "1h"],
        &["unlock", "w", "--reason", "r", "--override", "--until", "soon"],
        &["unlock", "w", "--reason", "r", "--override", "--until", "25h"],
        &["unlock", "w", "--reason", "r", "--override", "--until", "0s"],
        &["brake", "release", "local", "--reason", "r"],
        &["brake", "release", "local", "--lock", "--drop", "--reason", "r"],
        &["token", "new", "n"],
        &["token", "new", "n", "--role", "root"],
        &["token", "new", "a name", "--role", "read"],
        &["local-kms", "deny", "demo"],
        &["local-kms", "deny", "demo", "everything"],
        &["local-kms", "schedule-deletion", "demo", "--in", "later"],
        &["local-kms", "list", "--provider", "elsewhere"],
        &["journal", "export", "--after", "-1"],
        &["journal", "verify", "--head", "no-head"],
        &["check", "--log-format", "xml"],
        &["completions", "dos"],
    ] {
        let ran = desk.run(args).exits(2);
        assert!(!ran.err.is_empty() && ran.out.is_empty(), "{args:?}: {}", ran.out);
    }
    assert!(!desk.path().join("run").exists());
}

#[test]
fn completions_are_made_for_every_shell_without_a_configuration() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(&["completions", shell]).exits(0);
        assert!(ran.out.contains("cmek-watchdog") && ran.out.contains("local-kms"), "{shell}");
        assert!(run(&["completions", shell, "--json"]).exits(0).json()["script"].as_str().unwrap().contains("local-kms"));
    }
}
