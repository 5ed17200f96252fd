//! Weights and inputs as pure functions of a name. `goldens/hash_weights.py` computes the same and documents them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use sha2::{Digest, Sha256};

/// FNV-1a, 64 bits.
fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// Element `index` of the tensor with this hash, in [-1, 1).
fn uniform(hash: u64, index: u64) -> f64 {
    let mut z = hash.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 40) as f64 / f64::from(1 << 23) - 1.0
}

fn tensor(name: &str, shape: &Shape, offset: f64, scale: f64) -> Result<Tensor> {
    let hash = fnv1a64(name);
    let values = (0..shape.elem_count() as u64).map(|i| (offset + uniform(hash, i) * scale) as f32);
    Tensor::from_vec(values.collect::<Vec<_>>(), shape.clone(), &Device::Cpu)
}

/// An input of unit variance.
pub fn normal_like(name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
    tensor(name, &shape.into(), 0.0, 3f64.sqrt())
}

/// The tensors that a model read, by name.
#[derive(Debug, Clone, Default)]
pub struct Reads(Arc<Mutex<BTreeMap<String, Tensor>>>);

impl Reads {
    /// The digest of all names and shapes, equal to Python's `names_digest` if the model read exactly diffusers'
    /// parameters.
    pub fn digest(&self) -> String {
        let lines = self.0.lock().unwrap();
        // Python sorts whole lines. A space sorts before every character of a name, so sorting by name is the same.
        let line = |(name, tensor): (&String, &Tensor)| {
            let dims: Vec<String> = tensor.dims().iter().map(usize::to_string).collect();
            format!("{name} {}\n", dims.join("x"))
        };
        let text: String = lines.iter().map(line).collect();
        Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The same tensors under other names.
    pub fn renamed(&self, rename: impl Fn(&str) -> String) -> VarBuilder<'static> {
        let tensors =
            self.0.lock().unwrap().iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
        VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
    }

    /// Writes the tensors as a component's weights file.
    pub fn save(&self, file: impl AsRef<Path>) -> Result<()> {
        let tensors: HashMap<String, Tensor> = self.0.lock().unwrap().clone().into_iter().collect();
        candle_core::safetensors::save(&tensors, file)
    }
}

/// Makes every tensor that a model reads, except those whose name starts with one of `absent`.
struct HashWeights {
    component: String,
    absent: Vec<String>,
    reads: Reads,
}

impl SimpleBackend for HashWeights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        dev: &Device,
    ) -> Result<Tensor> {
        let dims = shape.dims();
        let (offset, scale) = if name.ends_with("bias") {
            (0.0, 0.1)
        } else if dims.len() == 1 {
            (1.0, 0.1)
        } else if name.ends_with("_embedding.weight") {
            (0.0, 0.5)
        } else {
            (0.0, (3.0 / dims[1..].iter().product::<usize>() as f64).sqrt())
        };
        let made = tensor(&format!("{}/{name}", self.component), &shape, offset, scale)?;
        self.reads.0.lock().unwrap().insert(name.to_owned(), made.clone());
        made.to_dtype(dtype)?.to_device(dev)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name}: a hash needs a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        !self.absent.iter().any(|prefix| name.starts_with(prefix.as_str()))
    }
}

/// A component's weights, and the record of what is read of them.
pub fn weights(component: &str, absent: &[&str]) -> (VarBuilder<'static>, Reads) {
    let reads = Reads::default();
    let absent = absent.iter().map(|prefix| (*prefix).to_owned()).collect();
    let backend = HashWeights { component: component.to_owned(), absent, reads: reads.clone() };
    (VarBuilder::from_backend(Box::new(backend), DType::F32, Device::Cpu), reads)
}
