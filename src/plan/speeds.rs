//! How fast this machine paints, by model and size.

use std::collections::HashMap;
use std::time::Duration;

use pentimento_pipelines::Size;

use super::{Ewma, StepTime};
use crate::telemetry;

/// The most pairs of model and size that are told apart; further ones are taken for the model's own size.
const MOST_SHAPES: usize = 256;
/// Rows of a step with guidance.
const ROWS: usize = 2;

/// What is known of all models.
#[derive(Debug, Default)]
pub struct Speeds {
    by_shape: HashMap<(String, Size), Measured>,
    profiled: HashMap<String, Profiled>,
}

#[derive(Debug)]
struct Measured {
    step: StepTime,
    /// Encoding a prompt.
    encode: Ewma,
    /// Decoding a picture, and its file.
    decode: Ewma,
    /// The same of a stored picture, which has a thread of its own.
    show: Ewma,
}

/// What a model's profile said.
#[derive(Debug)]
struct Profiled {
    /// The size that it was taken at.
    size: Size,
    /// Seconds of the full plan where nothing else is painted: objectives follow from them, and stay what they were
    /// when they were published.
    unloaded: f64,
}

/// How fast pictures of a model and size are painted.
#[derive(Debug, Clone, Copy)]
pub struct Speed<'a> {
    measured: &'a Measured,
    /// How many times those times are to be taken: 1, unless only the model's own size was seen.
    times: f64,
    /// How many times the pixels of the model's own size.
    work: f64,
}

impl Speeds {
    /// Takes a model's profile: seconds of its steps by rows, of encoding and of decoding, at `size`; its full plan has
    /// `steps`.
    pub fn profiled(
        &mut self,
        (model, size): (&str, Size),
        steps: usize,
        samples: &[(usize, f64)],
        encode: Duration,
        decode: Duration,
    ) {
        let Some(step) = StepTime::fitted(samples) else { return };
        let (encode, decode) = (encode.as_secs_f64(), decode.as_secs_f64());
        let unloaded = steps as f64 * step.seconds(ROWS) + encode + decode;
        self.profiled.insert(model.to_owned(), Profiled { size, unloaded });
        let (encode, decode) = (Ewma::new(encode), Ewma::new(decode));
        let measured = Measured { step, encode, decode, show: decode };
        self.by_shape.insert((model.to_owned(), size), measured);
    }

    /// Takes a step's time in.
    pub fn stepped(&mut self, model: &str, size: Size, rows: usize, time: Duration) {
        let (shape, time) = ((model.to_owned(), size), time.as_secs_f64());
        if let Some(measured) = self.by_shape.get_mut(&shape) {
            telemetry::prediction_error(measured.step.observe(rows, time));
        } else if self.by_shape.len() < MOST_SHAPES
            && time > 0.0
            && let Some(own) = self.of(model, size)
        {
            // One value says how much slower this size is; how time grows with rows, the model's own size says.
            let step = own.measured.step.scaled(own.times * time / own.seconds(rows));
            let (decode, show) = (Ewma::new(own.decode()), Ewma::new(own.show()));
            let measured = Measured { step, encode: own.measured.encode, decode, show };
            self.by_shape.insert(shape, measured);
        }
    }

    /// Takes in what a picture took besides steps.
    pub fn finished(&mut self, model: &str, size: Size, encode: Duration, decode: Duration) {
        if let Some(measured) = self.by_shape.get_mut(&(model.to_owned(), size)) {
            measured.encode.observe(encode.as_secs_f64());
            measured.decode.observe(decode.as_secs_f64());
        }
    }

    /// Takes in what decoding a stored picture took, and its file.
    pub fn shown(&mut self, model: &str, size: Size, time: Duration) {
        if let Some(measured) = self.by_shape.get_mut(&(model.to_owned(), size)) {
            measured.show.observe(time.as_secs_f64());
        }
    }

    /// A model's speed at a size. `None` until it was profiled.
    pub fn of(&self, model: &str, size: Size) -> Option<Speed<'_>> {
        let own = self.profiled.get(model)?.size;
        let work = times_the_work(size, own);
        if let Some(measured) = self.by_shape.get(&(model.to_owned(), size)) {
            return Some(Speed { measured, times: 1.0, work });
        }
        let measured = self.by_shape.get(&(model.to_owned(), own))?;
        Some(Speed { measured, times: work, work })
    }

    /// Seconds of a model's full plan at a size where nothing else is painted, as profiled.
    pub fn unloaded(&self, model: &str, size: Size) -> Option<f64> {
        self.profiled.get(model).map(|profiled| profiled.unloaded * times_the_work(size, profiled.size))
    }

    /// Seconds of a model's steps at its own size, by the rows that were seen.
    pub fn seen(&self, model: &str) -> Vec<(usize, f64)> {
        let own = self.profiled.get(model).and_then(|profiled| self.of(model, profiled.size));
        own.map(|speed| speed.measured.step.seen().collect()).unwrap_or_default()
    }
}

impl Speed<'_> {
    /// Seconds of a step, by the rows of its batch.
    pub fn step(&self) -> impl Fn(usize) -> f64 + use<> {
        let (step, times) = (self.measured.step.clone(), self.times);
        move |rows| times * step.seconds(rows)
    }

    /// Seconds of a step where one picture with guidance is alone.
    pub fn alone(&self) -> f64 {
        self.times * self.measured.step.seconds(ROWS)
    }

    /// The rows of a full batch: as many as still gain something, and no more than take the memory of `max_rows` rows
    /// of the model's own size.
    pub fn full_batch(&self, max_rows: usize) -> usize {
        self.measured.step.best_rows(self.fitting(max_rows))
    }

    /// Machine seconds of a row in a full batch.
    pub fn per_row(&self, max_rows: usize) -> f64 {
        self.times * self.measured.step.per_row(self.fitting(max_rows))
    }

    /// Activations grow with the pixels; a picture with guidance always fits.
    fn fitting(&self, max_rows: usize) -> usize {
        let fitting = (max_rows as f64 / self.work) as usize;
        fitting.clamp(ROWS.min(max_rows), max_rows)
    }

    /// Seconds of a step with so many rows.
    pub fn seconds(&self, rows: usize) -> f64 {
        self.times * self.measured.step.seconds(rows)
    }

    /// Seconds of encoding a prompt, whatever the size.
    pub fn encode(&self) -> f64 {
        self.measured.encode.seconds()
    }

    /// Seconds of decoding a picture and of its file.
    pub fn decode(&self) -> f64 {
        self.times * self.measured.decode.seconds()
    }

    /// The same of a stored picture.
    pub fn show(&self) -> f64 {
        self.times * self.measured.show.seconds()
    }
}

/// How many times as much work a picture of a size is as one of another: it grows at least with the pixels.
fn times_the_work(size: Size, than: Size) -> f64 {
    let pixels = |size: Size| size.width as f64 * size.height as f64;
    pixels(size) / pixels(than).max(1.0)
}
