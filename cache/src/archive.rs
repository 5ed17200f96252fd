//! A cache, or a part of one, as one tar archive: of every entry `ID/entry.json`, then its states as
//! `ID/TIMESTEP.safetensors`. It moves a cache between deployments and versions.
//!
//! Names in an archive name nothing on a disk: an imported entry gets a name of its own, and its states are
//! written anew, after every check that a stored state has to pass.

use std::io::{Read, Write};

use serde::Serialize;
use tar::{Archive, EntryType, Header};

use crate::cache::Cache;
use crate::config::CacheError;
use crate::entry::{Entry, EntryId, Kept};
use crate::index::{Filter, IndexError, check_embedding};
use crate::picture::{MAX_STATES, Picture, new_id};
use crate::store::format;
use crate::store::{State, StateError};
use crate::writer::Work;

/// Longest entry that is read, in bytes.
const MAX_ENTRY: u64 = 4 << 20;
/// Entries read from the index at once.
const PAGE: usize = 64;

/// Why an archive cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Reading or writing the archive failed.
    #[error("archive: {0}")]
    Io(#[from] std::io::Error),
    /// Something in the archive that no export writes: another name, a link, a directory.
    #[error("archive: {name:?}: {why}")]
    Unexpected {
        /// Its name in the archive.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A state in the archive that cannot be used.
    #[error("archive: {name:?}: {source}")]
    State {
        /// Its name in the archive.
        name: String,
        /// What is wrong.
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

/// What an export or import moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Entries.
    pub entries: usize,
    /// States.
    pub states: usize,
    /// States left out of an export because they could not be read.
    pub unreadable: usize,
}

impl Cache {
    /// Writes the entries that `filter` means, with their states, as a tar archive. `out` may block: call it
    /// from a thread that may, with `Handle::block_on`.
    ///
    /// # Errors
    /// The index or `out` fails. A state that cannot be read is left out and counted.
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
        let mut files = Vec::with_capacity(entry.states.len());
        for kept in &entry.states {
            let state = self.shared().store.read_past_memory(&entry, kept.timestep).await;
            match state.and_then(|state| format::encode(&entry, &state)) {
                Ok(bytes) => files.push((kept.timestep, bytes)),
                Err(_) => moved.unreadable += 1,
            }
        }
        entry.states.retain(|kept| files.iter().any(|(timestep, _)| *timestep == kept.timestep));
        if files.is_empty() {
            return Ok(());
        }
        let json = serde_json::to_vec(&entry).map_err(std::io::Error::from)?;
        append(archive, &format!("{}/entry.json", entry.id.as_str()), entry.created, &json)?;
        for (timestep, bytes) in &files {
            append(archive, &state_name(&entry.id, *timestep), entry.created, bytes)?;
        }
        moved.entries += 1;
        moved.states += files.len();
        Ok(())
    }

    /// Adds the entries of an archive that [`Self::export`] wrote, in place of older entries of the same
    /// pictures. Reads `max_bytes` at most. `input` may block: call it from a thread that may, with
    /// `Handle::block_on`.
    ///
    /// # Errors
    /// The archive is cut short, too large, or holds anything that no export writes; the cache fails. The
    /// entries before the fault are kept, each whole.
    pub async fn import(&self, input: impl Read, max_bytes: u64) -> Result<Moved, ArchiveError> {
        // One byte more, so that reaching the bound shows.
        let mut archive = Archive::new(input.take(max_bytes.saturating_add(1)));
        let mut moved = Moved::default();
        let mut begun: Option<Picture> = None;
        // Raw: long names and other extensions come as files of their own kind, which are refused, instead
        // of being read into memory at whatever size they claim.
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
                Some(picture) => picture.states.push(read_state(&mut file, &name, picture)?),
            }
            if let Some(picture) = begun.take_if(|picture| picture.states.len() == picture.entry.states.len())
            {
                moved.states += picture.states.len();
                moved.entries += 1;
                self.import_picture(picture).await?;
            }
        }
        match begun {
            None => Ok(moved),
            Some(picture) => Err(unexpected(picture.entry.id.as_str(), "cut short")),
        }
    }

    async fn import_picture(&self, mut picture: Picture) -> Result<(), CacheError> {
        picture.entry.id = new_id()?;
        self.ask(|reply| Work::Insert(Box::new(picture), None, Some(reply))).await
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

fn state_name(id: &EntryId, timestep: f64) -> String {
    format!("{}/{timestep}.safetensors", id.as_str())
}

fn read_entry(file: &mut tar::Entry<'_, impl Read>, name: &str) -> Result<Picture, ArchiveError> {
    let bytes = read_bounded(file, name, MAX_ENTRY)?;
    let entry: Entry = serde_json::from_slice(&bytes).map_err(|why| unexpected(name, why))?;
    if name != format!("{}/entry.json", entry.id.as_str()) {
        return Err(unexpected(name, "not the entry's name"));
    }
    check_embedding(&entry.embedding)?;
    let timesteps: Vec<f64> = entry.states.iter().map(|kept| kept.timestep).collect();
    let ordered = timesteps.windows(2).all(|pair| pair[0] > pair[1]);
    if timesteps.is_empty() || timesteps.len() > MAX_STATES || !ordered {
        return Err(unexpected(name, "states missing, too many or out of order"));
    }
    if !entry.guidance_scale.is_finite() || !are_shares(&entry.states) {
        return Err(unexpected(name, "a guidance scale or a share that is none"));
    }
    Ok(Picture { states: Vec::with_capacity(timesteps.len()), entry })
}

fn are_shares(states: &[Kept]) -> bool {
    states.iter().all(|kept| (0.0..=1.0).contains(&kept.share))
}

fn read_state(
    file: &mut tar::Entry<'_, impl Read>,
    name: &str,
    picture: &Picture,
) -> Result<State, ArchiveError> {
    let kept = &picture.entry.states[picture.states.len()];
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
    most: u64,
) -> Result<Vec<u8>, ArchiveError> {
    let size = file.size();
    if size > most {
        return Err(unexpected(name, "too large"));
    }
    // Not allocated by what the header claims, but by what comes.
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(unexpected(name, "cut short")) }
}

fn unexpected(name: &str, why: impl std::fmt::Display) -> ArchiveError {
    ArchiveError::Unexpected { name: name.to_owned(), why: why.to_string() }
}
