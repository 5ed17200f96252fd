//! How long a step takes: what was measured when the model was loaded, corrected by every step since.

/// The share that a new value has in a mean of many.
const SHARE: f64 = 0.1;
/// The same of how steps of different rows compare: a moment in which the machine is slow says nothing of that. What so
/// many values say is known.
const SHAPE_SHARE: f64 = 0.005;
const KNOWN: f64 = 50.0;
/// A value further from the mean than this factor counts as if it were at it: what stalled the machine once is no
/// reason to plan otherwise, what stalls it for long still gets through.
const FURTHEST: f64 = 1.5;
/// The most row counts that are told apart, and the most rows that are looked at.
const MOST_BUCKETS: usize = 64;
const MOST_ROWS: usize = 1024;
/// More rows must be worth at least this much per row.
const WORTHWHILE: f64 = 0.02;

/// An exponentially weighted mean of seconds that single outliers do not move far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ewma {
    seconds: f64,
    /// How many values are in it.
    count: f64,
}

impl Ewma {
    /// Begins with a guess that weighs as much as one value. Not positive: 1 ms.
    pub fn new(guess: f64) -> Self {
        Self { seconds: if usable(guess) { guess } else { 1e-3 }, count: 1.0 }
    }

    /// The mean.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Takes a value in; what is no time is ignored.
    pub fn observe(&mut self, seconds: f64) {
        self.take(seconds, SHARE);
    }

    fn take(&mut self, seconds: f64, share: f64) {
        if !usable(seconds) {
            return;
        }
        let value = seconds.clamp(self.seconds / FURTHEST, self.seconds * FURTHEST);
        self.count += 1.0;
        self.seconds += (value - self.seconds) * share.max(1.0 / self.count);
    }
}

/// A pace of 1, as sure as a mean of many.
const STEADY: Ewma = Ewma { seconds: 1.0, count: 1.0 / SHARE };

fn usable(seconds: f64) -> bool {
    seconds.is_finite() && seconds > 0.0
}

/// Seconds of a step by the rows of its batch, for one model and latent shape: how steps of different rows compare, times
/// the machine's pace at the moment. So what slows the machine slows those, too, that are not seen meanwhile; batches would
/// otherwise take to a size for no more reason than that it was not measured of late.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTime {
    /// Seconds at pace 1, by rising rows, never empty.
    buckets: Vec<(usize, Ewma)>,
    /// How many times as long steps take at the moment.
    pace: Ewma,
}

impl StepTime {
    /// From samples (rows, seconds): of each row count the median. `None` where no sample is usable.
    pub fn fitted(samples: &[(usize, f64)]) -> Option<Self> {
        let mut samples: Vec<(usize, f64)> =
            samples.iter().copied().filter(|(rows, seconds)| *rows > 0 && usable(*seconds)).collect();
        samples.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let median = |same: &[(usize, f64)]| {
            let (rows, seconds) = same[same.len() / 2];
            (rows, Ewma { seconds, count: KNOWN.max(1.0 / SHAPE_SHARE) })
        };
        let buckets: Vec<_> = samples.chunk_by(|a, b| a.0 == b.0).take(MOST_BUCKETS).map(median).collect();
        (!buckets.is_empty()).then_some(Self { buckets, pace: STEADY })
    }

    /// The same for steps that take `times` as long; a guess, which the first values correct.
    pub fn scaled(&self, times: f64) -> Self {
        let scaled =
            |(rows, mean): &(usize, Ewma)| (*rows, Ewma::new(times * self.pace.seconds * mean.seconds));
        Self { buckets: self.buckets.iter().map(scaled).collect(), pace: STEADY }
    }

    /// Seconds of a step of so many rows: linear between those seen, on by the last slope beyond them; fewer than
    /// the fewest take as long as these.
    pub fn seconds(&self, rows: usize) -> f64 {
        self.pace.seconds * self.at_pace_1(rows)
    }

    fn at_pace_1(&self, rows: usize) -> f64 {
        let at = |i: usize| (self.buckets[i].0 as f64, self.buckets[i].1.seconds);
        let above = self.buckets.partition_point(|(at, _)| *at < rows);
        let last = self.buckets.len() - 1;
        let (low, high) = match above {
            0 => return at(0).1,
            above if above <= last => (at(above - 1), at(above)),
            _ if last == 0 => ((0.0, 0.0), at(0)),
            _ => (at(last - 1), at(last)),
        };
        let slope = (high.1 - low.1) / (high.0 - low.0);
        // A slope downwards is noise: it is not gone on with.
        let slope = if above > last { slope.max(0.0) } else { slope };
        high.1 + (rows as f64 - high.0) * slope
    }

    /// The row counts that were seen, rising, and their seconds.
    pub fn seen(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        self.buckets.iter().map(|(rows, mean)| (*rows, self.pace.seconds * mean.seconds))
    }

    /// Takes a step's time in. The answer is the relative error of what was predicted before: above 0 where the step
    /// took longer; 0 for what is no time.
    pub fn observe(&mut self, rows: usize, seconds: f64) -> f64 {
        if rows == 0 || !usable(seconds) {
            return 0.0;
        }
        let predicted = self.seconds(rows);
        match self.buckets.binary_search_by_key(&rows, |(rows, _)| *rows) {
            Ok(found) => {
                let bucket = &mut self.buckets[found].1;
                // What is hardly known yet says nothing of the pace.
                let is_known = bucket.count >= KNOWN;
                if is_known {
                    self.pace.take(seconds / bucket.seconds, SHARE);
                }
                bucket.take(seconds / self.pace.seconds, if is_known { SHAPE_SHARE } else { SHARE });
            }
            Err(place) if self.buckets.len() < MOST_BUCKETS => {
                let mut bucket = Ewma::new(self.at_pace_1(rows));
                bucket.take(seconds / self.pace.seconds, SHARE);
                self.buckets.insert(place, (rows, bucket));
            }
            Err(_) => {}
        }
        seconds / predicted - 1.0
    }

