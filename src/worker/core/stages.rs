//! Work for the stages, and what came of it.

use super::task::{Phase, Task};
use super::{Waiting, WorkerCore};
use crate::scheduler::batch::Candidate;
use crate::scheduler::messages::{Assignment, AttemptId, Beginning, Outcome, Shape};
use crate::scheduler::{ModelId, Time};
use crate::worker::{BeginError, Engine, Painting};

/// The most previews that wait to be made. Further ones are left out: the pictures are more urgent.
const PREVIEWS: usize = 64;

/// A model to load or to drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelWork {
    /// It is to be loaded; [`WorkerCore::model_loaded`] hears of it.
    Load(ModelId),
    /// It is to be dropped. Nothing that is held needs it.
    Unload(ModelId),
}

/// A stored state to load.
pub struct Load<E: Engine> {
    /// The task.
    pub id: AttemptId,
    /// What is to be painted.
    pub spec: E::Spec,
    /// Which state.
    pub beginning: Beginning,
}

/// A painting to begin: prompts to encode, and the first latent.
pub struct Begin<E: Engine> {
    /// The task.
    pub id: AttemptId,
    /// The assignment, with the option that is wanted now.
    pub assignment: Assignment<E::Spec>,
    /// The loaded state; `None`: noise, or the state could not be loaded.
    pub state: Option<E::State>,
    /// When the assignment arrived.
    pub since: Time,
}

/// A painting in a batch.
pub struct Member<E: Engine> {
    /// The task.
    pub id: AttemptId,
    /// The painting, which is given back to [`WorkerCore::stepped`].
    pub painting: E::Painting,
}

/// Paintings that share the next step.
pub struct Batch<E: Engine> {
    /// Their model.
    pub model: ModelId,
    /// Their size.
    pub shape: Shape,
    /// Rows of all of them.
    pub rows: u32,
    /// The paintings, at least one.
    pub members: Vec<Member<E>>,
}

/// Work for the stage that decodes.
pub enum Finish<E: Engine> {
    /// A preview to be made and sent; nothing is to be told of it.
    Preview {
        /// The task.
        id: AttemptId,
        /// Which preview, from 1.
        number: u32,
        /// Of how many.
        of: u32,
        /// What it is made of.
        preview: <E::Painting as Painting>::Preview,
    },
    /// A picture to be decoded and written.
    Picture {
        /// The task.
        id: AttemptId,
        /// The painting, which has no step left.
        painting: E::Painting,
    },
}

impl<E: Engine> WorkerCore<E> {
    /// A model to load or to drop.
    pub fn next_model(&mut self) -> Option<ModelWork> {
        self.models.pop_front()
    }

    /// A model was loaded, or could not be.
    pub fn model_loaded(&mut self, model: &ModelId, loaded: bool) {
        self.loading.retain(|loading| loading != model);
        if loaded && !self.resident.contains(model) {
            self.resident.push(model.clone());
            self.news = true;
        }
    }

    /// The best task whose phase passes.
    fn best(&mut self, passes: impl Fn(&Phase<E>) -> bool) -> Option<&mut Task<E>> {
        let waiting = self.tasks.values_mut().filter(|task| passes(&task.phase));
        waiting.min_by_key(|task| (task.assignment.paused, task.assignment.rank))
    }

    /// The next state to load. Several may be on their way.
    pub fn next_load(&mut self) -> Option<Load<E>> {
        let task = self.best(|phase| matches!(phase, Phase::ToLoad))?;
        task.phase = Phase::Loading;
        let Assignment { spec, beginning, .. } = &task.assignment;
        Some(Load { id: task.id(), spec: spec.clone(), beginning: beginning.clone() })
    }

    /// A state was loaded; `None` where it is not to be had.
    pub fn loaded(&mut self, id: &AttemptId, state: Option<E::State>) {
        if let Some(task) = self.tasks.get_mut(id).filter(|task| matches!(task.phase, Phase::Loading)) {
            task.phase = Phase::ToBegin(state);
        }
    }

    /// The next painting to begin.
    pub fn next_begin(&mut self) -> Option<Begin<E>> {
        let task = self.best(|phase| matches!(phase, Phase::ToBegin(_)))?;
        let Phase::ToBegin(state) = std::mem::replace(&mut task.phase, Phase::Beginning) else { return None };
        task.option.clone_from(&task.assignment.option);
        Some(Begin { id: task.id(), assignment: task.assignment.clone(), state, since: task.since })
    }

    /// A painting began, after so many seconds of encoding, or did not.
    pub fn begun(&mut self, id: &AttemptId, seconds: f64, painting: Result<E::Painting, BeginError>) {
        let Some(task) = self.tasks.get_mut(id).filter(|task| matches!(task.phase, Phase::Beginning)) else {
            return;
        };
        task.overhead_seconds += seconds;
        match painting {
            // The state may leave no step.
            Ok(painting) if painting.rows() == 0 => {
                task.phase = Phase::ToFinish(painting);
                self.news = true;
            }
            Ok(painting) => {
                task.phase = Phase::ToStep(painting);
                task.follow_orders();
            }
            Err(BeginError::StateGone) => self.conclude(id, Outcome::StateGone),
            Err(BeginError::Failed(why)) => self.conclude(id, Outcome::Failed { why }),
        }
    }

