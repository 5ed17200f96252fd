use pentimento_pipelines::{NoiseSchedule, PlanOption, ScheduleConfig, Size};

use super::*;
use crate::commands::frontier::judge::Judges;
use crate::commands::frontier::measure::{Cost, Prompt, Start};
use crate::menu::MenuStart;

const ALL: Judges = Judges { fidelity: true, clip_score: true, realism: true };

/// Options as (steps, guided); the last is the full plan's.
fn settings(options: &[(usize, usize)], judges: Judges) -> Settings {
    let schedule = NoiseSchedule::new(ScheduleConfig::default()).unwrap();
    let start =
        |steps_taken, share, noise_level| Start { steps_taken, start: MenuStart { share, noise_level } };
    let cost = |(steps, guided): &(usize, usize)| Cost { steps: *steps, rows: steps + guided };
    Settings {
        model: "m".into(),
        weights: "w".into(),
        size: Size { width: 64, height: 64 },
        guidance_scale: 5.0,
        judges,
        scorer_digest: "s".into(),
        starts: vec![start(0, 0.0, 1.0), start(10, 0.5, 0.8)],
        options: options.iter().map(|(s, g)| PlanOption::ddim(&schedule, *s, *g).unwrap()).collect(),
        costs: options.iter().map(|option| vec![cost(option), cost(&(1, 1))]).collect(),
    }
}

/// Rows of 40 prompts whose scores are these, times a factor of the prompt's own; from the state all are full.
fn rows(from_noise: &[Scores], full: Scores, other_seed: Option<f64>) -> Vec<Row> {
    (0..40)
        .map(|i| {
            let factor = 0.8 + 0.01 * f64::from(i % 20);
            let scaled = |scores: &Scores| {
                let of = |score: Option<f64>| score.map(|score| score * factor);
                Scores {
                    fidelity: of(scores.fidelity),
                    clip_score: of(scores.clip_score),
                    realism: of(scores.realism),
                    distance: scores.distance,
                }
            };
            let prompt = Prompt { prompt: i.to_string(), named: None };
            let scores = from_noise.iter().map(|scores| vec![scaled(scores), scaled(&full)]).collect();
            Row { prompt, scores, other_seed }
        })
        .collect()
}

fn scores(fidelity: f64, realism: f64) -> Scores {
    Scores { fidelity: Some(fidelity), clip_score: Some(0.7), realism: Some(realism), distance: None }
}

#[test]
fn quality_is_the_smaller_ratio_and_the_menu_is_the_frontier() {
    // By rows 8, 8, 13, 16, 24, 40: the table of issue trials, in small.
    let options = [(5, 3), (4, 4), (8, 5), (8, 8), (12, 12), (20, 20)];
    let settings = settings(&options, ALL);
    let full = scores(0.99, 0.40);
    let measured = [
        scores(0.97, 0.24), // 8 rows
        scores(0.94, 0.20), // 8 rows, worse
        scores(0.98, 0.36), // 13 rows
        scores(0.98, 0.34), // 16 rows, worse than 13
        scores(0.95, 0.39), // 24 rows: better looks, less fidelity
        full,
    ];
    let rows = rows(&measured, full, None);
    let fitted = fitted(&settings, &rows).unwrap();
    let qualities: Vec<f64> = fitted.options.iter().map(|option| option.from[0].quality.mean).collect();
    for (found, wanted) in qualities.iter().zip([0.6, 0.5, 0.9, 0.85, 0.95 / 0.99, 1.0]) {
        assert!((found - wanted).abs() < 1e-6, "{qualities:?}");
    }
    assert_eq!(fitted.kept, [0, 2, 4, 5]);
    let first = &fitted.options[0].from[0];
    assert!((first.fidelity.unwrap().mean - 0.97 / 0.99).abs() < 1e-6 && first.closeness.is_none());
    assert!((first.clip_score.unwrap().mean - 1.0).abs() < 1e-6 && (first.rows, first.steps) == (8.0, 5.0));

    let menu = fitted.menu(&settings, rows.len()).unwrap();
    let ids: Vec<&str> = menu.options().iter().map(|option| option.option.id.as_str()).collect();
    assert_eq!(ids, ["ddim-5-g3", "ddim-8-g5", "ddim-12", "ddim-20"]);
    assert_eq!(menu.measured_for().scorer, "fidelity, realism");
    assert_eq!((menu.measured_for().full_steps, menu.measured_for().prompts), (20, 40));
    assert_eq!(menu.get("ddim-8-g5").unwrap().quality(0.5).mean, 1.0);
    assert_eq!(crate::menu::MenuFile::from_json(&menu.to_json().unwrap()).unwrap(), menu);
}

/// Two options that differ by chance alone: the cheaper one stays.
#[test]
fn a_dearer_option_must_be_better_for_sure() {
    let settings = settings(&[(4, 4), (8, 8), (20, 20)], ALL);
    let full = scores(1.0, 0.4);
    let mut rows = rows(&[scores(1.0, 0.3), scores(1.0, 0.3), full], full, None);
    for (i, row) in rows.iter_mut().enumerate() {
        let up = if i % 2 == 0 { 0.03 } else { -0.0295 };
        row.scores[1][0].realism = row.scores[0][0].realism.map(|realism| realism + up);
    }
    let few = fitted(&settings, &rows).unwrap();
    let quality = |i: usize| few.options[i].from[0].quality.mean;
    assert!(quality(1) > quality(0), "better by the mean");
    assert_eq!(few.kept, [0, 2]);
}

#[test]
fn without_a_critic_the_distance_from_the_full_plan_counts() {
    let judges = Judges { fidelity: false, clip_score: true, realism: false };
    let settings = settings(&[(2, 2), (4, 4), (20, 20)], judges);
    let of = |clip_score, distance| Scores {
        clip_score: Some(clip_score),
        distance: Some(distance),
        ..Scores::default()
    };
    let full = of(0.8, 0.0);
    let rows = rows(&[of(0.1, 0.3), of(0.78, 0.05), full], full, Some(0.2));
    let fitted = fitted(&settings, &rows).unwrap();
    let found: Vec<(f64, f64)> = fitted
        .options
        .iter()
        .map(|option| (option.from[0].closeness.unwrap().mean, option.from[0].quality.mean))
        .collect();
    for (found, wanted) in found.iter().zip([(-0.5, 0.0), (0.75, 0.75), (1.0, 1.0)]) {
        assert!((found.0 - wanted.0).abs() < 1e-6 && (found.1 - wanted.1).abs() < 1e-6, "{found:?}");
    }
    assert_eq!(fitted.kept, [1, 2], "an option worth nothing is none");
    let menu = fitted.menu(&settings, rows.len()).unwrap();
    assert_eq!(menu.measured_for().scorer, "clip_score, closeness");
}

#[test]
fn what_cannot_be_fitted_is_said() {
    let settings = settings(&[(4, 4), (20, 20)], ALL);
    assert!(fitted(&settings, &[]).is_err());
    let full = scores(1.0, 0.0);
    let rows = rows(&[full, full], full, None);
    let nothing = fitted(&settings, &rows).unwrap().menu(&settings, 40).unwrap_err().to_string();
    assert!(nothing.contains("fidelity, realism"), "{nothing}");
    let mut cut = rows.clone();
    cut[3].scores.pop();
    assert!(fitted(&settings, &cut).err().unwrap().to_string().contains("lacks a score"));
}
