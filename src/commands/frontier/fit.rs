//! From scores to a menu: ratios to the full plan, their intervals, and the options that are worth their cost.

use anyhow::{anyhow, bail};

use super::judge::Scores;
use super::measure::{Row, Settings};
use crate::menu::{Estimate, MeasuredOption, MenuFile, MenuFor, MenuPoint};
use crate::quality::{Bootstrap, Bootstrapped, Interval};

/// What was measured of every option.
pub struct Fitted {
    /// All options, in the settings' order, each with a point for each start.
    pub options: Vec<MeasuredOption>,
    /// Places in `options` of those on the quality–cost frontier, by rising rows.
    pub kept: Vec<usize>,
}

/// Fits all options.
///
/// # Errors
/// Without rows, or where they lack a score.
pub fn fitted(settings: &Settings, rows: &[Row]) -> anyhow::Result<Fitted> {
    if rows.is_empty() {
        bail!("nothing was measured");
    }
    let bootstrap = Bootstrap::of(rows.len());
    let mut options = Vec::new();
    let mut qualities = Vec::new();
    for (i, option) in settings.options.iter().enumerate() {
        let mut from = Vec::new();
        for (s, start) in settings.starts.iter().enumerate() {
            let ratios = Ratios::of(settings, rows, &bootstrap, i, s)?;
            let quality = ratios.quality()?;
            let cost = settings.costs[i][s];
            from.push(MenuPoint {
                share: start.start.share,
                steps: cost.steps as f64,
                rows: cost.rows as f64,
                quality: at_least_0(estimate(quality.interval())),
                fidelity: ratios.fidelity.as_ref().map(|ratio| estimate(ratio.interval())),
                realism: ratios.realism.as_ref().map(|ratio| estimate(ratio.interval())),
                clip_score: ratios.clip_score.as_ref().map(|ratio| estimate(ratio.interval())),
                closeness: ratios.closeness.as_ref().map(|ratio| estimate(ratio.interval())),
            });
            if s == 0 {
                qualities.push(quality);
            }
        }
        options.push(MeasuredOption { option: option.clone(), from });
    }
    let costs: Vec<f64> = options.iter().map(|option| option.from[0].rows).collect();
    let kept = frontier(&costs, &qualities);
    Ok(Fitted { options, kept })
}

impl Fitted {
    /// The menu of the options that are kept.
    ///
    /// # Errors
    /// No option has any quality, or the settings are out of a menu's bounds.
    pub fn menu(&self, settings: &Settings, prompts: usize) -> anyhow::Result<MenuFile> {
        let full = settings.options.last().ok_or_else(|| anyhow!("no options"))?;
        let measured_for = MenuFor {
            model: settings.model.clone(),
            weights: settings.weights.clone(),
            size: settings.size,
            guidance_scale: settings.guidance_scale,
            full_steps: full.steps,
            scorer: settings.judges.names(),
            scorer_digest: settings.scorer_digest.clone(),
            prompts,
        };
        if self.kept.is_empty() {
            bail!("no option's pictures are worth anything to the judges ({})", measured_for.scorer);
        }
        let starts = settings.starts.iter().map(|start| start.start).collect();
        let options = self.kept.iter().map(|i| self.options[*i].clone()).collect();
        Ok(MenuFile::new(measured_for, starts, options)?)
    }
}

/// Places of the options on the frontier, by rising cost.
///
/// Options are tried by rising cost, among equals the better first. One is kept if it is better for sure than all that
/// were kept before: another that costs no more and may be as good keeps it out. Prompts are compared in pairs.
fn frontier(costs: &[f64], qualities: &[Bootstrapped]) -> Vec<usize> {
    let value = |i: usize| qualities[i].interval().value;
    let mut order: Vec<usize> = (0..costs.len()).filter(|i| value(*i) > 0.0).collect();
    order.sort_by(|a, b| costs[*a].total_cmp(&costs[*b]).then(value(*b).total_cmp(&value(*a))));
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        let better = |j: &usize| value(i) > value(*j) && qualities[i].is_better_than(&qualities[*j]);
        if kept.iter().all(better) {
            kept.push(i);
        }
    }
    kept
}

/// Ratios of an option's pictures to the full plan's.
#[derive(Default)]
struct Ratios {
    fidelity: Option<Bootstrapped>,
    clip_score: Option<Bootstrapped>,
    realism: Option<Bootstrapped>,
    closeness: Option<Bootstrapped>,
}

impl Ratios {
    fn of(
        settings: &Settings,
        rows: &[Row],
        bootstrap: &Bootstrap,
        option: usize,
        start: usize,
    ) -> anyhow::Result<Self> {
        let full = settings.options.len() - 1;
        let all = |option: usize, start: usize, of: fn(&Scores) -> Option<f64>| -> anyhow::Result<Vec<f64>> {
            let score = |row: &Row| row.scores.get(option).and_then(|from| from.get(start)).and_then(of);
            let missing = || anyhow!("a measured prompt lacks a score: measure anew, in another --out");
            rows.iter().map(|row| score(row).ok_or_else(missing)).collect()
        };
        let ratio = |judged: bool, of: fn(&Scores) -> Option<f64>| -> anyhow::Result<Option<Bootstrapped>> {
            if !judged {
                return Ok(None);
            }
            Ok(Some(bootstrap.ratio(&all(option, start, of)?, &all(full, 0, of)?)))
        };
        let judges = settings.judges;
        let closeness = match judges.realism {
            true => None,
            false => {
                let others = rows.iter().map(|row| row.other_seed.unwrap_or(0.0)).collect::<Vec<f64>>();
                let distances = all(option, start, |scores| scores.distance)?;
                let closer: Vec<f64> = others.iter().zip(distances).map(|(other, own)| other - own).collect();
                Some(bootstrap.ratio(&closer, &others))
            }
        };
        Ok(Self {
            fidelity: ratio(judges.fidelity, |scores| scores.fidelity)?,
            clip_score: ratio(judges.clip_score, |scores| scores.clip_score)?,
            realism: ratio(judges.realism, |scores| scores.realism)?,
            closeness,
        })
    }

    /// The smaller of what the picture shows and how it looks.
    fn quality(&self) -> anyhow::Result<Bootstrapped> {
        let shows = self.fidelity.as_ref().or(self.clip_score.as_ref());
        let looks = self.realism.as_ref().or(self.closeness.as_ref());
        match (shows, looks) {
            (Some(shows), Some(looks)) => Ok(shows.min(looks)),
            (one, other) => one.or(other).cloned().ok_or_else(|| anyhow!("no judge")),
        }
    }
}

/// In six decimals: more say nothing, and so many JSON keeps exactly.
fn estimate(interval: Interval) -> Estimate {
    let short = |value: f64| (value * 1e6).round() / 1e6;
    Estimate { mean: short(interval.value), low: short(interval.low), high: short(interval.high) }
}

/// A picture farther from the full plan's than another seed's is worth nothing, and not less.
fn at_least_0(estimate: Estimate) -> Estimate {
    Estimate { mean: estimate.mean.max(0.0), low: estimate.low.max(0.0), high: estimate.high.max(0.0) }
}

#[cfg(test)]
mod tests;
