//! An engine that paints nothing, and fails where its specifications say so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use crate::scheduler::menu::{Measured as Quality, Menu, MenuOption};
use crate::scheduler::messages::{
    Assignment, Beginning, MenuChoice, NewTask, PictureId, Shape, StoredStart, Terms,
};
use crate::scheduler::{ModelId, OptionId};
use crate::worker::{BeginError, Engine, Measured, Painting, Stages};

pub const SHAPE: Shape = Shape { width: 64, height: 64 };

/// A stage of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Load,
    Encode,
    Step,
    Decode,
    File,
    Keep,
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Panic,
    Error,
    /// The values are not finite, which the engine finds out itself.
    NotFinite,
    /// Nothing, until the gate is opened.
    Hang,
}

/// What is to be painted.
#[derive(Debug, Clone, PartialEq)]
pub struct Sketch {
    pub name: String,
    pub shape: Shape,
    pub fault: Option<(At, Fault)>,
    /// Whether it must begin from its stored state.
    pub required: bool,
}

pub fn sketch(name: &str) -> Sketch {
    Sketch { name: name.to_owned(), shape: SHAPE, fault: None, required: false }
}

/// A sketch as a task, from noise.
pub fn task(sketch: Sketch) -> NewTask<Sketch> {
    let mut hash = [0; 32];
    let name = sketch.name.as_bytes();
    hash[..name.len()].copy_from_slice(name);
    NewTask {
        model: "m".into(),
        shape: sketch.shape,
        picture: PictureId { scope: "s".into(), hash },
        terms: Terms { tier: String::new(), floor: 0.5, best: 1.0, deadline_seconds: 1000.0, firm: false },
        menu: MenuChoice::Only { options: vec!["4".into()] },
        start: None,
        previews: 0,
        spec: sketch,
    }
}

/// The same from a stored state.
pub fn from_state(sketch: Sketch) -> NewTask<Sketch> {
    let required = sketch.required;
    let start = StoredStart { noise_level: 0.5, loss: 0.0, least_steps: 0, required: true };
    NewTask { start: Some(start), ..task(Sketch { required, ..sketch }) }
}

/// Options of 2 and 4 guided steps; the first was measured in flight.
pub fn menu() -> Menu {
    let at = |noise_level, mean| Quality { noise_level, mean, low: mean, high: mean };
    let two = MenuOption::even("2", 2, 0.0, vec![at(1.0, 0.9), at(0.5, 0.95)]);
    let four = MenuOption::even("4", 4, 0.0, vec![at(1.0, 1.0)]);
    Menu::new(vec![two, four]).unwrap()
}

/// What an engine did, in order, and a gate at which hanging work waits.
#[derive(Default)]
pub struct Studio {
    log: Mutex<Vec<String>>,
    logged: Notify,
    open: Mutex<bool>,
    opened: Condvar,
}

impl Studio {
    fn log(&self, line: String) {
        self.log.lock().push(line);
        self.logged.notify_waiters();
    }

    /// What was done so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().clone()
    }

    /// Waits until `count` lines begin with `prefix`.
    pub async fn wait_for(&self, prefix: &str, count: usize) {
        loop {
            let logged = self.logged.notified();
            tokio::pin!(logged);
            logged.as_mut().enable(); // from here on nothing is missed
            if self.log.lock().iter().filter(|line| line.starts_with(prefix)).count() >= count {
                return;
            }
            logged.await;
        }
    }

    /// Lets go what hangs, now and later.
    pub fn open_gate(&self) {
        *self.open.lock() = true;
        self.opened.notify_all();
    }

    fn hang(&self) {
        let mut open = self.open.lock();
        while !*open {
            self.opened.wait(&mut open);
        }
    }
}

pub struct Fake {
    pub name: &'static str,
    pub models: Mutex<Vec<ModelId>>,
    pub studio: Arc<Studio>,
}

#[derive(Debug)]
pub struct FakePainting {
    pub sketch: Sketch,
    /// Noise levels of the steps still to be taken.
    pub levels: VecDeque<f64>,
    pub taken: u32,
    pub previews: u32,
    pub due: u32,
}

impl FakePainting {
    pub fn new(sketch: Sketch, steps: u32) -> Self {
        let level = |i| 1.0 - f64::from(i) / f64::from(steps);
        Self { sketch, levels: (0..steps).map(level).collect(), taken: 0, previews: 0, due: 0 }
    }

    pub fn step(&mut self) {
        self.levels.pop_front();
        self.taken += 1;
    }
}

impl Painting for FakePainting {
    type Key = Shape;
    type Preview = String;

    fn batch_key(&self) -> Shape {
        self.sketch.shape
    }

    fn shape(&self) -> Shape {
        self.sketch.shape
    }

    fn rows(&self) -> u32 {
        if self.levels.is_empty() { 0 } else { 2 }
    }

    fn noise_level(&self) -> f64 {
        self.levels.front().copied().unwrap_or(0.0)
    }

