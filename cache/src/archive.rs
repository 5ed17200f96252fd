//! Export and import of a cache, or a part of one, as a tar archive.
//!
//! For each entry the archive has `ID/entry.json`, then `ID/picture.png` if its picture is stored, then its states as
//! `ID/TIMESTEP.safetensors`. An import does not use these names as paths. It gives each entry a new id, checks its files
//! as it would check stored ones, and writes them to the store.

use std::io::{Read, Write};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tar::{Archive, EntryType, Header};

use crate::cache::Cache;
use crate::config::CacheError;
use crate::entry::{Entry, EntryId};
use crate::index::{Filter, IndexError, check_embedding};
use crate::pending_picture::{PendingPicture, check_entry, check_file, new_id};
use crate::store::{MAX_PICTURE_BYTES, State, StateError, format, sha256};
use crate::writer::Command;

/// Version of `entry.json`. Raise it when [`Entry`] changes. Archives of other versions are refused.
const FORMAT: u32 = 2;
/// The largest `entry.json` that is read, in bytes.
const MAX_ENTRY: u64 = 4 << 20;
/// Entries read from the index at once.
const PAGE: usize = 64;

/// An error of an export or import.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Reading or writing the archive failed.
    #[error("archive: {0}")]
    Io(#[from] std::io::Error),
    /// The archive contains something that no export writes: another name, a link, a directory.
    #[error("archive: {name:?}: {why}")]
    Unexpected {
        /// The item's name in the archive.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A state or picture in the archive cannot be used.
    #[error("archive: {name:?}: {source}")]
    State {
        /// The file's name in the archive.
        name: String,
        /// What is wrong with it.
        source: StateError,
    },
    /// The archive is larger than allowed.
    #[error("archive: larger than {0} bytes")]
    TooLarge(u64),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<IndexError> for ArchiveError {
    fn from(error: IndexError) -> Self {
        Self::Cache(error.into())
    }
}

/// Counts of what an export or import moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Entries.
    pub entries: usize,
    /// Of these, the ones that an import skipped because the cache has as good or better pictures.
    pub duplicates: usize,
    /// Pictures' files.
    pub pictures: usize,
    /// States.
    pub states: usize,
    /// States and pictures that an export skipped because they could not be read.
    pub unreadable: usize,
}

/// The content of `entry.json`.
#[derive(Deserialize, Serialize)]
struct ArchivedEntry {
    format: u32,
    entry: Entry,
}

/// The version in `entry.json`, which is read first. Files of version 1 do not state it.
#[derive(Deserialize)]
struct ArchiveVersion {
    #[serde(default)]
    format: u32,
}

impl Cache {
    /// Writes the entries that match `filter`, with their files, as a tar archive. Writing to `out` may block, so this
    /// must run on a blocking thread, with `Handle::block_on`.
    ///
    /// # Errors
    /// The index or `out` fails. A file that cannot be read is skipped and counted.
    pub async fn export(&self, filter: &Filter, out: impl Write) -> Result<Moved, ArchiveError> {
        let mut archive = tar::Builder::new(out);
        let mut moved = Moved::default();
        let mut after: Option<EntryId> = None;
        loop {
            let page = self.entries(filter, after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            for entry in page {
                self.export_entry(entry, &mut archive, &mut moved).await?;
            }
        }
        archive.into_inner()?.flush()?;
        Ok(moved)
    }

    async fn export_entry(
        &self,
        mut entry: Entry,
        archive: &mut tar::Builder<impl Write>,
        moved: &mut Moved,
    ) -> Result<(), ArchiveError> {
        let store = &self.core().store;
        let mut states = Vec::with_capacity(entry.states.len());
        for kept in &entry.states {
            let state = store.read_uncached(&entry, kept.timestep).await;
            match state.and_then(|state| format::encode(&entry, &state)) {
                Ok(bytes) => states.push((kept.timestep, bytes)),
                Err(_) => moved.unreadable += 1,
            }
        }
        let file = match entry.picture_key() {
            Some(key) => store.read_picture_uncached(&key).await.inspect_err(|_| moved.unreadable += 1).ok(),
            None => None,
        };
        entry.states.retain(|kept| states.iter().any(|(timestep, _)| *timestep == kept.timestep));
        entry.picture = entry.picture.filter(|_| file.is_some());
        if entry.parts().next().is_none() {
            return Ok(());
        }
        let (id, created) = (entry.id.clone(), entry.created);
        let json =
            serde_json::to_vec(&ArchivedEntry { format: FORMAT, entry }).map_err(std::io::Error::from)?;
        append(archive, &entry_name(&id), created, &json)?;
        if let Some(file) = &file {
            append(archive, &picture_name(&id), created, file)?;
        }
        for (timestep, bytes) in &states {
            append(archive, &state_name(&id, *timestep), created, bytes)?;
        }
        moved.entries += 1;
        moved.pictures += usize::from(file.is_some());
        moved.states += states.len();
        Ok(())
    }

    /// Adds the entries of an archive that [`Self::export`] wrote. An entry replaces a worse picture of the same
    /// specification and is skipped if the stored one is as good or better. Reads at most `max_bytes`. Reading `input` may
    /// block, so this must run on a blocking thread, with `Handle::block_on`.
    ///
    /// # Errors
    /// The archive is truncated, too large, or contains anything that no export writes, or the cache fails. The entries
    /// before the fault stay in the cache, each of them complete.
    pub async fn import(&self, input: impl Read, max_bytes: u64) -> Result<Moved, ArchiveError> {
        // One byte beyond the bound can be read, so that an archive of exactly `max_bytes` passes.
        let mut archive = Archive::new(input.take(max_bytes.saturating_add(1)));
        let mut moved = Moved::default();
        let mut begun: Option<PendingPicture> = None;
        // In raw mode, long names and other extensions are items of their own kind, which are refused below. Otherwise
        // the library would read them into memory at any size that they claim.
        for file in archive.entries()?.raw(true) {
            let mut file = file?;
            if file.raw_file_position().saturating_add(file.size()) > max_bytes {
                return Err(ArchiveError::TooLarge(max_bytes));
            }
            let name = String::from_utf8_lossy(&file.path_bytes()).into_owned();
            if file.header().entry_type() != EntryType::Regular {
                return Err(unexpected(&name, "not a plain file"));
            }
            match &mut begun {
                None => begun = Some(read_entry(&mut file, &name)?),
                Some(picture) => read_part(&mut file, &name, picture)?,
            }
            if let Some(picture) = begun.take_if(|picture| is_complete(picture)) {
                moved.pictures += usize::from(picture.file.is_some());
                moved.states += picture.states.len();
                moved.entries += 1;
                moved.duplicates += usize::from(!self.import_picture(picture).await?);
            }
        }
        match begun {
            None => Ok(moved),
            Some(picture) => Err(unexpected(picture.entry.id.as_str(), "cut short")),
        }
    }

    /// Inserts an imported picture. Returns whether it was stored.
    async fn import_picture(&self, mut picture: PendingPicture) -> Result<bool, CacheError> {
        picture.entry.id = new_id()?;
        self.request(|reply| Command::Insert(Box::new(picture), None, Some(reply))).await
    }
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    created: u64,
    bytes: &[u8],
) -> std::io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o600);
    header.set_mtime(created);
    archive.append_data(&mut header, name, bytes)
}

