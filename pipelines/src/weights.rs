//! Reading weights from safetensors files, tensor by tensor, so that a model is never in memory twice. Files are not mapped
//! into memory, because this process would crash if another process truncated a mapped file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// The longest header that is read, as in the safetensors crate.
const MAX_HEADER: u64 = 100_000_000;

/// The bytes of a safetensors file.
pub(crate) enum ByteSource {
    Embedded(&'static [u8]),
    /// The same handle is used for verification and reading, so that the file cannot be replaced in between.
    File(Mutex<File>),
}

impl ByteSource {
    /// The SHA-256 of the whole file, in hex.
    pub(crate) fn digest(&self) -> std::io::Result<String> {
        let mut hash = Sha256::new();
        match self {
            Self::Embedded(bytes) => hash.update(bytes),
            Self::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.rewind()?;
                let mut part = vec![0; 1 << 16];
                loop {
                    match file.read(&mut part)? {
                        0 => break,
                        n => hash.update(&part[..n]),
                    }
                }
            }
        }
        Ok(hex(&hash.finalize()))
    }

    fn len(&self) -> std::io::Result<u64> {
        match self {
            Self::Embedded(bytes) => Ok(bytes.len() as u64),
            Self::File(file) => Ok(file.lock().unwrap_or_else(PoisonError::into_inner).metadata()?.len()),
        }
    }

    /// Calls `f` with the bytes from `start` to `end`, which must be within the file.
    fn read<T>(&self, start: u64, end: u64, f: impl FnOnce(&[u8]) -> T) -> std::io::Result<T> {
        match self {
            Self::Embedded(bytes) => {
                let part = bytes.get(start as usize..end as usize);
                part.map(f).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
            }
            Self::File(file) => {
                let mut part = vec![0; (end - start) as usize];
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(start))?;
                file.read_exact(&mut part)?;
                Ok(f(&part))
            }
        }
    }
}

/// Bytes as hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// One or more safetensors files (shards), as a backend of candle's `VarBuilder`.
struct WeightFiles {
    shards: Vec<ByteSource>,
    /// For each tensor: its shard, the offset of the shard's data, and the tensor's type, shape and offsets.
    tensors: HashMap<String, (usize, u64, TensorInfo)>,
}

/// Opens a component's weights. They are read as f32 by default.
///
/// # Errors
/// [`Error::Config`] naming a file that is not a safetensors file.
pub(crate) fn open(files: Vec<(String, ByteSource)>, device: &Device) -> Result<VarBuilder<'static>> {
    let (mut shards, mut tensors) = (Vec::new(), HashMap::new());
    for (name, source) in files {
        let damaged =
            |reason: String| Error::config(name.as_str(), format!("not a safetensors file: {reason}"));
        let (start, metadata) = header(&source).map_err(damaged)?;
        let length = source.len().map_err(|e| damaged(e.to_string()))?;
        for (tensor, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            if from > to || start.checked_add(to as u64).is_none_or(|end| end > length) {
                return Err(damaged(format!("{tensor} lies outside the file")));
            }
            tensors.insert(tensor, (shards.len(), start, info.clone()));
        }
        shards.push(source);
    }
    Ok(VarBuilder::from_backend(Box::new(WeightFiles { shards, tensors }), DType::F32, device.clone()))
}

/// The offset of the data, and the header.
fn header(source: &ByteSource) -> std::result::Result<(u64, Metadata), String> {
    let text = |e: std::io::Error| e.to_string();
    let mut length = [0; 8];
    source.read(0, 8, |bytes| length.copy_from_slice(bytes)).map_err(text)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length + 8 > source.len().map_err(text)? {
        return Err("its header is longer than the file".into());
    }
    let metadata = source.read(8, 8 + length, |bytes| serde_json::from_slice(bytes)).map_err(text)?;
    Ok((8 + length, metadata.map_err(|e| e.to_string())?))
}

impl SimpleBackend for WeightFiles {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if *tensor.shape() != shape {
            candle_core::bail!("{name} has the shape {:?}, not {shape:?}", tensor.shape());
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let Some((shard, start, info)) = self.tensors.get(name) else {
            candle_core::bail!("there is no tensor {name} in the weights");
        };
        let stored = DType::try_from(info.dtype)?;
        let (from, to) = info.data_offsets;
        let bytes = (start + from as u64, start + to as u64);
        let size = info.shape.iter().try_fold(stored.size_in_bytes(), |n, d| n.checked_mul(*d));
        if size != Some(to - from) {
            candle_core::bail!("{name} has another length than its shape {:?}", info.shape);
        }
        let read = |data: &[u8]| Tensor::from_raw_buffer(data, stored, &info.shape, device);
        self.shards[*shard].read(bytes.0, bytes.1, read)??.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> &'static [u8] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        Vec::leak(bytes)
    }

    fn load(bytes: &'static [u8]) -> Result<VarBuilder<'static>> {
        open(vec![("unet/x.safetensors".into(), ByteSource::Embedded(bytes))], &Device::Cpu)
    }

    #[test]
    fn tensors_come_out_as_f32_from_memory_and_disk() {
        let bytes = file(
            r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            &[0x00, 0x3c, 0x00, 0xc0, 0, 0, 0x80, 0x3f],
        );
        let path =
            std::env::temp_dir().join(format!("pentimento-weights-{}.safetensors", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        let disk = ByteSource::File(Mutex::new(File::open(&path).unwrap()));
        assert_eq!(disk.digest().unwrap(), ByteSource::Embedded(bytes).digest().unwrap());
        let disk = open(vec![("x".into(), disk)], &Device::Cpu).unwrap();
        std::fs::remove_file(path).unwrap();
        for weights in [load(bytes).unwrap(), disk] {
            assert_eq!(weights.get(2, "a").unwrap().to_vec1::<f32>().unwrap(), [1.0, -2.0]);
            assert_eq!(weights.get(1, "b").unwrap().to_vec1::<f32>().unwrap(), [1.0]);
            assert!(weights.get(3, "a").unwrap_err().to_string().contains("a has the shape"));
            assert!(weights.get(3, "c").unwrap_err().to_string().contains("no tensor c"));
        }
    }

    #[test]
    fn damaged_files_are_named_and_never_read_beyond_their_end() {
        let outside = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        for bytes in [file(outside, &[0; 4]), file("{", &[]), &[1, 2, 3], &[0xff; 16]] {
            let error = load(bytes).err().unwrap().to_string();
            assert!(error.starts_with("unet/x.safetensors: not a safetensors file"), "{error}");
        }
        let short = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#;
        assert!(
            load(file(short, &[0; 4])).is_err_and(|_| true)
                || load(file(short, &[0; 4])).unwrap().get(2, "a").is_err()
        );
    }
}
