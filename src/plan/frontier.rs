//! The quality frontier: what a step is worth.

use pentimento_pipelines::MAX_STEPS;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Files of another version are refused.
const VERSION: u32 = 1;
/// The most curves of a file, and the most points of a curve.
const MOST_CURVES: usize = 16;
const MOST_POINTS: usize = 256;
/// Step counts that [`Frontier::flat`] has points at; between them its curve is a little too low.
const FLAT_STEPS: [usize; 16] = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 35, 50, 100, 300];

/// Why there is no frontier.
#[derive(Debug, Error)]
pub enum FrontierError {
    /// Not a frontier.
    #[error("not a quality frontier: {0}")]
    Json(#[from] serde_json::Error),
    /// A file of another version.
    #[error("quality frontier of version {0}; this one reads version {VERSION}: run `pentimento frontier`")]
    Version(u32),
    /// A value out of its bounds.
    #[error("quality frontier: `{field}` must be {must}")]
    OutOfBounds {
        /// Its name in the file.
        field: &'static str,
        /// What it must be.
        must: &'static str,
    },
}

/// What a frontier was measured for.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FrontierFor {
    /// The model that painted.
    pub model: String,
    /// Digest of that model's files.
    pub weights: String,
    /// Steps of the full plan, whose pictures have quality 1.
    pub steps: usize,
    /// Guidance scale of all plans.
    pub guidance_scale: f32,
    /// How many prompts were painted.
    pub prompts: usize,
}

/// A frontier as `pentimento frontier` writes it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FrontierFile {
    version: u32,
    /// What it was measured for.
    #[serde(rename = "for")]
    pub measured_for: FrontierFor,
    /// By rising share, the first from noise.
    pub curves: Vec<Curve>,
}

/// Quality by step count, from one place on.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// Share of the full plan that was behind the state gone on from; 0: from noise.
    pub skipped: f64,
    /// By rising steps.
    pub points: Vec<Point>,
}

/// The pictures of one step count.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Steps of the whole plan, of which `1 - skipped` were taken.
    pub steps: usize,
    /// The smaller of relative fidelity and relative CLIP score, 0 to 1.
    pub quality: f64,
    /// Its 95 % interval: lower end.
    pub low: f64,
    /// Its 95 % interval: upper end.
    pub high: f64,
    /// Mean fidelity, 0 to 1; absent where it was not judged.
    pub fidelity: Option<f64>,
    /// Mean CLIP score, -1 to 1; absent where it was not judged.
    pub clip_score: Option<f64>,
}

fn check(holds: bool, field: &'static str, must: &'static str) -> Result<(), FrontierError> {
    if holds { Ok(()) } else { Err(FrontierError::OutOfBounds { field, must }) }
}

impl FrontierFile {
    /// # Errors
    /// [`FrontierError::OutOfBounds`].
    pub fn new(measured_for: FrontierFor, curves: Vec<Curve>) -> Result<Self, FrontierError> {
        let file = Self { version: VERSION, measured_for, curves };
        file.check()?;
        Ok(file)
    }

    /// Reads a file, of this version only.
    ///
    /// # Errors
    /// [`FrontierError`].
    pub fn from_json(json: &str) -> Result<Self, FrontierError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_str(json)?;
        if version != VERSION {
            return Err(FrontierError::Version(version));
        }
        let file: Self = serde_json::from_str(json)?;
        file.check()?;
        Ok(file)
    }

    /// The file's content.
    ///
    /// # Errors
    /// [`FrontierError::Json`].
    pub fn to_json(&self) -> Result<String, FrontierError> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    fn check(&self) -> Result<(), FrontierError> {
        let FrontierFor { steps, guidance_scale, prompts, .. } = self.measured_for;
        check((1..=MAX_STEPS).contains(&steps), "for.steps", "from 1 to 1000")?;
        check((0.0..=100.0).contains(&guidance_scale), "for.guidance_scale", "from 0 to 100")?;
        check(prompts > 0, "for.prompts", "at least 1")?;
        check((1..=MOST_CURVES).contains(&self.curves.len()), "curves", "a list of 1 to 16")?;
        check(self.curves[0].skipped == 0.0, "curves.skipped", "0 in the first curve")?;
        check(self.curves.iter().all(|c| c.skipped < 1.0), "curves.skipped", "below 1")?;
        let rising = self.curves.windows(2).all(|w| w[0].skipped < w[1].skipped);
        check(rising, "curves.skipped", "rising")?;
        self.curves.iter().try_for_each(Curve::check)
    }
}

