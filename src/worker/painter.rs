//! The painting thread: pictures join and leave at every step boundary, the most urgent step first.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pentimento_pipelines::{BatchKey, DenoisingState, Pipeline};

use super::aside::Aside;
use super::batch::{Candidate, choose};
use super::finish::{Finisher, Unfinished};
use super::in_hand::{Flying, Held, InHand, Loading, PICTURE_ROWS};
use super::painting::{Beginning, Painting, Prompts, step_together};
use super::report::{cancelled, fail, span};
use super::stored::Stored;
use crate::plan::{Planner, Work};
use crate::queue::{Failure, Job, JobLease, JobQueue, Lease, Line, LocalQueue, Pulled, Start};
use crate::telemetry;

/// How long nobody replans while nothing came and nothing ended.
const REPLAN_EVERY: Duration = Duration::from_millis(50);
/// How long the thread waits for prompts or a state before it looks at the queue again, where nothing is to be painted.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// This part of a batch is taken in hand beyond it where others encode its prompts.
const AHEAD: usize = 4;
/// So many times the rows of the largest batch may be in hand, those included that were overtaken: these keep their
/// latents, which is little beside the memory of a step.
const OVERTAKING: usize = 2;

/// The painting thread.
pub(super) struct Painter {
    models: Vec<Pipeline>,
    queue: LocalQueue,
    stored: Option<Arc<Stored>>,
    planner: Arc<Planner>,
    finisher: Finisher,
    /// Where prompts are encoded and pictures finished, if not here.
    aside: Option<Aside>,
    hand: InHand,
    planned: Instant,
}

