//! What is known of the load at the moment, and who decides by it. The one place in here with a clock.

mod admit;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use pentimento_pipelines::Size;

use super::tier::LONGEST;
use super::{
    Admission, Arrivals, Asked, Callers, Ewma, Expected, Frontier, Load, Offer, PlanPolicy, PlanPolicyConfig,
    PlanPolicyError, Plans, Progress, Speeds, Terms, TermsError, Work,
};
use crate::queue::Job;
use crate::telemetry;

/// Seconds of everything while nothing is known: the worker has not finished its profile.
const UNKNOWN: f64 = 1.0;
/// A picture goes on from another one's state with a plan of at least this share of the model's full one. What a state
/// saves was measured with plans of half the full one's length; in the few steps of a short one the other picture is not
/// painted over (docs/benchmarks/load.md).
const RESUMED: f64 = 0.25;

/// What a model offers.
#[derive(Debug, Clone)]
pub struct ModelOffer {
    /// Steps of its full plan.
    pub steps: usize,
    /// The size that it is profiled at.
    pub size: Size,
    /// What its steps are worth.
    pub frontier: Arc<Frontier>,
    /// Whether that was measured.
    pub measured: bool,
}

/// What a planner knows of the load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// Pictures asked for that take steps, per second.
    pub arrival_rate: f64,
    /// Pictures being painted.
    pub flying: usize,
    /// Promises to refused clients that are still open.
    pub promises: usize,
}

/// A picture in flight, as admission sees it.
struct Flying {
    work: Work,
    deadline: Instant,
}

struct State {
    speeds: Speeds,
    arrivals: Arrivals,
    callers: Callers,
    /// What is expected of the next one.
    typical: Option<Work>,
    /// Seconds that requests have.
    budgets: Option<Ewma>,
    /// Of those to be painted.
    admission: Admission,
    /// Of those to be shown.
    showing: Admission,
    /// When the store last let a stored picture down.
    store_failed: Option<Instant>,
    flying: Vec<Flying>,
    level: Option<usize>,
    /// Whether prompts are encoded and pictures finished while others take steps.
    works_aside: bool,
}

struct Live {
    config: PlanPolicyConfig,
    policy: Arc<dyn PlanPolicy>,
}

/// The plans of all models on one machine.
pub struct Planner {
    models: HashMap<String, ModelOffer>,
    max_rows: usize,
    objective: Option<Duration>,
    born: Instant,
    live: RwLock<Live>,
    state: Mutex<State>,
}

impl Planner {
    /// For these models, by id. A batch takes `max_rows` at most; `objective` is the latency objective of `auto`,
    /// where the operator names one.
    ///
    /// # Errors
    /// [`PlanPolicyError`], naming the setting.
    pub fn new(
        models: HashMap<String, ModelOffer>,
        max_rows: usize,
        objective: Option<Duration>,
        config: PlanPolicyConfig,
    ) -> Result<Self, PlanPolicyError> {
        let state = State {
            speeds: Speeds::default(),
            arrivals: Arrivals::default(),
            callers: Callers::default(),
            typical: None,
            budgets: None,
            admission: Admission::default(),
            showing: Admission::default(),
            store_failed: None,
            flying: Vec::new(),
            level: None,
            works_aside: false,
        };
        let live = RwLock::new(Live { policy: config.build()?.into(), config });
        Ok(Self { models, max_rows, objective, born: Instant::now(), live, state: Mutex::new(state) })
    }

    /// The most rows of a batch.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// What a model offers.
    pub fn offer(&self, model: &str) -> Option<&ModelOffer> {
        self.models.get(model)
    }

    /// The plan policy's configuration.
    pub fn policy(&self) -> PlanPolicyConfig {
        self.live.read().config.clone()
    }

    /// Decides by another policy from now on.
    ///
    /// # Errors
    /// [`PlanPolicyError`], naming the setting; the old policy then stays.
    pub fn set_policy(&self, config: PlanPolicyConfig) -> Result<(), PlanPolicyError> {
        let policy = config.build()?.into();
        *self.live.write() = Live { config, policy };
        self.state.lock().level = None;
        Ok(())
    }

