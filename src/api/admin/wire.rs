//! What travels. Embeddings and the hashes of prompts and words stay inside.

use pentimento_cache::{Entry, IndexStats, Kept, Moved, Neighbour, PolicyConfig, Stats};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// How the cache is doing. Counts begin at 0 when the server starts; what requests made of it is in `/metrics`.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct StatsObject {
    /// Pictures that the cache holds anything of,
    pub entries: u64,
    /// and at most.
    pub max_entries: u64,
    /// Of these, the ones whose file is kept.
    pub pictures: u64,
    /// Bytes of their states and files,
    pub bytes: u64,
    /// and at most.
    pub max_bytes: u64,
    /// Bytes of states in memory.
    pub memory_bytes: u64,
    /// Bytes of pictures' files in memory.
    pub picture_memory_bytes: u64,
    /// Pictures that wait to be written.
    pub queued: u64,
    /// Pictures not kept because too many waited.
    pub insert_drops: u64,
    /// Pictures not kept because one of the same specification, as good or better, was kept already.
    pub duplicates: u64,
    /// Pictures that took the place of one of the same specification.
    pub replacements: u64,
    /// States and pictures evicted, and entries that were too old.
    pub evictions: u64,
    /// Failures of index and store, damaged files among them.
    pub failures: u64,
    /// The index.
    pub index: IndexObject,
    /// What is decided by.
    #[serde(flatten)]
    pub policy: PolicyObject,
}

impl StatsObject {
    pub(super) fn new(stats: Stats, max_entries: u64, max_bytes: u64, policy: PolicyObject) -> Self {
        let Stats { entries, pictures, bytes, memory_bytes, picture_memory_bytes, queued, .. } = stats;
        let Stats { insert_drops, duplicates, replacements, evictions, failures, index, .. } = stats;
        Self {
            entries,
            max_entries,
            pictures,
            bytes,
            max_bytes,
            memory_bytes,
            picture_memory_bytes,
            queued,
            insert_drops,
            duplicates,
            replacements,
            evictions,
            failures,
            index: IndexObject::new(index),
            policy,
        }
    }
}

/// How the index is doing.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct IndexObject {
    /// Embeddings in memory.
    pub rows: u64,
    /// Of these, the ones of pictures that are gone.
    pub tombstones: u64,
    /// Embeddings that graphs find; the others are scanned.
    pub in_graphs: u64,
    /// Graphs, at most one per tenant, namespace and kind of picture.
    pub graphs: u64,
    /// Of these, the ones that were read from a file instead of built.
    pub graphs_loaded: u64,
    /// Entries thrown out because they could not be read.
    pub damaged: u64,
    /// How often the database was opened again after an error of the disk.
    pub reopened: u64,
}

impl IndexObject {
    fn new(index: IndexStats) -> Self {
        let IndexStats { rows, tombstones, in_graphs, graphs, graphs_loaded, damaged, reopened } = index;
        Self { rows, tombstones, in_graphs, graphs, graphs_loaded, damaged, reopened }
    }
}

/// The policies in force.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct PolicyObject {
    /// The reuse policy with its settings, as `reuse_policy` in the configuration takes it.
    #[schema(value_type = Object, example = json!({"policy": "exact"}))]
    pub reuse: PolicyConfig,
    /// The eviction policy: `lcbfu`, `lru`, `lfu` or `fifo`.
    pub eviction: String,
}

/// Policies to go by from now on, until the server ends. What is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyChange {
    /// A reuse policy and its settings; settings left out take their defaults.
    #[schema(value_type = Option<Object>, example = json!({"policy": "nirvana", "offset": 0.02}))]
    pub reuse: Option<serde_json::Map<String, serde_json::Value>>,
    /// `lcbfu`, `lru`, `lfu` or `fifo`.
    pub eviction: Option<String>,
}

