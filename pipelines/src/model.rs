//! Finding and loading a model: a manifest's, or any folder in diffusers' layout.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use candle_core::Device;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::manifest::{Defaults, Manifest, Size, SizeRange};
use crate::prompt_encoder::{Family, PromptEncoder};
use crate::schedule::NoiseSchedule;
use crate::text::{ClipTextConfig, ClipTextEncoder, ClipTokenizer};
use crate::unet::{UNet, UNetConfig};
use crate::vae::{Vae, VaeConfig};

/// A model that can be loaded.
#[derive(Debug, Clone)]
pub struct Model {
    id: String,
    files: ModelFiles,
    manifest: Option<Manifest>,
}

impl Model {
    /// The model that `--model` names: a built-in manifest's id, the path of a manifest (`….toml`), or
    /// the path of a folder in diffusers' layout, which is then called by its last part.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `model` where it is none of these; those of [`Manifest::open`].
    pub fn find(name: &str) -> Result<Self> {
        #[cfg(feature = "embedded-model")]
        {
            let (manifest, files) = crate::embedded::storybook()?;
            if manifest.id == name {
                return Ok(Self::with_manifest(manifest, files));
            }
        }
        let path = Path::new(name);
        if path.extension().is_some_and(|e| e == "toml") {
            let (manifest, files) = Manifest::open(path)?;
            return Ok(Self::with_manifest(manifest, files));
        }
        if path.join("model_index.json").is_file() {
            let full = path.canonicalize().map_err(|source| Error::Io { path: path.to_owned(), source })?;
            let id = full.file_name().map_or_else(|| name.to_owned(), |n| n.to_string_lossy().into_owned());
            return Ok(Self { id, files: ModelFiles::folder(full, Default::default()), manifest: None });
        }
        Err(Error::invalid(
            "model",
            format!(
                "{name:?} is neither a known model, nor a manifest, nor a folder with a model_index.json"
            ),
        ))
    }

    fn with_manifest(manifest: Manifest, files: ModelFiles) -> Self {
        Self { id: manifest.id.clone(), files, manifest: Some(manifest) }
    }

    /// What requests call it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its files, for parts that are not the engine's (classifier, image tower).
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// What it paints, in a line.
    pub fn description(&self) -> &str {
        self.manifest.as_ref().map_or("a folder in diffusers' layout", |m| &m.description)
    }

    /// Which models can resume its states: those of the same latent space.
    pub fn latent_space(&self) -> String {
        match &self.manifest {
            Some(manifest) => manifest.latent_space.clone(),
            None => self.files.component_key("vae"),
        }
    }
}

/// Components in memory, so that models which share one load it once, for as long as any of them lives.
#[derive(Debug, Default)]
pub struct Components {
    unets: Shared<UNet>,
    vaes: Shared<Vae>,
    text_encoders: Shared<ClipTextEncoder>,
}

#[derive(Debug)]
struct Shared<T>(Mutex<HashMap<String, Weak<T>>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Shared<T> {
    /// The lock is held while loading: two models that share a component must not both load it.
    fn get_or_load(&self, key: String, load: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut loaded = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(found) = loaded.get(&key).and_then(Weak::upgrade) {
            return Ok(found);
        }
        let fresh = Arc::new(load()?);
        loaded.retain(|_, weak| weak.strong_count() > 0);
        loaded.insert(key, Arc::downgrade(&fresh));
        Ok(fresh)
    }
}

/// A model's parts, loaded.
pub(crate) struct Loaded {
    pub unet: Arc<UNet>,
    pub vae: Arc<Vae>,
    pub prompts: PromptEncoder,
    pub schedule: NoiseSchedule,
    pub defaults: Defaults,
    pub sizes: SizeRange,
}

#[derive(Deserialize)]
struct ModelIndex {
    _class_name: String,
    #[serde(default)]
    force_zeros_for_empty_prompt: bool,
}

impl Loaded {
    pub(crate) fn new(model: &Model, components: &Components, device: &Device) -> Result<Self> {
        let files = &model.files;
        let index: ModelIndex = serde_json::from_slice(&files.require("model_index.json")?)
            .map_err(|e| Error::config("model_index.json", e.to_string()))?;
        let family = Family::from_class(&index._class_name)?;
        let unet = components.unets.get_or_load(files.component_key("unet"), || {
            let config = UNetConfig::from_json(&files.require("unet/config.json")?)?;
            UNet::new(config, files.weights("unet", "diffusion_pytorch_model", device)?)
        })?;
        let vae = components.vaes.get_or_load(files.component_key("vae"), || {
            let config = VaeConfig::from_json(&files.require("vae/config.json")?)?;
            Vae::new(config, files.weights("vae", "diffusion_pytorch_model", device)?)
        })?;
        let text = |suffix: &str| -> Result<_> {
            let (folder, tokenizer) = (format!("text_encoder{suffix}"), format!("tokenizer{suffix}"));
            let encoder = components.text_encoders.get_or_load(files.component_key(&folder), || {
                let config = ClipTextConfig::from_json(&files.require(&format!("{folder}/config.json"))?)?;
                ClipTextEncoder::new(config, files.weights(&folder, "model", device)?)
            })?;
            let tokenizer = ClipTokenizer::from_files(&|file| files.read(&format!("{tokenizer}/{file}")))?;
            Ok((tokenizer, encoder))
        };
        let mut towers = vec![text("")?];
        if family == Family::StableDiffusionXl {
            towers.push(text("_2")?);
        }
        let prompts = PromptEncoder::new(family, towers, index.force_zeros_for_empty_prompt);
        let schedule = NoiseSchedule::from_json(&files.require("scheduler/scheduler_config.json")?)?;
        let (defaults, sizes) = match &model.manifest {
            Some(manifest) => (manifest.defaults.clone(), manifest.sizes),
            None => usual_values(unet.config(), vae.config().spatial_factor()),
        };
        Ok(Self { unet, vae, prompts, schedule, defaults, sizes })
    }
}

/// For a folder without a manifest: diffusers' own defaults, and sizes around the denoiser's own.
fn usual_values(unet: &UNetConfig, factor: usize) -> (Defaults, SizeRange) {
    let (height, width) = unet.sample_size.unwrap_or((64, 64));
    let size = Size { width: (width * factor) as u32, height: (height * factor) as u32 };
    let grid = ((factor << unet.downsamples()) as u32).min(size.width).min(size.height);
    let sizes = SizeRange { grid, min: grid, max: 2 * size.width.max(size.height) };
    (Defaults { steps: 50, guidance_scale: 7.5, size }, sizes)
}
