//! Finding and loading models, by manifest or from any folder in diffusers' layout.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use candle_core::Device;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::manifest::{Defaults, Manifest, Size, SizeRange};
use crate::precision::Precision;
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
    cache_embedder: Option<PathBuf>,
    /// Computed once, because reading a large model's files takes seconds.
    digest: Arc<OnceLock<String>>,
}

impl Model {
    /// The model that `--model` names: the id of a built-in manifest, the path of a manifest (`….toml`), or the path of a folder
    /// in diffusers' layout, whose last part becomes the model's id.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `model`, if it is none of these, and those of [`Manifest::open`].
    pub fn find(name: &str) -> Result<Self> {
        #[cfg(feature = "embedded-model")]
        {
            let (manifest, files) = crate::embedded::storybook()?;
            if manifest.id == name {
                return Ok(Self::with_manifest(manifest, files, Path::new("")));
            }
        }
        let path = Path::new(name);
        if path.extension().is_some_and(|e| e == "toml") {
            let (manifest, files) = Manifest::open(path)?;
            return Ok(Self::with_manifest(manifest, files, path.parent().unwrap_or(Path::new(""))));
        }
        if path.join("model_index.json").is_file() {
            let full = path.canonicalize().map_err(|source| Error::Io { path: path.to_owned(), source })?;
            let id = full.file_name().map_or_else(|| name.to_owned(), |n| n.to_string_lossy().into_owned());
            let files = ModelFiles::folder(full, Default::default());
            return Ok(Self { id, files, manifest: None, cache_embedder: None, digest: Arc::default() });
        }
        Err(Error::invalid(
            "model",
            format!(
                "{name:?} is neither a known model, nor a manifest, nor a folder with a model_index.json"
            ),
        ))
    }

    fn with_manifest(manifest: Manifest, files: ModelFiles, here: &Path) -> Self {
        let cache_embedder = manifest.cache_embedder.as_ref().map(|folder| here.join(folder));
        let id = manifest.id.clone();
        Self { id, files, manifest: Some(manifest), cache_embedder, digest: Arc::default() }
    }

    /// The model's id in requests.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The model's files, for components that the engine does not use (classifier, image tower).
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// The folder of the network that embeds this model's prompts for the cache; `None` if the model's own text tower does.
    pub fn cache_embedder(&self) -> Option<&Path> {
        self.cache_embedder.as_deref()
    }

    /// The id of the latent space: the manifest's value, or without a manifest a digest of the VAE.
    ///
    /// # Errors
    /// Those of [`ModelFiles::digest`].
    pub fn latent_space(&self) -> Result<String> {
        if let Some(manifest) = &self.manifest {
            return Ok(manifest.latent_space.clone());
        }
        let mut names = self.files.weight_files("vae", "diffusion_pytorch_model")?;
        names.push("vae/config.json".to_owned());
        self.files.digest(&names)
    }

    /// A digest of all files that decide the model's pictures. Without a manifest this reads the files.
    ///
    /// # Errors
    /// Those of [`ModelFiles::digest`].
    pub fn digest(&self) -> Result<&str> {
        if let Some(digest) = self.digest.get() {
            return Ok(digest);
        }
        let mut names = vec!["model_index.json".to_owned(), "scheduler/scheduler_config.json".to_owned()];
        for part in ["unet", "vae", "text_encoder", "text_encoder_2"] {
            let stem = if part.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
            names.extend(self.files.weight_files(part, stem)?);
            names.push(format!("{part}/config.json"));
        }
        for tokenizer in ["tokenizer", "tokenizer_2"] {
            names.extend(ClipTokenizer::FILES.map(|file| format!("{tokenizer}/{file}")));
        }
        let digest = self.files.digest(&names)?;
        Ok(self.digest.get_or_init(|| digest))
    }

    /// A description of one line.
    pub fn description(&self) -> &str {
        self.manifest.as_ref().map_or("a folder in diffusers' layout", |m| &m.description)
    }
}

/// The loaded components of all models. Models that share a component load it once. A component is dropped with its last
/// model. All components have the same precision.
#[derive(Debug, Default)]
pub struct Components {
    precision: Precision,
    unets: SharedComponents<UNet>,
    vaes: SharedComponents<Vae>,
    text_encoders: SharedComponents<ClipTextEncoder>,
}

impl Components {
    /// The precision of the weights.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// No components yet; later ones have this precision.
    pub fn of(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }
}

/// Components of one type, by the key of their content.
#[derive(Debug)]
struct SharedComponents<T>(Mutex<HashMap<String, Weak<T>>>);

impl<T> Default for SharedComponents<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> SharedComponents<T> {
    /// Returns a component, and loads it if necessary. The lock is held while loading, so that two models do not load the same
    /// component at once.
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

/// The loaded parts of a model.
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
    /// For SDXL; an absent key means true, as in diffusers.
    force_zeros_for_empty_prompt: Option<bool>,
}

