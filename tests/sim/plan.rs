//! Configurations of a world, as texts that pass through the real parser: providers of every kind,
//! policies, keys of several owners, workspaces that share keys and keys that share workspaces.

use std::fmt::Write as _;
use std::sync::Arc;

use cmek_watchdog::config::{Config, check};
use cmek_watchdog::words::ProviderKind;

use super::dice::Dice;

/// One provider as it stands in the configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct PlannedProvider {
    pub id: String,
    pub kind: ProviderKind,
    pub control: bool,
}

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
    pub providers: Vec<PlannedProvider>,
    pub keys: Vec<PlannedKey>,
    /// Workspaces that are content with any of their keys.
    pub any: Vec<String>,
    pub interval_s: u64,
    /// Whether keys may have a policy that fails closed.
    pub stale: bool,
    /// What else stands in the file.
    pub more: String,
    /// Rules of policy `default`: 0 as built in, 1 stricter, 2 looser.
    pub rules: u64,
    /// After how long the brake carries out by itself; `None` = a person decides.
    pub brake_release: Option<&'static str>,
}

pub const RECEIVERS: [&str; 2] = ["mail", "hook"];
const KINDS: [ProviderKind; 4] = [ProviderKind::Aws, ProviderKind::Gcp, ProviderKind::Azure, ProviderKind::Local];
const POLICIES: [&str; 14] = [
    "default", "default", "default", "default", "default", "default", "default", "manual", "shadow", "strict", "closed", "flapping",
    "network", "firm",
];

/// The operator's own key of a provider of this kind.
pub const fn control(kind: ProviderKind) -> &'static str {
    match kind {
        ProviderKind::Aws => "arn:aws:kms:us-east-2:111122223333:key/control",
        ProviderKind::Gcp => "projects/watchdog/locations/l/keyRings/r/cryptoKeys/control",
        ProviderKind::Azure => "https://watchdog-kv.vault.azure.net/keys/control",
        ProviderKind::Local => "control",
    }
}

impl Plan {
    /// About as many keys as this many rounds in the given time allow.
    pub fn draw(dice: &mut Dice, length: u64, rounds: u64) -> Self {
        let short = dice.chance(30);
        let interval_s =
            *dice.pick(if short { &[60, 120, 300][..] } else { &[600, 600, 900, 900, 900, 900, 1200, 1200, 1800, 1800, 3600, 3600][..] });
        let mut plan = Self { interval_s, stale: dice.chance(400), brake_release: dice.chance(200).then_some("10m"), ..Self::default() };
        let most = (rounds * interval_s * 1000 / length.max(1)).clamp(30, 300);
        let keys = dice.range(30, most + 1);
        let first = dice.below(4);
        for n in 0..dice.range(1, 5) {
            let kind = KINDS[usize::try_from((first + n) % 4).unwrap()];
            plan.providers.push(PlannedProvider { id: format!("p{n}"), kind, control: dice.chance(900) });
        }
        for n in 0..keys {
            let key = plan.draw_key(dice, n, keys);
            plan.keys.push(key);
        }
        plan
    }

    pub fn draw_key(&mut self, dice: &mut Dice, n: u64, keys: u64) -> PlannedKey {
        let provider = dice.pick(&self.providers).clone();
        let owner = dice.below(12);
        let (account, reference) = match provider.kind {
            ProviderKind::Aws => {
                let account = format!("4444555566{owner:02}");
                (account.clone(), format!("arn:aws:kms:us-east-2:{account}:key/k{n}"))
            }
            ProviderKind::Gcp => {
                let account = format!("acme-{owner:02}");
                (account.clone(), format!("projects/{account}/locations/l/keyRings/r/cryptoKeys/k{n}"))
            }
            ProviderKind::Azure => {
                let account = format!("acme-{owner:02}.vault.azure.net");
                (account.clone(), format!("https://{account}/keys/k{n}"))
            }
            ProviderKind::Local => (format!("k{n}"), format!("k{n}")),
        };
        let mut workspaces = vec![format!("w{n}")];
        if dice.chance(300) {
            workspaces.push(format!("w{}", dice.below(keys)));
            workspaces.dedup();
        }
        if dice.chance(100) {
            let shared = format!("any{}", dice.below(6));
            if !self.any.contains(&shared) {
                self.any.push(shared.clone());
            }
            workspaces.push(shared);
        }
        let mut policy = (*dice.pick(&POLICIES)).to_owned();
        if policy == "strict" && !self.stale {
            policy = "default".to_owned();
        }
        PlannedKey { id: format!("k{n}"), provider: provider.id, reference, account, workspaces, policy }
    }

    pub fn kind_of(&self, provider: &str) -> ProviderKind {
        self.providers.iter().find(|p| p.id == provider).map_or(ProviderKind::Aws, |p| p.kind)
    }

    pub fn control_of(&self, provider: &str) -> &'static str {
        control(self.kind_of(provider))
    }

    fn providers_text(&self, text: &mut String) {
        for PlannedProvider { id, kind, control: witnessed } in &self.providers {
            let witness = if *witnessed { format!("control_key = \"{}\"\n", control(*kind)) } else { String::new() };
            let own = match kind {
                ProviderKind::Aws => "region = \"us-east-2\"\nour_accounts = [\"111122223333\"]\n",
                ProviderKind::Gcp | ProviderKind::Azure => "",
                ProviderKind::Local => "path = \"local-kms.json\"\n",
            };
            let _ = writeln!(text, "[providers.{id}]\nkind = \"{kind}\"\n{own}{witness}calls_per_second = 200\n");
        }
    }

    fn policies_text(&self, text: &mut String) {
        let rules = match self.rules {
            1 => {
                "on.access_denied = { looks = 2, of = 2, over = \"5s\", access = \"locked\" }\nunlock_after = { rounds = 4, over = \"90s\" }\n"
            }
            2 => {
                "on.access_denied = { looks = 4, of = 5, over = \"2m\", access = \"locked\" }\non.disabled = { looks = 3, of = 3, over = \"20s\", access = \"locked\" }\n"
            }
            _ => "",
        };
        let policies = [
            ("default", rules),
            ("manual", "unlock = \"manual\"\n"),
            ("shadow", "enforce = false\n"),
            ("strict", "lost_version = \"locked\"\nlock_after_stale = \"2h\"\n"),
            ("closed", "unproven = \"locked\"\n"),
            ("flapping", "flapping = { after = \"10m\", access = \"locked\" }\n"),
            ("network", "on.network_blocked = { looks = 3, of = 4, over = \"5m\", access = \"locked\" }\n"),
            ("firm", "on.access_denied = { looks = 2, of = 2, over = \"5s\", access = \"locked\" }\n"),
        ];
        for (name, lines) in policies {
            let _ = writeln!(text, "[policies.{name}]\nprobe_interval = \"{}s\"\n{lines}", self.interval_s);
        }
    }

    pub fn text(&self) -> String {
        let mut text = String::from("[brake]\naccounts = 3\nfraction = 0.2\n");
        if let Some(after) = self.brake_release {
            let _ = writeln!(text, "release = \"{after}\"");
        }
        text.push('\n');
        self.providers_text(&mut text);
        self.policies_text(&mut text);
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
