//! The cache as the configuration describes it, opened for the models at hand.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use etcetera::BaseStrategy;
use pentimento_cache::{Cache, CacheConfig, Calibration, Filter, PolicyConfig, eviction_policy};
use pentimento_pipelines::Pipeline;

use super::calibrate::{checked, tables_of};
use super::{Failure, policy_json};
use crate::config::Config;
use crate::gateway::{Reuse, ReuseOptions};
use crate::worker::Stored;

/// The file in the cache's directory that keys its hashes.
const SECRET: &str = "secret";
/// The file that says which weights each model's pictures were painted with.
const WEIGHTS: &str = "weights.json";

/// Where the cache lies: where the configuration says, or in the platform's cache directory.
///
/// # Errors
/// [`Failure::Misuse`], where the platform has none.
pub fn cache_directory(config: &Config) -> Result<PathBuf, Failure> {
    if !config.cache_dir.as_os_str().is_empty() {
        return Ok(config.cache_dir.clone());
    }
    match etcetera::choose_base_strategy() {
        Ok(platform) => Ok(platform.cache_dir().join("pentimento").join("cache")),
        Err(error) => Err(Failure::Misuse(anyhow!("cache_dir: {error}; give --cache-dir"))),
    }
}

/// Opens the cache in a directory.
///
/// # Errors
/// [`Failure`], naming the key of the configuration, or the directory.
pub async fn open_cache(config: &Config, dir: &Path, models: &[Pipeline]) -> Result<Reuse, Failure> {
    let eviction = eviction_policy(&config.eviction_policy).ok_or_else(|| {
        let name = &config.eviction_policy;
        Failure::Misuse(anyhow!("eviction_policy: {name:?} is none of lcbfu, lru, lfu, fifo"))
    })?;
    let mut calibrations = Vec::new();
    for file in &config.calibration {
        calibrations.push(Arc::new(read_calibration(file, models).map_err(Failure::Misuse)?));
    }
    for model in models {
        // A table that was given goes before the model's own.
        match tables_of(model) {
            Ok(own) => calibrations.extend(own.into_iter().map(Arc::new)),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "a model's own calibration is not used")
            }
        }
    }
    let policy = parse_policy(&config.reuse_policy, !calibrations.is_empty()).map_err(Failure::Misuse)?;
    let open = CacheConfig {
        states: Some(config.cache_states.clone()).filter(|url| !url.is_empty()),
        memory_bytes: config.cache_memory_bytes,
        picture_memory_bytes: config.cache_picture_memory_bytes,
        max_bytes: config.cache_max_bytes,
        max_entries: config.cache_max_entries,
        lifetime: Some(config.cache_lifetime_seconds).filter(|s| *s > 0).map(Duration::from_secs),
        queue: config.cache_queue_length,
        eviction,
        store_prompt_text: config.store_prompt_text,
        ..CacheConfig::new(dir)
    };
    let cache = Cache::open(open).context("cannot open the cache; --cache-dir names another directory")?;
    let secret = secret(&dir.join(SECRET))?;
    forget_former_weights(&cache, &dir.join(WEIGHTS), models).await?;
    let options = ReuseOptions {
        store_prompt_text: config.store_prompt_text,
        shares: config.cache_shares.clone(),
        shared_namespaces: config.shared_namespaces.iter().cloned().collect(),
        patience: Duration::from_millis(config.cache_timeout_ms),
    };
    Ok(Reuse::new(cache, secret, models, calibrations, policy, options)?)
}

/// The cache as the workers use it.
pub fn stored(config: &Config, reuse: &Reuse) -> Stored {
    Stored::new(reuse.cache().clone(), Duration::from_millis(config.cache_timeout_ms))
}

/// A table that the configuration names, measured of the weights of one of these models.
fn read_calibration(file: &Path, models: &[Pipeline]) -> anyhow::Result<Calibration> {
    let context = || format!("calibration: {}", file.display());
    let text = std::fs::read_to_string(file).with_context(context)?;
    let model = Calibration::from_json(&text).with_context(context)?.measured_for.model;
    let model = models.iter().find(|known| known.id() == model);
    let model = model.ok_or_else(|| anyhow!("it was measured of a model that is not served"));
    checked(&text, model.with_context(context)?).with_context(context)
}

/// Forgets the pictures of models whose weights are others now than when this was last asked: no stored state or picture
/// of theirs serves what the name stands for now.
async fn forget_former_weights(cache: &Cache, file: &Path, models: &[Pipeline]) -> anyhow::Result<()> {
    let known = std::fs::read(file).ok().and_then(|json| serde_json::from_slice(&json).ok());
    let mut known: BTreeMap<String, String> = known.unwrap_or_default();
    for model in models {
        let weights = model.model().digest()?;
        let before = known.insert(model.id().to_owned(), weights.to_owned());
        if before.is_some_and(|before| before != weights) {
            let filter = Filter { model: Some(model.id().to_owned()), ..Filter::default() };
            let pictures = cache.purge(filter).await?;
            tracing::warn!(
                model = model.id(),
                pictures,
                "the model has other weights: its pictures are forgotten"
            );
        }
    }
    write_whole(file, &serde_json::to_vec(&known)?)
}

/// Writes a file for its owner's eyes, all of it or nothing.
fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let context = || path.display().to_string();
    let unfinished = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&unfinished).with_context(context)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(context)?;
    std::fs::rename(&unfinished, path).with_context(context)
}

/// A policy's name, or a policy with its settings.
fn parse_policy(text: &str, calibrated: bool) -> anyhow::Result<PolicyConfig> {
    let text = match text.trim() {
        "auto" if calibrated => "combined",
        "auto" => "exact",
        text => text,
    };
    policy_json(text).and_then(serde_json::from_value).context("reuse_policy")
}

/// The secret that lies beside the cache; made anew for a new cache. Holding the cache's lock, nobody else makes one.
fn secret(path: &Path) -> anyhow::Result<[u8; 16]> {
    let context = || format!("{}", path.display());
    match std::fs::read(path) {
        Ok(bytes) => match bytes.try_into() {
            Ok(secret) => Ok(secret),
            Err(_) => bail!("{}: must hold 16 bytes; where it is lost, so is the cache", path.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut secret = [0; 16];
            getrandom::fill(&mut secret)?;
            write_whole(path, &secret)?;
            Ok(secret)
        }
        Err(error) => Err(error).with_context(context),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_a_name_or_a_name_with_settings() {
        let name = |text: &str, calibrated| {
            let policy = parse_policy(text, calibrated)?;
            anyhow::Ok(serde_json::to_value(policy)?["policy"].as_str().unwrap_or_default().to_owned())
        };
        assert_eq!(name("auto", true).unwrap(), "combined");
        assert_eq!(name("auto", false).unwrap(), "exact");
        assert_eq!(name("nirvana", false).unwrap(), "nirvana");
        assert_eq!(name(r#"{"policy":"semantic","threshold":0.9}"#, false).unwrap(), "semantic");
        for wrong in ["telepathy", r#"{"policy":"semantic","treshold":0.9}"#, "{"] {
            let error = format!("{:#}", name(wrong, true).unwrap_err());
            assert!(error.starts_with("reuse_policy: "), "{error}");
        }
    }

    #[test]
    fn a_secret_stays() {
        let folder = std::env::temp_dir().join(format!("pentimento-secret-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(SECRET);
        let first = secret(&path).unwrap();
        assert_eq!(secret(&path).unwrap(), first);
        assert_ne!(first, [0; 16]);
        std::fs::write(&path, "short").unwrap();
        assert!(secret(&path).unwrap_err().to_string().contains("16 bytes"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