impl Loaded {
    pub(crate) fn new(model: &Model, components: &Components, device: &Device) -> Result<Self> {
        let files = &model.files;
        let precision = components.precision;
        if precision != Precision::F32 && !device.is_cpu() {
            return Err(Error::invalid(
                "precision",
                format!("{precision} is for the CPU, not for {device:?}"),
            ));
        }
        let weights = |component: &str| -> Result<_> {
            let weights = files.weights(component, "diffusion_pytorch_model", device)?;
            Ok(weights.set_dtype(precision.dtype()))
        };
        let index: ModelIndex = serde_json::from_slice(&files.require("model_index.json")?)
            .map_err(|e| Error::config("model_index.json", e.to_string()))?;
        let family = Family::from_class(&index._class_name)?;
        let unet = components.unets.get_or_load(files.component_key("unet"), || {
            let config = UNetConfig::from_json(&files.require("unet/config.json")?)?;
            UNet::new(config, weights("unet")?)
        })?;
        let vae = components.vaes.get_or_load(files.component_key("vae"), || {
            let config = VaeConfig::from_json(&files.require("vae/config.json")?)?;
            Vae::new(config, weights("vae")?)
        })?;
        let text = |suffix: &str| -> Result<_> {
            let (folder, tokenizer) = (format!("text_encoder{suffix}"), format!("tokenizer{suffix}"));
            let encoder = components.text_encoders.get_or_load(files.component_key(&folder), || {
                let file = format!("{folder}/config.json");
                let config = ClipTextConfig::from_json(&file, &files.require(&file)?)?;
                ClipTextEncoder::new(config, files.weights(&folder, "model", device)?)
            })?;
            let tokenizer = ClipTokenizer::from_files(&|file| files.read(&format!("{tokenizer}/{file}")))?;
            Ok((tokenizer, encoder))
        };
        let mut towers = vec![text("")?];
        if family == Family::StableDiffusionXl {
            towers.push(text("_2")?);
        }
        check_fit(unet.config(), vae.config(), &towers)?;
        let prompts = PromptEncoder::new(family, towers, index.force_zeros_for_empty_prompt.unwrap_or(true));
        let schedule = NoiseSchedule::from_json(&files.require("scheduler/scheduler_config.json")?)?;
        let (defaults, sizes) = match &model.manifest {
            Some(manifest) => (manifest.defaults.clone(), manifest.sizes),
            None => default_values(unet.config(), vae.config().spatial_factor()),
        };
        Ok(Self { unet, vae, prompts, schedule, defaults, sizes })
    }
}

/// Refuses components that do not fit together, which would otherwise fail in the first step.
fn check_fit(
    unet: &UNetConfig,
    vae: &VaeConfig,
    towers: &[(ClipTokenizer, Arc<ClipTextEncoder>)],
) -> Result<()> {
    let wrong = |file: &str, reason: String| Err(Error::config(file, reason));
    let (latent, pixels) = (vae.latent_channels, 3);
    if (unet.in_channels, unet.out_channels) != (latent, latent) {
        let both = format!("{} and {}", unet.in_channels, unet.out_channels);
        return wrong(
            "unet/config.json",
            format!("in_channels and out_channels are {both}, the VAE's latents have {latent}"),
        );
    }
    if (vae.in_channels, vae.out_channels) != (pixels, pixels) {
        return wrong("vae/config.json", "in_channels and out_channels must be 3 (RGB)".into());
    }
    let width: usize = towers.iter().map(|(_, tower)| tower.config().hidden_size).sum();
    if let Some(other) = unet.stages.iter().map(|s| s.token_width).find(|w| *w != width) {
        return wrong(
            "unet/config.json",
            format!("cross_attention_dim is {other}, the text encoder's states have {width}"),
        );
    }
    for (tokenizer, tower) in towers {
        let (tokens, most) = (tokenizer.max_length(), tower.config().max_position_embeddings);
        if tokens > most {
            return wrong(
                "tokenizer/tokenizer_config.json",
                format!("model_max_length is {tokens}, the text encoder takes {most}"),
            );
        }
    }
    Ok(())
}

/// The values of a folder without a manifest: diffusers' defaults, and sizes up to the denoiser's sample size.
fn default_values(unet: &UNetConfig, factor: usize) -> (Defaults, SizeRange) {
    let (height, width) = unet.sample_size.unwrap_or((64, 64));
    let size = Size { width: (width * factor) as u32, height: (height * factor) as u32 };
    let whole = (factor << unet.downsamples()) as u32;
    let fits = size.width.is_multiple_of(whole) && size.height.is_multiple_of(whole);
    let grid = if fits { whole } else { factor as u32 };
    let sizes = SizeRange { grid, min: grid, max: size.width.max(size.height) };
    (Defaults { steps: 50, guidance_scale: 7.5, size }, sizes)
}