fn entry_name(id: &EntryId) -> String {
    format!("{}/entry.json", id.as_str())
}

fn picture_name(id: &EntryId) -> String {
    format!("{}/picture.png", id.as_str())
}

fn state_name(id: &EntryId, timestep: f64) -> String {
    format!("{}/{timestep}.safetensors", id.as_str())
}

fn read_entry(file: &mut tar::Entry<'_, impl Read>, name: &str) -> Result<PendingPicture, ArchiveError> {
    let bytes = read_bounded(file, name, MAX_ENTRY)?;
    let ArchiveVersion { format } = serde_json::from_slice(&bytes).map_err(|why| unexpected(name, why))?;
    if format != FORMAT {
        let first = format.max(1);
        return Err(unexpected(name, format!("has format version {first}, this program reads {FORMAT}")));
    }
    let ArchivedEntry { entry, .. } = serde_json::from_slice(&bytes).map_err(|why| unexpected(name, why))?;
    if name != entry_name(&entry.id) {
        return Err(unexpected(name, "this is not the entry's name"));
    }
    check_embedding(&entry.embedding)?;
    check_entry(&entry).map_err(|why| unexpected(name, why))?;
    Ok(PendingPicture { file: None, states: Vec::with_capacity(entry.states.len()), entry, refresh: false })
}

/// Whether all files that the entry names have been read.
fn is_complete(picture: &PendingPicture) -> bool {
    picture.file.is_some() == picture.entry.picture.is_some()
        && picture.states.len() == picture.entry.states.len()
}

/// Reads the next file of an entry: its picture or its next state.
fn read_part(
    file: &mut tar::Entry<'_, impl Read>,
    name: &str,
    picture: &mut PendingPicture,
) -> Result<(), ArchiveError> {
    match picture.entry.picture_key().filter(|_| picture.file.is_none()) {
        None => {
            let state = read_state(file, name, picture)?;
            picture.states.push(state);
        }
        Some(key) => {
            if name != picture_name(&picture.entry.id) {
                return Err(unexpected(name, "not the picture that should follow"));
            }
            let bytes = read_bounded(file, name, MAX_PICTURE_BYTES)?;
            check_file(&bytes).map_err(|why| unexpected(name, why))?;
            if bytes.len() as u64 != key.bytes || sha256(&bytes) != *key.sha256() {
                return Err(ArchiveError::State { name: name.to_owned(), source: StateError::Damaged });
            }
            picture.file = Some(Bytes::from(bytes));
        }
    }
    Ok(())
}

fn read_state(
    file: &mut tar::Entry<'_, impl Read>,
    name: &str,
    picture: &PendingPicture,
) -> Result<State, ArchiveError> {
    let kept = picture.entry.states.get(picture.states.len());
    let kept = kept.ok_or_else(|| unexpected(name, "more than the entry names"))?;
    if name != state_name(&picture.entry.id, kept.timestep) {
        return Err(unexpected(name, "not the state that should follow"));
    }
    let bytes = read_bounded(file, name, format::MAX_BYTES)?;
    let state = format::decode(&bytes, &picture.entry, kept.timestep);
    state.map_err(|source| ArchiveError::State { name: name.to_owned(), source })
}

fn read_bounded(
    file: &mut tar::Entry<'_, impl Read>,
    name: &str,
    max_bytes: u64,
) -> Result<Vec<u8>, ArchiveError> {
    let size = file.size();
    if size > max_bytes {
        return Err(unexpected(name, "too large"));
    }
    // The vector grows with the bytes that are read, because the size in the header may be false.
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(unexpected(name, "cut short")) }
}

fn unexpected(name: &str, why: impl std::fmt::Display) -> ArchiveError {
    ArchiveError::Unexpected { name: name.to_owned(), why: why.to_string() }
}
