//! A loaded model, and the verbs that need one: `start`, `resume`, `step`, `finish`.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::conditioning::{Conditioning, EncodedPrompt};
use crate::ddim;
use crate::error::{Error, Result};
use crate::manifest::{Defaults, Size, SizeRange};
use crate::model::{Components, Loaded, Model};
use crate::noise::{self, NoiseSource};
use crate::picture::Picture;
use crate::plan::{Guidance, ResumeSteering, Steering, Step, StepPlan};
use crate::plan_option::PlanOption;
use crate::precision::Precision;
use crate::schedule::{FINISHED, NoiseSchedule};
use crate::text::ClipTokenizer;
use crate::trajectory::{DenoisingState, Trajectory};
use crate::unet::AddedConditioning;

/// A loaded model. Clones are cheap and share the weights.
#[derive(Clone)]
pub struct Pipeline {
    model: Arc<Model>,
    id: Arc<str>,
    loaded: Arc<Loaded>,
    precision: Precision,
    device: Device,
}

impl Pipeline {
    /// Loads a model. Components that it shares with other models come from `components`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Digest`] or [`Error::Config`], naming the file at fault.
    pub fn load(model: &Model, components: &Components, device: &Device) -> Result<Self> {
        let loaded = Arc::new(Loaded::new(model, components, device)?);
        Ok(Self {
            model: Arc::new(model.clone()),
            id: model.id().into(),
            loaded,
            precision: components.precision(),
            device: device.clone(),
        })
    }

    /// The model's name and files.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model's id in requests and answers.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The precision of the model's weights.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The default values of requests.
    pub fn defaults(&self) -> &Defaults {
        &self.loaded.defaults
    }

    /// The sizes that the model can paint.
    pub fn sizes(&self) -> SizeRange {
        self.loaded.sizes
    }