impl Painter {
    /// With `aside`, prompts are encoded and pictures finished on threads of their own.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub(super) fn new(
        models: Vec<Pipeline>,
        queue: LocalQueue,
        finisher: Finisher,
        aside: bool,
    ) -> std::io::Result<Self> {
        let Finisher { planner, stored } = finisher.clone();
        let aside = if aside { Some(Aside::start(finisher.clone())?) } else { None };
        let (hand, planned) = (InHand::default(), Instant::now());
        Ok(Self { models, queue, stored, planner, finisher, aside, hand, planned })
    }

    /// Paints until the queue is closed and empty, and all that was painted is answered.
    pub(super) fn run(mut self) {
        self.paint();
        if let Some(aside) = self.aside.take() {
            aside.end();
        }
    }

    fn paint(&mut self) {
        loop {
            let open = self.take();
            self.receive();
            if self.hand.drop_cancelled() {
                self.hand.publish(&self.planner);
            }
            if self.hand.flying.is_empty() {
                if !open && self.hand.loading.is_empty() {
                    return;
                }
                continue;
            }
            if self.planned.elapsed() > REPLAN_EVERY {
                self.replan(None);
            }
            self.step();
            self.after_step();
        }
    }

    /// Takes jobs while their rows find room in a batch, and beyond that the more urgent ones: they paint first, and the
    /// others go on when these are done. Whether the queue may bring more.
    fn take(&mut self) -> bool {
        loop {
            let (rows, mut best) = self.hand.rows(&self.planner);
            if self.aside.is_some() {
                // Ahead of their turn, so that their prompts are encoded when a place is free.
                best += (best / AHEAD).max(PICTURE_ROWS);
            }
            let pulled = if rows == 0 {
                self.queue.pull(Line::Paint, None)
            } else if rows + PICTURE_ROWS <= best {
                self.queue.pull(Line::Paint, Some(Duration::ZERO))
            } else if rows + PICTURE_ROWS <= OVERTAKING * self.planner.max_rows() {
                let last = self.hand.last_of_batch(best);
                let wanted =
                    |job: &Job, deadline| deadline < last && self.hand.may_overtake(&job.client, deadline);
                self.queue.pull_if(wanted)
            } else {
                return true;
            };
            match pulled {
                Pulled::Lease(lease) => {
                    let held = self.hand.hold(lease);
                    self.accept(held);
                }
                Pulled::Nothing => return true,
                Pulled::Closed => return false,
            }
        }
    }

    /// Has a job's prompts encoded and its state fetched, or begins it at once.
    fn accept(&mut self, held: Held) {
        let job = held.lease.job();
        let model = self.models.iter().find(|m| m.id() == job.model);
        let prompts = model.zip(self.aside.as_ref()).and_then(|(model, aside)| aside.encode(model, job));
        let state = match (&self.stored, job.source()) {
            // Whatever the cache does, the picture is painted.
            (Some(stored), Some(reused)) => catch_unwind(AssertUnwindSafe(|| stored.ask(reused)))
                .map(Some)
                .map_err(|_| "the cache panicked".to_owned()),
            (None, Some(_)) => Err("there is no cache".to_owned()),
            (_, None) => Ok(None),
        };
        let loading = Loading { held, prompts, state };
        if loading.prompts.is_none() && !matches!(loading.state, Ok(Some(_))) {
            return self.begin(loading.held, loading.state.map(|_| None), None);
        }
        self.hand.loading.push(loading);
        self.hand.publish(&self.planner);
    }

    /// Begins the pictures whose prompts and states have come, or will not.
    fn receive(&mut self) {
        let mut wait = if self.hand.flying.is_empty() { LOOK_AGAIN } else { Duration::ZERO };
        let mut at = 0;
        // One by one: those not looked at yet are planned with.
        while let Some(loading) = self.hand.loading.get_mut(at) {
            let arrived = loading.arrived(self.stored.as_deref(), wait);
            wait = Duration::ZERO;
            let Some(state) = arrived else {
                at += 1;
                continue;
            };
            let Loading { held, prompts, .. } = self.hand.loading.remove(at);
            self.begin(held, state, prompts.and_then(|prompts| prompts.take()));
        }
    }

    /// Begins a picture with its state (`None`: it wants none) or, where that is not to be had or does not fit, with
    /// noise, unless the job does not want that.
    fn begin(
        &mut self,
        held: Held,
        state: Result<Option<DenoisingState>, String>,
        mut prompts: Option<Prompts>,
    ) {
        let lease = &held.lease;
        if lease.is_cancelled() {
            return cancelled(lease, Duration::ZERO);
        }
        let span = span(lease);
        let entered = span.enter();
        let Some(model) = self.models.iter().find(|m| m.id() == lease.job().model).cloned() else {
            return fail(held.lease, "this worker does not have the job's model");
        };
        let (state, steps) = self.choose_start(lease, state);
        let encoding = prompts.as_ref().map_or(Duration::ZERO, Prompts::took);
        let waits = lease.job().source().is_some();
        let load = if waits { held.since.elapsed().saturating_sub(encoding) } else { Duration::ZERO };
        let mut begin = |from: &Beginning<'_>| {
            let prompts = prompts.take();
            let begun =
                catch_unwind(AssertUnwindSafe(|| Painting::begin(&model, lease.job(), steps, from, prompts)));
            let begun = begun.map_err(|_| "the engine panicked".to_owned());
            begun.and_then(|painting| painting.map(Some).map_err(|error| error.to_string()))
        };
        let must_resume = matches!(lease.job().start, Start::State(_));
        let begun = match (&state, lease.job().source()) {
            (Some(state), Some(reused)) => begin(&Beginning::State(reused, state)).or_else(|error| {
                tracing::warn!(error, "not resumed");
                if must_resume { Ok(None) } else { begin(&Beginning::Noise) }
            }),
            _ if must_resume => Ok(None),
            _ => begin(&Beginning::Noise),
        };
        match begun {
            Ok(None) => held.lease.fail(Failure::StateGone),
            Ok(Some(mut painting)) => {
                painting.timings.queue = lease.waited();
                painting.timings.load = load;
                drop(entered);
                let flying = Flying { held, painting };
                if flying.painting.is_finished() {
                    return self.finish(flying); // the state left no step
                }
                self.hand.flying.push(flying);
                self.hand.publish(&self.planner);
            }
            Err(error) => fail(held.lease, &error),
        }
    }

    /// The state that a picture goes on from (`None`: noise), and the steps of its whole plan. A plan may be too short to
    /// paint over the picture that a state is of: then as many steps from noise are worth more.
    fn choose_start(
        &mut self,
        lease: &Lease,
        state: Result<Option<DenoisingState>, String>,
    ) -> (Option<DenoisingState>, usize) {
        let (job, deadline) = (lease.job(), lease.deadline());
        let state = state.unwrap_or_else(|error| {
            tracing::warn!(error, "not resumed");
            None
        });
        if state.is_some() {
            let steps = self.plan(self.planner.waiting(job, deadline));
            if steps >= self.planner.resumed_floor(job) || matches!(job.start, Start::State(_)) {
                return (state, steps);
            }
        }
        (None, self.plan(self.planner.from_noise(job, deadline)))
    }

    /// The steps of a picture about to begin; everything else is planned with it.
    fn plan(&mut self, new: Work) -> usize {
        let best = new.best;
        self.replan(Some(new)).unwrap_or(best)
    }

    /// Plans what is in flight, what waits and, if there is one, the picture about to begin, whose steps are returned.
    fn replan(&mut self, new: Option<Work>) -> Option<usize> {
        self.planned = Instant::now();
        let planner = Arc::clone(&self.planner);
        let mut works: Vec<Work> = self.hand.flying.iter().map(|flying| flying.work(&planner)).collect();
        let is_new = new.is_some();
        works.extend(new);
        works.extend(
            self.hand.loading.iter().map(|l| planner.waiting(l.held.lease.job(), l.held.lease.deadline())),
        );
        works.extend(self.queue.waiting(Line::Paint, |job, deadline| planner.waiting(job, deadline)));
        let steps = planner.plan(&works);
        if planner.replans() {
            for ((flying, work), steps) in self.hand.flying.iter_mut().zip(&works).zip(&steps) {
                let left = work.left(*steps);
                if *steps == flying.painting.planned() || !work.replannable || left == 0 {
                    continue;
                }
                let before = flying.painting.steps();
                match flying.painting.replan(*steps, left) {
                    Ok(()) => telemetry::replanned(before, flying.painting.steps()),
                    Err(error) => tracing::warn!(%error, "not replanned"),
                }
            }
        }
        is_new.then(|| steps.get(self.hand.flying.len()).copied()).flatten()
    }

    /// The next batch takes a step. Where it fails, each of its pictures tries alone: a panic or a failure of the engine
    /// costs the picture that it belongs to.
    fn step(&mut self) {
        let keys: Vec<Option<BatchKey>> =
            self.hand.flying.iter().map(|f| f.painting.trajectory().batch_key()).collect();
        let now = Instant::now();
        let candidates: Vec<Candidate<&Option<BatchKey>>> = self
            .hand
            .flying
            .iter()
            .zip(&keys)
            .map(|(flying, key)| Candidate {
                key,
                rows: flying.rows(),
                slack: flying.deadline().saturating_duration_since(now).as_secs_f64()
                    - now.saturating_duration_since(flying.deadline()).as_secs_f64(),
                left: flying.painting.trajectory().plan().steps().len(),
            })
            .collect();
        let Some(first) = self.hand.flying.iter().min_by_key(|flying| flying.deadline()) else { return };
        let (model, size) = (first.job().model.clone(), first.job().size);
        let most = self.planner.rows(&model, size);
        let chosen = choose(&candidates, most, self.planner.step_time(&model, size));
        let rows = chosen.iter().map(|&i| candidates[i].rows).sum();
        drop(candidates);
        let mut batch: Vec<&mut Painting> = Vec::with_capacity(chosen.len());
        let mut of = None;
        for (i, flying) in self.hand.flying.iter_mut().enumerate() {
            if chosen.contains(&i) {
                of = Some((flying.job().model.clone(), flying.job().size));
                batch.push(&mut flying.painting);
            }
        }
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| step_together(&mut batch)));
        let Some((model, size)) = of else { return };
        if let Ok(Ok(())) = outcome {
            telemetry::step(&model, chosen.len(), rows, started.elapsed());
            return self.planner.stepped(&model, size, rows, started.elapsed());
        }
        self.step_alone(&chosen);
    }

    fn step_alone(&mut self, chosen: &[usize]) {
        // From the last one on, so that the places of the others stay.
        let mut places = chosen.to_vec();
        places.sort_unstable_by(|a, b| b.cmp(a));
        for i in places {
            let painting = &mut self.hand.flying[i].painting;
            let reason = match catch_unwind(AssertUnwindSafe(|| painting.step())) {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the engine panicked".to_owned(),
            };
            fail(self.hand.flying.remove(i).held.lease, &reason);
        }
    }

    /// Sends previews, and finishes what is finished.
    fn after_step(&mut self) {
        for mut flying in std::mem::take(&mut self.hand.flying) {
            if flying.painting.is_finished() {
                self.finish(flying);
                continue;
            }
            match catch_unwind(AssertUnwindSafe(|| flying.painting.due_preview())) {
                Ok(Ok(preview)) => {
                    if let Some((index, file)) = preview {
                        flying.held.lease.preview(index, file);
                    }
                    self.hand.flying.push(flying);
                }
                Ok(Err(error)) => fail(flying.held.lease, &error.to_string()),
                Err(_) => fail(flying.held.lease, "the engine panicked"),
            }
        }
        self.hand.publish(&self.planner);
    }

    fn finish(&self, flying: Flying) {
        let Flying { held: Held { lease, since, .. }, painting } = flying;
        let unfinished = Unfinished { lease, painting, since };
        let left = match &self.aside {
            Some(aside) => aside.finish(unfinished),
            None => Some(unfinished),
        };
        if let Some(unfinished) = left {
            self.finisher.finish(unfinished);
        }
    }
}
