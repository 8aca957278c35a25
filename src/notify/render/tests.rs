use super::*;
use crate::key::WorkspaceId;
use crate::notify::sample::{bare, locked};
use crate::words::{EventType, Severity};

#[test]
fn the_text_says_what_who_since_when_and_what_to_do() {
    let text = text(&locked()).unwrap();
    for wanted in [
        "The workspace is locked: key demo is disabled.",
        "What to do next\n  The key's owner can enable it again in AWS KMS (Enable key).",
        "Workspaces:       wrkspc_demo\n",
        "Access now:       locked (before: open)\n",
        "Not usable now:   messages, files\n",
        "Stays usable:     safety_metadata, models\n",
        "Provider's name:  arn:aws:kms:us-east-2:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab\n",
        "Owner:            security@acme.example\n",
        "Since:            2026-11-25 07:45:40 UTC\n",
        "Done by:          arn:aws:iam::444455556666:user/kim\n",
        "Cause:            disabled (cmek_key_disabled)\n",
        "seal new data (wrap): failed, DisabledException, request 0a1b2c3d-req\n    key is <disabled> & closed\n",
        "Notice ntc-1 (workspace.locked, critical, number 7)\n",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
    }
    assert!(!text.contains("\n\n\n") && !text.contains("DRILL"), "{text}");
}

#[test]
fn what_is_not_known_leaves_no_empty_line_or_heading() {
    let text = text(&bare("n", EventType::KeyRotated, Severity::Info)).unwrap();
    assert_eq!(
        text,
        "Something was seen.\n\nWorkspaces:       wrkspc_demo\nKey:              demo\n\nNotice n (key.rotated, info, number 7)\nat 2026-11-25 07:46:00 UTC. It may arrive twice; its id stays the same.\n"
    );
}

#[test]
fn a_drill_says_so_first_everywhere() {
    let drill = Notice { drill: true, ..locked() };
    assert!(text(&drill).unwrap().starts_with("DRILL - this is a rehearsal."));
    assert!(message(&drill).starts_with("DRILL: The workspace"));
    let said = Notice { message: "DRILL: done.".to_owned(), ..drill.clone() };
    assert_eq!(message(&said), "DRILL: done.");
    assert!(html(&drill).unwrap().contains("<strong>DRILL</strong>"));
}

#[test]
fn html_escapes_every_value_and_loads_nothing() {
    let evil = "<script>alert('x')</script>\"&";
    let notice = Notice {
        message: evil.to_owned(),
        owner: Some(evil.to_owned()),
        key_ref: Some(evil.to_owned()),
        actor: Some(evil.to_owned()),
        next_step: Some(evil.to_owned()),
        locked_features: vec![evil.to_owned()],
        ..locked()
    };
    let html = html(&notice).unwrap();
    assert!(!html.contains("<script") && html.matches("&lt;script&gt;").count() == 6, "{html}");
    assert!(html.contains("key is &lt;disabled&gt; &amp; closed"));
    for remote in ["http://", "https://", "src=", "href=", "@import", "url("] {
        assert!(!html.contains(remote), "{remote}");
    }
}

#[test]
fn five_thousand_workspaces_are_counted_and_not_listed() {
    let workspace = |n: usize| WorkspaceId::new(&format!("w{n}")).unwrap();
    let notice = Notice { workspaces: (0..5_000).map(workspace).collect(), ..locked() };
    let text = text(&notice).unwrap();
    assert!(text.contains("w24 and 4975 more") && text.len() < 3_000, "{text}");
}

#[test]
fn a_key_beyond_recovery_says_so_and_otherwise_the_last_day_is_named() {
    let gone = Notice { terminal: true, recoverable_until: Some(crate::notify::sample::AT), ..locked() };
    assert!(text(&gone).unwrap().contains("Can be undone:    no, this key cannot be brought back"));
    let until = Notice { terminal: false, ..gone };
    assert!(text(&until).unwrap().contains("Can be undone:    until 2026-11-25 07:46:00 UTC"));
}

#[test]
fn a_broken_template_is_named() {
    let error = render("absent.txt", &locked()).unwrap_err();
    assert!(error.to_string().starts_with("template absent.txt cannot be rendered: "), "{error}");
}