/// A state that is kept of a picture.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct StateObject {
    /// Its timestep; null for the finished latent.
    pub timestep: Option<f64>,
    /// The share of its plan that lay before it.
    pub share: f32,
    /// Bytes in the store.
    pub bytes: u64,
    /// How often it was resumed.
    pub uses: u64,
}

impl From<&Kept> for StateObject {
    fn from(kept: &Kept) -> Self {
        let timestep = (!kept.is_finished()).then_some(kept.timestep);
        Self { timestep, share: kept.share, bytes: kept.bytes, uses: kept.uses }
    }
}

/// The file that is kept of a picture.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct StoredFileObject {
    /// Bytes in the store.
    pub bytes: u64,
    /// How often it was served.
    pub uses: u64,
}

/// The plan that painted a picture.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct PaintedPlanObject {
    /// The plan menu's option; null where the request named its steps.
    pub option: Option<String>,
    /// Steps from noise to picture, those that a stored state spared included.
    pub steps: u32,
    /// Of these, the guided ones.
    pub guided_steps: u32,
}

/// What a picture was resumed from.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct ResumedFromObject {
    /// The entry, which may be gone by now.
    pub entry: String,
    /// The quality that this was expected to lose, 0 to 1.
    pub loss: f32,
}

/// A picture that the cache holds: its file, states of it, or both.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct EntryObject {
    /// Its name.
    pub id: String,
    /// Whose it is; empty in a namespace that all tenants share.
    pub tenant: String,
    /// The tenant's namespace.
    pub namespace: String,
    /// The model that painted it.
    pub model: String,
    /// The prompt; null where prompts are not stored.
    pub prompt: Option<String>,
    /// `WIDTHxHEIGHT`.
    pub size: String,
    /// Guidance scale it was painted with.
    pub guidance_scale: f32,
    /// The seed it was painted from.
    pub seed: u64,
    /// The plan that painted it.
    pub plan: PaintedPlanObject,
    /// Its expected quality, 0 to 1 relative to the model's full plan; null where it is not known.
    pub expected_quality: Option<f32>,
    /// What it was resumed from; null for a picture painted from noise.
    pub resumed_from: Option<ResumedFromObject>,
    /// Its lossless file; null where that is not kept.
    pub picture: Option<StoredFileObject>,
    /// When it was painted, in Unix seconds.
    pub created: u64,
    /// When it was last reused, or else painted, in Unix seconds.
    pub last_used: u64,
    /// The states that are kept of it, noisiest first.
    pub states: Vec<StateObject>,
}

impl From<Entry> for EntryObject {
    fn from(entry: Entry) -> Self {
        Self {
            id: entry.id.into(),
            tenant: entry.scope.tenant,
            namespace: entry.scope.namespace,
            model: entry.model,
            prompt: entry.prompt,
            size: format!("{}x{}", entry.compatibility.width, entry.compatibility.height),
            guidance_scale: entry.guidance_scale,
            seed: entry.seed,
            plan: PaintedPlanObject {
                option: entry.plan.option,
                steps: entry.plan.steps,
                guided_steps: entry.plan.guided_steps,
            },
            expected_quality: entry.expected_quality,
            resumed_from: entry
                .resumed
                .map(|from| ResumedFromObject { entry: from.entry.into(), loss: from.loss }),
            picture: entry.picture.map(|kept| StoredFileObject { bytes: kept.bytes, uses: kept.uses }),
            created: entry.created,
            last_used: entry.last_used,
            states: entry.states.iter().map(StateObject::from).collect(),
        }
    }
}

/// Which entries, and which page of them.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EntryQuery {
    /// The `next` of the page before.
    pub after: Option<String>,
    /// The most entries of a page.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<usize>,
    /// Of this tenant.
    pub tenant: Option<String>,
    /// Of this namespace.
    pub namespace: Option<String>,
    /// Painted by this model.
    pub model: Option<String>,
    /// With this text in the prompt. Finds nothing where prompts are not stored.
    pub prompt: Option<String>,
}

