//! What plans see of a picture.

use std::sync::Arc;

use super::Frontier;

/// A picture that waits or is being painted, as plans see it.
#[derive(Debug, Clone)]
pub struct Work {
    /// Machine seconds of one of its steps in a full batch: its rows' share.
    pub cost: f64,
    /// Seconds that one of its steps takes on the clock, in the batch that it will ride in.
    pub latency: f64,
    /// Machine seconds besides steps that are still to be spent: encoding, previews, and decoding where nobody else does
    /// it.
    pub overhead: f64,
    /// Seconds of encoding and decoding that are still to be spent beside the steps of others.
    pub aside: f64,
    /// Steps of the whole plan that was asked for: no more are ever planned.
    pub best: usize,
    /// Fewest steps of a whole plan that its tier allows; `best` where the client fixed the number.
    pub floor: usize,
    /// Share of the way behind it, skipped or taken, 0 to 1.
    pub done: f64,
    /// The part of `done` that a stored state spares.
    pub skipped: f64,
    /// Steps that it has taken itself.
    pub taken: usize,
    /// Seconds to its deadline, below 0 after it; infinite without one.
    pub slack: f64,
    /// Steps of the whole plan that it is being painted with; `None`: not begun.
    pub planned: Option<usize>,
    /// Whether it may be replanned now, where it is begun.
    pub replannable: bool,
    /// What its steps are worth.
    pub frontier: Arc<Frontier>,
}

/// How far a picture is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// [`Work::done`].
    pub done: f64,
    /// [`Work::skipped`].
    pub skipped: f64,
    /// [`Work::taken`].
    pub taken: usize,
    /// [`Work::planned`].
    pub planned: Option<usize>,
    /// [`Work::replannable`].
    pub replannable: bool,
}

impl Progress {
    /// Of a picture not begun, of which a stored state would spare a share.
    pub fn waiting(skipped: f64) -> Self {
        Self { done: skipped, skipped, taken: 0, planned: None, replannable: true }
    }
}

impl Work {
    /// Steps still to be taken with a whole plan of `steps`, at least one until it is done: its share of them, and where
    /// it is begun no fewer than make its floor with those taken of former plans.
    pub fn left(&self, steps: usize) -> usize {
        if self.done >= 1.0 {
            return 0;
        }
        // Shares are sums of fractions: what they err by is no step.
        let left = ((1.0 - self.done.max(0.0)) * steps as f64 - 1e-6).ceil() as usize;
        let own =
            |planned: usize| (self.floor.min(planned) as f64 * (1.0 - self.skipped) - 1e-6).ceil() as usize;
        let least = self.planned.map_or(0, |planned| own(planned).saturating_sub(self.taken));
        left.max(least).max(1)
    }

    /// Machine seconds still to be spent with a whole plan of `steps`: no fewer than what is done beside the steps
    /// takes, or pictures would wait for that in an ever longer line.
    pub fn seconds(&self, steps: usize) -> f64 {
        (self.left(steps) as f64 * self.cost + self.overhead).max(self.aside)
    }

    /// Seconds that the rest takes on the clock at least, with a whole plan of `steps`: one step comes after the
    /// other, however empty the machine is.
    pub fn clock(&self, steps: usize) -> f64 {
        self.left(steps) as f64 * self.latency + self.overhead + self.aside
    }

    /// The same, not begun, where a stored state spares a share of it. It takes no fewer steps for that than its floor:
    /// with the shortest plans it begins with noise after all.
    pub fn sparing(self, skipped: f64) -> Self {
        let floor = if skipped < 1.0 {
            (self.floor as f64 / (1.0 - skipped.max(0.0)) + 1e-6) as usize
        } else {
            self.floor
        };
        Self { done: skipped, skipped, floor: floor.min(self.best), ..self }
    }

