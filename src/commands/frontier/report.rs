//! A frontier for people.

use std::path::Path;

use anyhow::{Context, anyhow};
use pentimento_pipelines::Pipeline;

use super::files::{checked, frontier_of};
use crate::plan::{Curve, Frontier, FrontierFile, Point, Tier};

/// Prints the frontier of a file or, where there is none, the model's own.
pub fn print(model: &Pipeline, path: &Path) -> anyhow::Result<()> {
    let file = match std::fs::read_to_string(path) {
        Ok(text) => checked(&text, model).with_context(|| path.display().to_string())?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            frontier_of(model)?.ok_or_else(|| {
                anyhow!("{}: not there, and the model comes without a frontier", path.display())
            })?
        }
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    print!("{}", text(&file));
    Ok(())
}

fn text(file: &FrontierFile) -> String {
    let of = &file.measured_for;
    let mut text = format!(
        "{}: {} prompts, full plan of {} steps, guidance {}.\n\n",
        of.model, of.prompts, of.steps, of.guidance_scale
    );
    let name = |curve: &Curve| match curve.skipped {
        0.0 => "from noise".to_owned(),
        skipped => format!("after {:.0} % of the full plan", 100.0 * skipped),
    };
    let columns: Vec<String> = file.curves.iter().map(name).collect();
    text += &format!("| steps | {} | fidelity | CLIP score |\n", columns.join(" | "));
    text += &format!("| ---: |{}\n", " ---: |".repeat(columns.len() + 2));
    let Some(noise) = file.curves.first() else { return text };
    for (i, point) in noise.points.iter().enumerate() {
        let quality = |curve: &Curve| curve.points.get(i).map_or_else(String::new, interval);
        let qualities: Vec<String> = file.curves.iter().map(quality).collect();
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |v| format!("{v:.3}"));
        let (fidelity, clip) = (number(point.fidelity), number(point.clip_score));
        text += &format!("| {} | {} | {fidelity} | {clip} |\n", point.steps, qualities.join(" | "));
    }
    let frontier = Frontier::from(file);
    let fewest =
        |tier: Tier| format!("{} {} ({:.2})", tier.name(), frontier.fewest(tier.quality()), tier.quality());
    text + &format!("\nFewest steps, by tier: {}.\n", Tier::ALL.map(fewest).join(", "))
}

fn interval(point: &Point) -> String {
    format!("{:.3} ({:.3}–{:.3})", point.quality, point.low, point.high)
}
