//! Measures look-ups: `cargo bench -p pentimento-cache --bench lookup -- 1000 10000 100000`.
//!
//! For each number of entries it prints the time of a look-up by graph and by exact scan, how often the graph finds the nearest
//! entry, the time of look-ups and changes while a graph is built, and the time to load the graph from its file.
//!
//! The vectors are clustered, because prompts are: many differ by a few words only. A vector is a cluster's centre plus noise.
//! The centres are drawn in a space of few dimensions and mapped to many dimensions by a random matrix.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use pentimento_cache::index::{EmbeddedIndex, Holding, IndexOptions, SearchFilter};
use pentimento_cache::{
    Compatibility, Content, Entry, EntryId, Kept, PaintedPlan, PromptIndex, Scope, SpecificationHash,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const DIMENSIONS: usize = 512;
/// The dimensions of the space that centres are drawn in.
const INNER: usize = 48;
const PER_CLUSTER: usize = 20;
const QUERIES: usize = 500;

fn main() {
    let asked: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if asked.is_empty() { vec![1_000, 2_000, 4_000, 10_000, 100_000] } else { asked };
    println!(
        "{DIMENSIONS} dimensions, {QUERIES} queries; whole look-ups, the nearest entry with all it says"
    );
    println!("entries   graph built   graph p50   p99        scan p50   scan / graph   recall@1");
    for size in sizes {
        let mut source = VectorSource::new(size);
        let entries: Vec<Vec<f32>> = (0..size).map(|_| source.vector(0.25)).collect();
        let queries: Vec<Vec<f32>> = (0..QUERIES).map(|_| source.vector(0.25)).collect();
        let (graph, graph_found, building) = measure(&entries, &queries, 1);
        let (scan, scan_found, _) = measure(&entries, &queries, usize::MAX);
        let Building { built, again, mut searches, mut changes } = building;
        let right = graph_found.iter().zip(&scan_found).filter(|(a, b)| a == b).count();
        println!(
            "{size:>7}   {:>9.1} s   {:>6.0} us   {:>6.0} us   {:>6.0} us   {:>12.1}   {:.3}",
            built.as_secs_f64(),
            micros(&graph, 0.5),
            micros(&graph, 0.99),
            micros(&scan, 0.5),
            micros(&scan, 0.5) / micros(&graph, 0.5),
            right as f64 / QUERIES as f64
        );
        searches.sort();
        changes.sort();
        println!(
            "          meanwhile, of {} probes: search p50 {:.0} us, longest {:.0} us; change p50 {:.0} us, longest {:.0} us",
            searches.len(),
            micros(&searches, 0.5),
            micros(&searches, 1.0),
            micros(&changes, 0.5),
            micros(&changes, 1.0),
        );
        println!(
            "          opened again: the graph is back from its file after {:.1} s, built / read {:.0}",
            again.as_secs_f64(),
            built.as_secs_f64() / again.as_secs_f64()
        );
    }
}

/// The time to build a graph, and the times of look-ups (by scan) and changes during that. A change writes the same entry
/// again.
#[derive(Default)]
struct Building {
    built: Duration,
    /// The time from reopening the index until its saved graph is used.
    again: Duration,
    searches: Vec<Duration>,
    changes: Vec<Duration>,
}

/// The sorted times of all queries, what they found, and how the graph was built.
fn measure(
    entries: &[Vec<f32>],
    queries: &[Vec<f32>],
    graph_from: usize,
) -> (Vec<Duration>, Vec<Option<EntryId>>, Building) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.redb");
    let scope = Scope { tenant: "tenant".into(), namespace: String::new() };
    let compatibility = compatibility();
    {
        let scan = IndexOptions { graph_from: usize::MAX, ..IndexOptions::default() };
        let index = EmbeddedIndex::open(&path, &scan).unwrap();
        for (n, embedding) in entries.iter().enumerate() {
            let entry = entry(n as u128, &scope, &compatibility, embedding.clone());
            runtime.block_on(index.upsert(entry)).unwrap();
        }
        runtime.block_on(index.flush()).unwrap();
    }
    let index = EmbeddedIndex::open(&path, &IndexOptions { graph_from, ..IndexOptions::default() }).unwrap();
    let holding = Holding::Source;
    let filter =
        SearchFilter { scope: &scope, compatibility: &compatibility, guidance_scale: 0.0..=100.0, holding };
    let mut building = Building::default();
    let begun = Instant::now();
    while graph_from <= entries.len() && !index.has_graph(&scope, &compatibility) {
        let begun = Instant::now();
        runtime.block_on(index.search(&filter, &queries[0], 1)).unwrap();
        building.searches.push(begun.elapsed());
        let same = entry(0, &scope, &compatibility, entries[0].clone());
        let begun = Instant::now();
        runtime.block_on(index.upsert(same)).unwrap();
        building.changes.push(begun.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    building.built = begun.elapsed();
    let look_up = |query: &Vec<f32>| {
        let begun = Instant::now();
        let near = runtime.block_on(index.search(&filter, query, 1)).unwrap();
        (begun.elapsed(), near.into_iter().next().map(|near| near.entry.id))
    };
    queries.iter().take(50).for_each(|query| drop(look_up(query)));
    let (mut times, found): (Vec<_>, Vec<_>) = queries.iter().map(look_up).unzip();
    times.sort();
    drop(index);
    if graph_from <= entries.len() {
        let begun = Instant::now();
        let options = IndexOptions { graph_from, ..IndexOptions::default() };
        let index = EmbeddedIndex::open(&path, &options).unwrap();
        while !index.has_graph(&scope, &compatibility) {
            std::thread::sleep(Duration::from_millis(5));
        }
        building.again = begun.elapsed();
        assert_eq!(index.stats().graphs_loaded, 1, "read, not built");
    }
    (times, found, building)
}

fn micros(times: &[Duration], share: f64) -> f64 {
    times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6
}

/// Generates vectors, the same in every run.
struct VectorSource {
    random: ChaCha8Rng,
    map: Vec<Vec<f32>>,
    centres: Vec<Vec<f32>>,
}

impl VectorSource {
    fn new(size: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut normals = |n: usize| (0..n).map(|_| normal(&mut random)).collect::<Vec<f32>>();
        let map: Vec<Vec<f32>> = (0..DIMENSIONS).map(|_| normals(INNER)).collect();
        let centres = (0..size.div_ceil(PER_CLUSTER)).map(|_| normals(INNER)).collect();
        Self { random, map, centres }
    }

    /// A vector of length 1 near one of the centres.
    fn vector(&mut self, noise: f32) -> Vec<f32> {
        let centre = &self.centres[self.random.next_u64() as usize % self.centres.len()];
        let inner: Vec<f32> = centre.iter().map(|x| x + noise * normal(&mut self.random)).collect();
        let product = |row: &Vec<f32>| row.iter().zip(&inner).map(|(x, y)| x * y).sum::<f32>();
        let scale = noise * (INNER as f32).sqrt() / 2.0;
        let mut vector: Vec<f32> =
            self.map.iter().map(|row| product(row) + scale * normal(&mut self.random)).collect();
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|x| *x /= length);
        vector
    }
}

/// A roughly normal number, the sum of uniform ones.
fn normal(random: &mut ChaCha8Rng) -> f32 {
    (0..6).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5).sum::<f32>() * 1.414
}

fn compatibility() -> Compatibility {
    Compatibility {
        latent_space: "space".into(),
        noise_schedule: "schedule".into(),
        width: 512,
        height: 512,
        embedder: "random".into(),
        negative_prompt: String::new(),
    }
}

fn entry(n: u128, scope: &Scope, compatibility: &Compatibility, embedding: Vec<f32>) -> Entry {
    Entry {
        id: EntryId::new(n),
        scope: scope.clone(),
        compatibility: compatibility.clone(),
        model: "none".into(),
        guidance_scale: 4.0,
        embedding,
        prompt: None,
        prompt_hash: n.to_string(),
        content: Content::default(),
        specification: specification(n),
        seed: 0,
        plan: PaintedPlan::guided(50),
        expected_quality: None,
        resumed: None,
        picture: None,
        states: vec![Kept { timestep: 801.0, share: 0.2, bytes: 8192, uses: 0 }],
        created: 0,
        last_used: 0,
    }
}

fn specification(n: u128) -> SpecificationHash {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&n.to_le_bytes());
    SpecificationHash::new(bytes)
}
