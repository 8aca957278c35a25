//! inside
//! The question that services ask: may this workspace use this feature now?
//! Judges one entry of the published snapshot at the time of the read; it must never wait for the
//! core and never turn doubt about a key into a refusal.

use std::collections::BTreeMap;

use crate::key::WorkspaceId;
use crate::time::{Mono, Span};
use crate::words::{Access, Code, FeatureClass, Sequence};

/// What the gate needs to know of one workspace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GateEntry {
    pub workspace: WorkspaceId,
    pub access: Access,
    pub code: Option<Code>,
    pub sequence: Sequence,
    /// False while a lock is shown but not yet on disk.
    pub durable: bool,
}

/// Answer of the gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    Allowed,
    Denied(Code),
    /// This instance's own snapshot is too old to tell (503), never a key's doubt.
    CannotTell,
}

/// Features by name and class; an unknown feature counts as content.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Features(pub BTreeMap<String, FeatureClass>);

impl Features {
    /// The class of a feature, and whether it is a known one.
    #[must_use]
    pub fn class(&self, feature: Option<&str>) -> (FeatureClass, bool) {
        match feature {
            None => (FeatureClass::Content, true),
            Some(name) => self.0.get(name).map_or((FeatureClass::Content, false), |class| (*class, true)),
        }
    }
}

/// The features of one workspace: those of everybody, with the classes that it has of its own.
#[derive(Clone, Copy, Debug)]
pub struct FeaturesOf<'a> {
    pub common: &'a Features,
    /// Only what differs, and only features that `common` has.
    pub own: Option<&'a Features>,
}

impl<'a> FeaturesOf<'a> {
    /// The class of a feature here, and whether it is a known one.
    #[must_use]
    pub fn class(&self, feature: Option<&str>) -> (FeatureClass, bool) {
        let own = feature.and_then(|name| self.own?.0.get(name));
        own.map_or_else(|| self.common.class(feature), |class| (*class, true))
    }

    /// Every configured feature by name, with its class here.
    pub fn each(self) -> impl Iterator<Item = (&'a str, FeatureClass)> {
        let here = move |name: &str, class: FeatureClass| self.own.and_then(|own| own.0.get(name)).copied().unwrap_or(class);
        self.common.0.iter().map(move |(name, class)| (name.as_str(), here(name, *class)))
    }
}

/// Whether an access level allows a use. `write` includes everything that is not plainly a read.
#[must_use]
pub const fn allows(access: Access, class: FeatureClass, write: bool) -> bool {
    match class {
        FeatureClass::Control | FeatureClass::SafetyMetadata => true,
        FeatureClass::Write => matches!(access, Access::Open),
        FeatureClass::Content => match access {
            Access::Open => true,
            Access::ReadOnly => !write,
            Access::Locked => false,
        },
    }
}

/// For people: what an access level closes, and what stays usable. Of workspaces that have classes
/// of their own, a feature counts by the one that loses most of it.
#[must_use]
pub fn told<'a>(common: &Features, each: impl Iterator<Item = FeaturesOf<'a>>, access: Access) -> (Vec<String>, Vec<String>) {
    let mut own: Vec<Option<&Features>> = each.map(|features| features.own).collect();
    let (all, plain) = (own.len(), own.iter().filter(|own| own.is_none()).count());
    own.retain(Option::is_some);
    let left = |class| (allows(access, class, false), allows(access, class, true));
    let (mut locked, mut usable) = (Vec::new(), Vec::new());
    for (name, class) in &common.0 {
        let here = own.iter().flatten().map(|own| left(own.0.get(name).copied().unwrap_or(*class)));
        let (mut least, mut most) = ((true, true), (false, false));
        for (read, write) in here.chain((plain > 0 || all == 0).then(|| left(*class))) {
            least = (least.0 && read, least.1 && write);
            most = (most.0 || read, most.1 || write);
        }
        let some = if least == most { "" } else { " (in some workspaces)" };
        match least {
            (true, true) => usable.push(name.clone()),
            (true, false) => usable.push(format!("{name} (read only){some}")),
            (false, _) => locked.push(format!("{name}{some}")),
        }
    }
    if !common.0.values().any(|class| *class == FeatureClass::SafetyMetadata) {
        usable.push("safety_metadata".to_owned());
    }
    (locked, usable)
}

