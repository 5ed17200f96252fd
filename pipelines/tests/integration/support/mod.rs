//! The golden files, and models with hash weights that are compared with them.

pub mod hash_weights;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use pentimento_pipelines::text::{ClipTextConfig, ClipTextEncoder};
use pentimento_pipelines::unet::{UNet, UNetConfig};
use pentimento_pipelines::vae::{Vae, VaeConfig};

use hash_weights::{Reads, weights};

pub const SHAPES: [&str; 4] = ["storybook", "sd15", "sd21", "sdxl"];
pub const TIME_IDS: [[f32; 6]; 2] = [[64.0, 64.0, 0.0, 0.0, 64.0, 64.0], [96.0, 128.0, 8.0, 0.0, 64.0, 48.0]];

pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

pub fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = goldens().join(path);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn exists(path: impl AsRef<Path>) -> bool {
    goldens().join(path).exists()
}

/// A shape's golden tensors, and for each component the digest of its weights' names and shapes.
pub struct Golden {
    pub shape: &'static str,
    pub tensors: HashMap<String, Tensor>,
    pub digests: HashMap<String, String>,
}

impl Golden {
    pub fn load(shape: &'static str) -> Self {
        let bytes = read(format!("{shape}/golden.safetensors"));
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let digests = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["parameters"]).unwrap();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        Self { shape, tensors, digests }
    }

    /// Prints and checks max |ours - golden| / max |golden|.
    pub fn check(&self, name: &str, ours: &Tensor, tolerance: f32) {
        let golden = &self.tensors[name];
        assert_eq!(ours.dims(), golden.dims(), "{} {name}", self.shape);
        let error = difference(ours, golden);
        println!("{:10} {name:30} {error:.2e}", self.shape);
        assert!(error <= tolerance, "{} {name}: {error:.2e} > {tolerance:.0e}", self.shape);
    }
}

pub fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// The largest difference relative to `golden`'s largest value; infinite if a value is not finite.
pub fn difference(ours: &Tensor, golden: &Tensor) -> f32 {
    let values: Vec<f32> = ours.flatten_all().unwrap().to_vec1().unwrap();
    if values.iter().any(|v| !v.is_finite()) {
        return f32::INFINITY;
    }
    largest(&(ours - golden).unwrap()) / largest(golden)
}

pub fn load_unet(shape: &str) -> (UNet, Reads) {
    let config = UNetConfig::from_json(&read(format!("{shape}/unet/config.json"))).unwrap();
    let (vb, reads) = weights("unet", &[]);
    (UNet::new(config, vb).unwrap(), reads)
}

pub fn load_vae(shape: &str) -> (Vae, Reads) {
    let config = VaeConfig::from_json(&read(format!("{shape}/vae/config.json"))).unwrap();
    // The names of files older than diffusers 0.15 are absent.
    let query = "coder.mid_block.attentions.0.query";
    let (vb, reads) = weights("vae", &[&format!("en{query}"), &format!("de{query}")]);
    (Vae::new(config, vb).unwrap(), reads)
}

pub fn load_text_encoder(shape: &str, component: &str) -> (ClipTextEncoder, Reads) {
    let bytes = read(format!("{shape}/{component}/config.json"));
    let projects = String::from_utf8_lossy(&bytes).contains("CLIPTextModelWithProjection");
    let absent: &[&str] = if projects { &[] } else { &["text_model.", "text_projection."] };
    let (vb, reads) = weights(component, absent);
    (ClipTextEncoder::new(ClipTextConfig::from_json(component, &bytes).unwrap(), vb).unwrap(), reads)
}

/// The width of the pooled embedding that an SDXL model takes; `None` for other models.
pub fn added_width(unet: &UNet) -> Option<usize> {
    let text_time = unet.config().text_time.as_ref()?;
    Some(text_time.input_width - 6 * text_time.time_id_width)
}