    /// The model's noise schedule.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.loaded.schedule
    }

    /// The full plan of `steps` steps.
    ///
    /// # Errors
    /// Those of [`StepPlan::ddim`].
    pub fn plan(&self, steps: usize, guidance_scale: f32) -> Result<StepPlan> {
        StepPlan::ddim(&self.loaded.schedule, steps, guidance_scale)
    }

    /// The plan of an option from noise.
    ///
    /// # Errors
    /// Those of [`PlanOption::plan`].
    pub fn plan_of(&self, option: &PlanOption, guidance_scale: f32) -> Result<StepPlan> {
        option.plan(&self.loaded.schedule, guidance_scale)
    }

    /// The remaining steps of an option for a latent at `timestep`. It is for `replan`, and for resuming the picture's own
    /// state.
    ///
    /// # Errors
    /// Those of [`PlanOption::rest`].
    pub fn rest_of(&self, option: &PlanOption, guidance_scale: f32, timestep: f64) -> Result<StepPlan> {
        option.rest(&self.loaded.schedule, guidance_scale, timestep)
    }

    /// The remaining steps of an option for another picture's state at `timestep`, of which the first ones are steered.
    ///
    /// # Errors
    /// Those of [`PlanOption::steered_rest`].
    pub fn steered_rest_of(
        &self,
        option: &PlanOption,
        guidance_scale: f32,
        timestep: f64,
        steering: &ResumeSteering,
    ) -> Result<StepPlan> {
        option.steered_rest(&self.loaded.schedule, guidance_scale, timestep, steering)
    }

    /// Encodes a prompt and its negative prompt. An absent negative prompt is the same as an empty one, except for SDXL
    /// models whose index has `force_zeros_for_empty_prompt`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] or [`Error::Tensor`].
    pub fn encode(&self, prompt: &str, negative_prompt: Option<&str>, size: Size) -> Result<Conditioning> {
        self.loaded.prompts.encode(prompt, negative_prompt, size, &self.device)
    }

    /// Encodes a single prompt, for [`Conditioning::with_source`].
    ///
    /// # Errors
    /// [`Error::Tokenizer`] or [`Error::Tensor`].
    pub fn encode_prompt(&self, prompt: &str) -> Result<EncodedPrompt> {
        self.loaded.prompts.encode_one(prompt, &self.device)
    }

    /// The embedding (width,) of a prompt by the model's last text tower. It is pooled, and projected if the tower has a
    /// projection, as SDXL's second one has.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] or [`Error::Tensor`].
    pub fn embed(&self, prompt: &str) -> Result<Tensor> {
        self.loaded.prompts.embed(prompt, &self.device)
    }

    /// A digest of the files that [`Pipeline::embed`] uses, and of the model's files `more`.
    ///
    /// # Errors
    /// Those of [`ModelFiles::digest`](crate::ModelFiles::digest).
    pub fn embedding_digest(&self, more: &[String]) -> Result<String> {
        let tower = self.loaded.prompts.embedding_tower();
        let (encoder, tokenizer) = (format!("text_encoder{tower}"), format!("tokenizer{tower}"));
        let files = self.model.files();
        let mut names = files.weight_files(&encoder, "model")?;
        names.push(format!("{encoder}/config.json"));
        names.extend(ClipTokenizer::FILES.map(|file| format!("{tokenizer}/{file}")));
        names.extend_from_slice(more);
        files.digest(&names)
    }

    /// `start`: a trajectory that begins with noise from a seed.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `size`; `plan`, if it has no steps; or `source`, if a step is steered but the conditioning
    /// has no source.
    pub fn start(
        &self,
        conditioning: Arc<Conditioning>,
        seed: u64,
        noise: NoiseSource,
        size: Size,
        plan: StepPlan,
    ) -> Result<Trajectory> {
        let Some(first) = plan.steps().first() else {
            return Err(Error::invalid("plan", "needs at least one step to start from noise"));
        };
        let timestep = self.check_timestep("plan", first.timestep)?;
        let shape = self.latent_shape(size)?;
        let values = noise::initial(noise, seed, shape.iter().product());
        let latent = Tensor::from_vec(values, &shape[..], &self.device)?;
        self.trajectory(latent, timestep, plan, conditioning, seed)
    }

    /// `resume`: a trajectory that continues from a state, of the same or of another picture, with the steps of `plan`.
    /// [`StepPlan::after`] returns the steps of a plan that a state leaves.
    ///
    /// If the state lies between two of the plan's timesteps, the first step starts from the state's timestep. If the state
    /// is cleaner than the plan's first step, it gets forward noise up to that step. A plan without steps leaves a finished
    /// state as it is.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `state` or `size`, if the latent does not fit the model; `plan`, if it has no step although
    /// the state is not finished; or `source`, if a step is steered but the conditioning has no source.
    pub fn resume(
        &self,
        state: &DenoisingState,
        conditioning: Arc<Conditioning>,
        seed: u64,
        mut plan: StepPlan,
    ) -> Result<Trajectory> {
        self.check_state(state)?;
        let mut latent = Tensor::from_slice(&state.latent, &state.shape[..], &self.device)?;
        let mut timestep = state.timestep;
        if let Some(first) = plan.steps().first() {
            let first = self.check_timestep("plan", first.timestep)?;
            if timestep < first {
                latent = ddim::add_noise(self.schedule(), &latent, (timestep, first), seed)?;
                timestep = first;
            }
            plan.start_from(timestep);
        } else if timestep != FINISHED {
            return Err(Error::invalid("plan", "has no step left for a state that is not finished"));
        }
        self.trajectory(latent, timestep, plan, conditioning, seed)
    }

    fn trajectory(
        &self,
        latent: Tensor,
        timestep: f64,
        plan: StepPlan,
        conditioning: Arc<Conditioning>,
        seed: u64,
    ) -> Result<Trajectory> {
        conditioning.check(&plan)?;
        let model = self.id.clone();
        Ok(Trajectory { model, latent, predicted: None, timestep, plan, conditioning, seed })
    }

    /// Checks a timestep. For a plan it is enough to check the first one, because the others are smaller.
    fn check_timestep(&self, field: &'static str, timestep: f64) -> Result<f64> {
        let last = (self.schedule().num_train_timesteps() - 1) as f64;
        if (0.0..=last).contains(&timestep) {
            return Ok(timestep);
        }
        Err(Error::invalid(field, format!("timestep {timestep} is not between 0 and {last}")))
    }

    /// Checks shape, size, timestep and values of a state, which may come from outside.
    fn check_state(&self, state: &DenoisingState) -> Result<()> {
        let [c, h, w] = state.shape;
        let wrong = |what: String| Err(Error::invalid("state", what));
        let count = h.checked_mul(w).and_then(|n| n.checked_mul(c));
        if c != self.loaded.unet.config().in_channels || count != Some(state.latent.len()) {
            return wrong(format!("a latent of shape {:?} does not fit this model", state.shape));
        }
        let factor = self.loaded.vae.config().spatial_factor();
        let pixels = |side: usize| u32::try_from(side.saturating_mul(factor)).unwrap_or(u32::MAX);
        self.sizes().check(Size { width: pixels(w), height: pixels(h) })?;
        if state.timestep != FINISHED {
            self.check_timestep("state", state.timestep)?;
        }
        if !state.latent.iter().all(|v| v.is_finite()) {
            return wrong("the latent holds values that are not finite".into());
        }
        Ok(())
    }

    /// `step`: advances every trajectory of the batch by its next step in one denoiser call. Each has its own timestep and
    /// guidance.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `batch`, if a trajectory is finished or the batch keys differ, or [`Error::Tensor`]. After an
    /// error the trajectories are unchanged.
    pub fn step(&self, batch: &mut [&mut Trajectory]) -> Result<()> {
        let Some(first) = batch.first() else { return Ok(()) };
        let key = first.batch_key();
        let ours = key.as_ref().is_some_and(|k| k.model == self.id);
        if !ours || batch.iter().any(|t| t.batch_key() != key) {
            let reason = "trajectories must be unfinished, this model's and of one batch key";
            return Err(Error::invalid("batch", reason));
        }
        let steps: Vec<Step> = batch.iter().filter_map(|t| t.next_step().copied()).collect();
        let out = self.denoise(batch, &steps)?;

        let mut row = 0;
        let mut stepped = Vec::with_capacity(batch.len());
        for (trajectory, step) in batch.iter().zip(&steps) {
            let rows = step.guidance.rows();
            let prediction = guide(&out.narrow(0, row, rows)?, step.guidance)?;
            row += rows;
            let timesteps = (step.timestep, trajectory.timestep_after_next());
            let eta = trajectory.plan.eta();
            stepped.push(ddim::step(
                self.schedule(),
                &trajectory.latent,
                &prediction,
                timesteps,
                eta,
                trajectory.seed,
            )?);
        }
        for (trajectory, done) in batch.iter_mut().zip(stepped) {
            trajectory.advance(done.latent, done.predicted);
        }
        Ok(())
    }

    /// The denoiser's output (rows, C, H, W). Each trajectory has as many rows as its guidance takes.
    fn denoise(&self, batch: &[&mut Trajectory], steps: &[Step]) -> Result<Tensor> {
        let rows = steps.iter().map(|s| s.guidance.rows()).sum();
        let mut latents = Vec::with_capacity(rows);
        let mut timesteps = Vec::with_capacity(rows);
        let mut prompts = Vec::with_capacity(rows);
        let mut time_ids = Vec::new();
        for (trajectory, step) in batch.iter().zip(steps) {
            let conditioning = &trajectory.conditioning;
            for prompt in conditioning.rows(step.guidance)? {
                latents.push(&trajectory.latent);
                timesteps.push(step.timestep as f32);
                prompts.push(prompt);
                time_ids.extend(&conditioning.time_ids);
            }
        }
        let token_states: Vec<&Tensor> = prompts.iter().map(|p| &p.token_states).collect();
        let pooled: Vec<&Tensor> = prompts.iter().filter_map(|p| p.pooled.as_ref()).collect();
        let added = if pooled.is_empty() || time_ids.is_empty() {
            None
        } else {
            Some(AddedConditioning {
                pooled: Tensor::stack(&pooled, 0)?,
                time_ids: Tensor::stack(&time_ids, 0)?,
            })
        };
        let timesteps = Tensor::new(timesteps, &self.device)?;
        let (latents, token_states) = (Tensor::stack(&latents, 0)?, Tensor::stack(&token_states, 0)?);
        self.loaded.unet.forward(&latents, &timesteps, &token_states, added.as_ref())
    }

    /// `finish`: decodes the latent to a picture. For an unfinished trajectory it decodes the finished latent that the last
    /// step predicted, which is a preview.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the latent or the picture is not finite, and [`Error::Tensor`].
    pub fn finish(&self, trajectory: &Trajectory) -> Result<Picture> {
        let latent = match &trajectory.predicted {
            Some(predicted) if !trajectory.is_finished() => predicted,
            _ => &trajectory.latent,
        };
        check_finite("latent", latent)?;
        let image = self.loaded.vae.decode(&latent.unsqueeze(0)?)?;
        check_finite("picture", &image)?;
        Picture::from_tensor(&image.squeeze(0)?)
    }

    /// Encodes a picture to a denoising state that can be resumed, for image-to-image.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `size`.
    pub fn encode_picture(&self, picture: &Picture) -> Result<DenoisingState> {
        let [c, h, w] = self.latent_shape(Size { width: picture.width, height: picture.height })?;
        let latent = self.loaded.vae.encode(&picture.to_tensor(&self.device)?.unsqueeze(0)?)?;
        let latent = latent.flatten_all()?.to_vec1()?;
        Ok(DenoisingState { timestep: FINISHED, shape: [c, h, w], latent })
    }

    /// The shape (C, H, W) of a picture's latent.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `size`, if the model cannot paint it.
    pub fn latent_shape(&self, size: Size) -> Result<[usize; 3]> {
        self.loaded.sizes.check(size)?;
        let factor = self.loaded.vae.config().spatial_factor();
        let channels = self.loaded.unet.config().in_channels;
        Ok([channels, size.height as usize / factor, size.width as usize / factor])
    }
}

/// Refuses a tensor with a value that is not finite. Such a value makes the sum of all values not finite, too.
fn check_finite(what: &'static str, tensor: &Tensor) -> Result<()> {
    let sum: f32 = tensor.sum_all()?.to_dtype(DType::F32)?.to_scalar()?;
    if sum.is_finite() { Ok(()) } else { Err(Error::NotFinite(what)) }
}

/// Combines the rows (rows, C, H, W) of one trajectory into its prediction (C, H, W). This is classifier-free guidance (Ho and
/// Salimans, 2022, eq. 6, with diffusers' scale). Contrastive steering adds the difference between the prompt's and the
/// source's prediction.
fn guide(rows: &Tensor, guidance: Guidance) -> Result<Tensor> {
    let prompt = rows.get(usize::from(guidance.has_negative()))?;
    let guided = if guidance.has_negative() {
        let negative = rows.get(0)?;
        (&negative + ((&prompt - &negative)? * f64::from(guidance.scale))?)?
    } else {
        prompt.clone()
    };
    let Steering::Contrastive { strength } = guidance.steering else { return Ok(guided) };
    let source = rows.get(guidance.rows() - 1)?;
    Ok((guided + ((prompt - source)? * f64::from(strength))?)?)
}
