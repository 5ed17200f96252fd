//! `menu.json`: its fields, its bounds, and how it is read.

use std::collections::HashSet;

use pentimento_pipelines::{PlanOption, Size};
use serde::{Deserialize, Serialize};

use super::error::{MenuFileError, check};
use super::estimate::Estimate;

/// Files of another version are refused.
pub(super) const VERSION: u32 = 1;
/// The most options of a file. A menu is compared with itself at every change of the load, so it must stay short; the
/// default grid has 46 options.
const MOST_OPTIONS: usize = 256;
/// The most starts of a file, for the same reason.
const MOST_STARTS: usize = 16;
/// The most rows of a step: prompt, negative prompt and source.
const MOST_ROWS: f64 = 3.0;

/// A menu as `pentimento frontier` writes it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MenuFile {
    version: u32,
    /// What it was measured for.
    #[serde(rename = "for")]
    measured_for: MenuFor,
    starts: Vec<MenuStart>,
    options: Vec<MeasuredOption>,
}

/// What a menu was measured for.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MenuFor {
    /// The model that painted.
    pub model: String,
    /// Digest of that model's files.
    pub weights: String,
    /// Size of the pictures.
    pub size: Size,
    /// Guidance scale of guided steps.
    pub guidance_scale: f32,
    /// Steps of the full plan, all of them guided, whose pictures have quality 1.
    pub full_steps: usize,
    /// The judges whose smaller ratio to the full plan is the quality, as "fidelity, realism".
    pub scorer: String,
    /// Digest of the judges' files. Realism is on a scale of the critic's own.
    pub scorer_digest: String,
    /// How many prompts were painted; 0 where nothing was measured.
    pub prompts: usize,
}

/// A place from which options were measured: noise, or a state of the full plan.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MenuStart {
    /// Share of the full plan that was behind the state; 0: from noise.
    pub share: f64,
    /// Noise level of the state, 0 to 1; that of pure noise is 1.
    pub noise_level: f64,
}

/// An option, and what was measured of it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredOption {
    /// What `pipelines` makes a step plan of.
    pub option: PlanOption,
    /// One for each of the menu's starts, in their order.
    pub from: Vec<MenuPoint>,
}

/// An option's pictures from one start.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MenuPoint {
    /// Share of the full plan behind the start.
    pub share: f64,
    /// Steps that are left to be taken from there.
    pub steps: f64,
    /// Rows that they take: the cost.
    pub rows: f64,
    /// The smaller of the judges' ratios to the full plan's pictures: 1 is as good as those.
    pub quality: Estimate,
    /// Ratio of the fidelity; absent where it was not judged, as the following.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fidelity: Option<Estimate>,
    /// Ratio of the realism.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realism: Option<Estimate>,
    /// Ratio of the CLIP score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_score: Option<Estimate>,
    /// 1 less the distance from the full plan's picture, over that of another seed's picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closeness: Option<Estimate>,
}

impl MenuFile {
    /// A menu of options by rising rows, each with a point for each start.
    ///
    /// # Errors
    /// [`MenuFileError::OutOfBounds`] and [`MenuFileError::Option`].
    pub fn new(
        measured_for: MenuFor,
        starts: Vec<MenuStart>,
        options: Vec<MeasuredOption>,
    ) -> Result<Self, MenuFileError> {
        let menu = Self { version: VERSION, measured_for, starts, options };
        menu.check()?;
        Ok(menu)
    }

