//! Model manifests. A manifest has a model's id, the location and digests of its files, and its default values. Each model has
//! a TOML file in `weights-manifest/`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::plan::MAX_STEPS;

/// A picture's size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    /// The width.
    pub width: u32,
    /// The height.
    pub height: u32,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl TryFrom<String> for Size {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl std::str::FromStr for Size {
    type Err = Error;
    /// Parses `WIDTHxHEIGHT`, both between 1 and 65535.
    fn from_str(text: &str) -> Result<Self> {
        let side = |s: &str| s.parse::<u16>().ok().filter(|&n| n > 0 && !s.starts_with('+')).map(u32::from);
        text.split_once('x')
            .and_then(|(w, h)| Some(Self { width: side(w)?, height: side(h)? }))
            .ok_or_else(|| Error::invalid("size", format!("must be WIDTHxHEIGHT in pixels, not {text:?}")))
    }
}

/// The default values of requests.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// The steps of the full plan.
    pub steps: usize,
    /// The guidance scale.
    pub guidance_scale: f32,
    /// The size. Without a manifest it is the denoiser's sample size.
    pub size: Size,
}

/// The sizes that a model can paint. Each side is a multiple of `grid` from `min` to `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SizeRange {
    /// The number of pixels that each side must be a multiple of.
    pub grid: u32,
    /// The shortest side.
    pub min: u32,
    /// The longest side.
    pub max: u32,
}

impl SizeRange {
    /// Refuses a size that the model cannot paint.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `size` and the possible sizes.
    pub fn check(&self, size: Size) -> Result<()> {
        let fits = |side: u32| (self.min..=self.max).contains(&side) && side.is_multiple_of(self.grid);
        if fits(size.width) && fits(size.height) {
            return Ok(());
        }
        let Self { grid, min, max } = self;
        Err(Error::invalid(
            "size",
            format!("{size} is not possible: both sides must be multiples of {grid} from {min} to {max}"),
        ))
    }
}

/// One model's manifest.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The model's id for `--model` and the API.
    pub id: String,
    /// A description of one line.
    pub description: String,
    /// The origin of the weights.
    pub source: String,
    /// The weights' licence, as an SPDX expression.
    pub licence: String,
    /// The id of the latent space. Models with the same id can resume each other's states.
    pub latent_space: String,
    /// The model's folder in diffusers' layout, relative to the manifest.
    pub folder: String,
    /// The folders of components (`vae`, `text_encoder_2`, …) that are not in the model's folder, relative to the manifest. They
    /// may be in another model's folder. Components with equal files are loaded once in any case.
    #[serde(default)]
    pub components: BTreeMap<String, String>,
    /// The folder of the network that embeds prompts for the cache, relative to the manifest. It is a CLIP text encoder's or a
    /// sentence-transformers model's. If absent, the model's own text tower embeds them.
    #[serde(default)]
    pub cache_embedder: Option<String>,
    /// The default values of requests.
    pub defaults: Defaults,
    /// The sizes that the model can paint.
    pub sizes: SizeRange,
    /// The SHA-256, in hex, of each file, by its path in the folder.
    pub files: BTreeMap<String, String>,
}

impl Manifest {
    /// Parses a manifest. Errors name it `name`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut manifest: Self = toml::from_str(text).map_err(|e| Error::config(name, e.to_string()))?;
        let wrong = |reason: &str| Err(Error::config(name, reason));
        for digest in manifest.files.values_mut() {
            digest.make_ascii_lowercase();
        }
        if manifest.files.is_empty() {
            return wrong("files: must name at least one file");
        }
        if manifest.sizes.grid == 0 {
            return wrong("sizes.grid: must be at least 1");
        }
        if !(1..=MAX_STEPS).contains(&manifest.defaults.steps) {
            return wrong("defaults.steps: must be between 1 and 1000");
        }
        if !(0.0..=100.0).contains(&manifest.defaults.guidance_scale) {
            return wrong("defaults.guidance_scale: must be between 0 and 100");
        }
        manifest.sizes.check(manifest.defaults.size).map_err(|e| Error::config(name, e.to_string()))?;
        Ok(manifest)
    }

    /// Reads a manifest from disk. Its files are relative to it.
    ///
    /// # Errors
    /// [`Error::Io`] and those of [`Manifest::parse`].
    pub fn open(path: &Path) -> Result<(Self, ModelFiles)> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let manifest = Self::parse(&path.display().to_string(), &text)?;
        let here = path.parent().unwrap_or(Path::new("."));
        let components = manifest.components.iter().map(|(name, folder)| (name.clone(), here.join(folder)));
        let files = ModelFiles::folder(here.join(&manifest.folder), manifest.files.clone())
            .with_components(components.collect());
        Ok((manifest, files))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_and_are_checked() {
        let size: Size = "64x96".parse().unwrap();
        assert_eq!((size.width, size.height), (64, 96));
        for bad in ["", "64", "0x64", "64x", "-1x64", "+64x64", "64X64", "65536x64", "64x64x64", "auto"] {
            assert!(bad.parse::<Size>().unwrap_err().to_string().starts_with("size:"), "{bad}");
        }
        let range = SizeRange { grid: 16, min: 32, max: 128 };
        assert!(range.check(size).is_ok());
        for bad in ["16x64", "64x144", "60x64"] {
            let message = range.check(bad.parse().unwrap()).unwrap_err().to_string();
            assert!(message.contains("multiples of 16 from 32 to 128"), "{message}");
        }
    }

    #[test]
    fn a_manifest_with_an_unknown_key_names_it() {
        let error = Manifest::parse("x.toml", "id = \"x\"\nlicense = \"MIT\"").unwrap_err().to_string();
        assert!(error.contains("x.toml") && error.contains("license"), "{error}");
    }
}