    /// The models' ids, and whether what their steps are worth was measured.
    pub fn models(&self) -> impl Iterator<Item = (&str, bool)> {
        self.models.iter().map(|(id, offer)| (id.as_str(), offer.measured))
    }

    /// Predicted seconds of a model's steps at its own size, by the rows that were seen.
    pub fn step_times(&self, model: &str) -> Vec<(usize, f64)> {
        self.state.lock().speeds.seen(model)
    }

    /// What is known of the load.
    pub fn seen(&self) -> Seen {
        let state = self.state.lock();
        Seen {
            arrival_rate: state.arrivals.rate(self.born.elapsed()),
            flying: state.flying.len(),
            promises: state.admission.bookings() + state.showing.bookings(),
        }
    }

    /// Whether pictures in flight are replanned.
    pub fn replans(&self) -> bool {
        self.live.read().policy.replans()
    }

    /// The terms of a request for a picture of a size, or for several: these may take as many times as long, unless the
    /// client says how long.
    ///
    /// # Errors
    /// [`TermsError`] naming the field.
    pub fn terms(
        &self,
        model: &str,
        size: Size,
        pictures: usize,
        asked: &Asked,
    ) -> Result<Terms, TermsError> {
        let Some(ModelOffer { steps, frontier, .. }) = self.models.get(model) else {
            return Terms::unhurried(asked, 1);
        };
        let unloaded = self.state.lock().speeds.unloaded(model, size).unwrap_or(UNKNOWN);
        let unloaded = Duration::from_secs_f64(unloaded);
        let mut terms =
            Terms::new(asked, &Offer { full: *steps, unloaded, objective: self.objective, frontier })?;
        if asked.max_latency.is_none() {
            terms.objective = terms.objective.saturating_mul(pictures as u32).min(LONGEST);
        }
        Ok(terms)
    }

    /// What the worker measured when it started.
    pub fn profiled(
        &self,
        model: &str,
        size: Size,
        samples: &[(usize, f64)],
        encode: Duration,
        decode: Duration,
    ) {
        let steps = self.models.get(model).map_or(1, |offer| offer.steps);
        self.state.lock().speeds.profiled((model, size), steps, samples, encode, decode);
    }

    /// Whether the worker encodes prompts and finishes pictures while others take steps.
    pub fn set_works_aside(&self, aside: bool) {
        self.state.lock().works_aside = aside;
    }

    /// A batch took a step.
    pub fn stepped(&self, model: &str, size: Size, rows: usize, time: Duration) {
        self.state.lock().speeds.stepped(model, size, rows, time);
    }

    /// A picture is finished: what it took besides steps.
    pub fn finished(&self, model: &str, size: Size, encode: Duration, decode: Duration) {
        self.state.lock().speeds.finished(model, size, encode, decode);
    }

    /// The rows of a full batch: as many as still gain something.
    pub fn rows(&self, model: &str, size: Size) -> usize {
        let state = self.state.lock();
        state.speeds.of(model, size).map_or(self.max_rows, |speed| speed.full_batch(self.max_rows))
    }

    /// Predicted seconds of a step, by the rows of its batch.
    pub fn step_time(&self, model: &str, size: Size) -> impl Fn(usize) -> f64 + use<> {
        let step = self.state.lock().speeds.of(model, size).map(|speed| speed.step());
        move |rows| step.as_ref().map_or(UNKNOWN, |step| step(rows))
    }

    /// A stored picture was shown: what decoding took, and its file.
    pub fn shown(&self, model: &str, size: Size, time: Duration) {
        self.state.lock().speeds.shown(model, size, time);
    }

    /// A job not begun, as plans see it.
    pub fn waiting(&self, job: &Job, deadline: Instant) -> Work {
        let skipped = spared(job);
        self.work(job, deadline, &Progress::waiting(skipped)).sparing(skipped)
    }

    /// A job not begun that begins with noise, whatever is stored.
    pub fn from_noise(&self, job: &Job, deadline: Instant) -> Work {
        self.work(job, deadline, &Progress::waiting(0.0))
    }

