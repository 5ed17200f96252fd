//! What a picture is worth: does it show what its prompt names ([`AttributeClassifier`], [`fidelity`]),
//! how near are picture and prompt in a common embedding ([`ClipScorer`]), and does it look like a drawn one
//! ([`Critic`]).
//!
//! They ship with the storybook model; a model without those files has no scorer of that kind. Classifier and CLIP
//! pair look at pictures of one size: others are scaled to it, aspect and all. The critic looks at any size as it is.

mod bootstrap;
mod classifier;
mod clip_score;
mod critic;
mod fidelity;
mod interval;
mod scorer;

pub use bootstrap::{Bootstrap, Bootstrapped};
pub use classifier::AttributeClassifier;
pub use clip_score::ClipScorer;
pub use critic::Critic;
pub use fidelity::{Attributes, Found, Share, Subject, fidelity};
pub use interval::{Interval, ratio};
pub use scorer::Scorer;

use candle_core::{Device, Tensor};
use image::imageops::{FilterType, resize};
use image::{ImageBuffer, Rgb};
use pentimento_pipelines::Picture;

/// A scorer that cannot be loaded or cannot judge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model ships without this scorer's files, or they are not the manifest's.
    #[error(transparent)]
    Model(#[from] pentimento_pipelines::Error),
    /// A configuration that does not parse.
    #[error("{file}: {source}")]
    Config {
        /// The file within the model's folder.
        file: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A label or a picture that the scorer does not know.
    #[error("{0}")]
    Unfit(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The module's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A picture as a scorer of `side` pixels looks at it, (1, 3, side, side) in [-1, 1]: scaled by a triangle filter as wide
/// as what becomes one pixel, which is Pillow's `BILINEAR` and PyTorch's antialiased `bilinear`.
fn scaled(picture: &Picture, side: u32, device: &Device) -> Result<Tensor> {
    let values = picture.rgb.iter().map(|&value| f32::from(value) / 255.0).collect();
    let pixels: ImageBuffer<Rgb<f32>, Vec<f32>> =
        ImageBuffer::from_raw(picture.width, picture.height, values)
            .ok_or_else(|| Error::Unfit("a picture has not as many pixels as its size says".into()))?;
    let pixels = resize(&pixels, side, side, FilterType::Triangle).into_raw();
    let side = side as usize;
    let rows = Tensor::from_vec(pixels, (1, side, side, 3), device)?;
    Ok(rows.permute((0, 3, 1, 2))?.contiguous()?.affine(2.0, -1.0)?)
}

fn config<T: serde::de::DeserializeOwned>(
    files: &pentimento_pipelines::ModelFiles,
    file: &'static str,
) -> Result<T> {
    serde_json::from_slice(&files.require(file)?).map_err(|source| Error::Config { file, source })
}
