//! The attribute classifier: a small CNN that reads a storybook picture back into attributes.

use candle_core::{D, Device, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, GroupNorm, Linear, Module, VarBuilder, conv2d, group_norm, linear};
use pentimento_pipelines::{ModelFiles, Picture};
use serde::Deserialize;

use super::{Error, Found, Result, Subject, config, scaled};

/// The side of what it looks at, and the positions of its last feature map.
const SIDE: u32 = 64;
const LAST_MAP: usize = 8 * 8;

/// `classifier/config.json`: the network's widths, and the names behind its logits.
#[derive(Debug, Deserialize)]
struct Config {
    channels: Vec<usize>,
    mix_channels: usize,
    hidden: usize,
    norm_groups: usize,
    /// Widths of the groups of logits: time, terrain, weather, then per place kind, colour, size.
    groups: Vec<usize>,
    times: Vec<String>,
    terrains: Vec<String>,
    weathers: Vec<String>,
    places: Vec<String>,
    kinds: Vec<String>,
    colours: Vec<String>,
    sizes: Vec<String>,
}

/// Reads pictures back into attributes.
#[derive(Debug)]
pub struct AttributeClassifier {
    config: Config,
    blocks: Vec<(Conv2d, GroupNorm)>,
    mix: Conv2d,
    hidden: Linear,
    head: Linear,
    device: Device,
}

impl AttributeClassifier {
    /// Loads `classifier/` of a model's files.
    ///
    /// # Errors
    /// Where the model has no classifier, or its files are damaged.
    pub fn load(files: &ModelFiles, device: &Device) -> Result<Self> {
        let config: Config = config(files, "classifier/config.json")?;
        config.check()?;
        let vb = files.weights("classifier", "model", device)?;
        let conv = |from, to, stride, vb: VarBuilder| {
            conv2d(from, to, 3, Conv2dConfig { padding: 1, stride, ..Default::default() }, vb)
        };
        let mut blocks = Vec::new();
        for (i, pair) in config.channels.windows(2).enumerate() {
            let stride = if i == 0 { 1 } else { 2 };
            let conv = conv(pair[0], pair[1], stride, vb.pp("convs").pp(i))?;
            blocks.push((conv, group_norm(config.norm_groups, pair[1], 1e-5, vb.pp("norms").pp(i))?));
        }
        let last = config.channels.last().copied().unwrap_or_default();
        Ok(Self {
            blocks,
            mix: conv(last, config.mix_channels, 1, vb.pp("mix"))?,
            hidden: linear(config.mix_channels * LAST_MAP, config.hidden, vb.pp("hidden"))?,
            head: linear(config.hidden, config.groups.iter().sum(), vb.pp("head"))?,
            config,
            device: device.clone(),
        })
    }

    /// What the classifier sees in a picture of any size.
    ///
    /// # Errors
    /// A tensor operation's.
    pub fn classify(&self, picture: &Picture) -> Result<Found> {
        let logits = self.logits(picture)?;
        let mut at = 0;
        let mut best = Vec::with_capacity(self.config.groups.len());
        for width in &self.config.groups {
            best.push(logits.narrow(0, at, *width)?.argmax(0)?.to_scalar::<u32>()? as usize);
            at += width;
        }
        let Config { times, terrains, weathers, places, kinds, colours, sizes, .. } = &self.config;
        let subjects = places.iter().zip(best[3..].chunks_exact(3)).filter(|(_, b)| b[0] > 0);
        Ok(Found {
            time: times[best[0]].clone(),
            terrain: terrains[best[1]].clone(),
            weather: weathers[best[2]].clone(),
            subjects: subjects
                .map(|(place, b)| Subject {
                    kind: kinds[b[0] - 1].clone(),
                    colour: Some(colours[b[1]].clone()),
                    size: Some(sizes[b[2]].clone()),
                    place: Some(place.clone()),
                })
                .collect(),
        })
    }

    /// The raw logits, (sum of groups,).
    ///
    /// # Errors
    /// As [`AttributeClassifier::classify`].
    pub fn logits(&self, picture: &Picture) -> Result<Tensor> {
        let mut x = scaled(picture, SIDE, &self.device)?;
        for (conv, norm) in &self.blocks {
            x = norm.forward(&conv.forward(&x)?)?.silu()?;
        }
        let x = self.mix.forward(&x)?.silu()?.flatten_from(1)?;
        let x = self.hidden.forward(&x)?.silu()?;
        Ok(self.head.forward(&x)?.squeeze(D::Minus2)?)
    }
}

impl Config {
    /// The groups must be those of the names, so that every argmax has one.
    fn check(&self) -> Result<()> {
        let mut want = vec![self.times.len(), self.terrains.len(), self.weathers.len()];
        for _ in &self.places {
            want.extend([1 + self.kinds.len(), self.colours.len(), self.sizes.len()]);
        }
        if self.groups != want || want.contains(&0) || self.channels.len() < 2 {
            return Err(Error::Unfit("classifier/config.json: groups do not fit the names".into()));
        }
        Ok(())
    }
}
