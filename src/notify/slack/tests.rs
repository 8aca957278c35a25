use super::*;
use crate::key::WorkspaceId;
use crate::notify::sample::locked;

#[test]
fn a_name_can_become_neither_mention_nor_link() {
    let notice = Notice { message: "<!channel> & <https://x|y> `z`".to_owned(), ..locked() };
    let text = payload(&notice).to_string();
    assert!(!text.contains("<!channel>") && !text.contains("<https") && text.contains("&lt;!channel&gt; &amp;"), "{text}");
}

#[test]
fn texts_stay_within_slacks_limits_however_long_the_facts_are() {
    let workspace = |n: usize| WorkspaceId::new(&format!("{}{n}", "w".repeat(120))).unwrap();
    let long = "<".repeat(5_000);
    let notice = Notice {
        message: long.clone(),
        next_step: Some(long.clone()),
        owner: Some(long.clone()),
        actor: Some(long),
        workspaces: (0..3_000).map(workspace).collect(),
        evidence: std::iter::repeat_n(locked().evidence[0].clone(), 200).collect(),
        ..locked()
    };
    let blocks = payload(&notice)["blocks"].as_array().unwrap().clone();
    assert!(blocks.len() <= 50);
    for block in blocks {
        let length = |value: &Value| value["text"].as_str().map_or(0, |text| text.chars().count());
        match block["type"].as_str().unwrap() {
            "header" => assert!(length(&block["text"]) <= HEADER),
            "section" => {
                assert!(length(&block["text"]) <= SECTION);
                let fields = block["fields"].as_array().cloned().unwrap_or_default();
                assert!(fields.len() <= FIELDS && fields.iter().all(|field| length(field) <= FIELD));
            }
            _ => assert!(block["elements"].as_array().unwrap().iter().all(|element| length(element) <= SECTION)),
        }
    }
}

#[test]
fn a_cut_never_splits_an_escape() {
    assert_eq!(escaped("a<b", 100), "a&lt;b");
    assert_eq!(escaped("<<<<<<", 10), "&lt;...");
}
