//! Pictures.

use candle_core::{DType, Tensor};

use crate::error::Result;

/// A finished picture: 8-bit RGB, row by row from the top left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The width in pixels.
    pub width: u32,
    /// The height in pixels.
    pub height: u32,
    /// `width · height · 3` bytes.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// The picture of a decoded image (3, H, W) in [-1, 1]. Values outside are clamped, as in diffusers.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor).
    pub fn from_tensor(image: &Tensor) -> Result<Self> {
        let (_, height, width) = image.dims3()?;
        let scaled = ((image.clamp(-1f32, 1f32)? + 1.0)? * 127.5)?.round()?;
        let rgb = scaled.permute((1, 2, 0))?.to_dtype(DType::U8)?.flatten_all()?.to_vec1()?;
        Ok(Self { width: width as u32, height: height as u32, rgb })
    }

    /// The picture as a tensor (3, H, W) in [-1, 1].
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor).
    pub fn to_tensor(&self, device: &candle_core::Device) -> Result<Tensor> {
        let values: Vec<f32> = self.rgb.iter().map(|&b| f32::from(b) / 127.5 - 1.0).collect();
        let shape = (self.height as usize, self.width as usize, 3);
        Ok(Tensor::from_vec(values, shape, device)?.permute((2, 0, 1))?.contiguous()?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn pixels_survive_the_round_trip() {
        let picture = Picture { width: 2, height: 1, rgb: vec![0, 127, 255, 10, 20, 30] };
        let back = Picture::from_tensor(&picture.to_tensor(&Device::Cpu).unwrap()).unwrap();
        assert_eq!(picture, back);
    }
}
