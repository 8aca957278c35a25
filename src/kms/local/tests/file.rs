//! outside
//! The file of the local store: torn, foreign, unreadable, too long; many writers, writers killed in
//! the middle, and changes that are seen at once.

use super::*;

#[tokio::test]
async fn a_torn_or_foreign_file_is_a_fault_of_ours_and_is_left_alone() {
    let b = bench();
    let canary = b.wrap().await.unwrap();
    let whole = std::fs::read(b.path()).unwrap();
    let material = serde_json::from_slice::<serde_json::Value>(&whole).unwrap()["keys"]["demo"]["versions"]["1"]["material"].clone();
    let secret = material.as_str().unwrap().to_owned();
    let text = String::from_utf8(whole.clone()).unwrap();
    let no_material = text.replace(&format!("\"{secret}\""), "null");
    for (what, content) in [
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("not json", b"\0\0\0\0".to_vec()),
        ("short material", text.replace(&secret, &secret[..20]).into_bytes()),
        ("material as a name", text.replace("\"enabled\"", &format!("\"{secret}\"")).into_bytes()),
        ("newer format", text.replacen("\"format\": 1", "\"format\": 2, \"more\": true", 1).into_bytes()),
        ("material gone", no_material.into_bytes()),
        ("no current version", text.replace("\"current\": 1", "\"current\": 7").into_bytes()),
    ] {
        std::fs::write(b.path(), &content).unwrap();
        for error in [b.wrap().await.unwrap_err(), b.unwrap(&canary).await.unwrap_err()] {
            assert_eq!((error.kind, error.stated, error.code.as_ref()), (FailureKind::ProviderFault, false, "FileDamaged"), "{what}");
            assert!(!format!("{error:?}").contains(&secret[..20]), "{what}: {error:?}");
            assert!(!error.message.contains('/'), "{what}: {error:?}");
        }
        assert_eq!(b.describe().await.unwrap_err().kind, FailureKind::ProviderFault, "{what}");
        if what != "material gone" && what != "no current version" {
            let error = b.file.disable("demo", START).unwrap_err();
            assert!(!format!("{error:?} {error}").contains(&secret[..20]), "{what}");
            assert!(b.file.create("new", START).is_err() && b.file.list(START).is_err(), "{what}");
            LocalKmsFile::open_or_create(&b.path(), &["demo"], START).unwrap();
            assert_eq!(std::fs::read(b.path()).unwrap(), content, "{what}: the file was touched");
        }
    }
    std::fs::write(b.path(), &whole).unwrap();
    assert_eq!(b.unwrap(&canary).await.unwrap().digest, canary.digest, "the whole file is good again");
}

#[tokio::test]
async fn an_unreadable_file_is_a_fault_of_ours() {
    let b = bench();
    std::fs::remove_file(b.path()).unwrap();
    std::fs::create_dir(b.path()).unwrap();
    let error = b.wrap().await.unwrap_err();
    assert_eq!((error.kind, error.stated, error.code.as_ref()), (FailureKind::ProviderFault, false, "FileUnreadable"));
    let error = b.file.disable("demo", START).unwrap_err();
    assert!(matches!(&error, LocalKmsError::Io { act: "read", .. }), "{error}");
    // A missing folder is made; one that cannot be is named.
    let made = LocalKmsFile::open_or_create(&b.folder.path().join("new/folder/kms.json"), &["demo"], START);
    assert_eq!(made.unwrap().list(START).unwrap().len(), 1);
    std::fs::write(b.folder.path().join("plain"), "").unwrap();
    let nowhere = LocalKmsFile::open_or_create(&b.folder.path().join("plain/folder/kms.json"), &["demo"], START);
    assert!(matches!(nowhere, Err(LocalKmsError::Io { act: "look for", .. })), "{nowhere:?}");
}

#[test]
fn a_file_beyond_its_bound_is_neither_read_nor_trusted() {
    let b = bench();
    std::fs::OpenOptions::new().write(true).open(b.path()).unwrap().set_len((64 << 20) + 1).unwrap();
    assert!(matches!(b.file.list(START), Err(LocalKmsError::TooLarge { .. })));
}

#[test]
fn keys_are_made_only_when_there_is_no_file_and_names_are_never_given_twice() {
    let b = bench();
    LocalKmsFile::open_or_create(&b.path(), &["demo", "later"], START).unwrap();
    let names: Vec<String> = b.file.list(START).unwrap().into_iter().map(|k| k.key).collect();
    assert_eq!(names, ["demo", "operator"]);
    assert!(matches!(b.file.create("demo", START), Err(LocalKmsError::KeyExists { .. })));
    b.file.destroy("demo", START).unwrap();
    assert!(matches!(b.file.create("demo", START), Err(LocalKmsError::KeyExists { .. })));
    assert!(matches!(b.file.create("a b", START), Err(LocalKmsError::Name { .. })));
    assert_eq!(b.file.create("later", START).unwrap().state, StandingWord::Enabled);
    let fresh = b.folder.path().join("fresh.json");
    assert!(matches!(LocalKmsFile::open_or_create(&fresh, &["ok", "a/b"], START), Err(LocalKmsError::Name { .. })));
    assert!(!fresh.exists(), "half a file was left");
    assert_eq!(LocalKmsFile::open_or_create(&fresh, &["twice", "twice"], START).unwrap().list(START).unwrap().len(), 1);
    let created = LocalKmsFile::at(&b.folder.path().join("by-create.json"));
    assert_eq!(created.create("first", START).unwrap().key, "first");
}

