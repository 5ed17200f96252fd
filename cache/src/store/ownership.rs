//! The ownership of a prefix. An object beside the files names the one index that they belong to.
//!
//! A sweep removes every file that its index does not name. Two caches under one prefix would therefore remove each
//! other's files, so a cache opens only a prefix that its own index owns. The object is written before the first file.
//! Files without it belong to an unknown cache: the cache does not open there, and nothing is removed.

use object_store::path::Path;
use object_store::{GetOptions, ObjectStoreExt, PutMode};

use super::{StateError, StateStore};

/// The name of the object that names the index.
const OWNER_OBJECT: &str = "owner";
/// The largest such object that is read, in bytes.
const MAX_OWNER_BYTES: u64 = 256;

/// The owner of a prefix.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PrefixOwner {
    /// This cache's index.
    ThisIndex,
    /// Another index, of this name.
    OtherIndex(String),
    /// Unknown: the prefix holds files but no owner object.
    Unknown,
}

impl StateStore {
    /// Makes `index` the owner of the prefix if the prefix is empty, and returns the owner.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) async fn claim(&self, index: &str) -> Result<PrefixOwner, StateError> {
        if let Some(owner) = self.owner().await? {
            return Ok(compare(owner, index));
        }
        if self.holds_files().await? {
            return Ok(PrefixOwner::Unknown);
        }
        let path = self.owner_path();
        let create = self.objects.put_opts(&path, index.to_owned().into(), PutMode::Create.into());
        let created = tokio::time::timeout(self.time_limit, create).await.map_err(|_| StateError::Timeout)?;
        match created {
            // If another cache was faster, the read below returns its name.
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
            // This store cannot refuse to overwrite. Of two caches that claim the prefix at once, the last one wins.
            Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
                self.within_limit(self.objects.put(&path, index.to_owned().into())).await?;
            }
            Err(error) => return Err(StateError::Store(error.to_string())),
        }
        self.owner().await?.map(|owner| compare(owner, index)).ok_or(StateError::Missing)
    }

    fn owner_path(&self) -> Path {
        self.prefix.clone().join(OWNER_OBJECT)
    }

    async fn owner(&self) -> Result<Option<String>, StateError> {
        let path = self.owner_path();
        let load = async {
            let found = self.objects.get_opts(&path, GetOptions::default()).await?;
            if found.meta.size > MAX_OWNER_BYTES {
                return Ok(None);
            }
            found.bytes().await.map(Some)
        };
        match self.within_limit(load).await {
            Ok(Some(bytes)) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
            Ok(None) => Ok(Some("?".to_owned())),
            Err(StateError::Missing) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn compare(owner: String, index: &str) -> PrefixOwner {
    if owner == index { PrefixOwner::ThisIndex } else { PrefixOwner::OtherIndex(owner) }
}
