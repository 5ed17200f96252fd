//! The critic: a small convolutional network that tells drawn pictures from painted ones.
//!
//! It is trained by the model's recipe on the model's own training pictures and on pictures that the model painted
//! with every option of the plan menu's grid. What it makes of a picture is its *realism* (DiffServe, Ahmad et al.,
//! 2025, ranks pictures by such a discriminator's confidence). Realism has a scale of the critic's own: only numbers
//! of one critic may be compared.

use candle_core::{D, Device};
use candle_nn::{Conv2d, Conv2dConfig, GroupNorm, Linear, Module, conv2d, group_norm, linear};
use pentimento_pipelines::{ModelFiles, Picture};
use serde::Deserialize;

use super::{Error, Result, config};

/// The network halves a picture's sides at each block but the first; below this side nothing would be left of them.
const SMALLEST_SIDE: u32 = 16;

/// `critic/config.json`.
#[derive(Debug, Deserialize)]
struct Config {
    /// Widths of the feature maps, the picture's 3 first.
    channels: Vec<usize>,
    norm_groups: usize,
}

/// Judges how a picture looks, whatever it shows.
///
/// The network is convolutional, and the mean over all places of its last feature map is judged: it sees a picture of
/// any size in full detail, in windows of 33 pixels. Nothing is scaled, for what few steps spoil are outlines of a
/// pixel or two, which scaling would smooth as well.
#[derive(Debug)]
pub struct Critic {
    blocks: Vec<(Conv2d, GroupNorm)>,
    head: Linear,
    device: Device,
}

impl Critic {
    /// Loads `critic/` of a model's files.
    ///
    /// # Errors
    /// Where the model has no critic, or its files are damaged.
    pub fn load(files: &ModelFiles, device: &Device) -> Result<Self> {
        let Config { channels, norm_groups } = config(files, "critic/config.json")?;
        let [3, .., last] = channels[..] else {
            return Err(Error::Unfit("critic/config.json: channels must begin with 3".into()));
        };
        if norm_groups == 0 || channels[1..].iter().any(|width| *width == 0 || width % norm_groups != 0) {
            return Err(Error::Unfit("critic/config.json: channels must be multiples of norm_groups".into()));
        }
        let vb = files.weights("critic", "model", device)?;
        let mut blocks = Vec::new();
        for (i, pair) in channels.windows(2).enumerate() {
            let stride = if i == 0 { 1 } else { 2 };
            let shape = Conv2dConfig { padding: 1, stride, ..Default::default() };
            let conv = conv2d(pair[0], pair[1], 3, shape, vb.pp("convs").pp(i))?;
            blocks.push((conv, group_norm(norm_groups, pair[1], 1e-5, vb.pp("norms").pp(i))?));
        }
        Ok(Self { blocks, head: linear(last, 1, vb.pp("head"))?, device: device.clone() })
    }

    /// The probability, 0 to 1, that the picture was drawn and not painted.
    ///
    /// # Errors
    /// As [`Critic::logit`].
    pub fn realism(&self, picture: &Picture) -> Result<f64> {
        Ok(1.0 / (1.0 + (-self.logit(picture)?).exp()))
    }

