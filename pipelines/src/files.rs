//! A model's files, in the binary or in a folder. Their digests are checked when they are read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use candle_core::Device;
use candle_nn::VarBuilder;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::weights::{self, ByteSource, hex};

/// Files compiled into the binary, as (path in the model's folder, content).
pub type EmbeddedFiles = &'static [(&'static str, &'static [u8])];

#[derive(Debug, Clone)]
enum FileLocation {
    Embedded(EmbeddedFiles),
    Folder {
        folder: PathBuf,
        /// The folders of components that are not in `folder`.
        components: BTreeMap<String, PathBuf>,
    },
}

/// The files of a model in diffusers' layout.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    location: FileLocation,
    /// The SHA-256, in hex, by path in the folder; empty without a manifest.
    digests: BTreeMap<String, String>,
}

impl ModelFiles {
    /// The files in the binary.
    pub fn embedded(files: EmbeddedFiles, digests: BTreeMap<String, String>) -> Self {
        Self { location: FileLocation::Embedded(files), digests }
    }

    /// The files in a folder. Without digests nothing is verified.
    pub fn folder(path: impl Into<PathBuf>, digests: BTreeMap<String, String>) -> Self {
        Self { location: FileLocation::Folder { folder: path.into(), components: BTreeMap::new() }, digests }
    }

    /// The same files, with some components (`vae`, `unet`, …) in folders of their own.
    pub(crate) fn with_components(mut self, elsewhere: BTreeMap<String, PathBuf>) -> Self {
        if let FileLocation::Folder { components, .. } = &mut self.location {
            *components = elsewhere;
        }
        self
    }

    /// Reads a file; `None` if the model has no such file. With a manifest only the files in it exist.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Digest`] if the digest differs from the manifest's.
    pub fn read(&self, file: &str) -> Result<Option<Cow<'static, [u8]>>> {
        let expected = self.digests.get(file);
        if !self.digests.is_empty() && expected.is_none() {
            return Ok(None);
        }
        let bytes = match &self.location {
            FileLocation::Embedded(files) => {
                files.iter().find(|(name, _)| *name == file).map(|(_, b)| Cow::Borrowed(*b))
            }
            FileLocation::Folder { .. } => match std::fs::read(self.path(file)) {
                Ok(bytes) => Some(Cow::Owned(bytes)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                Err(e) => return Err(self.io(file, e)),
            },
        };
        match (bytes, expected) {
            (Some(bytes), Some(expected)) => {
                check_digest(file, expected, hex(&Sha256::digest(&bytes)))?;
                Ok(Some(bytes))
            }
            (None, Some(_)) => Err(self.missing(file)),
            (bytes, None) => Ok(bytes),
        }
    }

