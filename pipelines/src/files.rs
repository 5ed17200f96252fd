//! Where a model's files come from: the binary itself or a folder, digests checked on the way in.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Files compiled into the binary: path within the model's folder, content.
pub type EmbeddedFiles = &'static [(&'static str, &'static [u8])];

#[derive(Debug, Clone)]
enum Place {
    Embedded(EmbeddedFiles),
    Folder(PathBuf),
}

/// A model's folder in diffusers' layout, wherever it lies.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    place: Place,
    /// sha256 in hex by path within the folder; empty for a folder without a manifest.
    digests: BTreeMap<String, String>,
}

impl ModelFiles {
    /// Files in the binary.
    pub fn embedded(files: EmbeddedFiles, digests: BTreeMap<String, String>) -> Self {
        Self { place: Place::Embedded(files), digests }
    }

    /// Files in a folder. Without digests nothing is verified.
    pub fn folder(path: impl Into<PathBuf>, digests: BTreeMap<String, String>) -> Self {
        Self { place: Place::Folder(path.into()), digests }
    }

    /// A file's bytes, or `None` where the model has no such file. With a manifest, only files that it
    /// names exist.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Digest`] where the bytes are not the manifest's.
    pub fn read(&self, file: &str) -> Result<Option<Cow<'static, [u8]>>> {
        if !self.digests.is_empty() && !self.digests.contains_key(file) {
            return Ok(None);
        }
        let bytes = match &self.place {
            Place::Embedded(files) => {
                files.iter().find(|(name, _)| *name == file).map(|(_, b)| Cow::Borrowed(*b))
            }
            Place::Folder(folder) => {
                let path = folder.join(file);
                match std::fs::read(&path) {
                    Ok(bytes) => Some(Cow::Owned(bytes)),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                    Err(source) => return Err(Error::Io { path, source }),
                }
            }
        };
        match bytes {
            Some(bytes) => self.verify(file, &bytes).map(|()| Some(bytes)),
            None if self.digests.contains_key(file) => Err(self.missing(file)),
            None => Ok(None),
        }
    }

    /// A file's bytes.
    ///
    /// # Errors
    /// As [`ModelFiles::read`], and [`Error::Io`] where there is no such file.
    pub fn require(&self, file: &str) -> Result<Cow<'static, [u8]>> {
        self.read(file)?.ok_or_else(|| self.missing(file))
    }

    fn missing(&self, file: &str) -> Error {
        let path = match &self.place {
            Place::Embedded(_) => PathBuf::from(file),
            Place::Folder(folder) => folder.join(file),
        };
        Error::Io { path, source: std::io::ErrorKind::NotFound.into() }
    }

    fn verify(&self, file: &str, bytes: &[u8]) -> Result<()> {
        let Some(expected) = self.digests.get(file) else { return Ok(()) };
        let found = hex(&Sha256::digest(bytes));
        if *expected == found {
            return Ok(());
        }
        Err(Error::Digest { file: file.to_owned(), expected: expected.clone(), found })
    }

    /// What identifies a component's content, so that models that share it load it once: its files'
    /// digests, or its path where there is no manifest.
    pub fn component_key(&self, component: &str) -> String {
        let prefix = format!("{component}/");
        if !self.digests.is_empty() {
            let own = self.digests.iter().filter(|(file, _)| file.starts_with(&prefix));
            return own.map(|(file, digest)| format!("{}={digest};", &file[prefix.len()..])).collect();
        }
        match &self.place {
            Place::Embedded(_) => component.to_owned(),
            Place::Folder(folder) => {
                let path = folder.join(component);
                path.canonicalize().unwrap_or(path).display().to_string()
            }
        }
    }

    /// A component's weights, as f32: `<stem>.safetensors`, its shards, or its fp16 variant.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Digest`], or a damaged file's.
    pub fn weights(&self, component: &str, stem: &str, device: &Device) -> Result<VarBuilder<'static>> {
        let index = format!("{component}/{stem}.safetensors.index.json");
        let names = match self.read(&index)? {
            Some(json) => shard_names(component, &index, &json)?,
            None => {
                let plain = format!("{component}/{stem}.safetensors");
                let fp16 = format!("{component}/{stem}.fp16.safetensors");
                vec![if self.has(&plain) || !self.has(&fp16) { plain } else { fp16 }]
            }
        };
        match &self.place {
            Place::Embedded(_) => {
                let [name] = names.as_slice() else {
                    return Err(Error::config(index, "an embedded model cannot have shards"));
                };
                Ok(match self.require(name)? {
                    Cow::Borrowed(bytes) => VarBuilder::from_slice_safetensors(bytes, DType::F32, device)?,
                    Cow::Owned(bytes) => VarBuilder::from_buffered_safetensors(bytes, DType::F32, device)?,
                })
            }
            Place::Folder(folder) => self.map_weights(folder, &names, device),
        }
    }

    fn map_weights(&self, folder: &Path, names: &[String], device: &Device) -> Result<VarBuilder<'static>> {
        for name in names {
            if self.digests.is_empty() {
                if !self.has(name) {
                    return Err(self.missing(name));
                }
            } else {
                self.require(name)?; // reads the file once to verify it
            }
        }
        let paths: Vec<PathBuf> = names.iter().map(|n| folder.join(n)).collect();
        // SAFETY: the mapping is read while the tensors are copied out of it, right below the caller;
        // as with any mapped file, another process that truncates it meanwhile would end this one. Model
        // files are written once and replaced by renaming.
        #[allow(unsafe_code)]
        Ok(unsafe { VarBuilder::from_mmaped_safetensors(&paths, DType::F32, device)? })
    }

    fn has(&self, file: &str) -> bool {
        match &self.place {
            Place::Embedded(files) => files.iter().any(|(name, _)| *name == file),
            Place::Folder(folder) => folder.join(file).is_file(),
        }
    }
}

/// The distinct shard files of a safetensors index.
fn shard_names(component: &str, index: &str, json: &[u8]) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let map: Index = serde_json::from_slice(json).map_err(|e| Error::config(index, e.to_string()))?;
    let names: std::collections::BTreeSet<_> = map.weight_map.into_values().collect();
    if let Some(odd) = names.iter().find(|n| n.contains(['/', '\\'])) {
        return Err(Error::config(index, format!("shard {odd:?} lies outside its folder")));
    }
    Ok(names.into_iter().map(|n| format!("{component}/{n}")).collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_digest_names_file_and_expectation() {
        const FILES: EmbeddedFiles = &[("unet/config.json", b"{}"), ("stray", b"")];
        let right = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        let files = |digest: &str| {
            ModelFiles::embedded(FILES, BTreeMap::from([("unet/config.json".to_owned(), digest.to_owned())]))
        };
        assert_eq!(&*files(right).require("unet/config.json").unwrap(), b"{}");
        let error = files("00ff").require("unet/config.json").unwrap_err().to_string();
        assert!(
            error.contains("unet/config.json") && error.contains("00ff") && error.contains(right),
            "{error}"
        );
        assert!(files(right).read("stray").unwrap().is_none(), "a file that the manifest does not name");
        assert!(files(right).require("vae/config.json").unwrap_err().to_string().contains("vae/config.json"));
    }

    #[test]
    fn a_shard_cannot_lead_out_of_its_folder() {
        let json = br#"{"weight_map": {"a": "../../etc/passwd"}}"#;
        assert!(shard_names("unet", "unet/x.index.json", json).is_err());
    }
}
