//! Helpers of the tests: pictures, a simple policy, a faulty store, and waiting for events.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::*;
use pentimento_cache::*;
use tokio::sync::Semaphore;

pub fn scope(tenant: &str) -> Scope {
    Scope { tenant: tenant.into(), namespace: "default".into() }
}

pub fn compatibility() -> Compatibility {
    Compatibility {
        latent_space: "space".into(),
        noise_schedule: "schedule".into(),
        width: 64,
        height: 64,
        embedder: "embedder".into(),
        negative_prompt: "none".into(),
    }
}

pub fn at_angle(degrees: f32) -> Vec<f32> {
    let (sine, cosine) = degrees.to_radians().sin_cos();
    vec![cosine, sine, 0.0, 0.0]
}

/// A state whose numbers are exact in f16.
pub fn state(timestep: f64) -> State {
    let latent = (0..256).map(|i| i as f32 / 64.0 - 2.0).collect();
    State { timestep, noise_level: 0.5, shape: [4, 8, 8], latent }
}

/// A specification's hash that depends on `name`.
pub fn specification(name: &str) -> SpecificationHash {
    let mut bytes = [0; 32];
    name.bytes().enumerate().for_each(|(i, byte)| bytes[i % 32] ^= byte.rotate_left(i as u32 / 32));
    SpecificationHash::new(bytes)
}

/// A file with the first bytes of a PNG.
pub fn file(text: &str) -> Bytes {
    Bytes::from([b"\x89PNG\r\n\x1a\n".as_slice(), text.as_bytes()].concat())
}

/// A picture of `prompt` with seed 7, whose embedding is [`at_angle`]`(degrees)`.
pub fn picture(prompt: &str, degrees: f32) -> NewPicture {
    NewPicture {
        scope: scope("tenant"),
        compatibility: compatibility(),
        model: "storybook".into(),
        guidance_scale: 4.0,
        embedding: at_angle(degrees),
        prompt: Some(prompt.into()),
        prompt_hash: format!("hash of {prompt}"),
        content: Content::default(),
        specification: specification(&format!("{prompt} 7")),
        seed: 7,
        plan: PaintedPlan::guided(50),
        expected_quality: Some(0.9),
        resumed: None,
        refresh: false,
        file: Some(file(prompt)),
        states: vec![(state(801.0), 0.2), (state(FINISHED), 1.0)],
    }
}

/// Resumes the nearest entry's noisiest state.
struct Nearest;

impl ReusePolicy for Nearest {
    fn name(&self) -> &'static str {
        "nearest"
    }
    fn neighbours(&self) -> NeighbourCounts {
        NeighbourCounts { sources: 4, whole_pictures: 0 }
    }
    fn decide(&self, _: &Query<'_>, neighbours: &[Neighbour]) -> Decision {
        match neighbours.first() {
            None => Decision::Miss { why: "nothing near".into() },
            Some(near) => Decision::State {
                entry: near.entry.id.clone(),
                timestep: near.entry.states[0].timestep,
                similarity: near.similarity,
                loss: None,
                why: "the nearest".into(),
            },
        }
    }
}

pub async fn look_up(cache: &Cache, scope: &Scope, degrees: f32) -> LookUp {
    let embedding = at_angle(degrees);
    let content = Content::default();
    let query = Query {
        model: "storybook",
        embedding: &embedding,
        content: &content,
        seeded: true,
        whole: true,
        least_quality: 0.0,
        most_loss: 1.0,
        timesteps: &[999.0, 801.0],
        chance: 0,
    };
    cache.look_up(scope, &compatibility(), &query, &Nearest, 3.0..=5.0).await.unwrap()
}

/// The picture of a prompt with seed 7.
pub async fn exact(cache: &Cache, scope: &Scope, prompt: &str) -> Option<ExactHit> {
    cache.exact(scope, &specification(&format!("{prompt} 7"))).await.unwrap()
}

/// All files of states and pictures in a cache's directory.
pub fn all_files(dir: &FilePath) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.join("states")];
    while let Some(dir) = open.pop() {
        for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if file.path().is_dir() { open.push(file.path()) } else { found.push(file.path()) }
        }
    }
    found
}

pub fn files(dir: &FilePath) -> usize {
    all_files(dir).len()
}

/// Waits until `happened`, and panics with `what` if it does not happen. The bound is far beyond what any machine needs: it
/// only makes a failing test end.
pub async fn until(what: &str, happened: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if happened() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

/// The fault of a store.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Files of more than 100 bytes cannot be written.
    Full,
    /// Operations never end.
    Hangs,
    /// Each deletion waits for a permit of the semaphore, and consumes it.
    DeletionsWait(Arc<Semaphore>),
}

/// A store in memory with a fault.
#[derive(Debug)]
pub struct FaultyStore {
    fault: Fault,
    pub inner: InMemory,
}

impl FaultyStore {
    pub fn new(fault: Fault) -> Self {
        Self { fault, inner: InMemory::new() }
    }
}

impl std::fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.fault)
    }
}

fn not_used<T>() -> Result<T> {
    Err(Error::NotImplemented { operation: String::new(), implementer: String::new() })
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, to: &Path, bytes: PutPayload, options: PutOptions) -> Result<PutResult> {
        match self.fault {
            Fault::Full if bytes.content_length() > 100 => {
                Err(Error::Generic { store: "faulty", source: "no space left on device".into() })
            }
            Fault::Hangs => std::future::pending().await,
            _ => self.inner.put_opts(to, bytes, options).await,
        }
    }
    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        not_used()
    }
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        match self.fault {
            Fault::Hangs => std::future::pending().await,
            _ => self.inner.get_opts(location, options).await,
        }
    }
    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match &self.fault {
            Fault::Full => self.inner.delete_stream(locations),
            Fault::Hangs => Box::pin(futures_util::stream::pending()),
            Fault::DeletionsWait(permits) => {
                let permits = Arc::clone(permits);
                Box::pin(self.inner.delete_stream(locations).then(move |done| {
                    let permits = Arc::clone(&permits);
                    async move {
                        permits.acquire().await.unwrap().forget();
                        done
                    }
                }))
            }
        }
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        not_used()
    }
}
