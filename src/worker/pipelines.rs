//! The engine of the service: pipelines, with the cache beside them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::RwLock;
use pentimento_pipelines::{
    Components, DenoisingState, Device, Guidance, Model, Pipeline, PlanOption, Precision, Trajectory,
};

use super::painting::{Beginning, PipelinePainting, find};
use super::warm_up::warm_up;
use super::{BeginError, Engine, Measured, Painting, Stages, Stored};
use crate::picture::file::{parameters, with_parameters, write_png, write_preview};
use crate::picture::{FinishedPicture, PaintTask, PaintTimings};
use crate::scheduler::messages::{self, Assignment};
use crate::scheduler::{ModelId, OptionId};
use crate::telemetry;

/// A model that can be in memory.
struct Known {
    model: Model,
    precision: Precision,
    options: Arc<[PlanOption]>,
}

/// Pipelines in memory and those that could be, and the cache that they begin from and write to.
pub struct Pipelines {
    known: BTreeMap<ModelId, Known>,
    resident: RwLock<BTreeMap<ModelId, Pipeline>>,
    stored: Option<Stored>,
}

/// A state that was loaded, and how long that took.
pub struct LoadedState {
    state: DenoisingState,
    took: Duration,
}

impl LoadedState {
    /// A state that took so long to load.
    pub fn new(state: DenoisingState, took: Duration) -> Self {
        Self { state, took }
    }
}

impl Pipelines {
    /// These pipelines, each with the options of its menu. Without `stored` each picture begins with noise, and none is
    /// kept.
    pub fn new(models: Vec<(Pipeline, Vec<PlanOption>)>, stored: Option<Stored>) -> Self {
        let mut known = BTreeMap::new();
        let mut resident = BTreeMap::new();
        for (pipeline, options) in models {
            let id = ModelId::from(pipeline.id());
            let (model, precision) = (pipeline.model().clone(), pipeline.precision());
            known.insert(id.clone(), Known { model, precision, options: options.into() });
            resident.insert(id, pipeline);
        }
        Self { known, resident: RwLock::new(resident), stored }
    }

    fn find(&self, model: &ModelId) -> Result<(Pipeline, &Known), BeginError> {
        let gone = || BeginError::Failed(format!("the model {model} is not in memory"));
        let pipeline = self.resident.read().get(model).cloned().ok_or_else(gone)?;
        Ok((pipeline, self.known.get(model).ok_or_else(gone)?))
    }

    fn beginning(
        &self,
        known: &Known,
        task: &PaintTask,
        option: &OptionId,
        since: Duration,
    ) -> Result<Beginning, BeginError> {
        let unknown = || BeginError::Failed(format!("the menu has no option {option}"));
        let option = find(&known.options, &task.spec, option).ok_or_else(unknown)?;
        // Without a cache nothing is kept, and no state is copied for it.
        let keep = self.stored.as_ref().and(task.keep.clone());
        let task = PaintTask { keep, ..task.clone() };
        Ok(Beginning { task, options: Arc::clone(&known.options), option, since })
    }
}

impl Engine for Pipelines {
    type Spec = PaintTask;
    type Picture = FinishedPicture;
    type State = LoadedState;
    type Painting = PipelinePainting;
}

impl Stages for Pipelines {
    fn models(&self) -> Vec<ModelId> {
        self.resident.read().keys().cloned().collect()
    }

    fn warm_up(&self, rows: u32) -> Result<Measured, String> {
        let resident = self.resident.read().clone();
        let mut all = Measured::default();
        for pipeline in resident.values() {
            let measured =
                warm_up(pipeline, rows as usize).map_err(|error| format!("{}: {error}", pipeline.id()))?;
            all.step_times.extend(measured.step_times);
            all.overhead_times.extend(measured.overhead_times);
        }
        Ok(all)
    }

    async fn load(&self, task: &PaintTask, beginning: &messages::Beginning) -> Result<LoadedState, String> {
        let (Some(start), messages::Beginning::State) = (&task.start, beginning) else {
            return Err("this worker has no store of checkpoints".to_owned());
        };
        let stored = self.stored.as_ref().ok_or("there is no cache")?;
        let loaded = stored.load(&start.entry, start.timestep).await;
        loaded.map(|(state, took)| LoadedState { state, took }).map_err(|error| error.to_string())
    }

