//! Tests of the store: what it reads, refuses and removes.

use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use proptest::prelude::*;

use super::format::{decode, encode};
use super::*;
use crate::entry::{FINISHED, KeptPicture};
use crate::index::conformance;

fn entry(n: u128) -> Entry {
    conformance::entry(n, &conformance::scope("tenant", ""), conformance::at_angle(0.0))
}

fn state(timestep: f64) -> State {
    let latent = (0..24).map(|i| i as f32 / 8.0 - 1.5).collect();
    State { timestep, noise_level: 0.75, shape: [4, 2, 3], latent }
}

/// The file with its metadata or its tensor changed.
fn rewritten(
    file: &[u8],
    change: impl FnOnce(&mut std::collections::HashMap<String, String>, &mut Vec<u8>),
) -> Vec<u8> {
    let (_, header) = safetensors::SafeTensors::read_metadata(file).unwrap();
    let mut metadata = header.metadata().clone().unwrap();
    let tensors = safetensors::SafeTensors::deserialize(file).unwrap();
    let latent = tensors.tensor("latent").unwrap();
    let mut data = latent.data().to_vec();
    change(&mut metadata, &mut data);
    let view = safetensors::tensor::TensorView::new(latent.dtype(), latent.shape().to_vec(), &data).unwrap();
    safetensors::serialize([("latent", view)], Some(metadata)).unwrap()
}

#[test]
fn a_state_comes_back_and_a_finished_one_exactly() {
    let intermediate = state(801.0);
    assert_eq!(decode(&encode(&entry(1), &intermediate).unwrap(), &entry(1), 801.0).unwrap(), intermediate);
    let mut finished = state(FINISHED);
    finished.latent[5] = 0.123_456_79;
    assert_eq!(decode(&encode(&entry(1), &finished).unwrap(), &entry(1), FINISHED).unwrap(), finished);
    let fractional = state(701.428_571_428_571_4);
    let file = encode(&entry(1), &fractional).unwrap();
    assert_eq!(decode(&file, &entry(1), fractional.timestep).unwrap(), fractional);
    assert!(file.len() < encode(&entry(1), &finished).unwrap().len(), "half precision is smaller");
}

#[test]
fn every_way_of_being_wrong_has_its_error() {
    let own = entry(1);
    let file = encode(&own, &state(801.0)).unwrap();
    let fails = |file: &[u8]| decode(file, &own, 801.0).unwrap_err();
    assert!(matches!(fails(b""), StateError::Unreadable(_)));
    assert!(matches!(fails(&[0xff; 64]), StateError::Unreadable(_)));
    assert!(matches!(fails(b"\x89PNG\r\n\x1a\n and so on, for a while"), StateError::Unreadable(_)));
    let later = rewritten(&file, |metadata, _| drop(metadata.insert("format_version".into(), "2".into())));
    assert!(matches!(fails(&later), StateError::Version(version) if version == "2"));
    let foreign = rewritten(&file, |metadata, _| metadata.clear());
    assert!(matches!(fails(&foreign), StateError::Foreign(_)));
    let flipped = rewritten(&file, |_, data| data[7] ^= 1);
    assert!(matches!(fails(&flipped), StateError::Damaged));
    let relabelled = rewritten(&file, |metadata, _| drop(metadata.insert("size".into(), "8x8".into())));
    assert!(matches!(fails(&relabelled), StateError::Damaged));
    assert!(matches!(decode(&file, &entry(2), 801.0), Err(StateError::Elsewhere(_))));
    assert!(matches!(decode(&file, &own, 601.0), Err(StateError::Elsewhere(_))));
    assert!(matches!(decode(&file, &own, f64::NAN), Err(StateError::Invalid(_))));
}

