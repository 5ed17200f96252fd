//! The store: states and pictures as files in a directory or an object store, with the recently used ones in memory.

pub mod format;
mod ownership;
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
pub(crate) use ownership::PrefixOwner;
pub use pictures::MAX_PICTURE_BYTES;
pub(crate) use pictures::sha256;

use crate::bounded_lru::BoundedLru;
use crate::entry::{Entry, EntryId, Part};

/// The name of a picture's file in its entry's directory.
const PICTURE_FILE: &str = "picture.png";

/// Reads and writes states and pictures. Every operation ends within the time limit, even if the object store hangs.
pub struct StateStore {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    time_limit: Duration,
    /// Recently used states, by entry and the bits of the timestep.
    states: BoundedLru<(EntryId, u64), State>,
    /// Recently used pictures' files, by entry.
    pictures: BoundedLru<EntryId, Bytes>,
}

impl StateStore {
    /// A store of the files under `prefix` in `objects`. It holds up to `memory_bytes` of states and
    /// `picture_memory_bytes` of pictures in memory. `time_limit` bounds each operation.
    pub fn new(
        objects: Arc<dyn ObjectStore>,
        prefix: Path,
        memory_bytes: usize,
        picture_memory_bytes: usize,
        time_limit: Duration,
    ) -> Self {
        let states = BoundedLru::new(memory_bytes, State::bytes);
        let pictures = BoundedLru::new(picture_memory_bytes, |file: &Bytes| file.len() + size_of::<Bytes>());
        Self { objects, prefix, time_limit, states, pictures }
    }

    fn directory(&self, id: &EntryId) -> Path {
        self.prefix.clone().join(&id.as_str()[..2]).join(id.as_str())
    }

    fn path(&self, id: &EntryId, part: Part) -> Path {
        let directory = self.directory(id);
        match part {
            Part::Picture => directory.join(PICTURE_FILE),
            Part::State(timestep) => directory.join(format!("{timestep}.safetensors")),
        }
    }

    /// Writes a state atomically and returns the file's size in bytes.
    ///
    /// # Errors
    /// The state is impossible, or the store fails.
    pub async fn write(&self, entry: &Entry, state: &State) -> Result<u64, StateError> {
        let bytes = format::encode(entry, state)?;
        let length = bytes.len() as u64;
        let path = self.path(&entry.id, Part::State(state.timestep));
        self.within_limit(self.objects.put(&path, bytes.into())).await?;
        Ok(length)
    }

    /// Returns the state of an entry at a timestep, from memory or else from the store.
    ///
    /// # Errors
    /// See [`StateError`].
    pub async fn read(&self, entry: &Entry, timestep: f64) -> Result<Arc<State>, StateError> {
        if let Some(state) = self.cached(&entry.id, timestep) {
            return Ok(state);
        }
        let state = Arc::new(self.read_uncached(entry, timestep).await?);
        self.states.put(key(&entry.id, timestep), Arc::clone(&state));
        Ok(state)
    }

    /// Reads a state from the store without using memory and without adding it there.
    ///
    /// # Errors
    /// See [`StateError`].
    pub async fn read_uncached(&self, entry: &Entry, timestep: f64) -> Result<State, StateError> {
        let bytes = self.read_bytes(&entry.id, Part::State(timestep), format::MAX_BYTES).await?;
        format::decode(&bytes, entry, timestep)
    }

    /// Reads a file of at most `max_bytes`.
    async fn read_bytes(&self, id: &EntryId, part: Part, max_bytes: u64) -> Result<Bytes, StateError> {
        let path = self.path(id, part);
        let load = async {
            let found = self.objects.get_opts(&path, GetOptions::default()).await?;
            if found.meta.size > max_bytes {
                return Ok(None);
            }
            found.bytes().await.map(Some)
        };
        self.within_limit(load).await?.ok_or(StateError::Foreign("larger than any such file"))
    }

    /// Returns the state if it is in memory. Does not block.
    pub fn cached(&self, id: &EntryId, timestep: f64) -> Option<Arc<State>> {
        self.states.get(&key(id, timestep))
    }

    /// Drops the files of an entry from memory.
    pub fn forget(&self, entry: &Entry) {
        entry.parts().for_each(|part| self.forget_part(&entry.id, part));
    }

    /// Drops one file of an entry from memory.
    pub fn forget_part(&self, id: &EntryId, part: Part) {
        match part {
            Part::Picture => self.pictures.remove(id),
            Part::State(timestep) => self.states.remove(&key(id, timestep)),
        }
    }

    /// Removes a file. A missing file is no error.
    ///
    /// # Errors
    /// The store fails.
    pub async fn remove(&self, id: &EntryId, part: Part) -> Result<(), StateError> {
        self.forget_part(id, part);
        match self.within_limit(self.objects.delete(&self.path(id, part))).await {
            Err(StateError::Missing) => Ok(()),
            done => done,
        }
    }

    /// Removes every state and picture that is not `wanted`, and returns their number. Files of other kinds stay. The
    /// caller must write nothing meanwhile.
    ///
    /// # Errors
    /// The store fails.
    pub async fn sweep(&self, wanted: impl Fn(&EntryId, Part) -> bool) -> Result<usize, StateError> {
        let mut files = self.objects.list(Some(&self.prefix));
        let mut swept = 0;
        while let Some(file) = self.within_limit(files.try_next()).await? {
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
        while let Some(file) = self.within_limit(files.try_next()).await? {
            if self.parse(&file.location).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The location of the files, for error messages.
    pub(crate) fn location(&self) -> String {
        format!("{}, prefix {:?}", self.objects, self.prefix.as_ref())
    }

    /// The entry and part that a file's path names; `None` for a path of another kind.
    fn parse(&self, path: &Path) -> Option<(EntryId, Part)> {
        let part = match path.filename()? {
            PICTURE_FILE => Part::Picture,
            state => Part::State(state.strip_suffix(".safetensors")?.parse().ok()?),
        };
        let parts: Vec<_> = path.parts().collect();
        let id = parts.get(parts.len().checked_sub(2)?)?.as_ref().to_owned();
        let id = EntryId::try_from(id).ok()?;
        (self.path(&id, part) == *path).then_some((id, part))
    }

    /// The bytes of all states in memory.
    pub fn memory_bytes(&self) -> usize {
        self.states.bytes()
    }

    /// Waits for an operation of the object store, within the time limit.
    async fn within_limit<T>(
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

/// The key of a state in memory.
fn key(id: &EntryId, timestep: f64) -> (EntryId, u64) {
    (id.clone(), timestep.to_bits())
}
