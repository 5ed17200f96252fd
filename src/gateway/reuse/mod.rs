//! What a request need not have painted: stored pictures that answer it, and stored states that it goes on from.
//!
//! Nothing that goes wrong in here fails a request: it is painted from noise, and the failure is counted and logged.

mod embedding;
mod explain;
mod look_up;
mod place;
mod policy;
mod stored;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use pentimento_cache::{Cache, CacheError, Calibration, PolicyConfig, PolicyError};
use pentimento_pipelines::Pipeline;
use sha2::{Digest, Sha256};

use super::embedder::EmbedError;
use embedding::{Embeddings, ModelEmbedder};
use policy::LivePolicy;
use stored::Pause;

pub use look_up::Prepared;
pub use stored::StoredPicture;

/// How the gateway uses the cache.
#[derive(Debug, Clone)]
pub struct ReuseOptions {
    /// Whether prompts may be stored.
    pub store_prompt_text: bool,
    /// The shares of a plan after which states are kept.
    pub shares: Vec<f32>,
    /// Namespaces that all tenants share.
    pub shared_namespaces: BTreeSet<String>,
    /// How long a request waits for a look-up, and for a stored file.
    pub patience: Duration,
}

/// The cache with all that deciding needs.
pub struct Reuse {
    cache: Cache,
    /// Keys the hashes of prompts, of their words, and of specifications.
    secret: [u8; 16],
    models: HashMap<String, ModelEmbedder>,
    calibrations: Vec<Arc<Calibration>>,
    policy: RwLock<LivePolicy>,
    options: ReuseOptions,
    embeddings: Embeddings,
    pause: Mutex<Pause>,
}

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReuseError {
    /// A model's embedder.
    #[error("cache embedder: {0}")]
    Embed(#[from] EmbedError),
    /// The policy.
    #[error("reuse_policy: {0}")]
    Policy(#[from] PolicyError),
}

/// Why a prompt was not looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookUpError {
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The prompt has no embedding.
    #[error("embedding: {0}")]
    Embed(#[from] EmbedError),
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// The model is not one that the cache was opened for.
    #[error("the cache does not know the model {0:?}")]
    Model(String),
    /// The task was thrown away, or panicked.
    #[error("the look-up came to no end")]
    Lost,
}

impl Reuse {
    /// The cache for these models. `secret` keys the hashes that stand for prompts and must stay the same as long
    /// as the cache does.
    ///
    /// # Errors
    /// A model's embedder cannot be loaded, or there can be no such policy.
    pub fn new(
        cache: Cache,
        secret: [u8; 16],
        models: &[Pipeline],
        calibrations: Vec<Arc<Calibration>>,
        policy: PolicyConfig,
        options: ReuseOptions,
    ) -> Result<Self, ReuseError> {
        let models = models.iter().map(|model| Ok((model.id().to_owned(), ModelEmbedder::new(model)?)));
        let models = models.collect::<Result<_, EmbedError>>()?;
        let policy = RwLock::new(LivePolicy::new(policy, &calibrations, &secret)?);
        let (embeddings, pause) = (Embeddings::default(), Mutex::default());
        Ok(Self { cache, secret, models, calibrations, policy, options, embeddings, pause })
    }

    /// The cache itself.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The key of all hashes.
    pub fn secret(&self) -> &[u8; 16] {
        &self.secret
    }

    /// The reuse policy's configuration.
    pub fn policy(&self) -> PolicyConfig {
        self.policy.read().config.clone()
    }

    /// Decides by another policy from now on.
    ///
    /// # Errors
    /// [`PolicyError`], naming the setting; the old policy then stays.
    pub fn set_policy(&self, config: PolicyConfig) -> Result<(), PolicyError> {
        let policy = LivePolicy::new(config, &self.calibrations, &self.secret)?;
        *self.policy.write() = policy;
        Ok(())
    }

    /// The hash by which a prompt's entries are found, stored or not.
    pub fn prompt_hash(&self, prompt: &str) -> String {
        self.hash("prompt", prompt)
    }

    /// A name of the secret, which tells secrets apart and gives none away.
    pub(super) fn secret_name(&self) -> String {
        self.hash("secret", "")
    }

    /// A keyed hash: without the secret it does not tell whether a guessed text is right.
    pub(super) fn hash(&self, of: &str, text: &str) -> String {
        // What stands before the text has a fixed length or an end: no two inputs run together.
        let keyed =
            Sha256::new().chain_update(self.secret).chain_update(of).chain_update([0]).chain_update(text);
        let digest: [u8; 32] = keyed.finalize().into();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn model(&self, id: &str) -> Result<&ModelEmbedder, LookUpError> {
        self.models.get(id).ok_or_else(|| LookUpError::Model(id.to_owned()))
    }
}
