//! Is it them, or is it us? The control key's part.

use cmek_watchdog::time::Span;
use cmek_watchdog::words::{Access, EventType, FailureKind, Leg};

use crate::bench::{Bench, HOUR, MINUTE, arn, aws, control, refusal};

const DATA: [Leg; 3] = [Leg::Wrap, Leg::Unwrap, Leg::UnwrapVersion];

fn customer(number: u32) -> String {
    arn(444_455_556_666, number)
}

/// BUG-058
#[test]
fn a_denial_without_a_witness_beside_it_is_not_believed() {
    // The same denial of one customer; only what the control key says beside it differs.
    for (what, beside, access) in [
        ("good", None, Access::Locked),
        ("denied like us", Some(refusal(FailureKind::AccessDenied, false)), Access::Open),
        ("not reached", Some(refusal(FailureKind::Unreachable, false)), Access::Open),
    ] {
        let mut bench = Bench::proven(&aws(&[customer(1), customer(2)], ""));
        bench.cloud.refuse(&customer(1), &DATA, &refusal(FailureKind::AccessDenied, false));
        if let Some(error) = beside {
            bench.cloud.refuse(&control(), &DATA, &error);
        }
        bench.run(3 * MINUTE);
        assert_eq!(bench.access("w1"), access, "{what}");
    }
    // Each counted look had an answer of the control key that began no more than ten seconds before it.
    let mut bench = Bench::proven(&aws(&[customer(1), customer(2)], ""));
    bench.cloud.refuse(&customer(1), &DATA, &refusal(FailureKind::AccessDenied, false));
    bench.until(3 * MINUTE, "k1", |b| b.access("w1") == Access::Locked);
    let looks: Vec<u64> = bench.cloud.asked.iter().filter(|a| a.key == customer(1) && a.leg == Leg::Unwrap).map(|a| a.at).collect();
    let vouched: Vec<u64> = bench.cloud.asked.iter().filter(|a| a.key == control() && a.leg == Leg::Wrap).map(|a| a.at).collect();
    for look in looks.iter().rev().take(3) {
        assert!(vouched.iter().any(|at| at + 10 >= *look && *at <= look + 10), "look at {look}, witness at {vouched:?}");
    }
    assert!(vouched.iter().any(|at| at >= looks.last().unwrap()) || vouched.last().unwrap() + 10 >= *looks.last().unwrap());
}

/// BUG-059
#[test]
fn a_broken_witness_is_told_and_only_makes_confirmation_longer() {
    let other = arn(777_788_889_999, 998);
    let mut config = aws(&[customer(1), arn(555_566_667_777, 2)], "");
    config.push_str(&format!("[providers.second]\nkind = \"aws\"\nregion = \"us-east-2\"\ncontrol_key = \"{other}\"\n"));
    config.push_str(&format!("[[keys]]\nid = \"k3\"\nprovider = \"second\"\nkey = \"{}\"\nworkspaces = [\"w3\"]\n", customer(3)));
    for fault in [refusal(FailureKind::Disabled, true), refusal(FailureKind::Throttled, false)] {
        let mut bench = Bench::proven(&config);
        bench.cloud.refuse(&control(), &[Leg::Wrap, Leg::Unwrap, Leg::Describe], &fault);
        bench.run(HOUR);
        assert_eq!(bench.told(EventType::ProviderWitnessBroken).len(), 1, "{fault}");
        bench.assert_nothing_lowered();
        assert!(bench.keys.values().all(|key| key.verdict.unwrap().as_str() == "usable"));

        // Denials now: the other provider believes its own at once, this one asks for more.
        for number in [1, 3] {
            bench.cloud.refuse(&customer(number), &DATA, &refusal(FailureKind::AccessDenied, false));
        }
        let quick = bench.until(3 * MINUTE, "the other provider", |b| b.access("w3") == Access::Locked);
        assert_eq!(bench.access("w1"), Access::Open, "{fault}");
        let slow = bench.until(15 * MINUTE, "the weak verdict", |b| b.access("w1") == Access::Locked);
        assert!(quick + slow >= 5 * MINUTE, "{fault}: {quick} s, then {slow} s");
        let first = bench.records.iter().find(|r| r.event == EventType::KeySuspect && r.key.as_ref().unwrap().as_str() == "k1").unwrap().at;
        let locked =
            bench.records.iter().find(|r| r.event == EventType::KeyRevoked && r.key.as_ref().unwrap().as_str() == "k1").unwrap().at;
        // From look to look; the records come after their looks.
        assert!(locked.since(first) >= Span::from_secs(299), "{fault}");
        assert_eq!(bench.access("w2"), Access::Open);
    }
}