impl Curve {
    fn check(&self) -> Result<(), FrontierError> {
        let points = &self.points;
        check((1..=MOST_POINTS).contains(&points.len()), "points", "a list of 1 to 256")?;
        check(points.iter().all(|p| (1..=MAX_STEPS).contains(&p.steps)), "steps", "from 1 to 1000")?;
        check(points.windows(2).all(|w| w[0].steps < w[1].steps), "steps", "rising")?;
        let all = |of: fn(&Point) -> f64| points.iter().all(|p| (0.0..=1.0).contains(&of(p)));
        check(all(|p| p.quality), "quality", "from 0 to 1")?;
        check(all(|p| p.low), "low", "from 0 to 1")?;
        check(all(|p| p.high), "high", "from 0 to 1")?;
        check(all(|p| p.fidelity.unwrap_or(0.0)), "fidelity", "from 0 to 1")?;
        check(all(|p| p.clip_score.unwrap_or(0.0).abs()), "clip_score", "from -1 to 1")
    }
}

/// What a whole plan of so many steps is worth, 0 to 1 relative to the model's full plan: never falls with the steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Frontier {
    /// Steps of the full plan.
    full: usize,
    /// By rising share: the share, and quality by rising steps.
    curves: Vec<(f64, Vec<(usize, f64)>)>,
}

impl From<&FrontierFile> for Frontier {
    /// What was measured, made monotone: more steps of one sampler are never worth less but by chance.
    fn from(file: &FrontierFile) -> Self {
        let curve = |curve: &Curve| {
            let points = curve.points.iter().map(|p| (p.steps, p.quality)).collect();
            (curve.skipped, isotonic(points))
        };
        Self { full: file.measured_for.steps, curves: file.curves.iter().map(curve).collect() }
    }
}

impl Frontier {
    /// For a model that was not measured, with a full plan of `full` steps: loss = 1/steps − 1/full.
    ///
    /// DDIM is a solver of first order (Lu et al., 2022, DPM-Solver, sec. 4.1), whose error falls with 1/steps. That
    /// the quality of a single step is gone altogether is an assumption, and a careful one: it asks for 9 of 50
    /// steps for 0.9, and for 34 for 0.99, where measured models need fewer.
    pub fn flat(full: usize) -> Self {
        let full = full.clamp(1, MAX_STEPS);
        let steps = FLAT_STEPS.into_iter().filter(|steps| *steps < full).chain([full]);
        let quality = |steps: usize| 1.0 - (1.0 / steps as f64 - 1.0 / full as f64);
        Self { full, curves: vec![(0.0, steps.map(|steps| (steps, quality(steps))).collect())] }
    }

    /// What a whole plan of `steps` is worth of which the share `done` is behind. Linear between measured steps and
    /// between measured shares, and towards 1 where nothing is left that could be lost.
    pub fn quality(&self, steps: usize, done: f64) -> f64 {
        let done = done.clamp(0.0, 1.0);
        let above = self.curves.partition_point(|(share, _)| *share <= done);
        let at = |i: usize| self.curves.get(i).map_or((1.0, 1.0), |(share, of)| (*share, on(of, steps)));
        let (below, low) = at(above.saturating_sub(1));
        let (above, high) = at(above);
        if above <= below { low } else { low + (high - low) * (done - below) / (above - below) }
    }

    /// The fewest steps from noise that are worth `quality`; the full plan's where none are.
    pub fn fewest(&self, quality: f64) -> usize {
        (1..self.full).find(|steps| self.quality(*steps, 0.0) >= quality).unwrap_or(self.full)
    }
}

/// A curve's value: linear between its points and down to 0 at no steps, level after the last.
fn on(points: &[(usize, f64)], steps: usize) -> f64 {
    let above = points.partition_point(|(at, _)| *at <= steps);
    let (below, low) = above.checked_sub(1).map_or((0, 0.0), |i| points[i]);
    match points.get(above) {
        Some((above, high)) => low + (high - low) * (steps - below) as f64 / (above - below) as f64,
        None => low,
    }
}

