//! A menu for people.

use super::fit::Fitted;
use crate::gateway::Tier;
use crate::menu::{MeasuredOption, MenuFile, MenuStart};

/// The menu as Markdown: what it was measured for, its options, and the cheapest option of each tier.
pub fn menu(menu: &MenuFile) -> String {
    let of = menu.measured_for();
    let mut text = format!(
        "{} at {}: {} prompts, full plan of {} steps, guidance {}. Quality: the smaller ratio of {}.\n\n",
        of.model, of.size, of.prompts, of.full_steps, of.guidance_scale, of.scorer
    );
    text += &table(menu.starts(), menu.options().iter().map(|option| (option, None)));
    let cheapest = |tier: Tier| {
        let (least, option) = (tier.quality(), menu.cheapest(tier.quality()));
        format!("{} {} ({least:.2})", tier.name(), option.option.id)
    };
    text + &format!(
        "\nCheapest option, by tier: {}. Best: {}.\n",
        Tier::ALL.map(cheapest).join(", "),
        menu.best().option.id
    )
}

/// All options that were measured, those of the menu marked.
pub fn all(starts: &[MenuStart], fitted: &Fitted) -> String {
    let kept = |i: usize| Some(fitted.kept.contains(&i));
    let rows = fitted.options.iter().enumerate().map(|(i, option)| (option, kept(i)));
    format!("All options that were measured, those of the menu in bold:\n\n{}", table(starts, rows))
}

fn table<'a>(
    starts: &[MenuStart],
    options: impl Iterator<Item = (&'a MeasuredOption, Option<bool>)> + Clone,
) -> String {
    let from = |start: &MenuStart| match start.share {
        0.0 => "rows | from noise".to_owned(),
        share => format!("rows | after {:.0} % of the full plan", 100.0 * share),
    };
    let judges = ["fidelity", "realism", "CLIP score", "closeness"];
    let judged = |option: &MeasuredOption| {
        let point = &option.from[0];
        [point.fidelity, point.realism, point.clip_score, point.closeness]
    };
    let there: Vec<bool> =
        (0..judges.len()).map(|i| options.clone().any(|(option, _)| judged(option)[i].is_some())).collect();
    let columns = starts
        .iter()
        .map(from)
        .chain(judges.iter().zip(&there).filter(|(_, there)| **there).map(|(name, _)| (*name).to_owned()));
    let columns: Vec<String> = columns.collect();
    let width = columns.iter().map(|column| column.matches('|').count() + 1).sum::<usize>();
    let mut text = format!("| option | {} |\n| :--- |{}\n", columns.join(" | "), " ---: |".repeat(width));
    for (option, kept) in options {
        let id = &option.option.id;
        let id = if kept == Some(true) { format!("**{id}**") } else { id.clone() };
        let from = option.from.iter().map(|point| format!("{} | {}", point.rows, point.quality));
        let judged = judged(option);
        let judged =
            judged.iter().zip(&there).filter(|(_, there)| **there).map(|(estimate, _)| {
                estimate.map_or_else(|| "–".to_owned(), |estimate| estimate.to_string())
            });
        let cells: Vec<String> = from.chain(judged).collect();
        text += &format!("| {id} | {} |\n", cells.join(" | "));
    }
    text
}
