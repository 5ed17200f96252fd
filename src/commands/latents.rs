//! Latents in safetensors files, for comparison with other engines.

use std::path::Path;

use anyhow::{Context, bail};
use pentimento_pipelines::DenoisingState;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

const NAME: &str = "latent";

/// The initial noise in a file: tensor `latent` in f32, (C, H, W) or (1, C, H, W). It is at `timestep`, the plan's first.
///
/// # Errors
/// Where there is no such tensor.
pub fn read(path: &Path, timestep: f64) -> anyhow::Result<DenoisingState> {
    let context = || format!("--latents-in {}", path.display());
    let bytes = std::fs::read(path).with_context(context)?;
    parse(&bytes, timestep).with_context(context)
}

fn parse(bytes: &[u8], timestep: f64) -> anyhow::Result<DenoisingState> {
    let file = SafeTensors::deserialize(bytes)?;
    let tensor = file.tensor(NAME)?;
    let shape = match *tensor.shape() {
        [c, h, w] | [1, c, h, w] => [c, h, w],
        ref other => bail!("tensor {NAME} must be (C, H, W) or (1, C, H, W), not {other:?}"),
    };
    if tensor.dtype() != Dtype::F32 {
        bail!("tensor {NAME} must be F32, not {:?}", tensor.dtype());
    }
    let latent: Vec<f32> = tensor.data().as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect();
    if !latent.iter().all(|value| value.is_finite()) {
        bail!("tensor {NAME} holds values that are not finite");
    }
    Ok(DenoisingState { timestep, shape, latent })
}

/// Writes a state's latent, (C, H, W) in f32.
///
/// # Errors
/// Where the file cannot be written.
pub fn write(path: &Path, state: &DenoisingState) -> anyhow::Result<()> {
    let bytes: Vec<u8> = state.latent.iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensor = TensorView::new(Dtype::F32, state.shape.to_vec(), &bytes)?;
    let file = safetensors::serialize([(NAME, tensor)], None)?;
    std::fs::write(path, file).with_context(|| format!("--latents-out {}", path.display()))
}
