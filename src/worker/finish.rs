//! From the last step to the answer: decoding, the file, what the cache keeps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use pentimento_pipelines::Picture;

use super::painting::{PaintError, Painting};
use super::report::{cancelled, fail, span};
use super::stored::{Keeping, Stored};
use crate::plan::{Planner, whole};
use crate::queue::{JobLease, Lease, Timings};
use crate::telemetry;

/// A picture that has taken its last step.
pub(super) struct Unfinished {
    pub(super) lease: Lease,
    pub(super) painting: Painting,
    /// When its turn came.
    pub(super) since: Instant,
}

/// What finishing needs.
#[derive(Clone)]
pub(super) struct Finisher {
    pub(super) planner: Arc<Planner>,
    pub(super) stored: Option<Arc<Stored>>,
}

impl Finisher {
    /// Answers with the picture.
    pub(super) fn finish(&self, unfinished: Unfinished) {
        let Unfinished { lease, mut painting, since } = unfinished;
        if lease.is_cancelled() {
            return cancelled(&lease, since.elapsed());
        }
        let span = span(&lease);
        let _entered = span.enter();
        let job = lease.job().clone();
        let Timings { load, encode, denoise, decode, .. } = painting.timings;
        painting.timings.wait = since.elapsed().saturating_sub(load + encode + denoise + decode);
        let skipped = painting.progress().skipped;
        let shown = painting.stored().is_some();
        let finishing = Instant::now();
        let finished = catch_unwind(AssertUnwindSafe(|| {
            let (picture, decoded) = self.picture(&mut painting)?;
            Ok::<_, PaintError>((painting.finish(&picture)?, decoded))
        }));
        let ((mut painted, keeping), decoded) = match finished {
            Ok(Ok(finished)) => finished,
            Ok(Err(error)) => return fail(lease, &error.to_string()),
            Err(_) => return fail(lease, "the engine panicked"),
        };
        let took = finishing.elapsed();
        let steps = whole(painted.steps.saturating_sub(painted.skipped_steps), skipped);
        painted.expected_quality = match painted.skipped_steps == painted.steps {
            true => None, // a stored picture: nothing of the plan was painted
            false => self.planner.expected_quality(&job.model, steps, skipped),
        };
        match (shown, decoded) {
            (false, _) => self.planner.finished(&job.model, job.size, encode, took),
            (true, true) => self.planner.shown(&job.model, job.size, took),
            (true, false) => {} // nothing that the next one could be told from
        }
        telemetry::picture(&job.model, lease.waited(), since.elapsed(), painted.steps);
        telemetry::reused(painted.reused.as_ref(), painted.skipped_steps, painted.steps);
        tracing::info!(waited = ?lease.waited(), painted = ?since.elapsed(), steps = painted.steps, skipped_steps = painted.skipped_steps, "painted");
        lease.complete(painted);
        if let (Some(keeping), Some(stored)) = (keeping, &self.stored) {
            keep(keeping, stored);
        }
    }

    /// The finished picture, and whether it had to be decoded: a stored one may have been lately.
    fn picture(&self, painting: &mut Painting) -> Result<(Arc<Picture>, bool), PaintError> {
        let entry = painting.stored().cloned();
        let known = self.stored.as_ref().zip(entry).map(|(stored, entry)| (&stored.decoded, entry));
        if let Some(picture) = known.as_ref().and_then(|(decoded, entry)| decoded.get(entry)) {
            telemetry::shown("held");
            return Ok((picture, false));
        }
        let picture = Arc::new(painting.picture()?);
        if let Some((decoded, entry)) = known {
            telemetry::shown("decoded");
            decoded.put(entry, Arc::clone(&picture));
        }
        Ok((picture, true))
    }
}

fn keep(keeping: Keeping, stored: &Stored) {
    if catch_unwind(AssertUnwindSafe(|| keeping.into_cache(&stored.cache))).is_err() {
        tracing::error!("the cache panicked; the picture is not kept");
    }
}
