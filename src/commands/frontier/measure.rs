//! Prompts, painted with every option and judged.

use std::collections::BTreeSet;
use std::sync::Arc;

use pentimento_pipelines::{Picture, Pipeline, PlanOption, Size, StepPlan};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::judge::{Judges, Panel, Scores, distance};
use super::tree::Tree;
use crate::menu::MenuStart;
use crate::quality::Attributes;

/// A line of a file of prompts. What it holds beyond this is not read.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Prompt {
    pub prompt: String,
    /// What the prompt names, for models with an attribute classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<Attributes>,
}

/// What prompts were measured under, the first line of `measured.jsonl`; lines of other settings are never mixed.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Settings {
    pub model: String,
    pub weights: String,
    pub size: Size,
    pub guidance_scale: f32,
    pub judges: Judges,
    pub scorer_digest: String,
    /// From where options go on, noise first.
    pub starts: Vec<Start>,
    /// The options; the last is the full plan's.
    pub options: Vec<PlanOption>,
    /// Of each option, from each start: the steps to be taken and the rows that they take.
    pub costs: Vec<Vec<Cost>>,
}

/// A place from where options are measured.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Start {
    /// Steps of the full plan behind it.
    pub steps_taken: usize,
    #[serde(flatten)]
    pub start: MenuStart,
}

/// What a plan costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct Cost {
    pub steps: usize,
    pub rows: usize,
}

/// A measured prompt: a line of `measured.jsonl`.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub prompt: Prompt,
    /// Of each option, from each start.
    pub scores: Vec<Vec<Scores>>,
    /// Distance of the full plan's pictures of two seeds, where distances are judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_seed: Option<f64>,
}

/// Paints and judges.
pub struct Measure<'a> {
    pipeline: &'a Pipeline,
    panel: Panel,
    /// Of each option, from each start.
    plans: Vec<Vec<StepPlan>>,
    /// What its rows are measured under.
    pub settings: Settings,
}

impl<'a> Measure<'a> {
    /// Measures `options`, of which the last is the full plan's, from noise and from the full plan's states after
    /// these shares of its steps. `known`, where all prompts say what they name.
    pub fn new(
        pipeline: &'a Pipeline,
        options: Vec<PlanOption>,
        shares: &[f64],
        size: Size,
        known: bool,
    ) -> anyhow::Result<Self> {
        let guidance_scale = pipeline.defaults().guidance_scale;
        let full = options.last().map(|option| pipeline.plan_of(option, guidance_scale)).transpose()?;
        let full = full.ok_or_else(|| anyhow::anyhow!("no options"))?;
        let starts = starts(pipeline, &full, shares);
        let plan = |option: &PlanOption, start: &Start| match full.steps().get(start.steps_taken) {
            Some(step) if start.steps_taken > 0 => pipeline.rest_of(option, guidance_scale, step.timestep),
            _ => pipeline.plan_of(option, guidance_scale),
        };
        let plans = |option| starts.iter().map(|start| plan(option, start)).collect::<Result<Vec<_>, _>>();
        let plans: Vec<Vec<StepPlan>> = options.iter().map(plans).collect::<Result<_, _>>()?;
        let cost = |plan: &StepPlan| Cost { steps: plan.steps().len(), rows: plan.rows() };
        let panel = Panel::load(pipeline, known)?;
        let settings = Settings {
            model: pipeline.id().to_owned(),
            weights: pipeline.model().digest()?.to_owned(),
            size,
            guidance_scale,
            judges: panel.judges(),
            scorer_digest: panel.digest.clone(),
            starts,
            options,
            costs: plans.iter().map(|plans| plans.iter().map(cost).collect()).collect(),
        };
        Ok(Self { pipeline, panel, plans, settings })
    }

    /// Paints every option from one seed, from noise and from the full plan's own states, and judges the pictures.
    pub fn prompt(&self, prompt: &Prompt) -> anyhow::Result<Row> {
        let count = self.settings.options.len();
        let (full, seed) = (count - 1, seed(&prompt.prompt));
        let conditioning = self.pipeline.encode(&prompt.prompt, None, self.settings.size)?;
        let conditioning = Arc::new(conditioning);
        let begin = |seed, plans| {
            Tree::start(self.pipeline, Arc::clone(&conditioning), seed, self.settings.size, plans)
        };
        // Number `start * count + option` is an option's plan from a start.
        let plans = |start: usize| -> Vec<(usize, StepPlan)> {
            self.plans.iter().enumerate().map(|(i, of)| (start * count + i, of[start].clone())).collect()
        };
        let mut tree = begin(seed, plans(0))?;
        let mut taken = 0;
        while tree.step()? {
            taken += 1;
            let here = |start: &Start| start.steps_taken == taken;
            if let Some(start) = self.settings.starts.iter().position(here) {
                tree.branch_off(full, plans(start));
            }
        }
        let finish =
            |(numbers, trajectory): (Vec<usize>, _)| Ok((numbers, self.pipeline.finish(&trajectory)?));
        let pictures: Vec<(Vec<usize>, Picture)> =
            tree.leaves().into_iter().map(finish).collect::<anyhow::Result<_>>()?;
        let of_full = pictures.iter().find(|(numbers, _)| numbers.contains(&full));
        let (_, of_full) = of_full.ok_or_else(|| anyhow::anyhow!("the full plan was not painted"))?;

        let mut scores = vec![vec![Scores::default(); self.settings.starts.len()]; count];
        for (numbers, picture) in &pictures {
            let judged = self.panel.judge(&prompt.prompt, prompt.named.as_ref(), picture, of_full)?;
            for number in numbers {
                scores[number % count][number / count] = judged;
            }
        }
        let other_seed = match self.settings.judges.realism {
            true => None,
            false => {
                let mut tree = begin(seed.wrapping_add(1), vec![(full, self.plans[full][0].clone())])?;
                while tree.step()? {}
                let others = tree.leaves();
                let other =
                    others.first().map(|(_, trajectory)| self.pipeline.finish(trajectory)).transpose()?;
                other.map(|other| distance(&other, of_full))
            }
        };
        Ok(Row { prompt: prompt.clone(), scores, other_seed })
    }
}

/// Noise, and the states of the full plan after these shares of its steps.
fn starts(pipeline: &Pipeline, full: &StepPlan, shares: &[f64]) -> Vec<Start> {
    let count = full.steps().len();
    let at = |share: &f64| (share * count as f64).round() as usize;
    let taken: BTreeSet<usize> = shares.iter().map(at).filter(|taken| (1..count).contains(taken)).collect();
    let noise = Start { steps_taken: 0, start: MenuStart { share: 0.0, noise_level: 1.0 } };
    let state = |steps_taken: usize| {
        let timestep = full.steps()[steps_taken].timestep;
        // In so many digits JSON keeps them exactly: settings are compared.
        let short = |value: f64| (value * 1e9).round() / 1e9;
        let share = short(steps_taken as f64 / count as f64);
        let noise_level = short(pipeline.schedule().noise_level(timestep));
        Start { steps_taken, start: MenuStart { share, noise_level } }
    };
    std::iter::once(noise).chain(taken.into_iter().map(state)).collect()
}

/// The prompt's own, wherever it stands in a file.
pub fn seed(prompt: &str) -> u64 {
    let digest = Sha256::digest(prompt);
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}
