//! Whose states lie under a prefix. A sweep removes every state that its index does not name, so two caches
//! on one prefix would remove each other's: an object beside the states names the one index that may.
//!
//! The mark is there before the first state is. States without a mark are therefore never this index's, and
//! nobody here can tell whether somebody still wants them: they are not swept, the cache does not open.

use object_store::path::Path;
use object_store::{GetOptions, ObjectStoreExt, PutMode};

use super::{StateError, StateStore};

/// The object that names the index.
const MARK: &str = "owner";
/// Longest mark that is read, in bytes.
const MAX_MARK: u64 = 256;

/// Whose a prefix is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    Ours,
    /// Of the index of this name.
    Anothers(String),
    /// It holds states, and no mark.
    Nobodys,
}

impl StateStore {
    /// Marks the prefix as `index`'s, where nobody else has.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) async fn claim(&self, index: &str) -> Result<Claim, StateError> {
        if let Some(owner) = self.owner().await? {
            return Ok(of(owner, index));
        }
        if self.holds_files().await? {
            return Ok(Claim::Nobodys);
        }
        let path = self.mark();
        let create = self.objects.put_opts(&path, index.to_owned().into(), PutMode::Create.into());
        let created = tokio::time::timeout(self.time_limit, create).await.map_err(|_| StateError::Timeout)?;
        match created {
            // Somebody was quicker: who, is read below.
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
            // A store that cannot refuse to overwrite: the last of two who come at once has it.
            Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
                self.within(self.objects.put(&path, index.to_owned().into())).await?;
            }
            Err(error) => return Err(StateError::Store(error.to_string())),
        }
        self.owner().await?.map(|owner| of(owner, index)).ok_or(StateError::Missing)
    }

    fn mark(&self) -> Path {
        self.prefix.clone().join(MARK)
    }

    async fn owner(&self) -> Result<Option<String>, StateError> {
        let path = self.mark();
        let load = async {
            let found = self.objects.get_opts(&path, GetOptions::default()).await?;
            if found.meta.size > MAX_MARK {
                return Ok(None);
            }
            found.bytes().await.map(Some)
        };
        match self.within(load).await {
            Ok(Some(bytes)) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
            Ok(None) => Ok(Some("?".to_owned())),
            Err(StateError::Missing) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn of(owner: String, index: &str) -> Claim {
    if owner == index { Claim::Ours } else { Claim::Anothers(owner) }
}