#[test]
fn a_key_that_is_not_enabled_cannot_rotate_and_a_pending_one_takes_no_switch() {
    let b = bench();
    b.file.disable("demo", START).unwrap();
    assert!(matches!(b.file.rotate("demo", START), Err(LocalKmsError::Standing { standing: StandingWord::Disabled, .. })));
    assert!(matches!(b.file.cancel_deletion("demo", START), Err(LocalKmsError::Standing { .. })));
    b.file.schedule_deletion("demo", START.plus(Span(1)), START).unwrap();
    for refused in [b.file.rotate("demo", START), b.file.enable("demo", START), b.file.disable("demo", START)] {
        let error = refused.unwrap_err();
        assert!(error.to_string().ends_with("while it is pending_deletion"), "{error}");
    }
    assert!(b.file.list(START).unwrap()[0].versions.len() == 1, "a refused rotation left a version");
}

#[test]
fn many_writers_at_once_lose_nothing() {
    let b = bench();
    let path = b.path();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            // A handle of its own, as another process has it.
            let file = LocalKmsFile::at(&path);
            scope.spawn(move || {
                for _ in 0..50 {
                    file.rotate("demo", START).unwrap();
                }
            });
        }
        let reader = b.file.clone();
        scope.spawn(move || {
            let mut seen = 0;
            while seen < 401 {
                let now = reader.list(START).unwrap()[0].versions.len();
                assert!(now >= seen, "a reader went back from {seen} to {now} versions");
                seen = now;
                std::thread::yield_now();
            }
        });
    });
    let listing = b.file.list(START).unwrap().remove(0);
    assert_eq!((listing.versions.len(), listing.current_version), (401, KeyVersion::new("401")));
}

#[tokio::test]
async fn a_writer_killed_in_the_middle_leaves_the_old_file_and_blocks_nobody() {
    let b = bench();
    let canary = b.wrap().await.unwrap();
    // What a writer leaves that dies before it renames: a torn file beside, and the lock file unlocked.
    std::fs::write(b.folder.path().join("kms.json.new"), b"{\"format\": 1, \"ke").unwrap();
    assert_eq!(b.unwrap(&canary).await.unwrap().digest, canary.digest);
    b.file.rotate("demo", START).unwrap();
    assert_eq!(b.wrap().await.unwrap().version, Some(KeyVersion::new("2")));
    assert!(!b.folder.path().join("kms.json.new").exists());
}

#[tokio::test]
async fn a_write_that_fails_leaves_the_old_file_whole() {
    let b = bench();
    let before = std::fs::read(b.path()).unwrap();
    // A folder in the place of the new file: it can be neither removed nor created.
    std::fs::create_dir(b.folder.path().join("kms.json.new")).unwrap();
    assert!(matches!(b.file.rotate("demo", START), Err(LocalKmsError::Io { act: "write", .. })));
    assert_eq!(std::fs::read(b.path()).unwrap(), before);
    assert_eq!(b.wrap().await.unwrap().version, Some(KeyVersion::new("1")));
}

#[test]
fn only_the_owner_may_read_the_files_and_the_owner_stays() {
    let b = bench();
    let meta = std::fs::metadata(b.path()).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(b.folder.path().join("kms.json.lock")).unwrap().permissions().mode() & 0o777, 0o600);
    if meta.uid() == 0 {
        std::os::unix::fs::chown(b.path(), Some(65_534), Some(65_534)).unwrap();
    }
    let owner = std::fs::metadata(b.path()).unwrap().uid();
    b.file.rotate("demo", START).unwrap();
    let after = std::fs::metadata(b.path()).unwrap();
    assert_eq!((after.uid(), after.permissions().mode() & 0o777), (owner, 0o600));
}

#[test]
fn a_change_is_seen_at_once_even_if_the_file_looks_the_same() {
    let b = bench();
    let reader = LocalKmsFile::at(&b.path());
    // Same length, and times may fall into one tick of the disk's clock.
    for _ in 0..200 {
        b.file.disable_version("demo", &KeyVersion::new("1"), START).unwrap();
        assert_eq!(reader.list(START).unwrap()[0].versions[0].state, VersionState::Disabled);
        b.file.destroy("operator", START).unwrap();
        b.file.enable_version("demo", &KeyVersion::new("1"), START).unwrap();
        assert_eq!(reader.list(START).unwrap()[0].versions[0].state, VersionState::Enabled);
    }
}

#[test]
fn an_unchanged_file_is_not_parsed_again() {
    let b = bench();
    let (one, two) = (b.file.read().unwrap(), b.file.read().unwrap());
    assert!(Arc::ptr_eq(&one, &two));
    b.file.rotate("demo", START).unwrap();
    assert!(!Arc::ptr_eq(&one, &b.file.read().unwrap()));
}
