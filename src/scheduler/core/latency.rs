//! How long a step takes, by the rows of its batch: learned from what workers report.

use std::collections::BTreeMap;

use super::config::Tuning;
use crate::scheduler::ModelId;
use crate::scheduler::messages::{OverheadTime, Shape, StepTimes};

/// Seconds of a row of a megapixel before anything is measured: a careful guess of a step of a large model. It is used
/// until the first report of a step, and refuses nothing: admission waits for a measurement.
const UNMEASURED: f64 = 1.0;
/// The most kinds of steps that a worker's times are kept of, so that clients that ask for many sizes fill no memory.
const MAX_KINDS: usize = 64;
/// Rows² that a prior slope weighs: with batches of one size alone, time is proportional to rows.
const PRIOR: f64 = 0.1;

/// Steps whose times are comparable: of one model, denoiser and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind<'a> {
    pub model: &'a ModelId,
    pub denoiser: &'a str,
    pub shape: Shape,
}

/// Seconds of a step as an affine function of rows: least squares with exponentially decaying weights.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Curve {
    weight: f64,
    rows: f64,
    seconds: f64,
    variance: f64,
    covariance: f64,
}

impl Curve {
    fn observe(&mut self, rows: f64, seconds: f64, times: f64, tuning: &Tuning) {
        let seconds = if self.weight > 0.0 {
            let expected = self.seconds(rows);
            seconds.clamp(expected / tuning.outlier, expected * tuning.outlier)
        } else {
            seconds
        };
        let kept = self.weight * tuning.memory.powf(times);
        self.weight = kept + times;
        let share = times / self.weight;
        let (dr, ds) = (rows - self.rows, seconds - self.seconds);
        self.rows += share * dr;
        self.seconds += share * ds;
        self.variance = (1.0 - share) * (self.variance + share * dr * dr);
        self.covariance = (1.0 - share) * (self.covariance + share * dr * ds);
    }

    fn seconds(&self, rows: f64) -> f64 {
        let proportional = self.seconds / self.rows;
        let slope = (self.covariance + PRIOR * proportional) / (self.variance + PRIOR);
        // Between no cost per row and no fixed cost.
        self.seconds + slope.clamp(0.0, proportional) * (rows - self.rows)
    }
}

/// The step times of one worker, or of a set of interchangeable ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Latency {
    /// In the order of their kinds.
    curves: Vec<Known>,
    overheads: BTreeMap<(ModelId, Shape), f64>,
}

/// The step times of one kind.
#[derive(Debug, Clone)]
struct Known {
    model: ModelId,
    denoiser: String,
    shape: Shape,
    curve: Curve,
}

impl Known {
    fn kind(&self) -> Kind<'_> {
        Kind { model: &self.model, denoiser: &self.denoiser, shape: self.shape }
    }
}

impl Latency {
    /// The place of a kind, or the one where it belongs.
    fn place(&self, kind: Kind<'_>) -> Result<usize, usize> {
        self.curves.binary_search_by(|known| known.kind().cmp(&kind))
    }

    /// Learns what steps took. Values that no step can take are skipped.
    pub fn observe(&mut self, times: &StepTimes, tuning: &Tuning) {
        let valid = times.seconds.is_finite() && times.seconds > 0.0 && times.rows > 0 && times.steps > 0;
        let StepTimes { model, denoiser, shape, .. } = times;
        let place = match self.place(Kind { model, denoiser, shape: *shape }) {
            _ if !valid => return,
            Ok(place) => place,
            Err(_) if self.curves.len() >= MAX_KINDS => return,
            Err(place) => {
                let (model, denoiser, curve) = (model.clone(), denoiser.clone(), Curve::default());
                self.curves.insert(place, Known { model, denoiser, shape: *shape, curve });
                place
            }
        };
        let steps = f64::from(times.steps.min(20));
        self.curves[place].curve.observe(f64::from(times.rows), times.seconds, steps, tuning);
    }

    /// Learns what a picture takes beside its steps.
    pub fn observe_overhead(&mut self, time: &OverheadTime, tuning: &Tuning) {
        let key = (time.model.clone(), time.shape);
        let bounded = self.overheads.len() < MAX_KINDS || self.overheads.contains_key(&key);
        if time.seconds.is_finite() && time.seconds >= 0.0 && bounded {
            let mean = self.overheads.entry(key).or_insert(time.seconds);
            *mean += (1.0 - tuning.memory) * (time.seconds - *mean);
        }
    }

    /// The kinds of steps that were seen.
    pub fn kinds(&self) -> impl Iterator<Item = Kind<'_>> {
        self.curves.iter().map(Known::kind)
    }

    /// Seconds of a step, if steps of its model were ever seen. A size that was not seen takes the time of one that was,
    /// by the ratio of the pixels.
    pub fn step(&self, kind: Kind<'_>, rows: f64) -> Option<f64> {
        if let Ok(place) = self.place(kind) {
            return Some(self.curves[place].curve.seconds(rows));
        }
        let least = Kind { shape: Shape { width: 0, height: 0 }, ..kind };
        let other = self.curves.get(self.place(least).unwrap_or_else(|place| place))?;
        let same = other.model == *kind.model && other.denoiser == kind.denoiser;
        same.then(|| other.curve.seconds(rows) * pixels(kind.shape) / pixels(other.shape))
    }

    /// Seconds that a picture takes beside its steps, if any was seen.
    pub fn overhead(&self, model: &ModelId, shape: Shape) -> Option<f64> {
        self.overheads.get(&(model.clone(), shape)).copied()
    }
}