    /// Reads a file that must exist.
    ///
    /// # Errors
    /// Those of [`ModelFiles::read`], and [`Error::Io`] if there is no such file.
    pub fn require(&self, file: &str) -> Result<Cow<'static, [u8]>> {
        self.read(file)?.ok_or_else(|| self.missing(file))
    }

    /// A key that identifies a component's content, so that models that share it load it once. It consists of the files'
    /// digests, or without a manifest of the path.
    pub fn component_key(&self, component: &str) -> String {
        let prefix = format!("{component}/");
        if !self.digests.is_empty() {
            let own = self.digests.iter().filter(|(file, _)| file.starts_with(&prefix));
            return own.map(|(file, digest)| format!("{}={digest};", &file[prefix.len()..])).collect();
        }
        match &self.location {
            FileLocation::Embedded(_) => component.to_owned(),
            FileLocation::Folder { .. } => {
                let path = self.path(&prefix);
                path.canonicalize().unwrap_or(path).display().to_string()
            }
        }
    }

    /// Opens a component's weights, which are read as f32 by default: `<stem>.safetensors`, its shards, or its fp16 variant.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Digest`], or [`Error::Config`] for a damaged file.
    pub fn weights(&self, component: &str, stem: &str, device: &Device) -> Result<VarBuilder<'static>> {
        let open = |name: String| {
            let source = self.source(&name)?;
            if let Some(expected) = self.digests.get(&name) {
                let found = source.digest().map_err(|e| self.io(&name, e))?;
                check_digest(&name, expected, found)?;
            }
            Ok((name, source))
        };
        weights::open(
            self.weight_files(component, stem)?.into_iter().map(open).collect::<Result<_>>()?,
            device,
        )
    }

    /// The names of the files that [`ModelFiles::weights`] reads.
    ///
    /// # Errors
    /// Those of [`ModelFiles::read`] for the index of shards.
    pub fn weight_files(&self, component: &str, stem: &str) -> Result<Vec<String>> {
        let index = format!("{component}/{stem}.safetensors.index.json");
        if let Some(json) = self.read(&index)? {
            return shard_names(component, &index, &json);
        }
        let plain = format!("{component}/{stem}.safetensors");
        let fp16 = format!("{component}/{stem}.fp16.safetensors");
        Ok(vec![if self.has(&plain) || !self.has(&fp16) { plain } else { fp16 }])
    }

    /// A SHA-256, in hex, of the content of those of `files` that exist. It is the same for a folder, a manifest and the binary.
    /// It uses a manifest's digests; without a manifest it reads the files.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn digest(&self, files: &[String]) -> Result<String> {
        let mut whole = Sha256::new();
        for name in files.iter().filter(|name| self.has(name)) {
            let digest = match self.digests.get(name) {
                Some(known) => known.clone(),
                None => self.source(name)?.digest().map_err(|e| self.io(name, e))?,
            };
            whole.update(format!("{name}={digest}\n"));
        }
        Ok(hex(&whole.finalize()))
    }

    fn source(&self, name: &str) -> Result<ByteSource> {
        if !self.has(name) {
            return Err(self.missing(name));
        }
        match &self.location {
            FileLocation::Embedded(files) => {
                let found = files.iter().find(|(file, _)| *file == name);
                found.map(|(_, bytes)| ByteSource::Embedded(bytes)).ok_or_else(|| self.missing(name))
            }
            FileLocation::Folder { .. } => {
                let file = std::fs::File::open(self.path(name)).map_err(|e| self.io(name, e))?;
                Ok(ByteSource::File(Mutex::new(file)))
            }
        }
    }

    /// Whether the model has a file. With a manifest only the files in it exist.
    fn has(&self, file: &str) -> bool {
        if !self.digests.is_empty() && !self.digests.contains_key(file) {
            return false;
        }
        match &self.location {
            FileLocation::Embedded(files) => files.iter().any(|(name, _)| *name == file),
            FileLocation::Folder { .. } => self.path(file).is_file(),
        }
    }

    /// The path of a file, which may be in its component's own folder.
    fn path(&self, file: &str) -> PathBuf {
        let FileLocation::Folder { folder, components } = &self.location else { return PathBuf::from(file) };
        match file.split_once('/') {
            Some((component, rest)) if components.contains_key(component) => components[component].join(rest),
            _ => folder.join(file),
        }
    }

    fn missing(&self, file: &str) -> Error {
        self.io(file, std::io::ErrorKind::NotFound.into())
    }

    fn io(&self, file: &str, source: std::io::Error) -> Error {
        Error::Io { path: self.path(file), source }
    }
}

fn check_digest(file: &str, expected: &str, found: String) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Digest { file: file.to_owned(), expected: expected.to_owned(), found })
}

/// The names of the shards in a safetensors index.
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
        assert!(files(right).read("stray").unwrap().is_none(), "a file that is not in the manifest");
        assert!(files(right).require("vae/config.json").unwrap_err().to_string().contains("vae/config.json"));
    }

    #[test]
    fn a_shard_cannot_lead_out_of_its_folder() {
        let json = br#"{"weight_map": {"a": "../../etc/passwd"}}"#;
        assert!(shard_names("unet", "unet/x.index.json", json).is_err());
    }
}