    /// The fewest steps of a job's plan that goes on from another picture's state.
    pub fn resumed_floor(&self, job: &Job) -> usize {
        let full = self.models.get(&job.model).map_or(job.terms.best, |offer| offer.steps);
        let least = (RESUMED * full as f64).ceil() as usize;
        least.max(job.terms.floor).min(job.terms.best)
    }

    /// A job as plans see it.
    pub fn work(&self, job: &Job, deadline: Instant, progress: &Progress) -> Work {
        let Progress { done, skipped, taken, planned, replannable } = *progress;
        let rows = job.plan.steps().first().map_or(1, |step| step.guidance.rows());
        let replans = self.replans();
        let state = self.state.lock();
        let speed = state.speeds.of(&job.model, job.size);
        let (cost, latency, overhead, aside) = speed.map_or((UNKNOWN, UNKNOWN, 0.0, 0.0), |speed| {
            let full = speed.full_batch(self.max_rows);
            let riding = ((state.flying.len() + 1) * rows).min(full).max(rows);
            let before = if planned.is_some() { 0.0 } else { speed.encode() };
            let both = before + speed.decode();
            let (here, aside) = if state.works_aside { (0.0, both) } else { (both, 0.0) };
            let previews = job.previews.len() as f64 * (1.0 - done).clamp(0.0, 1.0) * speed.decode();
            (speed.per_row(self.max_rows) * rows as f64, speed.seconds(riding), here + previews, aside)
        });
        let frontier = self.models.get(&job.model).map(|offer| offer.frontier.clone());
        Work {
            cost,
            latency,
            overhead,
            aside,
            best: job.terms.best,
            floor: job.terms.floor,
            done,
            skipped,
            taken,
            slack: slack(deadline, Instant::now()),
            planned,
            replannable: replannable && replans,
            frontier: frontier.unwrap_or_else(|| Arc::new(Frontier::flat(job.terms.best))),
        }
    }

    /// What is being painted now, with deadlines.
    pub fn set_flying(&self, works: Vec<(Work, Instant)>) {
        let flying = works.into_iter().map(|(work, deadline)| Flying { work, deadline });
        self.state.lock().flying = flying.collect();
    }

    /// The steps of whole plans for these works, in order.
    pub fn plan(&self, works: &[Work]) -> Vec<usize> {
        let policy = Arc::clone(&self.live.read().policy);
        let (rate, typical, level) = {
            let state = self.state.lock();
            (state.arrivals.rate(self.born.elapsed()), state.typical.clone(), state.level)
        };
        let expected = typical.map(|typical| Expected { rate, typical });
        let Plans { steps, level } = policy.plan(&Load { works, expected, level });
        self.state.lock().level = level;
        telemetry::arrival_rate(rate);
        steps
    }

    /// What a picture of so many steps is worth on average, 0 to 1, relative to the model's full plan; `skipped` is the
    /// share that a stored state spared. `None` where that was not measured.
    pub fn expected_quality(&self, model: &str, steps: usize, skipped: f64) -> Option<f64> {
        let offer = self.models.get(model).filter(|offer| offer.measured)?;
        Some(offer.frontier.quality(steps, skipped))
    }
}

impl Flying {
    fn now(&self, now: Instant) -> Work {
        Work { slack: slack(self.deadline, now), ..self.work.clone() }
    }
}

/// The share of a job's plan that the state that it may go on from spares.
fn spared(job: &Job) -> f64 {
    let plan = job.plan.steps().len();
    let left = |timestep| job.plan.after(timestep).steps().len();
    let skipped = job.source().map_or(0, |reused| plan.saturating_sub(left(reused.timestep)));
    skipped as f64 / plan.max(1) as f64
}

/// Seconds until `deadline`, below 0 after it.
fn slack(deadline: Instant, now: Instant) -> f64 {
    let (left, late) = (deadline.saturating_duration_since(now), now.saturating_duration_since(deadline));
    left.as_secs_f64() - late.as_secs_f64()
}

#[cfg(test)]
mod tests;