    /// The raw logit: above 0, the picture looks more like a drawn one.
    ///
    /// # Errors
    /// [`Error::Unfit`] for a picture below 16 pixels a side.
    pub fn logit(&self, picture: &Picture) -> Result<f64> {
        let Picture { width, height, .. } = picture;
        if (*width).min(*height) < SMALLEST_SIDE {
            return Err(Error::Unfit(format!(
                "the critic reads pictures from {SMALLEST_SIDE}x{SMALLEST_SIDE}, not {width}x{height}"
            )));
        }
        let mut x = picture.to_tensor(&self.device)?.unsqueeze(0)?;
        for (conv, norm) in &self.blocks {
            x = norm.forward(&conv.forward(&x)?)?.silu()?;
        }
        let places = x.flatten_from(2)?.mean(D::Minus1)?;
        Ok(f64::from(self.head.forward(&places)?.flatten_all()?.get(0)?.to_scalar::<f32>()?))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Tensor;

    use super::*;

    const CHANNELS: [usize; 6] = [3, 16, 32, 64, 64, 64];

    /// Weights that anyone can compute: value i of a tensor is sin(0.37·i + length of its name), times 0.3, or as a
    /// factor of a norm, 1 and a tenth of it.
    fn tensor(name: &str, shape: &[usize]) -> (String, Tensor) {
        let value = |i: usize| {
            let wave = (0.37 * i as f64 + name.len() as f64).sin();
            (if name.starts_with("norms") && name.ends_with("weight") {
                1.0 + 0.1 * wave
            } else {
                0.3 * wave
            }) as f32
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        (name.to_owned(), Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    }

    fn folder(config: &str) -> tempfile::TempDir {
        let mut tensors = HashMap::from([tensor("head.weight", &[1, 64]), tensor("head.bias", &[1])]);
        for (i, pair) in CHANNELS.windows(2).enumerate() {
            tensors.extend([
                tensor(&format!("convs.{i}.weight"), &[pair[1], pair[0], 3, 3]),
                tensor(&format!("convs.{i}.bias"), &[pair[1]]),
                tensor(&format!("norms.{i}.weight"), &[pair[1]]),
                tensor(&format!("norms.{i}.bias"), &[pair[1]]),
            ]);
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("critic")).unwrap();
        std::fs::write(folder.path().join("critic/config.json"), config).unwrap();
        candle_core::safetensors::save(&tensors, folder.path().join("critic/model.safetensors")).unwrap();
        folder
    }

    fn load(config: &str) -> Result<Critic> {
        let folder = folder(config);
        Critic::load(&ModelFiles::folder(folder.path(), Default::default()), &Device::Cpu)
    }

    fn picture(width: u32, height: u32) -> Picture {
        let rgb = (0..width * height * 3).map(|i| ((i * 7 + i / 11) % 256) as u8).collect();
        Picture { width, height, rgb }
    }

    /// What PyTorch makes of the same weights in recipe/critic.py's network.
    #[test]
    fn it_sees_what_the_recipes_critic_sees_in_any_size() {
        let critic = load(r#"{"channels": [3, 16, 32, 64, 64, 64], "norm_groups": 8}"#).unwrap();
        for (width, height, logit) in [(16, 16, 1.764_826_06), (64, 64, 1.296_465_87), (48, 80, 1.421_397_45)]
        {
            let found = critic.logit(&picture(width, height)).unwrap();
            assert!((found - logit).abs() < 1e-4, "{width}x{height}: {found}, PyTorch's {logit}");
            let realism = critic.realism(&picture(width, height)).unwrap();
            assert!((realism - 1.0 / (1.0 + (-found).exp())).abs() < 1e-12 && (0.0..=1.0).contains(&realism));
        }
        let error = critic.realism(&picture(64, 8)).unwrap_err().to_string();
        assert!(error.contains("64x8"), "{error}");
    }

    #[test]
    fn a_damaged_configuration_is_named() {
        for (config, names) in [
            (r#"{"channels": [1, 16], "norm_groups": 8}"#, "channels must begin with 3"),
            (r#"{"channels": [3], "norm_groups": 8}"#, "channels"),
            (r#"{"channels": [3, 12], "norm_groups": 8}"#, "norm_groups"),
            (r#"{"channels": [3, 16], "norm_groups": 0}"#, "norm_groups"),
            (r#"{"channels": [3, 16]}"#, "critic/config.json"),
        ] {
            let error = load(config).unwrap_err().to_string();
            assert!(error.contains(names), "{config}: {error}");
        }
        let none = tempfile::tempdir().unwrap();
        let files = ModelFiles::folder(none.path(), Default::default());
        assert!(Critic::load(&files, &Device::Cpu).is_err());
    }
}