    fn begin(
        &self,
        assignment: &Assignment<PaintTask>,
        state: Option<LoadedState>,
        since: Duration,
    ) -> Result<PipelinePainting, BeginError> {
        let Assignment { spec: task, model, option, beginning, .. } = assignment;
        let (pipeline, known) = self.find(model)?;
        let start = task.start.as_ref().filter(|_| *beginning == messages::Beginning::State);
        if let (Some(start), Some(LoadedState { state, took })) = (start, state) {
            let begin = self.beginning(known, task, option, since)?;
            match PipelinePainting::from_state(&pipeline, begin, start.clone(), &state) {
                Ok(mut painting) => {
                    painting.timings.load = took;
                    return Ok(painting);
                }
                Err(error) => tracing::warn!(%error, source = start.entry.as_str(), "not resumed"),
            }
        }
        if start.is_some_and(|start| start.required) {
            return Err(BeginError::StateGone);
        }
        let begin = self.beginning(known, task, option, since)?;
        PipelinePainting::with_noise(&pipeline, begin).map_err(|error| BeginError::Failed(error.to_string()))
    }

    fn step(&self, batch: &mut [&mut PipelinePainting]) -> Result<(), String> {
        let Some(first) = batch.first() else { return Ok(()) };
        let pipeline = first.pipeline.clone();
        let began = Instant::now();
        let guidance: Vec<Option<Guidance>> = batch.iter().map(|painting| painting.next_guidance()).collect();
        let mut trajectories: Vec<&mut Trajectory> =
            batch.iter_mut().map(|painting| &mut painting.trajectory).collect();
        pipeline.step(&mut trajectories).map_err(|error| error.to_string())?;
        let time = began.elapsed();
        for (painting, guidance) in batch.iter_mut().zip(guidance) {
            painting.stepped(guidance, time);
        }
        Ok(())
    }

    fn preview(
        &self,
        (pipeline, trajectory): <PipelinePainting as Painting>::Preview,
    ) -> Result<Bytes, String> {
        let picture = pipeline.finish(&trajectory).map_err(|error| error.to_string())?;
        write_preview(&picture).map(Bytes::from).map_err(|error| error.to_string())
    }

    fn finish(&self, painting: &mut PipelinePainting) -> Result<FinishedPicture, String> {
        let began = Instant::now();
        let picture = painting.pipeline.finish(&painting.trajectory).map_err(|error| error.to_string())?;
        let (steps, skipped_steps) = (painting.steps(), painting.skipped());
        let started_from = painting.started_from.clone();
        let text = parameters(&painting.task.spec, steps, started_from.as_ref(), skipped_steps);
        let file = write_png(&picture, &text).map_err(|error| error.to_string())?;
        let PaintTimings { load, encode, denoise, .. } = painting.timings;
        let (age, decode) = (painting.age(), began.elapsed());
        let wait = age.saturating_sub(load + encode + denoise + decode);
        let timings = PaintTimings { wait, decode, ..painting.timings };
        telemetry::picture(&painting.task.spec.model, age, steps);
        let request = &painting.task.request;
        tracing::info!(request_id = request, painted = ?age, steps, skipped_steps, "painted");
        Ok(FinishedPicture { file: file.into(), steps, skipped_steps, started_from, timings })
    }

    fn keep(&self, painting: PipelinePainting, picture: FinishedPicture, expected_quality: Option<f64>) {
        let (Some(stored), Some(mut kept)) = (&self.stored, painting.into_kept()) else { return };
        // The file says the prompt, which may not be stored.
        let file = match kept.prompt {
            Some(_) => Ok(picture.file),
            None => with_parameters(&picture.file, None).map(Bytes::from),
        };
        match file {
            Ok(file) => kept.file = Some(file),
            Err(error) => return tracing::warn!(%error, "a picture is not kept"),
        }
        kept.expected_quality = expected_quality.map(|quality| quality as f32);
        stored.cache().insert(kept);
    }

    fn load_model(&self, model: &ModelId) -> Result<(), String> {
        let known = self.known.get(model).ok_or("it is not one of this worker's")?;
        let components = Components::of(known.precision);
        let pipeline = Pipeline::load(&known.model, &components, &Device::Cpu);
        self.resident.write().insert(model.clone(), pipeline.map_err(|error| error.to_string())?);
        Ok(())
    }

    fn unload_model(&self, model: &ModelId) {
        self.resident.write().remove(model);
    }
}
