//! Notices a step that hangs.

use std::collections::BTreeMap;

use crate::scheduler::messages::Shape;
use crate::scheduler::{ModelId, Time};

/// A step hangs when it takes so many times its predicted time ...
const TIMES: f64 = 10.0;
/// ... and at least so many seconds.
const AT_LEAST: f64 = 60.0;
/// Seconds of a row of a megapixel where nothing was measured: as the scheduler assumes.
const UNMEASURED: f64 = 1.0;
/// The weight of a new step in the mean.
const NEW: f64 = 0.1;
/// The most kinds of steps that are remembered; beyond it all are learned anew.
const MOST: usize = 256;

/// Which steps are comparable.
type Kind = (ModelId, Shape);

/// Knows how long steps take, and when the present one began. Told the time, it has no clock.
#[derive(Debug, Default)]
pub struct StepWatch {
    /// Mean seconds of a row.
    rows: BTreeMap<Kind, f64>,
    /// When the present step began, and after how many seconds it hangs.
    present: Option<(Time, f64)>,
    /// The present step was found hanging before.
    counted: bool,
}

impl StepWatch {
    /// A step of so many rows begins.
    pub fn begin(&mut self, now: Time, model: &ModelId, shape: Shape, rows: u32) {
        let unmeasured = UNMEASURED * f64::from(shape.width) * f64::from(shape.height) / 1e6;
        let row = self.rows.get(&(model.clone(), shape)).copied().unwrap_or(unmeasured);
        self.present = Some((now, (TIMES * row * f64::from(rows)).max(AT_LEAST)));
        self.counted = false;
    }

    /// The present step ended. Returns its seconds.
    pub fn end(&mut self, now: Time, model: &ModelId, shape: Shape, rows: u32) -> f64 {
        let Some((began, _)) = self.present.take() else { return 0.0 };
        let seconds = now.since(began);
        let row = seconds / f64::from(rows.max(1));
        if self.rows.len() >= MOST {
            self.rows.clear();
        }
        let mean = self.rows.entry((model.clone(), shape)).or_insert(row);
        *mean += NEW * (row - *mean);
        seconds
    }

    /// Whether the present step hangs.
    pub fn hangs(&self, now: Time) -> bool {
        self.present.is_some_and(|(began, limit)| now.since(began) > limit)
    }

    /// Whether the present step hangs and was not asked about since it does: so each is counted once.
    pub fn hangs_newly(&mut self, now: Time) -> bool {
        let newly = self.hangs(now) && !self.counted;
        self.counted |= newly;
        newly
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_hangs_after_ten_times_its_time_and_a_minute() {
        let (shape, model) = (Shape { width: 1000, height: 1000 }, ModelId::from("m"));
        let mut watch = StepWatch::default();
        let at = |seconds| Time::ZERO.after(seconds);
        watch.begin(at(0.0), &model, shape, 2);
        assert!(!watch.hangs(at(60.0)) && watch.hangs(at(60.1)), "unmeasured, but a minute at least");
        assert!(watch.hangs_newly(at(61.0)) && !watch.hangs_newly(at(62.0)) && watch.hangs(at(62.0)));
        assert_eq!(watch.end(at(100.0), &model, shape, 2), 100.0);
        assert!(!watch.hangs(at(1000.0)), "nothing steps");
        watch.begin(at(0.0), &model, shape, 4);
        assert!(!watch.hangs(at(1999.0)) && watch.hangs_newly(at(2001.0)), "50 seconds a row, four rows");
    }
}
