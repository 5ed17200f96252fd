//! The store: states and pictures as files in a directory or an object store, and the ones used last in memory.

pub mod format;
mod owner;
mod pictures;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};

pub use format::{State, StateError};
pub(crate) use owner::Claim;
pub use pictures::MAX_PICTURE_BYTES;
pub(crate) use pictures::sha256;

use crate::entry::{Entry, EntryId, Part};
use crate::recent::Recent;

/// The name of a picture's file in its entry's directory.
const PICTURE: &str = "picture.png";

/// Where states and pictures lie. Every operation ends within the time limit, whatever the store does.
pub struct StateStore {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    time_limit: Duration,
    /// The states used last, by entry and the bits of a timestep.
    memory: Recent<(EntryId, u64), State>,
    /// The pictures' files used last, by entry.
    pictures: Recent<EntryId, Bytes>,
}

impl StateStore {
    /// Files under `prefix` in `objects`. Up to `memory_bytes` of states and `picture_memory_bytes` of pictures are
    /// kept in memory.
    pub fn new(
        objects: Arc<dyn ObjectStore>,
        prefix: Path,
        memory_bytes: usize,
        picture_memory_bytes: usize,
        time_limit: Duration,
    ) -> Self {
        let memory = Recent::new(memory_bytes, State::bytes);
        let pictures = Recent::new(picture_memory_bytes, |file: &Bytes| file.len() + size_of::<Bytes>());
        Self { objects, prefix, time_limit, memory, pictures }
    }

    fn directory(&self, id: &EntryId) -> Path {
        self.prefix.clone().join(&id.as_str()[..2]).join(id.as_str())
    }

    fn path(&self, id: &EntryId, part: Part) -> Path {
        let directory = self.directory(id);
        match part {
            Part::Picture => directory.join(PICTURE),
            Part::State(timestep) => directory.join(format!("{timestep}.safetensors")),
        }
    }

    /// Writes a state, all of it or nothing, and returns its size in bytes.
    ///
    /// # Errors
    /// The state is none, or the store fails.
    pub async fn write(&self, entry: &Entry, state: &State) -> Result<u64, StateError> {
        let bytes = format::encode(entry, state)?;
        let length = bytes.len() as u64;
        let path = self.path(&entry.id, Part::State(state.timestep));
        self.within(self.objects.put(&path, bytes.into())).await?;
        Ok(length)
    }

    /// The state of an entry at a timestep, from memory or else from the store.
    ///
    /// # Errors
    /// See [`StateError`].
    pub async fn read(&self, entry: &Entry, timestep: f64) -> Result<Arc<State>, StateError> {
        if let Some(state) = self.cached(&entry.id, timestep) {
            return Ok(state);
        }
        let state = Arc::new(self.read_past_memory(entry, timestep).await?);
        self.memory.put(key(&entry.id, timestep), Arc::clone(&state));
        Ok(state)
    }

    /// The state as the store has it; memory does not keep it, nor forget others for it.
    ///
    /// # Errors
    /// See [`StateError`].
    pub async fn read_past_memory(&self, entry: &Entry, timestep: f64) -> Result<State, StateError> {
        let bytes = self.read_bytes(&entry.id, Part::State(timestep), format::MAX_BYTES).await?;
        format::decode(&bytes, entry, timestep)
    }

    /// A file of `most` bytes at most.
    async fn read_bytes(&self, id: &EntryId, part: Part, most: u64) -> Result<Bytes, StateError> {
        let path = self.path(id, part);
        let load = async {
            let found = self.objects.get_opts(&path, GetOptions::default()).await?;
            if found.meta.size > most {
                return Ok(None);
            }
            found.bytes().await.map(Some)
        };
        self.within(load).await?.ok_or(StateError::Foreign("larger than any such file"))
    }

    /// The state if it is in memory; waits for nothing.
    pub fn cached(&self, id: &EntryId, timestep: f64) -> Option<Arc<State>> {
        self.memory.get(&key(id, timestep))
    }

    /// Forgets what memory holds of an entry.
    pub fn forget(&self, entry: &Entry) {
        entry.parts().for_each(|part| self.forget_part(&entry.id, part));
    }

    /// Forgets what memory holds of a part of an entry.
    pub fn forget_part(&self, id: &EntryId, part: Part) {
        match part {
            Part::Picture => self.pictures.remove(id),
            Part::State(timestep) => self.memory.remove(&key(id, timestep)),
        }
    }

    /// Removes a file; that it is gone already is fine.
    ///
    /// # Errors
    /// The store fails.
    pub async fn remove(&self, id: &EntryId, part: Part) -> Result<(), StateError> {
        self.forget_part(id, part);
        match self.within(self.objects.delete(&self.path(id, part))).await {
            Err(StateError::Missing) => Ok(()),
            done => done,
        }
    }

    /// Removes every state and picture that is not wanted, and returns how many these were. Nothing may be written
    /// meanwhile. Files of other kinds stay.
    ///
    /// # Errors
    /// The store fails.
    pub async fn sweep(&self, wanted: impl Fn(&EntryId, Part) -> bool) -> Result<usize, StateError> {
        let mut files = self.objects.list(Some(&self.prefix));
        let mut swept = 0;
        while let Some(file) = self.within(files.try_next()).await? {
            let found = self.parse(&file.location);
            if let Some((id, part)) = found.filter(|(id, part)| !wanted(id, *part)) {
                self.remove(&id, part).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    async fn holds_files(&self) -> Result<bool, StateError> {
        let mut files = self.objects.list(Some(&self.prefix));
        while let Some(file) = self.within(files.try_next()).await? {
            if self.parse(&file.location).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where the files lie, for people.
    pub(crate) fn place(&self) -> String {
        format!("{}, prefix {:?}", self.objects, self.prefix.as_ref())
    }

    /// What a file is, by its name.
    fn parse(&self, path: &Path) -> Option<(EntryId, Part)> {
        let part = match path.filename()? {
            PICTURE => Part::Picture,
            state => Part::State(state.strip_suffix(".safetensors")?.parse().ok()?),
        };
        let parts: Vec<_> = path.parts().collect();
        let id = parts.get(parts.len().checked_sub(2)?)?.as_ref().to_owned();
        let id = EntryId::try_from(id).ok()?;
        (self.path(&id, part) == *path).then_some((id, part))
    }

    /// Bytes of states in memory.
    pub fn memory_bytes(&self) -> usize {
        self.memory.bytes()
    }

    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, object_store::Error>>,
    ) -> Result<T, StateError> {
        match tokio::time::timeout(self.time_limit, work).await {
            Err(_) => Err(StateError::Timeout),
            Ok(Err(object_store::Error::NotFound { .. })) => Err(StateError::Missing),
            Ok(Err(error)) => Err(StateError::Store(error.to_string())),
            Ok(Ok(done)) => Ok(done),
        }
    }
}

/// A state's place in memory.
fn key(id: &EntryId, timestep: f64) -> (EntryId, u64) {
    (id.clone(), timestep.to_bits())
}
