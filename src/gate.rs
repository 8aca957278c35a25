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