/// The nearest non-decreasing values by least squares: pool adjacent violators (Ayer et al., 1955).
fn isotonic(points: Vec<(usize, f64)>) -> Vec<(usize, f64)> {
    let mut pools: Vec<(f64, usize)> = Vec::new();
    for (_, value) in &points {
        let mut pool = (*value, 1);
        while let Some((below, count)) = pools.last().copied().filter(|(below, _)| *below > pool.0) {
            pools.pop();
            let both = count + pool.1;
            pool = ((below * count as f64 + pool.0 * pool.1 as f64) / both as f64, both);
        }
        pools.push(pool);
    }
    let values = pools.into_iter().flat_map(|(value, count)| std::iter::repeat_n(value, count));
    points.iter().map(|(steps, _)| *steps).zip(values).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(curves: &[(f64, &[(usize, f64)])]) -> FrontierFile {
        let point = |&(steps, quality): &(usize, f64)| Point {
            steps,
            quality,
            low: quality,
            high: quality,
            fidelity: Some(quality),
            clip_score: None,
        };
        let curve = |&(skipped, points): &(f64, &[(usize, f64)])| Curve {
            skipped,
            points: points.iter().map(point).collect(),
        };
        let measured_for = FrontierFor {
            model: "m".into(),
            weights: "w".into(),
            steps: 50,
            guidance_scale: 5.0,
            prompts: 3,
        };
        FrontierFile { version: VERSION, measured_for, curves: curves.iter().map(curve).collect() }
    }

    #[test]
    fn it_is_read_between_what_was_measured() {
        let file = file(&[(0.0, &[(10, 0.8), (20, 0.9), (50, 1.0)]), (0.5, &[(10, 0.9), (50, 1.0)])]);
        let read = FrontierFile::from_json(&file.to_json().unwrap()).unwrap();
        assert_eq!(read, file);
        let frontier = Frontier::from(&read);
        let near = |steps, done, wanted: f64| {
            let found = frontier.quality(steps, done);
            assert!((found - wanted).abs() < 1e-9, "{steps} {done}: {found}, not {wanted}");
        };
        near(10, 0.0, 0.8);
        near(15, 0.0, 0.85);
        near(5, 0.0, 0.4);
        near(400, 0.0, 1.0);
        near(10, 0.25, 0.85);
        near(10, 0.5, 0.9);
        near(10, 0.75, 0.95);
        near(10, 1.0, 1.0);
        near(0, 0.0, 0.0);
        assert_eq!([0.9, 0.85, 0.86, 1.0, 2.0].map(|q| frontier.fewest(q)), [20, 15, 16, 50, 50]);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        let good = file(&[(0.0, &[(10, 0.8), (50, 1.0)]), (0.4, &[(50, 1.0)])]).to_json().unwrap();
        for (from, to, names) in [
            ("\"version\": 1", "\"version\": 7", "version 7"),
            ("\"steps\": 10", "\"steps\": 0", "`steps` must be from 1"),
            ("\"steps\": 10", "\"steps\": 60", "`steps` must be rising"),
            ("\"quality\": 0.8", "\"quality\": 1.8", "`quality`"),
            ("\"low\": 0.8", "\"low\": -0.8", "`low`"),
            ("\"fidelity\": 0.8", "\"fidelity\": 8.0", "`fidelity`"),
            ("\"skipped\": 0.4", "\"skipped\": 1.4", "`curves.skipped` must be below 1"),
            ("\"skipped\": 0.4", "\"skipped\": 0.0", "`curves.skipped` must be rising"),
            ("\"skipped\": 0.0", "\"skipped\": 0.1", "`curves.skipped` must be 0"),
            ("\"prompts\": 3", "\"prompts\": 0", "`for.prompts`"),
            ("\"guidance_scale\": 5.0", "\"guidance_scale\": 500.0", "`for.guidance_scale`"),
            ("\"model\"", "\"modell\"", "modell"),
        ] {
            assert!(good.contains(from), "{from}");
            let error = FrontierFile::from_json(&good.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(names), "{from}: {error}");
        }
        let error = FrontierFile::new(file(&[]).measured_for, vec![]).unwrap_err().to_string();
        assert!(error.contains("`curves`"), "{error}");
    }

    #[test]
    fn without_a_measurement_steps_are_thought_dear() {
        let flat = Frontier::flat(50);
        assert_eq!([0.9, 0.95, 0.97, 0.99].map(|q| flat.fewest(q)), [9, 15, 20, 34]);
        assert_eq!((flat.quality(50, 0.0), flat.quality(1, 1.0)), (1.0, 1.0));
        assert_eq!((Frontier::flat(1).quality(1, 0.0), Frontier::flat(1).fewest(0.9)), (1.0, 1));
    }

    #[test]
    fn chance_is_evened_out() {
        let points = vec![(1, 0.5), (2, 0.9), (3, 0.7), (4, 0.8), (5, 1.0)];
        let evened: Vec<f64> = isotonic(points).into_iter().map(|(_, value)| value).collect();
        assert_eq!(evened.len(), 5);
        for (found, wanted) in evened.iter().zip([0.5, 0.8, 0.8, 0.8, 1.0]) {
            assert!((found - wanted).abs() < 1e-9, "{evened:?}");
        }
    }

    proptest! {
        #[test]
        fn quality_never_falls_with_steps(
            curves in prop::collection::vec(prop::collection::vec(0.0..=1.0f64, 5), 1..4),
            done in 0.0..=1.0f64,
        ) {
            let points: Vec<Vec<(usize, f64)>> =
                curves.iter().map(|c| [2, 5, 9, 20, 50].into_iter().zip(c.iter().copied()).collect()).collect();
            let curves: Vec<(f64, &[(usize, f64)])> =
                points.iter().enumerate().map(|(i, c)| (0.25 * i as f64, c.as_slice())).collect();
            let frontier = Frontier::from(&file(&curves));
            let mut last = 0.0;
            for steps in 0..60 {
                let quality = frontier.quality(steps, done);
                prop_assert!((0.0..=1.0).contains(&quality) && quality >= last - 1e-12, "{steps}: {quality} {last}");
                last = quality;
            }
        }
    }
}