    /// The rows, at most `max_rows`, with the least time per row; fewer where more gain next to nothing. Where that is
    /// the most that was seen, twice as many are worth a try.
    pub fn best_rows(&self, max_rows: usize) -> usize {
        let most = max_rows.clamp(1, MOST_ROWS);
        let each = |rows: usize| self.seconds(rows) / rows as f64;
        let least = (1..=most).map(each).fold(f64::INFINITY, f64::min);
        let best = (1..=most).find(|rows| each(*rows) * (1.0 - WORTHWHILE) <= least).unwrap_or(most);
        let seen = self.buckets.last().map_or(0, |(rows, _)| *rows);
        if best == seen { most.min(2 * seen) } else { best }
    }

    /// Machine seconds of a row where batches are as full as is best.
    pub fn per_row(&self, max_rows: usize) -> f64 {
        let rows = self.best_rows(max_rows);
        self.seconds(rows) / rows as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn measured() -> StepTime {
        StepTime::fitted(&[(2, 0.003), (4, 0.005), (4, 0.0051), (4, 0.9), (8, 0.0094), (16, 0.0186)]).unwrap()
    }

    #[test]
    fn it_is_linear_between_what_was_measured_and_beyond() {
        let times = measured();
        let near = |rows, wanted: f64| assert!((times.seconds(rows) - wanted).abs() < 1e-9, "{rows}");
        near(2, 0.003);
        near(4, 0.0051);
        near(3, 0.00405);
        near(1, 0.003);
        near(24, 0.0278);
        let one = StepTime::fitted(&[(2, 0.004)]).unwrap();
        assert!((one.seconds(6) - 0.012).abs() < 1e-9 && one.seconds(1) == 0.004);
        assert_eq!(StepTime::fitted(&[(0, 1.0), (2, f64::NAN), (2, -1.0)]), None);
    }

    #[test]
    fn batches_are_as_full_as_pays() {
        assert_eq!(measured().best_rows(16), 8, "16 rows gain 1 % per row");
        assert_eq!((measured().best_rows(6), measured().best_rows(0)), (6, 1));
        assert!((measured().per_row(16) - 0.0094 / 8.0).abs() < 1e-9);
        // Twice the rows take twice the time: one row is as good as many.
        assert_eq!(StepTime::fitted(&[(1, 0.002), (8, 0.016)]).unwrap().best_rows(8), 1);
    }

    #[test]
    fn it_follows_the_machine_but_no_single_stall() {
        let mut times = measured();
        let error = times.observe(8, 0.94);
        assert!((error - 99.0).abs() < 1e-6, "{error}");
        assert!(times.seconds(8) < 1.3 * 0.0094, "{}", times.seconds(8));
        for _ in 0..60 {
            times.observe(8, 0.02);
        }
        assert!((times.seconds(8) - 0.02).abs() < 0.0005, "{}", times.seconds(8));
        assert!(times.observe(8, 0.02).abs() < 0.03);
        assert_eq!(times.observe(8, f64::NAN), 0.0);
        assert_eq!(times.observe(0, 1.0), 0.0);
    }

    #[test]
    fn what_slows_the_machine_slows_batches_that_are_not_seen_meanwhile() {
        let mut times = measured();
        (0..60).for_each(|_| _ = times.observe(16, 2.0 * 0.0186));
        let slower = |times: &StepTime, rows: usize| times.seconds(rows) / measured().seconds(rows);
        assert!((slower(&times, 16) - 2.0).abs() < 0.02, "{}", slower(&times, 16));
        assert!((1.9..2.0).contains(&slower(&times, 4)), "{}", slower(&times, 4));
        (0..60).for_each(|_| _ = times.observe(8, 0.0094));
        assert!((slower(&times, 16) - 1.0).abs() < 0.1, "{}", slower(&times, 16));
    }

    #[test]
    fn row_counts_that_were_not_profiled_are_learned_and_bounded() {
        let mut times = measured();
        for _ in 0..30 {
            times.observe(6, 0.009);
        }
        assert!((times.seconds(6) - 0.009).abs() < 1e-4);
        assert!((times.seconds(4) / 0.0051 - 1.0).abs() < 0.02, "{}", times.seconds(4));
        (1..500).for_each(|rows| _ = times.observe(rows, 0.01));
        assert_eq!(times.buckets.len(), MOST_BUCKETS);
    }

    proptest! {
        #[test]
        fn predictions_stay_times(seen in prop::collection::vec((0usize..2000, -1.0..10.0f64), 1..100)) {
            let mut times = measured();
            for (rows, seconds) in seen {
                prop_assert!(times.observe(rows, seconds).is_finite());
                for rows in [0, 1, 5, 100, 100_000] {
                    prop_assert!(times.seconds(rows) > 0.0, "{rows}");
                }
                prop_assert!((1..=40).contains(&times.best_rows(40)));
            }
        }
    }
}
