//! Whole stored pictures: read, judged by what the request would get otherwise, and answered without a worker.

use std::time::{Duration, Instant};

use bytes::Bytes;
use pentimento_cache::{
    CacheError, EntryId, ExactHit, ExactPicture, PaintedPlan, Part, Scope, SpecificationHash, StateError,
};

use super::Reuse;
use crate::gateway::answered::{AnsweredPicture, Hit, HitKind};
use crate::gateway::terms::QualityRange;
use crate::picture::file::{parameters, with_parameters};
use crate::picture::{PaintTimings, PictureSpec};
use crate::telemetry;

/// For how long files are taken from memory alone after the store let a request wait in vain: one wait is enough.
const PAUSE: Duration = Duration::from_secs(10);
/// Qualities nearer than this are equal: entries hold them in single precision.
pub(super) const ROUNDING: f64 = 1e-4;

/// When the store last let a request wait in vain.
#[derive(Debug, Default)]
pub(super) struct Pause(Option<Instant>);

/// A stored picture that answers a request.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredPicture {
    /// How it was found.
    pub hit: Hit,
    /// The plan that painted it.
    pub plan: PaintedPlan,
    /// Its expected quality.
    pub expected_quality: Option<f32>,
    /// Its lossless file.
    pub file: Bytes,
    /// How long reading it took.
    pub load: Duration,
}

impl StoredPicture {
    /// Puts the generation parameters of its own specification into its file: without prompts, files are stored without
    /// parameters. A file that cannot take them is answered as it is.
    pub(super) fn tell_parameters(&mut self, spec: &PictureSpec) {
        let text = parameters(spec, self.plan.steps as usize, None, 0);
        match with_parameters(&self.file, Some(&text)) {
            Ok(file) => self.file = file.into(),
            Err(error) => tracing::warn!(%error, "a stored picture is answered without its parameters"),
        }
    }

    /// As it is answered: all steps of its plan were spared.
    pub(in crate::gateway) fn answer(self, is_measured: bool) -> AnsweredPicture {
        let Self { hit, plan, expected_quality, file, load } = self;
        AnsweredPicture {
            file,
            hit: Some(hit),
            option: plan.option,
            steps: plan.steps as usize,
            skipped_steps: plan.steps as usize,
            expected_quality: expected_quality.map(f64::from).filter(|_| is_measured),
            queue: Duration::ZERO,
            timings: PaintTimings { load, ..PaintTimings::default() },
        }
    }
}

/// Whether a stored picture is good enough: it reaches the best that the request asks for, or its floor and what the
/// scheduler would give now. Where that is not known, the floor is enough.
pub(super) fn is_good_enough(hit: &ExactHit, range: QualityRange, now: impl FnOnce() -> Option<f64>) -> bool {
    let reaches = |quality: f64| hit.reaches((quality - ROUNDING) as f32);
    reaches(range.best) || reaches(range.floor) && now().is_none_or(|now| reaches(now.min(range.best)))
}

impl Reuse {
    /// The scope's picture of a specification with its file, where `accept` finds it good enough. Waits for the store for
    /// as long as the operator says; a store that fails is a miss.
    pub(super) async fn stored(
        &self,
        scope: &Scope,
        specification: SpecificationHash,
        similarity: Option<f32>,
        accept: impl Fn(&ExactHit) -> bool,
    ) -> Option<StoredPicture> {
        let started = Instant::now();
        let found = self.read(scope, &specification, accept).await;
        let ExactPicture { hit, file } = found?;
        let load = started.elapsed();
        telemetry::state_loaded(load, true);
        self.cache.used(&hit.entry, Part::Picture);
        let kind = if similarity.is_some() { HitKind::Semantic } else { HitKind::Exact };
        let similarity = similarity.unwrap_or(1.0);
        let ExactHit { entry, plan, expected_quality, .. } = hit;
        Some(StoredPicture {
            hit: Hit { kind, source: entry, similarity },
            plan,
            expected_quality,
            file,
            load,
        })
    }

    async fn read(
        &self,
        scope: &Scope,
        specification: &SpecificationHash,
        accept: impl Fn(&ExactHit) -> bool,
    ) -> Option<ExactPicture> {
        let started = Instant::now();
        let known = self.cache.exact(scope, specification).await;
        let hit = known.inspect_err(|error| failed(error, started.elapsed())).ok()?.filter(&accept)?;
        if let Some(file) = self.cache.cached_picture(&hit.entry) {
            return Some(ExactPicture { hit, file });
        }
        if self.is_paused() {
            failed(&"the store was too slow a moment ago", started.elapsed());
            return None;
        }
        let read = self.cache.exact_picture(scope, specification, accept);
        match tokio::time::timeout(self.options.patience, read).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                if matches!(error, CacheError::State(StateError::Timeout | StateError::Store(_))) {
                    self.pause();
                }
                failed(&error, started.elapsed());
                None
            }
            Err(_) => {
                self.pause();
                failed(&"the file did not come in time", started.elapsed());
                None
            }
        }
    }

    fn is_paused(&self) -> bool {
        self.pause.lock().0.is_some_and(|since| since.elapsed() < PAUSE)
    }

    fn pause(&self) {
        self.pause.lock().0 = Some(Instant::now());
    }
}

fn failed(error: &dyn std::fmt::Display, time: Duration) {
    tracing::warn!(%error, "a stored picture was not read");
    telemetry::state_loaded(time, false);
}

/// Accepts the entry of a name only.
pub(super) fn is_entry(id: &EntryId) -> impl Fn(&ExactHit) -> bool {
    move |hit| hit.entry == *id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_picture_is_compared_with_what_would_be_painted_now() {
        let hit = |quality| ExactHit {
            entry: EntryId::new(1),
            plan: PaintedPlan::guided(8),
            expected_quality: quality,
            picture: None,
            created: 0,
        };
        let range = QualityRange { floor: 0.9, best: 0.98 };
        let good = |quality, now| is_good_enough(&hit(quality), range, || now);
        assert!(good(Some(0.98), Some(1.0)), "the best that is asked for");
        assert!(!good(Some(0.95), Some(1.0)) && !good(Some(0.95), Some(0.96)), "better can be had");
        assert!(good(Some(0.95), Some(0.95)) && good(Some(0.95), Some(0.9)), "the load gives no more");
        assert!(good(Some(0.95), None), "what the load gives is not known");
        assert!(!good(Some(0.85), Some(0.85)) && !good(Some(0.85), None), "below the floor");
        assert!(!good(None, None), "its quality is not known");
    }
}
