//! Graph files: saved graphs, so that opening an index of many entries does not build its graphs again.
//!
//! The database remains the source of truth. Beside the graph a file lists the entry and the embedding's digest of each
//! row. A row is used only if its entry still has that embedding, so a graph file older than the index is useful for the
//! rows that have not changed. The library that reads the graph does not check its files, so their digests are checked
//! first and files with a wrong digest are not read.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::graph::Graph;
use crate::entry::{Compatibility, EntryId, Scope};

/// Version of the files. Raise it when their format, the graph's parameters or the library's version change.
const FORMAT: u32 = 1;

/// The files that one partition's graph is saved in.
#[derive(Debug, Clone)]
pub(crate) struct GraphFile {
    dir: Arc<PathBuf>,
    name: String,
}

/// A row of a saved graph.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct SavedRow {
    /// The row's entry; `None` if the row was dead.
    pub id: Option<EntryId>,
    /// [`row_digest`] of its embedding.
    pub digest: u64,
}

/// What the `.rows` file holds: the rows, and the SHA-256 of the library's two files.
#[derive(Deserialize, Serialize)]
struct GraphManifest {
    format: u32,
    rows: Vec<SavedRow>,
    graph: [u8; 32],
    data: [u8; 32],
}

impl GraphFile {
    pub(crate) fn new(dir: &Arc<PathBuf>, scope: &Scope, compatibility: &Compatibility) -> Self {
        let key = format!("{scope:?}{compatibility:?}");
        let name = Sha256::digest(key).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self { dir: Arc::clone(dir), name }
    }

    fn rows(&self) -> PathBuf {
        self.dir.join(format!("{}.rows", self.name))
    }

    /// The two files that the library writes for the name `name`.
    fn library_files(&self, name: &str) -> [PathBuf; 2] {
        ["graph", "data"].map(|kind| self.dir.join(format!("{name}.hnsw.{kind}")))
    }

    /// Saves a graph and its rows, in place of an older file. A failure is logged, and the file removed: the graph is
    /// then built when the index next opens.
    pub(crate) fn save(&self, graph: &Graph, rows: Vec<SavedRow>) {
        if let Err(error) = self.try_save(graph, rows) {
            tracing::warn!(%error, "a graph could not be saved");
            self.remove();
        }
    }

    fn try_save(&self, graph: &Graph, rows: Vec<SavedRow>) -> std::io::Result<()> {
        let new = format!("{}-new", self.name);
        graph.dump(&self.dir, &new)?;
        let written = self.library_files(&new);
        let manifest =
            GraphManifest { format: FORMAT, rows, graph: digest(&written[0])?, data: digest(&written[1])? };
        let bytes = postcard::to_stdvec(&manifest).map_err(std::io::Error::other)?;
        let sealed = [Sha256::digest(&bytes).as_slice(), &bytes].concat();
        for (from, to) in written.iter().zip(self.library_files(&self.name)) {
            std::fs::rename(from, to)?;
        }
        // If the process is killed before this line, the digests do not match and the files are not used.
        std::fs::write(self.rows(), sealed)
    }

    /// Reads the graph and its rows. `None` if there is no file or it is damaged.
    pub(crate) fn load(&self, dimensions: usize) -> Option<(Graph, Vec<SavedRow>)> {
        let sealed = std::fs::read(self.rows()).ok()?;
        let loaded = self.load_checked(&sealed, dimensions);
        if loaded.is_none() {
            tracing::warn!(
                name = self.name,
                "a saved graph is damaged or of another version: it is built again"
            );
        }
        loaded
    }

    fn load_checked(&self, sealed: &[u8], dimensions: usize) -> Option<(Graph, Vec<SavedRow>)> {
        let (seal, bytes) = sealed.split_at_checked(32)?;
        if Sha256::digest(bytes).as_slice() != seal {
            return None;
        }
        let manifest: GraphManifest = postcard::from_bytes(bytes).ok()?;
        let [graph, data] = self.library_files(&self.name);
        let whole = manifest.format == FORMAT
            && digest(&graph).ok()? == manifest.graph
            && digest(&data).ok()? == manifest.data;
        let graph = whole.then(|| Graph::reload(&self.dir, &self.name))??;
        let fits = graph.rows() == manifest.rows.len() && graph.dimensions() == dimensions;
        fits.then_some((graph, manifest.rows))
    }

    pub(crate) fn remove(&self) {
        let files = self.library_files(&self.name).into_iter().chain([self.rows()]);
        for file in files.chain(self.library_files(&format!("{}-new", self.name))) {
            // Usually only some of these files exist.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Removes the files of all graphs but `wanted`, and those of unfinished writes.
pub(crate) fn sweep(dir: &Path, wanted: &[GraphFile]) -> std::io::Result<()> {
    for file in std::fs::read_dir(dir)? {
        let file = file?;
        let name = file.file_name();
        let stem = name.to_string_lossy().split('.').next().unwrap_or_default().to_owned();
        if !wanted.iter().any(|wanted| wanted.name == stem) {
            std::fs::remove_file(file.path())?;
        }
    }
    Ok(())
}

fn digest(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut sha = Sha256::new();
    let mut part = vec![0; 1 << 16];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(sha.finalize().into()),
            n => sha.update(&part[..n]),
        }
    }
}

/// A digest that tells embeddings apart. It need not resist forgery, because no user chooses embeddings.
pub(crate) fn row_digest(row: &[f32]) -> u64 {
    use std::hash::Hasher;
    let mut hasher = siphasher::sip::SipHasher13::new();
    row.iter().for_each(|x| hasher.write_u32(x.to_bits()));
    hasher.finish()
}
