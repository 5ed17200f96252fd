//! Model manifests: what a model is called, where its files lie, which bytes they must be, and the
//! values it paints best with. One TOML per model in `weights-manifest/`.

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
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
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

/// The values a model paints best with, used where a request gives none.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Steps of a full plan.
    pub steps: usize,
    /// Guidance scale.
    pub guidance_scale: f32,
    /// Size; a folder without a manifest takes the denoiser's sample size.
    pub size: Size,
}

/// The sizes a model can paint: every multiple of `grid` between `min` and `max`, each side for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SizeRange {
    /// Pixels a side must be a multiple of.
    pub grid: u32,
    /// The shortest side.
    pub min: u32,
    /// The longest side.
    pub max: u32,
}

impl SizeRange {
    /// Whether a size can be painted.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `size` and what would do.
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
    /// What `--model` and the API call it.
    pub id: String,
    /// What it paints, in a line.
    pub description: String,
    /// Where the weights come from.
    pub source: String,
    /// Their licence, as an SPDX expression.
    pub licence: String,
    /// The latent space its states live in: models that name the same one can resume each other's states.
    pub latent_space: String,
    /// Its folder in diffusers' layout, relative to the manifest.
    pub folder: String,
    /// Components (`vae`, `text_encoder_2`, …) that lie elsewhere, such as in another model's folder:
    /// their own folders, relative to the manifest. Equal files are loaded once either way.
    #[serde(default)]
    pub components: BTreeMap<String, String>,
    /// The folder of the network that embeds its prompts for the cache, relative to the manifest: a CLIP
    /// text folder or a sentence-transformers one. Absent: its own text tower.
    #[serde(default)]
    pub cache_embedder: Option<String>,
    /// The values it paints best with.
    pub defaults: Defaults,
    /// The sizes it can paint.
    pub sizes: SizeRange,
    /// sha256 in hex of every file, by path within the folder.
    pub files: BTreeMap<String, String>,
}

impl Manifest {
    /// Parses a manifest; `name` is what errors call it.
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

    /// Reads a manifest from disk, with its files beside it.
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