    /// The next batch, unless one is being stepped: the tasks of the best rank that share a key.
    pub fn next_batch(&mut self) -> Option<Batch<E>> {
        if self.stepping {
            return None;
        }
        let mut places = Vec::new();
        let mut candidates = Vec::new();
        for (id, task) in self.tasks.iter().filter(|(_, task)| !task.assignment.paused) {
            let Phase::ToStep(painting) = &task.phase else { continue };
            let key = (task.assignment.model.clone(), painting.batch_key());
            candidates.push(Candidate { key, rank: task.assignment.rank, rows: painting.rows() });
            places.push(id.clone());
        }
        let chosen = self.batcher.choose(&candidates, self.settings.rows);
        let mut batch: Option<Batch<E>> = None;
        for place in chosen {
            let (rows, id) = (candidates[place].rows, places[place].clone());
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            let Phase::ToStep(before) = &task.phase else { continue };
            let (shape, noise_level) = (before.shape(), before.noise_level());
            let phase = std::mem::replace(&mut task.phase, Phase::InBatch { rows, noise_level });
            let Phase::ToStep(painting) = phase else { continue };
            let model = &task.assignment.model;
            let batch =
                batch.get_or_insert_with(|| Batch { model: model.clone(), shape, rows: 0, members: vec![] });
            batch.rows += rows;
            batch.members.push(Member { id, painting });
        }
        self.stepping = batch.is_some();
        batch
    }

    /// A batch took a step of so many seconds. `members` are its paintings, or why one of them failed; `whole` says that
    /// they stepped together, so that the time says something of such batches.
    pub fn stepped(
        &mut self,
        (model, shape, rows): (ModelId, Shape, u32),
        seconds: f64,
        whole: bool,
        members: Vec<(AttemptId, Result<E::Painting, String>)>,
    ) {
        self.stepping = false;
        if whole {
            self.measurements.step(model, shape, rows, seconds);
        }
        self.measurements.step_seconds += seconds;
        self.news |= self.measurements.step_seconds >= self.settings.report_seconds;
        for (id, painting) in members {
            match painting {
                Ok(painting) => self.put_back(&id, painting, seconds / f64::from(rows.max(1))),
                Err(why) => self.conclude(&id, Outcome::Failed { why }),
            }
        }
    }

    /// A painting has taken a step in which a row took so many seconds.
    fn put_back(&mut self, id: &AttemptId, mut painting: E::Painting, row_seconds: f64) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let Phase::InBatch { rows, .. } = task.phase else { return };
        task.machine_seconds += f64::from(rows) * row_seconds;
        if painting.rows() == 0 {
            task.phase = Phase::ToFinish(painting);
            self.news = true; // its rows are free
            return;
        }
        let of = task.assignment.previews;
        let due = painting.due_preview();
        task.phase = Phase::ToStep(painting);
        task.follow_orders();
        if let Some((number, preview)) = due.filter(|_| self.previews.len() < PREVIEWS) {
            self.previews.push_back(Waiting { id: id.clone(), number, of, preview });
        }
    }

    /// The next preview or picture to make. Pictures come first, each after its own previews, which are of no use later. The
    /// previews of other pictures wait: otherwise one client's previews could keep all pictures from being finished.
    pub fn next_finish(&mut self) -> Option<Finish<E>> {
        let finished = self.best(|phase| matches!(phase, Phase::ToFinish(_))).map(|task| task.id());
        let waiting = match &finished {
            Some(id) => self.previews.iter().position(|preview| preview.id == *id),
            None => (!self.previews.is_empty()).then_some(0),
        };
        if let Some(Waiting { id, number, of, preview }) = waiting.and_then(|at| self.previews.remove(at)) {
            return Some(Finish::Preview { id, number, of, preview });
        }
        let task = self.tasks.get_mut(&finished?)?;
        let phase = std::mem::replace(&mut task.phase, Phase::Finishing);
        let Phase::ToFinish(painting) = phase else { return None };
        Some(Finish::Picture { id: task.id(), painting })
    }

    /// A picture was decoded and written in so many seconds, or could not be.
    pub fn finished(
        &mut self,
        id: &AttemptId,
        shape: Shape,
        seconds: f64,
        picture: Result<E::Picture, String>,
    ) {
        let Some(task) = self.tasks.get_mut(id).filter(|task| matches!(task.phase, Phase::Finishing)) else {
            return;
        };
        let (model, option) = (task.assignment.model.clone(), task.option.clone());
        let (machine, overhead) = (task.machine_seconds, task.overhead_seconds + seconds);
        match picture {
            Ok(picture) => {
                self.measurements.picture(model, shape, overhead);
                self.conclude(id, Outcome::Done { option, machine_seconds: Some(machine), picture });
            }
            Err(why) => self.conclude(id, Outcome::Failed { why }),
        }
    }

    /// An attempt ends here, if it was not cancelled meanwhile.
    fn conclude(&mut self, id: &AttemptId, outcome: Outcome<E::Picture>) {
        if self.tasks.remove(id).is_some() {
            self.previews.retain(|preview| preview.id != *id);
            self.end(id.clone(), outcome);
        }
    }
}
