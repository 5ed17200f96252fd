//! Export and import, and imports of hostile archives.

use std::io::Write;

use crate::support::*;
use pentimento_cache::*;
use tar::{Builder, EntryType, Header};

const BOUND: u64 = 10 << 20;

fn open(dir: &tempfile::TempDir) -> Cache {
    Cache::open(CacheConfig::new(dir.path())).unwrap()
}

async fn exported(pictures: usize) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir);
    for n in 0..pictures {
        assert!(cache.insert(picture(&format!("prompt {n}"), n as f32)));
    }
    cache.flush().await.unwrap();
    let mut archive = Vec::new();
    let moved = cache.export(&Filter::default(), &mut archive).await.unwrap();
    assert_eq!(
        (moved.entries, moved.pictures, moved.states, moved.unreadable),
        (pictures, pictures, 2 * pictures, 0)
    );
    archive
}

#[tokio::test]
async fn a_cache_can_be_moved_and_moved_again() {
    let archive = exported(20).await;
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir);
    for known in [0, 20] {
        let moved = cache.import(archive.as_slice(), BOUND).await.unwrap();
        assert_eq!((moved.entries, moved.duplicates, moved.pictures, moved.states), (20, known, 20, 40));
        cache.flush().await.unwrap();
        assert_eq!((cache.stats().entries, files(dir.path())), (20, 60));
    }
    let hit = exact(&cache, &scope("tenant"), "prompt 5").await.unwrap();
    assert_eq!(cache.picture(&hit.picture.unwrap()).await.unwrap(), file("prompt 5"));
    let entry = hit.entry;
    assert_eq!(*cache.state(&entry, FINISHED).await.unwrap(), state(FINISHED));
    assert_eq!(*cache.state(&entry, 801.0).await.unwrap(), state(801.0));
    let one = Filter { prompt_hash: Some("hash of prompt 3".into()), ..Filter::default() };
    assert_eq!(cache.export(&one, std::io::sink()).await.unwrap().entries, 1);
}

/// The archive `sound` with each of its files changed by `change`.
fn altered(sound: &[u8], mut change: impl FnMut(usize, &mut Header, &mut Vec<u8>)) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (n, file) in tar::Archive::new(sound).entries().unwrap().enumerate() {
        let mut file = file.unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        let mut header = file.header().clone();
        change(n, &mut header, &mut bytes);
        header.set_cksum();
        builder.append(&header, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Writes a name into a header that the library would refuse.
fn rename(header: &mut Header, name: &str) {
    let field = &mut header.as_old_mut().name;
    field.fill(0);
    field[..name.len()].copy_from_slice(name.as_bytes());
}

/// Imports an archive that must be refused, and returns the error. Checks that all imported entries are complete.
async fn refused(archive: &[u8]) -> String {
    let outside = tempfile::tempdir().unwrap();
    let dir = tempfile::TempDir::new_in(outside.path()).unwrap();
    let cache = open(&dir);
    let error = cache.import(archive, BOUND).await.unwrap_err().to_string();
    cache.flush().await.unwrap();
    let entries = cache.entries(&Filter::default(), None, 100).await.unwrap();
    for entry in &entries {
        for kept in &entry.states {
            cache.state(&entry.id, kept.timestep).await.unwrap();
        }
        cache.picture(&entry.picture_key().unwrap()).await.unwrap();
    }
    assert_eq!(files(dir.path()), 3 * entries.len());
    assert_eq!(
        std::fs::read_dir(outside.path()).unwrap().count(),
        1,
        "nothing was written outside the cache"
    );
    error
}

#[tokio::test]
async fn names_outside_the_archive_are_refused() {
    let sound = exported(2).await;
    for name in ["../../escape.safetensors", "/etc/passwd", "entry.json", "..", "a/../b/entry.json", ""] {
        for at in 0..8 {
            let archive = altered(&sound, |n, header, _| {
                if n == at {
                    rename(header, name);
                }
            });
            assert!(refused(&archive).await.starts_with("archive"), "{name}");
        }
    }
}

#[tokio::test]
async fn links_and_other_kinds_are_refused() {
    let sound = exported(1).await;
    use EntryType::*;
    for kind in
        [Symlink, Link, Directory, Fifo, Char, GNULongName, GNULongLink, GNUSparse, XHeader, XGlobalHeader]
    {
        for at in 0..4 {
            let archive = altered(&sound, |n, header, _| {
                if n == at {
                    header.set_entry_type(kind);
                }
            });
            assert!(refused(&archive).await.contains("not a plain file"), "{kind:?}");
        }
    }
}

#[tokio::test]
async fn damage_and_truncation_are_refused() {
    let sound = exported(2).await;
    for at in [1, 2, 3, 5, 6, 7] {
        let flipped = altered(&sound, |n, _, bytes| {
            if n == at {
                *bytes.last_mut().unwrap() ^= 1;
            }
        });
        assert!(refused(&flipped).await.contains("checksum"));
    }
    for length in [100, 600, 1500, sound.len() / 2, sound.len() / 2 + 700] {
        refused(&sound[..length]).await;
    }
    let swapped = altered(&sound, |n, header, _| {
        if n == 2 {
            header.set_entry_type(EntryType::Regular);
            rename(header, "00000000000000000000000000000000/801.safetensors");
        }
    });
    assert!(refused(&swapped).await.contains("not the state that should follow"));
    let swapped = altered(&sound, |n, header, _| {
        if n == 1 {
            rename(header, "00000000000000000000000000000000/picture.png");
        }
    });
    assert!(refused(&swapped).await.contains("not the picture that should follow"));
    let older = altered(&sound, |n, header, bytes| {
        if n == 0 {
            let archived: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            *bytes = serde_json::to_vec(&archived["entry"]).unwrap();
            header.set_size(bytes.len() as u64);
        }
    });
    assert!(refused(&older).await.contains("format version 1, this program reads 2"));
    let nonsense = altered(&sound, |n, header, bytes| {
        if n == 0 {
            *bytes = b"{\"id\":".to_vec();
            header.set_size(bytes.len() as u64);
        }
    });
    refused(&nonsense).await;
    refused(&[7; 4096]).await;
}

#[tokio::test]
async fn bombs_are_refused_before_they_are_read() {
    let sound = exported(1).await;
    // A file whose header claims too many bytes, followed by zeros.
    for (at, size) in [(0, 5 << 20), (0, 1 << 40), (1, 1 << 40), (1, u64::MAX / 2)] {
        let mut archive = altered(&sound, |n, header, _| {
            if n == at {
                header.set_size(size);
            }
        });
        archive.write_all(&[0; 100_000]).unwrap();
        let error = refused(&archive).await;
        assert!(error.contains("too large") || error.contains("larger than"), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir);
    let fits = cache.import(sound.as_slice(), sound.len() as u64).await;
    assert!(fits.is_ok(), "an archive of exactly the bound");
    let error = cache.import(sound.as_slice(), 1000).await.unwrap_err();
    assert!(matches!(error, ArchiveError::TooLarge(1000)), "{error}");
}
