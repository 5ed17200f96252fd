//! Entries and queries for tests of policies.

use pentimento_cache::{
    CalibrationFor, Compatibility, Content, Entry, EntryId, Kept, Neighbour, PaintedPlan, Query, Resume,
    Scope, SpecificationHash,
};

pub const KEY: &[u8; 16] = b"a key for tests!";
/// 50 steps of 1,000.
pub const STEPS: usize = 50;

pub fn timesteps() -> Vec<f64> {
    (0..STEPS).map(|step| timestep(step as f32 / STEPS as f32)).collect()
}

/// The timestep of a state with this share; -1 for the finished latent.
pub fn timestep(share: f32) -> f64 {
    (f64::from(1.0 - share) * 1000.0).round() - 1.0
}

/// An entry with states at these shares; 1 is the finished latent.
pub fn entry(number: u128, prompt: &str, embedding: Vec<f32>, shares: &[f32]) -> Entry {
    let kept = |&share: &f32| Kept { timestep: timestep(share), share, bytes: 8192, uses: 0 };
    Entry {
        id: EntryId::new(number),
        scope: Scope { tenant: "tenant".into(), namespace: "default".into() },
        compatibility: Compatibility {
            latent_space: "latents".into(),
            noise_schedule: "schedule".into(),
            width: 64,
            height: 64,
            embedder: "embedder".into(),
            negative_prompt: "none".into(),
        },
        model: "model".into(),
        guidance_scale: 4.0,
        embedding,
        prompt: Some(prompt.into()),
        prompt_hash: format!("hash of {prompt}"),
        content: Content::of(prompt, KEY),
        specification: SpecificationHash::new([number as u8; 32]),
        seed: 1,
        plan: PaintedPlan::guided(STEPS as u32),
        expected_quality: None,
        resumed: None,
        picture: None,
        states: shares.iter().map(kept).collect(),
        created: 0,
        last_used: 0,
    }
}

/// What a table was measured for that applies to [`entry`] and [`query`].
pub fn measured_for(resume: Resume) -> CalibrationFor {
    CalibrationFor {
        embedder: "embedder".into(),
        latent_space: "latents".into(),
        noise_schedule: "schedule".into(),
        model: "model".into(),
        weights: "weights".into(),
        sizes: vec![(64, 64), (128, 64)],
        guidance_scale: 4.0,
        steps: STEPS,
        resume,
    }
}

pub fn neighbour(entry: Entry, similarity: f32) -> Neighbour {
    Neighbour { entry, similarity }
}

/// A request with a seed.
pub fn query<'a>(embedding: &'a [f32], content: &'a Content, timesteps: &'a [f64], chance: u64) -> Query<'a> {
    Query {
        model: "model",
        embedding,
        content,
        seeded: true,
        whole: true,
        least_quality: 0.0,
        most_loss: 1.0,
        timesteps,
        chance,
    }
}

/// A pseudo-random generator (SplitMix64), so that every run has the same numbers.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to 1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    pub fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[(self.next() % all.len() as u64) as usize]
    }

    /// Two different elements.
    pub fn two<'a>(&mut self, all: &[&'a str]) -> [&'a str; 2] {
        let first = self.of(all);
        loop {
            let second = self.of(all);
            if second != first {
                return [first, second];
            }
        }
    }
}
