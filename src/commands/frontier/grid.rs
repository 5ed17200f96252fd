//! The options that are measured: step counts, each with several shares of guided steps.

use pentimento_pipelines::{PlanOption, Result};

use pentimento_pipelines::NoiseSchedule;

/// The options of every step count below the full plan's, and of the full plan's, each with its first steps guided
/// by every one of the `guided` shares, above 0 and at most 1. Where two shares make the same plan, it is there once.
/// The fully guided full plan is the last one.
///
/// Without guidance (a scale of at most 1) no step has a second row to be spared: every step count is there once.
///
/// # Errors
/// A step count that the schedule has not.
pub fn options(
    schedule: &NoiseSchedule,
    guidance_scale: f32,
    full: usize,
    steps: &[usize],
    guided: &[f64],
) -> Result<Vec<PlanOption>> {
    let mut counts: Vec<usize> = steps.iter().copied().filter(|count| *count < full).chain([full]).collect();
    counts.sort_unstable();
    counts.dedup();
    let shares = if guidance_scale > 1.0 { guided } else { &[] };
    let mut options = Vec::new();
    for count in counts {
        let of = |share: &f64| ((share * count as f64).round() as usize).clamp(1, count);
        let mut firsts: Vec<usize> = shares.iter().map(of).chain((count == full).then_some(count)).collect();
        if firsts.is_empty() {
            firsts.push(count);
        }
        firsts.sort_unstable();
        firsts.dedup();
        for first in firsts {
            options.push(PlanOption::ddim(schedule, count, first)?);
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use pentimento_pipelines::ScheduleConfig;

    use super::*;

    fn ids(scale: f32, full: usize, steps: &[usize], guided: &[f64]) -> Vec<String> {
        let schedule = NoiseSchedule::new(ScheduleConfig::default()).unwrap();
        options(&schedule, scale, full, steps, guided).unwrap().into_iter().map(|option| option.id).collect()
    }

    #[test]
    fn every_share_of_every_count_is_there_once_and_the_full_plan_last() {
        assert_eq!(
            ids(5.0, 10, &[3, 5, 5, 20], &[1.0, 0.6, 0.4]),
            [
                "ddim-3-g1",
                "ddim-3-g2",
                "ddim-3",
                "ddim-5-g2",
                "ddim-5-g3",
                "ddim-5",
                "ddim-10-g4",
                "ddim-10-g6",
                "ddim-10"
            ]
        );
        assert_eq!(
            ids(5.0, 4, &[2], &[0.5]),
            ["ddim-2-g1", "ddim-4-g2", "ddim-4"],
            "the full plan is guided"
        );
        assert_eq!(ids(1.0, 4, &[2, 3], &[1.0, 0.5]), ["ddim-2", "ddim-3", "ddim-4"]);
    }
}