#[test]
fn impossible_states_are_not_written() {
    let broken = |change: fn(&mut State)| {
        let mut state = state(801.0);
        change(&mut state);
        assert!(matches!(encode(&entry(1), &state), Err(StateError::Invalid(_))), "{state:?}");
    };
    broken(|state| state.latent[3] = f32::NAN);
    broken(|state| state.latent[3] = f32::INFINITY);
    broken(|state| state.latent[3] = 1e6);
    broken(|state| state.timestep = f64::NAN);
    broken(|state| state.timestep = -2.0);
    broken(|state| state.noise_level = f64::INFINITY);
    broken(|state| state.shape = [4, 2, 4]);
    broken(|state| state.shape = [0, 2, 3]);
    broken(|state| state.shape = [usize::MAX, 2, 3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_damage_passes_for_a_state(at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<prop::sample::Index>()) {
        let file = encode(&entry(1), &state(801.0)).unwrap();
        let mut damaged = file.clone();
        damaged[at.index(file.len())] ^= flip;
        // A flipped bit may be harmless, as in the white space of the header. It must not change the state.
        if let Ok(read) = decode(&damaged, &entry(1), 801.0) {
            prop_assert_eq!(read, state(801.0));
        }
        prop_assert!(decode(&file[..cut.index(file.len())], &entry(1), 801.0).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&bytes, &entry(1), 801.0).is_err());
    }
}

fn store(objects: Arc<dyn ObjectStore>) -> StateStore {
    StateStore::new(objects, Path::from("states"), 1 << 20, 1 << 20, Duration::from_secs(5))
}

#[tokio::test]
async fn states_are_written_read_removed_and_swept() {
    let objects = Arc::new(InMemory::new());
    let store = store(objects.clone());
    for n in 0..3 {
        for timestep in [801.0, FINISHED] {
            let bytes = store.write(&entry(n), &state(timestep)).await.unwrap();
            assert!(bytes > 0);
        }
    }
    assert!(store.cached(&entry(1).id, 801.0).is_none());
    assert_eq!(*store.read(&entry(1), 801.0).await.unwrap(), state(801.0));
    assert!(store.cached(&entry(1).id, 801.0).is_some());
    assert!(matches!(store.read(&entry(1), 601.0).await, Err(StateError::Missing)));
    store.remove(&entry(1).id, Part::State(801.0)).await.unwrap();
    store.remove(&entry(1).id, Part::State(801.0)).await.unwrap();
    assert!(matches!(store.read(&entry(1), 801.0).await, Err(StateError::Missing)));

    let foreign = Path::from("states/readme.txt");
    objects.put(&foreign, "not a state".into()).await.unwrap();
    let keep = entry(2).id;
    let swept = store.sweep(|id, part| *id == keep && part == Part::State(FINISHED)).await.unwrap();
    assert_eq!(swept, 4);
    assert!(objects.head(&foreign).await.is_ok(), "files of other kinds stay");
    assert_eq!(*store.read(&entry(2), FINISHED).await.unwrap(), state(FINISHED));
}

/// An entry whose picture is `file`.
fn with_file(n: u128, file: &Bytes) -> Entry {
    Entry { picture: Some(KeptPicture::new(file.len() as u64, sha256(file))), ..entry(n) }
}

#[tokio::test]
async fn pictures_are_written_checked_and_swept() {
    let objects = Arc::new(InMemory::new());
    let store = store(objects.clone());
    for length in [100, 300_000] {
        let file = Bytes::from(vec![7; length]);
        let entry = with_file(length as u128, &file);
        let key = entry.picture_key().unwrap();
        assert!(matches!(store.read_picture(&key).await, Err(StateError::Missing)));
        store.write_picture(&entry.id, file.clone()).await.unwrap();
        assert!(store.cached_picture(&entry.id).is_none());
        assert_eq!(store.read_picture(&key).await.unwrap(), file);
        assert_eq!(store.cached_picture(&entry.id).unwrap(), file);
        assert!(store.picture_memory_bytes() >= length);
        store.forget(&entry);
        assert!(store.cached_picture(&entry.id).is_none());

        let path =
            Path::from("states").join(&entry.id.as_str()[..2]).join(entry.id.as_str()).join("picture.png");
        let mut flipped = file.to_vec();
        flipped[length / 2] ^= 1;
        for damaged in [flipped, file[1..].to_vec(), Vec::new(), vec![7; length + 1]] {
            objects.put(&path, damaged.into()).await.unwrap();
            assert!(matches!(store.read_picture(&key).await, Err(StateError::Damaged)));
        }
        assert_eq!(store.sweep(|id, part| *id == entry.id && part == Part::Picture).await.unwrap(), 0);
        assert_eq!(store.sweep(|_, part| part != Part::Picture).await.unwrap(), 1);
        assert!(matches!(store.read_picture(&key).await, Err(StateError::Missing)));
    }
}

#[tokio::test]
async fn pictures_in_memory_have_a_bound_of_their_own() {
    let store = StateStore::new(Arc::new(InMemory::new()), Path::default(), 0, 2000, Duration::from_secs(5));
    for n in 0..5 {
        let file = Bytes::from(vec![n as u8; 900]);
        let entry = with_file(n, &file);
        store.write_picture(&entry.id, file).await.unwrap();
        store.read_picture(&entry.picture_key().unwrap()).await.unwrap();
    }
    assert!((1000..=2000).contains(&store.picture_memory_bytes()), "{}", store.picture_memory_bytes());
    assert!(store.cached_picture(&entry(4).id).is_some() && store.cached_picture(&entry(0).id).is_none());
}
