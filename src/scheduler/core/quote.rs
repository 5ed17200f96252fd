//! What a picture would get now. A gateway asks before it submits: a stored picture that is as good needs no painting.

use super::Core;
use super::admission::kind;
use super::latency::Kind;
use super::options::offers;
use crate::scheduler::ModelId;
use crate::scheduler::menu::MenuOption;
use crate::scheduler::messages::{NewTask, Shape};

impl<Spec: Clone, Picture: Clone> Core<Spec, Picture> {
    /// The expected quality of the option that a task would take at the present price if it were begun now. `None` where no
    /// worker serves its model, or its specification is refused.
    pub fn quality_now(&self, task: &NewTask<Spec>) -> Option<f64> {
        let facts = self.facts(task).ok()?;
        let serving = self.workers.serving(&facts.model).map(|(_, set)| set);
        let set = serving.min_by(|a, b| a.price.now().total_cmp(&b.price.now()))?;
        let offers = offers(&facts, &facts.beginnings(), |denoiser| set.pace(kind(&facts, denoiser)));
        let seconds = self.config.tuning.headroom * facts.terms.deadline_seconds;
        let choice = self.config.policy.choose(&facts, &offers, set.price.now(), seconds)?;
        Some(choice.offer.quality)
    }

    /// Predicted seconds of a picture that takes all steps of an option on an idle machine, at the fastest workers of its
    /// model. `None` before a step of the model was measured.
    pub fn unloaded_seconds(&self, model: &ModelId, shape: Shape, option: &MenuOption) -> Option<f64> {
        let kind = Kind { model, denoiser: &option.denoiser, shape };
        let of_set = |set: &super::workers::Set| {
            let steps = option.steps.iter().map(|step| set.latency.step(kind, f64::from(step.rows)));
            let steps: f64 = steps.sum::<Option<f64>>()?;
            Some(steps + set.latency.overhead(model, shape).unwrap_or(0.0))
        };
        self.workers.serving(model).filter_map(|(_, set)| of_set(set)).min_by(f64::total_cmp)
    }
}
