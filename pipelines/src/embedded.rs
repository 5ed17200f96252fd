//! The storybook model, which is compiled into the binary.

use crate::error::Result;
use crate::files::{EmbeddedFiles, ModelFiles};
use crate::manifest::Manifest;

const MANIFEST: &str = include_str!("../../weights-manifest/storybook.toml");

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../weights-manifest/storybook/model/", $name)))),*]
    };
}

const FILES: EmbeddedFiles = files![
    "model_index.json",
    "calibration/pairs.jsonl",
    "calibration/plain.json",
    "calibration/steered.json",
    "classifier/config.json",
    "classifier/model.safetensors",
    "clip/config.json",
    "clip/model.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// The embedded model's manifest and files.
pub(crate) fn storybook() -> Result<(Manifest, ModelFiles)> {
    let manifest = Manifest::parse("weights-manifest/storybook.toml", MANIFEST)?;
    let files = ModelFiles::embedded(FILES, manifest.files.clone());
    Ok((manifest, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_has_the_manifests_files_and_no_others() {
        let (manifest, files) = storybook().unwrap();
        for name in manifest.files.keys() {
            assert!(files.read(name).unwrap().is_some(), "{name} is not in the binary");
        }
        for (name, _) in FILES {
            assert!(manifest.files.contains_key(*name), "{name} is not in the manifest");
        }
    }
}