    /// Reads a file, of this version only.
    ///
    /// # Errors
    /// [`MenuFileError`].
    pub fn from_json(json: &str) -> Result<Self, MenuFileError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_str(json)?;
        if version != VERSION {
            return Err(MenuFileError::Version(version));
        }
        let menu: Self = serde_json::from_str(json)?;
        menu.check()?;
        Ok(menu)
    }

    /// The file's content.
    ///
    /// # Errors
    /// [`MenuFileError::Json`].
    pub fn to_json(&self) -> Result<String, MenuFileError> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// What it was measured for.
    pub fn measured_for(&self) -> &MenuFor {
        &self.measured_for
    }

    /// Whether its qualities were measured, and not assumed ([`MenuFile::unmeasured`]).
    pub fn is_measured(&self) -> bool {
        self.measured_for.prompts > 0
    }

    /// The starts, from noise on.
    pub fn starts(&self) -> &[MenuStart] {
        &self.starts
    }

    /// The options by rising rows, and so by rising quality, from noise.
    pub fn options(&self) -> &[MeasuredOption] {
        &self.options
    }

    /// The option of this id.
    pub fn get(&self, id: &str) -> Option<&MeasuredOption> {
        self.options.iter().find(|option| option.option.id == id)
    }

    /// The option of the highest quality from noise.
    pub fn best(&self) -> &MeasuredOption {
        // `check` leaves no menu without options.
        &self.options[self.options.len() - 1]
    }

    /// The cheapest option whose quality from noise is at least `quality`, or else the best one.
    pub fn cheapest(&self, quality: f64) -> &MeasuredOption {
        let reaches = |option: &&MeasuredOption| option.from[0].quality.mean >= quality;
        self.options.iter().find(reaches).unwrap_or(self.best())
    }

    /// The share of the full plan that is behind a latent of this noise level, read linearly between the starts.
    pub fn share_at(&self, noise_level: f64) -> f64 {
        let finished = MenuStart { share: 1.0, noise_level: 0.0 };
        let below = self.starts.partition_point(|start| start.noise_level >= noise_level);
        let Some(noisier) = below.checked_sub(1).map(|i| self.starts[i]) else { return 0.0 };
        let cleaner = self.starts.get(below).copied().unwrap_or(finished);
        let part = (noisier.noise_level - noise_level) / (noisier.noise_level - cleaner.noise_level);
        noisier.share + (cleaner.share - noisier.share) * part.clamp(0.0, 1.0)
    }

    fn check(&self) -> Result<(), MenuFileError> {
        let of = &self.measured_for;
        check((1..=1000).contains(&of.full_steps), "for.full_steps", "from 1 to 1000")?;
        check((0.0..=100.0).contains(&of.guidance_scale), "for.guidance_scale", "from 0 to 100")?;
        check((1..=MOST_STARTS).contains(&self.starts.len()), "starts", "a list of 1 to 16")?;
        let first = self.starts[0] == MenuStart { share: 0.0, noise_level: 1.0 };
        check(first, "starts", "a list that begins with share 0 and noise level 1")?;
        let last = self.starts[self.starts.len() - 1];
        check(last.share < 1.0 && last.noise_level > 0.0, "starts", "of shares below 1 and levels above 0")?;
        let further = |w: &[MenuStart]| w[0].share < w[1].share && w[0].noise_level > w[1].noise_level;
        check(self.starts.windows(2).all(further), "starts", "of rising shares and falling noise levels")?;
        check((1..=MOST_OPTIONS).contains(&self.options.len()), "options", "a list of 1 to 256")?;
        let ids: HashSet<&str> = self.options.iter().map(|option| option.option.id.as_str()).collect();
        check(ids.len() == self.options.len(), "options.id", "unlike every other")?;
        self.options.iter().try_for_each(|option| option.check(&self.starts))?;
        let dearer = |w: &[MeasuredOption]| w[0].from[0].rows < w[1].from[0].rows;
        check(self.options.windows(2).all(dearer), "options.rows", "rising, from noise")?;
        let better = |w: &[MeasuredOption]| w[0].from[0].quality.mean < w[1].from[0].quality.mean;
        check(self.options.windows(2).all(better), "options.quality", "rising with the rows, from noise")
    }
}

impl MeasuredOption {
    /// Quality of the picture where the share `done` of the full plan, 0 to 1, was painted as the full plan has it and
    /// the rest by this option. Linear between measured starts, and towards 1 where nothing is left to be lost.
    pub fn quality(&self, done: f64) -> Estimate {
        let (from, to, part) = self.around(done);
        from.quality.towards(to.map_or(Estimate::exactly(1.0), |to| to.quality), part)
    }

    /// Rows still to be taken from there: the cost. Linear between measured starts, and towards 0.
    pub fn rows(&self, done: f64) -> f64 {
        let (from, to, part) = self.around(done);
        from.rows + (to.map_or(0.0, |to| to.rows) - from.rows) * part
    }

    /// Steps still to be taken from there, one after the other. Linear as the rows.
    pub fn steps(&self, done: f64) -> f64 {
        let (from, to, part) = self.around(done);
        from.steps + (to.map_or(0.0, |to| to.steps) - from.steps) * part
    }

    /// The measured points on both sides of a share, and how far it lies from the first to the second.
    fn around(&self, done: f64) -> (&MenuPoint, Option<&MenuPoint>, f64) {
        let done = done.clamp(0.0, 1.0);
        let above = self.from.partition_point(|point| point.share <= done).max(1);
        let (from, to) = (&self.from[above - 1], self.from.get(above));
        let end = to.map_or(1.0, |to| to.share);
        (from, to, (done - from.share) / (end - from.share))
    }

    fn check(&self, starts: &[MenuStart]) -> Result<(), MenuFileError> {
        self.option.check().map_err(MenuFileError::Option)?;
        let from = &self.from;
        let same = from.len() == starts.len() && from.iter().zip(starts).all(|(p, s)| p.share == s.share);
        check(same, "options.from", "one point for each start")?;
        from.iter().try_for_each(MenuPoint::check)
    }
}

impl MenuPoint {
    fn check(&self) -> Result<(), MenuFileError> {
        check((1.0..=1000.0).contains(&self.steps), "steps", "from 1 to 1000")?;
        let rows = (self.steps..=MOST_ROWS * self.steps).contains(&self.rows);
        check(rows, "rows", "from 1 to 3 for each step")?;
        check(self.quality.is_finite() && self.quality.mean >= 0.0, "quality", "a number, at least 0")?;
        let judged = [self.fidelity, self.realism, self.clip_score, self.closeness];
        check(judged.into_iter().flatten().all(Estimate::is_finite), "fidelity … closeness", "numbers")
    }
}

#[cfg(test)]
mod tests;