/// Judges one read of a known workspace. `fresh_at` is when this instance last published its
/// snapshot as complete; a daemon just resumed from a stop is stale and must say so.
#[must_use]
pub fn decide(entry: &GateEntry, class: FeatureClass, write: bool, fresh_at: Mono, max_age: Span, now: Mono) -> Decision {
    if allows(Access::Locked, class, write) {
        return Decision::Allowed;
    }
    if now.since(fresh_at) > max_age {
        return Decision::CannotTell;
    }
    if allows(entry.access, class, write) { Decision::Allowed } else { Decision::Denied(entry.code.unwrap_or(Code::CmekKeyDisabled)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(access: Access) -> GateEntry {
        GateEntry {
            workspace: WorkspaceId::new("w").unwrap(),
            access,
            code: Some(Code::CmekKeyDisabled),
            sequence: Sequence(1),
            durable: true,
        }
    }

    #[test]
    fn the_table_of_classes() {
        use Access::{Locked, Open, ReadOnly};
        use FeatureClass::{Content, Control, SafetyMetadata, Write};
        for (access, class, read, write) in [
            (Open, Content, true, true),
            (ReadOnly, Content, true, false),
            (Locked, Content, false, false),
            (Open, Write, true, true),
            (ReadOnly, Write, false, false),
            (Locked, Write, false, false),
            (Open, Control, true, true),
            (Locked, Control, true, true),
            (Open, SafetyMetadata, true, true),
            (ReadOnly, SafetyMetadata, true, true),
            (Locked, SafetyMetadata, true, true),
        ] {
            assert_eq!(allows(access, class, false), read, "{access} {class} read");
            assert_eq!(allows(access, class, true), write, "{access} {class} write");
        }
    }

    #[test]
    fn a_class_of_the_workspace_stands_above_the_common_one() {
        let common = Features(BTreeMap::from([("batch".to_owned(), FeatureClass::Write), ("models".to_owned(), FeatureClass::Control)]));
        let own = Features(BTreeMap::from([("batch".to_owned(), FeatureClass::Content)]));
        let (plain, changed) = (FeaturesOf { common: &common, own: None }, FeaturesOf { common: &common, own: Some(&own) });
        assert_eq!(plain.class(Some("batch")), (FeatureClass::Write, true));
        assert_eq!(changed.class(Some("batch")), (FeatureClass::Content, true));
        assert_eq!(changed.class(Some("models")), (FeatureClass::Control, true));
        assert_eq!(changed.class(Some("unheard")), (FeatureClass::Content, false));
        assert_eq!(changed.class(None), (FeatureClass::Content, true));
        assert_eq!(changed.each().collect::<Vec<_>>(), [("batch", FeatureClass::Content), ("models", FeatureClass::Control)]);
    }

    #[test]
    fn people_are_told_what_the_worst_off_workspace_loses() {
        let common = Features(BTreeMap::from([("batch".to_owned(), FeatureClass::Write), ("files".to_owned(), FeatureClass::Content)]));
        let own = Features(BTreeMap::from([("batch".to_owned(), FeatureClass::Control)]));
        let plain = FeaturesOf { common: &common, own: None };
        let changed = FeaturesOf { common: &common, own: Some(&own) };
        let tell = |each: &[FeaturesOf<'_>], access| {
            let (locked, usable) = told(&common, each.iter().copied(), access);
            (locked.join(", "), usable.join(", "))
        };
        let pair = |locked: &str, usable: &str| (locked.to_owned(), usable.to_owned());
        assert_eq!(tell(&[plain, plain], Access::Locked), pair("batch, files", "safety_metadata"));
        assert_eq!(tell(&[], Access::Locked), pair("batch, files", "safety_metadata"));
        assert_eq!(tell(&[changed], Access::Locked), pair("files", "batch, safety_metadata"));
        assert_eq!(tell(&[plain, changed], Access::Locked), pair("batch (in some workspaces), files", "safety_metadata"));
        assert_eq!(tell(&[plain, changed], Access::ReadOnly), pair("batch (in some workspaces)", "files (read only), safety_metadata"));
    }

    #[test]
    fn a_stale_snapshot_cannot_tell_but_never_closes_safety_metadata() {
        let (fresh, age, late) = (Mono(10), Span(100), Mono(111));
        assert_eq!(decide(&entry(Access::Open), FeatureClass::Content, false, fresh, age, late), Decision::CannotTell);
        assert_eq!(decide(&entry(Access::Locked), FeatureClass::SafetyMetadata, false, fresh, age, late), Decision::Allowed);
        assert_eq!(decide(&entry(Access::Open), FeatureClass::Content, true, fresh, age, Mono(110)), Decision::Allowed);
        assert_eq!(
            decide(&entry(Access::Locked), FeatureClass::Content, false, fresh, age, Mono(110)),
            Decision::Denied(Code::CmekKeyDisabled)
        );
    }
}
