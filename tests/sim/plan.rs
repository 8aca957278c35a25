//! Configurations of a world, as texts that pass through the real parser: providers, policies, keys
//! of several owners, workspaces that share keys and keys that share workspaces.

use std::fmt::Write as _;
use std::sync::Arc;

use cmek_watchdog::config::{Config, check};

use super::dice::Dice;

/// One key as it stands in the configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct PlannedKey {
    pub id: String,
    pub provider: String,
    pub reference: String,
    pub account: String,
    pub workspaces: Vec<String>,
    pub policy: String,
}

/// What a configuration text is made from.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    pub providers: Vec<(String, bool)>,
    pub keys: Vec<PlannedKey>,
    /// Workspaces that are content with any of their keys.
    pub any: Vec<String>,
    pub interval_s: u64,
    pub stale: bool,
    /// What else stands in the file.
    pub more: String,
}

pub const CONTROL: &str = "arn:aws:kms:us-east-2:111122223333:key/control";
pub const RECEIVERS: [&str; 2] = ["mail", "hook"];

impl Plan {
    pub fn draw(dice: &mut Dice, keys: u64) -> Self {
        let mut plan = Self { interval_s: *dice.pick(&[60, 60, 120, 300, 600, 900]), stale: dice.chance(300), ..Self::default() };
        for n in 0..dice.range(1, 4) {
            plan.providers.push((format!("p{n}"), dice.chance(900)));
        }
        for n in 0..keys {
            let key = plan.draw_key(dice, n, keys);
            plan.keys.push(key);
        }
        plan
    }

    pub fn draw_key(&mut self, dice: &mut Dice, n: u64, keys: u64) -> PlannedKey {
        let provider = dice.pick(&self.providers).0.clone();
        let account = format!("4444555566{:02}", dice.below(12));
        let mut workspaces = vec![format!("w{n}")];
        if dice.chance(300) {
            workspaces.push(format!("w{}", dice.below(keys)));
            workspaces.dedup();
        }
        if dice.chance(150) {
            let shared = format!("any{}", dice.below(3));
            if !self.any.contains(&shared) {
                self.any.push(shared.clone());
            }
            workspaces.push(shared);
        }
        let policies = ["default", "default", "default", "default", "manual", "shadow", "strict", "closed"];
        let mut policy = (*dice.pick(&policies)).to_owned();
        if policy == "strict" && !self.stale {
            policy = "default".to_owned();
        }
        let reference = format!("arn:aws:kms:us-east-2:{account}:key/k{n}");
        PlannedKey { id: format!("k{n}"), provider, reference, account, workspaces, policy }
    }

    pub fn text(&self) -> String {
        let mut text = String::from("[brake]\naccounts = 3\nfraction = 0.2\n\n");
        for (provider, control) in &self.providers {
            let control = if *control { format!("control_key = \"{CONTROL}\"\n") } else { String::new() };
            let _ = writeln!(
                text,
                "[providers.{provider}]\nkind = \"aws\"\nregion = \"us-east-2\"\n{control}calls_per_second = 200\nour_accounts = [\"111122223333\"]\n"
            );
        }
        let common = format!("probe_interval = \"{}s\"", self.interval_s);
        let policies = [
            ("default", ""),
            ("manual", "unlock = \"manual\"\n"),
            ("shadow", "enforce = false\n"),
            ("strict", "lost_version = \"locked\"\nlock_after_stale = \"2h\"\n"),
            ("closed", "unproven = \"locked\"\n"),
        ];
        for (name, lines) in policies {
            let _ = writeln!(text, "[policies.{name}]\n{common}\n{lines}");
        }
        let _ = writeln!(text, "[audit.trail]\nkind = \"push\"\nprovider = \"p0\"\n");
        for key in &self.keys {
            let workspaces: Vec<String> = key.workspaces.iter().map(|ws| format!("\"{ws}\"")).collect();
            let _ = writeln!(
                text,
                "[[keys]]\nid = \"{}\"\nprovider = \"{}\"\nkey = \"{}\"\nworkspaces = [{}]\npolicy = \"{}\"\n",
                key.id,
                key.provider,
                key.reference,
                workspaces.join(", "),
                key.policy
            );
        }
        for any in &self.any {
            let _ = writeln!(text, "[[workspaces]]\nid = \"{any}\"\nneeds = \"any\"\n");
        }
        for receiver in RECEIVERS {
            let _ = writeln!(
                text,
                "[receivers.{receiver}]\nkind = \"email\"\nsmtp = \"smtp://127.0.0.1:2525\"\nfrom = \"a@example.com\"\nto = [\"{receiver}@example.com\"]\n"
            );
        }
        text.push_str(&self.more);
        text.push_str("[[routes]]\nreceivers = [\"mail\", \"hook\"]\nseverity = \"info\"\n");
        text
    }

    pub fn config(&self) -> Arc<Config> {
        parsed(&self.text())
    }
}

pub fn parsed(text: &str) -> Arc<Config> {
    match check::parse(text, "config.toml", "/etc/cmek-watchdog", &[]) {
        Ok((config, _)) => Arc::new(config),
        Err(errors) => panic!("{}\n{text}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    }
}