    fn replan(&mut self, option: &OptionId) -> Result<(), String> {
        let steps: u32 = option.as_str().parse().map_err(|_| "no such option".to_owned())?;
        let now = self.noise_level();
        let rest = FakePainting::new(self.sketch.clone(), steps).levels.into_iter().filter(|at| *at < now);
        self.levels = std::iter::once(now).chain(rest).collect();
        Ok(())
    }

    fn set_previews(&mut self, previews: u32) {
        self.previews = previews;
    }

    /// One after each step.
    fn due_preview(&mut self) -> Option<(u32, String)> {
        self.due += 1;
        (self.due <= self.previews).then(|| (self.due, format!("{} {}", self.sketch.name, self.due)))
    }
}

impl Engine for Fake {
    type Spec = Sketch;
    type Picture = String;
    type State = ();
    type Painting = FakePainting;
}

impl Fake {
    pub fn new(name: &'static str, studio: &Arc<Studio>) -> Arc<Self> {
        Arc::new(Self { name, models: Mutex::new(vec!["m".into()]), studio: Arc::clone(studio) })
    }

    /// Logs the stage, and fails or waits there if the sketch says so.
    fn reach(&self, at: At, sketch: &Sketch) -> Result<(), String> {
        self.studio.log(format!("{at:?} {} {}", sketch.name, self.name));
        match sketch.fault.filter(|(stage, _)| *stage == at).map(|(_, fault)| fault) {
            None => Ok(()),
            Some(Fault::Panic) => panic!("{at:?} of {} panics, as it is told", sketch.name),
            Some(Fault::Error) => Err(format!("{at:?} failed")),
            Some(Fault::NotFinite) => Err(format!("{at:?}: values that are not finite")),
            Some(Fault::Hang) => {
                self.studio.hang();
                Ok(())
            }
        }
    }
}

impl Stages for Fake {
    fn models(&self) -> Vec<ModelId> {
        self.models.lock().clone()
    }

    fn warm_up(&self, _rows: u32) -> Result<Measured, String> {
        self.reach(At::Step, &sketch("warm-up"))?;
        Err("values that are not finite".to_owned())
    }

    async fn load(&self, spec: &Sketch, beginning: &Beginning) -> Result<(), String> {
        assert_eq!(*beginning, Beginning::State);
        if spec.fault == Some((At::Load, Fault::Hang)) {
            self.studio.log(format!("Load {} {}", spec.name, self.name));
            let studio = Arc::clone(&self.studio);
            return tokio::task::spawn_blocking(move || studio.hang()).await.map_err(|e| e.to_string());
        }
        self.reach(At::Load, spec)
    }

    fn begin(
        &self,
        assignment: &Assignment<Sketch>,
        state: Option<()>,
        _since: Duration,
    ) -> Result<FakePainting, BeginError> {
        let sketch = assignment.spec.clone();
        self.reach(At::Encode, &sketch).map_err(BeginError::Failed)?;
        let steps: u32 = assignment.option.as_str().parse().unwrap();
        let mut painting = FakePainting::new(sketch, steps);
        match (&assignment.beginning, state) {
            (Beginning::State, Some(())) => (0..steps / 2).for_each(|_| painting.step()),
            (Beginning::State, None) if assignment.spec.required => return Err(BeginError::StateGone),
            _ => {}
        }
        Ok(painting)
    }

    fn step(&self, batch: &mut [&mut FakePainting]) -> Result<(), String> {
        let names: Vec<String> = batch
            .iter()
            .map(|painting| format!("{}@{}", painting.sketch.name, painting.sketch.shape.width))
            .collect();
        self.studio.log(format!("Batch {} {}", names.join("+"), self.name));
        for painting in batch.iter() {
            if painting.taken == 1 || painting.sketch.fault.is_some_and(|(_, fault)| fault == Fault::Hang) {
                self.reach(At::Step, &painting.sketch)?;
            }
        }
        batch.iter_mut().for_each(|painting| painting.step());
        Ok(())
    }

    fn preview(&self, preview: String) -> Result<Bytes, String> {
        self.studio.log(format!("Preview {preview}"));
        Ok(preview.into())
    }

    fn finish(&self, painting: &mut FakePainting) -> Result<String, String> {
        self.reach(At::Decode, &painting.sketch)?;
        self.reach(At::File, &painting.sketch)?;
        Ok(format!("{} of {}", painting.taken, painting.sketch.name))
    }

    fn keep(&self, painting: FakePainting, picture: String, expected_quality: Option<f64>) {
        let quality = expected_quality.unwrap_or(0.0);
        self.studio.log(format!("Kept {picture} {quality}"));
        let _ = self.reach(At::Keep, &painting.sketch);
    }

    fn load_model(&self, model: &ModelId) -> Result<(), String> {
        self.studio.log(format!("LoadModel {model}"));
        self.models.lock().push(model.clone());
        Ok(())
    }

    fn unload_model(&self, model: &ModelId) {
        self.studio.log(format!("UnloadModel {model}"));
        self.models.lock().retain(|known| known != model);
    }
}
