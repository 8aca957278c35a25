//! The figures that come out.

#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub seeds: u64,
    pub probes: u64,
    pub locks: u64,
    pub unlocks: u64,
    pub crashes: u64,
    pub levers: u64,
    pub drills: u64,
    pub notices: u64,
    pub false_locks: u64,
    pub missed_locks: u64,
    pub unproven_unlocks: u64,
    pub lost_locks: u64,
    pub stuck: u64,
    pub lost_notices: u64,
    pub disordered: u64,
    pub overdue: u64,
    pub sequences: u64,
    pub late_gates: u64,
    pub gates_astray: u64,
    pub longest_to_lock_ms: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.seeds += 1;
        self.probes += other.probes;
        self.locks += other.locks;
        self.unlocks += other.unlocks;
        self.crashes += other.crashes;
        self.levers += other.levers;
        self.drills += other.drills;
        self.notices += other.notices;
        self.false_locks += other.false_locks;
        self.missed_locks += other.missed_locks;
        self.unproven_unlocks += other.unproven_unlocks;
        self.lost_locks += other.lost_locks;
        self.stuck += other.stuck;
        self.lost_notices += other.lost_notices;
        self.disordered += other.disordered;
        self.overdue += other.overdue;
        self.sequences += other.sequences;
        self.late_gates += other.late_gates;
        self.gates_astray += other.gates_astray;
        self.longest_to_lock_ms = self.longest_to_lock_ms.max(other.longest_to_lock_ms);
    }

    pub fn print(&self) {
        let rows = [
            ("seeds", self.seeds),
            ("probes", self.probes),
            ("locks shown", self.locks),
            ("unlocks shown", self.unlocks),
            ("crashes", self.crashes),
            ("lever moves", self.levers),
            ("drills asked for", self.drills),
            ("notices delivered", self.notices),
            ("false locks", self.false_locks),
            ("missed or late locks", self.missed_locks),
            ("unlocks without proof", self.unproven_unlocks),
            ("locks lost by a restart", self.lost_locks),
            ("locks that proof does not open", self.stuck),
            ("notices lost", self.lost_notices),
            ("notices out of order", self.disordered),
            ("probes overdue", self.overdue),
            ("sequences that do not rise", self.sequences),
            ("operator locks shown late", self.late_gates),
            ("far gates that ended astray", self.gates_astray),
            ("longest from revocation to lock, ms", self.longest_to_lock_ms),
        ];
        for (name, figure) in rows {
            println!("{name:<38}{figure:>12}");
        }
    }
}
