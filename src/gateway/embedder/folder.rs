//! An embedder's own folder.

use std::borrow::Cow;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_nn::VarBuilder;
use pentimento_pipelines::{Error, ModelFiles};
use serde::de::DeserializeOwned;

use super::EmbedError;

/// A folder whose errors name the file at fault. Files are named `PART/FILE`, where the part `.` is the
/// folder itself.
pub(super) struct Folder {
    path: PathBuf,
    files: ModelFiles,
}

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), files: ModelFiles::folder(path, Default::default()) }
    }

    /// The files, for the engine's own readers; their errors go through [`Folder::named`].
    pub(super) fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// A file's bytes, or `None` where there is no such file.
    pub(super) fn read(&self, file: &str) -> Result<Option<Cow<'static, [u8]>>, EmbedError> {
        self.files.read(file).map_err(|e| self.named(e))
    }

    /// What a JSON file says, or `None` where there is no such file.
    pub(super) fn json<T: DeserializeOwned>(&self, file: &str) -> Result<Option<T>, EmbedError> {
        let parse = |bytes: Cow<[u8]>| serde_json::from_slice(&bytes).map_err(|e| self.fault(file, e));
        self.read(file)?.map(parse).transpose()
    }

    /// As [`Folder::json`], of a file that must exist.
    pub(super) fn require<T: DeserializeOwned>(&self, file: &str) -> Result<T, EmbedError> {
        self.json(file)?.ok_or_else(|| self.fault(file, "not found"))
    }

    /// Builds a network from the weights in `part`. Embedders run on the CPU: a prompt is a short text, and
    /// a gateway need not have anything else.
    pub(super) fn network<T, E: Display>(
        &self,
        part: &str,
        build: impl FnOnce(VarBuilder) -> Result<T, E>,
    ) -> Result<T, EmbedError> {
        let weights = self.files.weights(part, "model", &Device::Cpu).map_err(|e| self.named(e))?;
        build(weights).map_err(|e| self.fault(&format!("{part}/model.safetensors"), e))
    }

    /// One digest of the weights in `part` and of `files`.
    pub(super) fn digest(&self, part: &str, files: &[String]) -> Result<String, EmbedError> {
        let mut names = self.files.weight_files(part, "model").map_err(|e| self.named(e))?;
        names.extend_from_slice(files);
        self.files.digest(&names).map_err(|e| self.named(e))
    }

    /// What is wrong with a file.
    pub(super) fn fault(&self, file: &str, reason: impl Display) -> EmbedError {
        // Whoever reads it does not want to see "/./".
        let file = self.path.join(file.trim_start_matches("./"));
        EmbedError::File { file, reason: reason.to_string() }
    }

    /// The engine names files as they lie in the folder; a user wants to know which folder.
    pub(super) fn named(&self, error: Error) -> EmbedError {
        match error {
            Error::Config { file, reason } => self.fault(&file, reason),
            other => other.into(),
        }
    }
}