/// What steps cost: those of one kind on one worker, or in one set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pace {
    /// Seconds of a step in the batch that is expected.
    pub step_seconds: f64,
    /// Machine seconds of a row in a full batch: what a row takes from the others.
    pub row_seconds: f64,
    /// Seconds of a picture beside its steps.
    pub overhead_seconds: f64,
    /// Whether anything of this was measured.
    pub measured: bool,
}

/// The pace of a kind of steps in batches of `rows` rows, of `full_rows` at most. The first of `latencies` that knows the
/// kind is asked.
pub(super) fn pace(latencies: &[&Latency], kind: Kind<'_>, rows: f64, full_rows: f64) -> Pace {
    let full_rows = full_rows.max(1.0);
    let known = latencies.iter().find_map(|latency| {
        let full = latency.step(kind, full_rows)?;
        Some((latency.step(kind, rows.clamp(1.0, full_rows))?, full / full_rows))
    });
    let guess = UNMEASURED * pixels(kind.shape) / 1e6;
    let (step_seconds, row_seconds) = known.unwrap_or((rows.max(1.0) * guess, guess));
    let overhead = latencies.iter().find_map(|latency| latency.overhead(kind.model, kind.shape));
    Pace { step_seconds, row_seconds, overhead_seconds: overhead.unwrap_or(0.0), measured: known.is_some() }
}

fn pixels(shape: Shape) -> f64 {
    (f64::from(shape.width) * f64::from(shape.height)).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { width: 64, height: 64 };

    fn observe(latency: &mut Latency, times: &StepTimes) {
        latency.observe(times, &Tuning::default());
    }

    fn step(latency: &Latency, model: &str, shape: Shape, rows: f64) -> Option<f64> {
        latency.step(Kind { model: &model.into(), denoiser: "", shape }, rows)
    }

    fn times(rows: u32, seconds: f64) -> StepTimes {
        StepTimes { model: "m".into(), denoiser: String::new(), shape: SHAPE, rows, steps: 1, seconds }
    }

    #[test]
    fn an_affine_machine_is_learned() {
        let mut latency = Latency::default();
        let truth = |rows: u32| 0.002 + 0.001 * f64::from(rows);
        for i in 0..100 {
            let rows = [2, 4, 8, 16][i % 4];
            observe(&mut latency, &times(rows, truth(rows)));
        }
        for rows in [2, 6, 16] {
            let found = step(&latency, "m", SHAPE, f64::from(rows)).unwrap();
            assert!((found / truth(rows) - 1.0).abs() < 0.02, "{rows}: {found}");
        }
        let larger = Shape { width: 128, height: 64 };
        let ratio = step(&latency, "m", larger, 2.0).unwrap() / step(&latency, "m", SHAPE, 2.0).unwrap();
        assert!((ratio - 2.0).abs() < 1e-9);
        assert!(step(&latency, "other", SHAPE, 2.0).is_none());
    }

    #[test]
    fn batches_of_one_size_say_nothing_of_a_fixed_cost() {
        let mut latency = Latency::default();
        (0..30).for_each(|_| observe(&mut latency, &times(4, 0.008)));
        assert!((step(&latency, "m", SHAPE, 8.0).unwrap() - 0.016).abs() < 1e-9);
    }

    #[test]
    fn a_stall_changes_little_and_a_slower_machine_gets_through() {
        let mut latency = Latency::default();
        (0..100).for_each(|_| observe(&mut latency, &times(4, 0.01)));
        observe(&mut latency, &times(4, 100.0));
        assert!(step(&latency, "m", SHAPE, 4.0).unwrap() < 0.011);
        (0..200).for_each(|_| observe(&mut latency, &times(4, 0.05)));
        assert!(step(&latency, "m", SHAPE, 4.0).unwrap() > 0.049);
    }

    #[test]
    fn nonsense_and_many_sizes_are_borne() {
        let mut latency = Latency::default();
        for wrong in
            [times(0, 1.0), times(1, f64::NAN), times(1, -1.0), StepTimes { steps: 0, ..times(1, 1.0) }]
        {
            observe(&mut latency, &wrong);
        }
        assert!(latency.curves.is_empty());
        for width in 0..1000 {
            let shape = Shape { width, height: 1 };
            observe(&mut latency, &StepTimes { shape, ..times(2, 1.0) });
            let time = OverheadTime { model: "m".into(), shape, seconds: 1.0 };
            latency.observe_overhead(&time, &Tuning::default());
        }
        assert!(latency.curves.len() <= MAX_KINDS && latency.overheads.len() <= MAX_KINDS);
        let kind = Kind { model: &"m".into(), denoiser: "", shape: SHAPE };
        let unmeasured = pace(&[&Latency::default()], kind, 2.0, 8.0);
        assert!(!unmeasured.measured && unmeasured.step_seconds > 0.0);
    }
}
