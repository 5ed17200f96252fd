//! A cache, or a part of one, as one file that goes from deployment to deployment.
//!
//! In front of what `pentimento_cache` writes stands a head that says under which secret the entries' hashes were
//! made. Under another secret no prompt would ever match one of them, be it for reuse or to be purged.

use std::io::{Read, Write};

use pentimento_cache::{ArchiveError, Filter, Moved};
use serde::{Deserialize, Serialize};
use tar::{EntryType, Header};

use super::Reuse;

/// The head's name in the archive.
const HEAD: &str = "pentimento.json";
/// A tar file's block. The head is two: its header, and its content.
const BLOCK: usize = 512;
const VERSION: u32 = 1;

#[derive(Deserialize, Serialize)]
struct Head {
    version: u32,
    secret: String,
}

/// Why an archive cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// It does not begin as an export does.
    #[error("not an archive of a cache: {0}")]
    Foreign(&'static str),
    /// Of another version.
    #[error("the archive has version {0}, this server reads {VERSION}")]
    Version(u32),
    /// Of a cache whose hashes are keyed otherwise.
    #[error(
        "the archive was made under another secret: before its first start, give this server's cache directory \
         the file \"secret\" of the cache that was exported"
    )]
    Secret,
    /// Its content, or the cache.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl From<std::io::Error> for MoveError {
    fn from(error: std::io::Error) -> Self {
        Self::Archive(error.into())
    }
}

impl Reuse {
    /// Writes the entries that `filter` means, with their states, as one archive. `out` may block: call it from a
    /// thread that may, with `Handle::block_on`.
    ///
    /// # Errors
    /// The cache or `out` fails.
    pub async fn export(&self, filter: &Filter, mut out: impl Write) -> Result<Moved, MoveError> {
        let head = Head { version: VERSION, secret: self.secret_name() };
        let json = serde_json::to_vec(&head).map_err(std::io::Error::from)?;
        let mut header = Header::new_ustar();
        header.set_path(HEAD)?;
        header.set_size(json.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        out.write_all(header.as_bytes())?;
        let mut block = [0; BLOCK];
        // Two numbers and a hash: less than a block.
        block.iter_mut().zip(&json).for_each(|(to, from)| *to = *from);
        out.write_all(&block)?;
        Ok(self.cache().export(filter, out).await?)
    }

    /// Adds the entries of an archive that [`Self::export`] wrote under the same secret. Reads `max_bytes` behind
    /// its head at most. `input` may block: call it from a thread that may, with `Handle::block_on`.
    ///
    /// # Errors
    /// [`MoveError`]; the entries before the fault are kept, each whole.
    pub async fn import(&self, mut input: impl Read, max_bytes: u64) -> Result<Moved, MoveError> {
        let head = read_head(&mut input)?;
        if head.version != VERSION {
            return Err(MoveError::Version(head.version));
        }
        if head.secret != self.secret_name() {
            return Err(MoveError::Secret);
        }
        Ok(self.cache().import(input, max_bytes).await?)
    }
}

fn read_head(input: &mut impl Read) -> Result<Head, MoveError> {
    let mut header = Header::new_old();
    let mut block = [0; BLOCK];
    let read = input.read_exact(header.as_mut_bytes()).and_then(|()| input.read_exact(&mut block));
    read.map_err(|_| MoveError::Foreign("it is too short"))?;
    let is_head =
        header.path_bytes().as_ref() == HEAD.as_bytes() && header.entry_type() == EntryType::Regular;
    let size = header.entry_size().ok().and_then(|size| usize::try_from(size).ok());
    match size.and_then(|size| block.get(..size)) {
        Some(json) if is_head => {
            serde_json::from_slice(json).map_err(|_| MoveError::Foreign("its head is damaged"))
        }
        _ => Err(MoveError::Foreign("it does not begin with pentimento.json")),
    }
}