    /// What the picture is worth with a whole plan of `steps`, 0 to 1, relative to the model's full plan. Where it is
    /// begun that goes by the steps that it gets in all: those taken cannot be had back, and are worth what they are.
    pub fn quality(&self, steps: usize) -> f64 {
        let begun = self.planned.is_some();
        let whole = if begun { whole(self.taken + self.left(steps), self.skipped) } else { steps };
        self.frontier.quality(whole, self.skipped)
    }

    /// The number of steps nearest to `steps` that it may have.
    pub fn within(&self, steps: usize) -> usize {
        steps.min(self.best).max(self.floor)
    }

    /// The steps that it keeps whatever is decided; `None` where it may be planned.
    pub fn kept(&self, replans: bool) -> Option<usize> {
        self.planned.filter(|_| !(replans && self.replannable))
    }
}

/// Steps of the whole plan of which a picture took `own`, where a state spared it the share `skipped`.
pub fn whole(own: usize, skipped: f64) -> usize {
    (own as f64 / (1.0 - skipped.clamp(0.0, 0.999))).round() as usize
}

/// A work for tests: not begun, from noise, 50 steps of 1 ms at a cost of 0.5 ms, at least 10.
#[cfg(test)]
pub(super) fn example() -> Work {
    Work {
        cost: 0.0005,
        latency: 0.001,
        overhead: 0.0,
        aside: 0.0,
        best: 50,
        floor: 10,
        done: 0.0,
        skipped: 0.0,
        taken: 0,
        slack: f64::INFINITY,
        planned: None,
        replannable: true,
        frontier: Arc::new(Frontier::flat(50)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_whole_steps_and_one_at_least() {
        let left = |done, steps| Work { done, ..example() }.left(steps);
        assert_eq!([left(0.0, 50), left(0.4, 50), left(0.6, 50), left(0.7, 10)], [50, 30, 20, 3]);
        assert_eq!([left(0.99, 10), left(1.0, 10), left(0.0, 0)], [1, 0, 1]);
        // 7 of 50 taken one by one, then 12 steps in all.
        let done: f64 = std::iter::repeat_n(1.0 / 50.0, 7).sum();
        assert_eq!((left(done, 50), left(done, 12)), (43, 11));
    }

    #[test]
    fn what_is_begun_gets_its_floor_in_all_and_is_worth_all_that_it_gets() {
        let begun = |taken, done| Work { planned: Some(50), taken, done, ..example() };
        assert_eq!([begun(4, 0.5).left(10), begun(30, 0.6).left(10), begun(4, 1.0).left(10)], [6, 4, 0]);
        let worth = |taken| begun(taken, 0.6).quality(20);
        assert_eq!(worth(30), example().quality(38));
        assert_eq!(worth(12), example().quality(20), "as planned from the beginning");
        // Half of it was spared; it goes on with a plan of 14 steps instead of 50.
        let resumed = Work { skipped: 0.5, floor: 14, ..begun(0, 0.5) };
        assert_eq!((resumed.left(14), resumed.quality(14)), (7, example().frontier.quality(14, 0.5)));
        let late = Work { taken: 6, done: 0.9, ..resumed };
        assert_eq!((late.left(14), late.left(50)), (2, 5));
        // Begun with less than the floor that it has now: that is not asked for any more.
        let short = Work { planned: Some(6), taken: 3, done: 0.5, ..example() };
        assert_eq!(short.left(6), 3);
    }

    #[test]
    fn machine_time_and_clock_time() {
        let work = Work { done: 0.5, overhead: 0.01, aside: 0.002, ..example() };
        assert!((work.seconds(50) - 0.0225).abs() < 1e-12);
        assert!((work.clock(50) - 0.037).abs() < 1e-12);
        let slow = Work { aside: 0.05, ..work };
        assert_eq!(slow.seconds(50), 0.05, "finishing is what takes longest");
    }

    #[test]
    fn what_is_begun_is_kept_unless_both_allow_it() {
        let begun = Work { planned: Some(20), ..example() };
        assert_eq!([begun.kept(false), begun.kept(true), example().kept(false)], [Some(20), None, None]);
        assert_eq!(Work { replannable: false, ..begun }.kept(true), Some(20));
    }
}
