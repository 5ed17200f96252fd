//! Graphs in files, so that an index of many entries need not link them all again whenever it opens.
//!
//! A saved graph is a help, never the truth. Beside it stands which entry had which of its rows; a row counts
//! only where the entry still has that very embedding, so a graph that is older than the index serves as far
//! as it goes. The library that reads the files trusts them, so nobody reads them whose digests do not agree.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::graph::Graph;
use crate::entry::{Compatibility, EntryId, Scope};

/// Version of the files. Raise it with every change of them, of the graph or of the library that writes it.
const FORMAT: u32 = 1;

/// Where the graph of one shelf is saved.
#[derive(Debug, Clone)]
pub(crate) struct GraphFile {
    dir: Arc<PathBuf>,
    name: String,
}

/// A row of a saved graph.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct SavedRow {
    /// Whose it is; `None`: dead.
    pub id: Option<EntryId>,
    /// Of its embedding.
    pub digest: u64,
}

#[derive(Deserialize, Serialize)]
struct Contents {
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

    /// The library's two files, as it names them.
    fn dumped(&self, name: &str) -> [PathBuf; 2] {
        ["graph", "data"].map(|kind| self.dir.join(format!("{name}.hnsw.{kind}")))
    }

    /// Saves a graph and whose its rows are, in place of an older one. What fails is a warning: the graph is
    /// then built again.
    pub(crate) fn save(&self, graph: &Graph, rows: Vec<SavedRow>) {
        if let Err(error) = self.try_save(graph, rows) {
            tracing::warn!(%error, "a graph could not be saved");
            self.remove();
        }
    }

    fn try_save(&self, graph: &Graph, rows: Vec<SavedRow>) -> std::io::Result<()> {
        let new = format!("{}-new", self.name);
        graph.dump(&self.dir, &new)?;
        let written = self.dumped(&new);
        let contents =
            Contents { format: FORMAT, rows, graph: digest(&written[0])?, data: digest(&written[1])? };
        let bytes = postcard::to_stdvec(&contents).map_err(std::io::Error::other)?;
        let sealed = [Sha256::digest(&bytes).as_slice(), &bytes].concat();
        for (from, to) in written.iter().zip(self.dumped(&self.name)) {
            std::fs::rename(from, to)?;
        }
        // A process that is killed before this line leaves digests that do not agree.
        std::fs::write(self.rows(), sealed)
    }

    /// The graph and whose its rows are, where there is one and it is whole.
    pub(crate) fn load(&self, dimensions: usize) -> Option<(Graph, Vec<SavedRow>)> {
        let sealed = std::fs::read(self.rows()).ok()?;
        let loaded = self.load_sound(&sealed, dimensions);
        if loaded.is_none() {
            tracing::warn!(
                name = self.name,
                "a saved graph is damaged or of another version: it is built again"
            );
        }
        loaded
    }

    fn load_sound(&self, sealed: &[u8], dimensions: usize) -> Option<(Graph, Vec<SavedRow>)> {
        let (seal, bytes) = sealed.split_at_checked(32)?;
        if Sha256::digest(bytes).as_slice() != seal {
            return None;
        }
        let contents: Contents = postcard::from_bytes(bytes).ok()?;
        let [graph, data] = self.dumped(&self.name);
        let whole = contents.format == FORMAT
            && digest(&graph).ok()? == contents.graph
            && digest(&data).ok()? == contents.data;
        let graph = whole.then(|| Graph::reload(&self.dir, &self.name))??;
        let fits = graph.rows() == contents.rows.len() && graph.dimensions() == dimensions;
        fits.then_some((graph, contents.rows))
    }

    pub(crate) fn remove(&self) {
        let files = self.dumped(&self.name).into_iter().chain([self.rows()]);
        for file in files.chain(self.dumped(&format!("{}-new", self.name))) {
            // Most often there is none.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Removes the graphs that none of `wanted` is saved as, and those that were never finished.
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

/// Tells embeddings apart. They are the cache's own: nobody chooses them to collide.
pub(crate) fn row_digest(row: &[f32]) -> u64 {
    use std::hash::Hasher;
    let mut hasher = siphasher::sip::SipHasher13::new();
    row.iter().for_each(|x| hasher.write_u32(x.to_bits()));
    hasher.finish()
}
