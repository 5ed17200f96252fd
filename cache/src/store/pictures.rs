//! Pictures' files in the store, beside the states of the same entry.
//!
//! A file is stored byte for byte as the worker made it, so any program can read it. The [`PictureKey`], which comes from
//! the index, has its length and SHA-256. A file that differs from them is damaged or foreign.

use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use sha2::{Digest, Sha256};

use super::{StateError, StateStore};
use crate::entry::{EntryId, Part, PictureKey};

/// The largest file of a picture, in bytes: 3344 by 3344 pixels that PNG cannot compress.
pub const MAX_PICTURE_BYTES: u64 = 32 << 20;
/// Files up to this many bytes are hashed on the async thread that reads them, which takes less than a millisecond.
/// Larger ones are hashed on a blocking thread.
const MAX_HASHED_INLINE: usize = 128 << 10;

impl StateStore {
    /// Writes a picture's file atomically.
    ///
    /// # Errors
    /// The store fails.
    pub async fn write_picture(&self, id: &EntryId, file: Bytes) -> Result<(), StateError> {
        let path = self.path(id, Part::Picture);
        self.within_limit(self.objects.put(&path, file.into())).await?;
        Ok(())
    }

    /// Returns a picture's file, from memory or else from the store.
    ///
    /// # Errors
    /// The file is missing or has another length or checksum, or the store fails.
    pub async fn read_picture(&self, key: &PictureKey) -> Result<Bytes, StateError> {
        if let Some(file) = self.cached_picture(&key.entry) {
            return Ok(file);
        }
        let file = self.read_picture_uncached(key).await?;
        self.pictures.put(key.entry.clone(), Arc::new(file.clone()));
        Ok(file)
    }

    /// Reads a picture's file from the store without using memory and without adding it there.
    ///
    /// # Errors
    /// See [`Self::read_picture`].
    pub async fn read_picture_uncached(&self, key: &PictureKey) -> Result<Bytes, StateError> {
        let file = self.read_bytes(&key.entry, Part::Picture, MAX_PICTURE_BYTES).await?;
        if file.len() as u64 != key.bytes {
            return Err(StateError::Damaged);
        }
        let found = if file.len() <= MAX_HASHED_INLINE {
            sha256(&file)
        } else {
            let all = file.clone();
            let hashed = tokio::task::spawn_blocking(move || sha256(&all)).await;
            hashed.map_err(|error| StateError::Store(error.to_string()))?
        };
        if found == *key.sha256() { Ok(file) } else { Err(StateError::Damaged) }
    }

    /// Returns a picture's file if it is in memory. Does not block.
    pub fn cached_picture(&self, id: &EntryId) -> Option<Bytes> {
        self.pictures.get(id).map(|file| Bytes::clone(&file))
    }

    /// The bytes of all pictures' files in memory.
    pub fn picture_memory_bytes(&self) -> usize {
        self.pictures.bytes()
    }
}

/// The SHA-256 of a file.
pub(crate) fn sha256(file: &[u8]) -> [u8; 32] {
    Sha256::digest(file).into()
}