/// A page of entries.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct EntryList {
    /// The entries, in the order of their names.
    pub data: Vec<EntryObject>,
    /// What the next page is `after`; null at the end.
    pub next: Option<String>,
}

/// An entry that is no more.
#[derive(Debug, Serialize, ToSchema)]
pub struct Deleted {
    /// Its name.
    pub id: String,
    /// Always true.
    pub deleted: bool,
}

/// A request to be looked up and not painted. The fields are those of the Images API.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LookUpRequest {
    /// The prompt.
    #[schema(required = true, nullable = false)]
    pub prompt: Option<String>,
    /// A model's id or alias.
    pub model: Option<String>,
    /// The negative prompt.
    pub negative_prompt: Option<String>,
    /// `WIDTHxHEIGHT` or `auto`.
    pub size: Option<String>,
    /// How many steps.
    pub num_inference_steps: Option<i64>,
    /// Guidance scale.
    pub guidance_scale: Option<f64>,
    /// The seed. Without one there is no exact hit.
    pub seed: Option<i64>,
    /// Whose request it is; without one, that of the clients without API keys.
    pub tenant: Option<String>,
    /// The tenant's namespace.
    pub namespace: Option<String>,
}

/// What a request would start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Noise.
    Miss,
    /// A stored state.
    State,
    /// The stored picture of a prompt that means the same.
    Semantic,
    /// The stored picture of the same request.
    Exact,
}

/// What would be decided.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct DecisionObject {
    /// What the request would start from.
    pub outcome: Outcome,
    /// Why, for people.
    pub why: String,
    /// The entry whose state or picture it would be.
    pub entry: Option<String>,
    /// The state's timestep.
    pub timestep: Option<f64>,
    /// Steps of the request's plan that would not be taken.
    pub skipped_steps: usize,
    /// Steps of the request's plan.
    pub steps: usize,
}

/// An entry near the request.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct NeighbourObject {
    /// Cosine of both prompts' embeddings.
    pub similarity: f32,
    /// The entry.
    pub entry: EntryObject,
}

impl From<Neighbour> for NeighbourObject {
    fn from(near: Neighbour) -> Self {
        Self { similarity: near.similarity, entry: near.entry.into() }
    }
}

/// What a look-up found.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct LookUpAnswer {
    /// What would be decided, and why.
    pub decision: DecisionObject,
    /// What the reuse policy decided by, nearest first. `exact` and `off` look at none.
    pub neighbours: Vec<NeighbourObject>,
}

/// What to purge: all parts that are given must agree.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PurgeRequest {
    /// Of exactly this prompt, stored or not.
    pub prompt: Option<String>,
    /// Of this tenant.
    pub tenant: Option<String>,
    /// Of this namespace.
    pub namespace: Option<String>,
    /// Painted by this model.
    pub model: Option<String>,
    /// Painted longer ago than this.
    pub older_than_seconds: Option<u64>,
    /// Everything; then nothing else may be given.
    pub all: Option<bool>,
    /// Only count.
    pub dry_run: Option<bool>,
}

/// What was purged.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct PurgeAnswer {
    /// Entries removed, or to be removed.
    pub entries: usize,
    /// Whether they were only counted.
    pub dry_run: bool,
}

/// Which entries to export.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// Of this tenant.
    pub tenant: Option<String>,
    /// Of this namespace.
    pub namespace: Option<String>,
    /// Painted by this model.
    pub model: Option<String>,
    /// With this text in the prompt. Finds nothing where prompts are not stored.
    pub prompt: Option<String>,
}

/// What an import brought.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct ImportAnswer {
    /// Entries.
    pub entries: usize,
    /// Their files.
    pub pictures: usize,
    /// Their states.
    pub states: usize,
}

impl From<Moved> for ImportAnswer {
    fn from(moved: Moved) -> Self {
        Self { entries: moved.entries, pictures: moved.pictures, states: moved.states }
    }
}
