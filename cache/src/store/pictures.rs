//! Pictures' files in the store, beside the states of the same entry.
//!
//! A file is kept byte for byte as the worker made it, so any program can read it. What it must be stands in the
//! index: its length and its SHA-256 are in the [`PictureKey`], and a file that differs is damaged or foreign.

use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use sha2::{Digest, Sha256};

use super::{StateError, StateStore};
use crate::entry::{EntryId, Part, PictureKey};

/// Largest file of a picture, in bytes: a picture of 3344 by 3344 pixels that PNG cannot make any smaller.
pub const MAX_PICTURE_BYTES: u64 = 32 << 20;
/// Files up to this many bytes are hashed where they are read, which takes less than a millisecond on any machine;
/// larger ones on a thread that may block.
const HASHED_AT_ONCE: usize = 128 << 10;

impl StateStore {
    /// Writes a picture's file, all of it or nothing.
    ///
    /// # Errors
    /// The store fails.
    pub async fn write_picture(&self, id: &EntryId, file: Bytes) -> Result<(), StateError> {
        let path = self.path(id, Part::Picture);
        self.within(self.objects.put(&path, file.into())).await?;
        Ok(())
    }

    /// A picture's file, from memory or else from the store.
    ///
    /// # Errors
    /// See [`StateError`]: missing, of another length or checksum, or the store fails.
    pub async fn read_picture(&self, key: &PictureKey) -> Result<Bytes, StateError> {
        if let Some(file) = self.cached_picture(&key.entry) {
            return Ok(file);
        }
        let file = self.read_picture_past_memory(key).await?;
        self.pictures.put(key.entry.clone(), Arc::new(file.clone()));
        Ok(file)
    }

    /// The file as the store has it; memory does not keep it, nor forget others for it.
    ///
    /// # Errors
    /// See [`Self::read_picture`].
    pub async fn read_picture_past_memory(&self, key: &PictureKey) -> Result<Bytes, StateError> {
        let file = self.read_bytes(&key.entry, Part::Picture, MAX_PICTURE_BYTES).await?;
        if file.len() as u64 != key.bytes {
            return Err(StateError::Damaged);
        }
        let found = if file.len() <= HASHED_AT_ONCE {
            sha256(&file)
        } else {
            let all = file.clone();
            let hashed = tokio::task::spawn_blocking(move || sha256(&all)).await;
            hashed.map_err(|error| StateError::Store(error.to_string()))?
        };
        if found == *key.sha256() { Ok(file) } else { Err(StateError::Damaged) }
    }

    /// The file if it is in memory; waits for nothing.
    pub fn cached_picture(&self, id: &EntryId) -> Option<Bytes> {
        self.pictures.get(id).map(|file| Bytes::clone(&file))
    }

    /// Bytes of pictures' files in memory.
    pub fn picture_memory_bytes(&self) -> usize {
        self.pictures.bytes()
    }
}

/// SHA-256 of a file.
pub(crate) fn sha256(file: &[u8]) -> [u8; 32] {
    Sha256::digest(file).into()
}
