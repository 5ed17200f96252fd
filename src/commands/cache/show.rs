//! The cache for people: tables, sizes, ages.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{HumanBytes, HumanCount};

use crate::api::admin::wire::{EntryObject, LookUpAnswer, Outcome, PolicyObject, StatsObject};

/// As much of a prompt as a table shows, in characters.
const MAX_PROMPT: usize = 80;

/// Rows under a head, each column as wide as its widest cell. The last one may be of any width.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, at: usize| row.get(at).map_or(0, |cell| cell.chars().count());
    let width = |at: usize| rows.iter().map(|row| cell(row, at)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).into()
}

/// How long ago, in the largest unit that fits.
fn age(moment: u64, now: u64) -> String {
    let seconds = now.saturating_sub(moment);
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(length, _)| seconds >= *length);
    unit.map_or_else(|| format!("{seconds}s"), |(length, name)| format!("{}{name}", seconds / length))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// A prompt in one line, without what would command the terminal.
fn prompt(entry: &EntryObject) -> String {
    let Some(prompt) = &entry.prompt else { return "(not stored)".to_owned() };
    let mut shown: String =
        prompt.chars().take(MAX_PROMPT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if prompt.chars().nth(MAX_PROMPT).is_some() {
        shown.push('…');
    }
    shown
}

/// Whose an entry is.
fn scope(entry: &EntryObject) -> String {
    let tenant = if entry.tenant.is_empty() { "(shared)" } else { &entry.tenant };
    format!("{tenant}/{}", entry.namespace).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A table of entries.
pub fn entries(entries: &[EntryObject]) -> String {
    let head = row([
        "ID",
        "MODEL",
        "SIZE",
        "TENANT/NAMESPACE",
        "PLAN",
        "QUALITY",
        "FILE",
        "STATES",
        "BYTES",
        "USES",
        "AGE",
        "PROMPT",
    ]);
    let now = now();
    let of = |entry: &EntryObject| {
        let parts = || entry.states.iter().map(|state| (state.bytes, state.uses));
        let parts = || parts().chain(entry.picture.as_ref().map(|file| (file.bytes, file.uses)));
        let (bytes, uses) = (parts().map(|of| of.0).sum(), parts().map(|of| of.1).sum::<u64>());
        let plan = &entry.plan;
        let plan = plan.option.clone().unwrap_or_else(|| format!("{} steps", plan.steps));
        vec![
            entry.id.clone(),
            entry.model.clone(),
            entry.size.clone(),
            scope(entry),
            plan,
            entry.expected_quality.map_or_else(|| "-".to_owned(), |quality| format!("{quality:.3}")),
            if entry.picture.is_some() { "yes" } else { "no" }.to_owned(),
            entry.states.len().to_string(),
            HumanBytes(bytes).to_string(),
            uses.to_string(),
            age(entry.created, now),
            prompt(entry),
        ]
    };
    table(&std::iter::once(head).chain(entries.iter().map(of)).collect::<Vec<_>>())
}

/// The policies in force.
pub fn policy(policy: &PolicyObject) -> String {
    table(&policy_rows(policy))
}

fn policy_rows(policy: &PolicyObject) -> Vec<Vec<String>> {
    // Our own type, all of whose keys are strings.
    let reuse = serde_json::to_string(&policy.reuse).unwrap_or_default();
    vec![row(["reuse", &reuse]), row(["eviction", &policy.eviction])]
}

/// How the cache is doing.
pub fn stats(stats: &StatsObject) -> String {
    let count = |n: u64| HumanCount(n).to_string();
    let bytes = |n: u64| HumanBytes(n).to_string();
    let mut rows = vec![
        row(["entries", &format!("{} of {}", count(stats.entries), count(stats.max_entries))]),
        row(["with their file", &count(stats.pictures)]),
        row(["states and files", &format!("{} of {}", bytes(stats.bytes), bytes(stats.max_bytes))]),
        row(["states in memory", &bytes(stats.memory_bytes)]),
        row(["files in memory", &bytes(stats.picture_memory_bytes)]),
        row(["waiting to be written", &count(stats.queued)]),
        row(["not kept, writer too slow", &count(stats.insert_drops)]),
        row(["not kept, no better than what is", &count(stats.duplicates)]),
        row(["replaced by better ones", &count(stats.replacements)]),
        row(["states and files evicted", &count(stats.evictions)]),
        row(["failures", &count(stats.failures)]),
    ];
    rows.extend(policy_rows(&stats.policy));
    table(&rows)
}

/// What was found, and why.
pub fn look_up(answer: &LookUpAnswer) -> String {
    let decision = &answer.decision;
    let name = match decision.outcome {
        Outcome::Miss => "miss",
        Outcome::State => "state",
        Outcome::Semantic => "semantic",
        Outcome::Exact => "exact",
    };
    let skipped = format!("{} of {}", decision.skipped_steps, decision.steps);
    let mut text = table(&[
        row(["decision", name]),
        row(["because", &decision.why]),
        row(["starts from", decision.entry.as_deref().unwrap_or("noise")]),
        row(["skips steps", &skipped]),
    ]);
    if answer.neighbours.is_empty() {
        return text + "\nThe policy looked at no neighbour.\n";
    }
    let mut rows = vec![row(["SIMILARITY", "ID", "STATES AT", "PROMPT"])];
    rows.extend(answer.neighbours.iter().map(|near| {
        let at = near.entry.states.iter().map(|state| match state.timestep {
            Some(timestep) => format!("{timestep}"),
            None => "end".to_owned(),
        });
        let at = at.collect::<Vec<_>>().join(",");
        vec![format!("{:.4}", near.similarity), near.entry.id.clone(), at, prompt(&near.entry)]
    }));
    text.push('\n');
    text + &table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_at_their_text() {
        let text = table(&[row(["A", "B", "C"]), row(["wide one", "é", ""]), row(["x", "yyy", "end"])]);
        assert_eq!(text, "A         B    C\nwide one  é\nx         yyy  end\n");
    }

    #[test]
    fn an_age_has_one_unit() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (7300, "2h"), (200_000, "2d")] {
            assert_eq!(age(1_000_000, 1_000_000 + seconds), text);
        }
        assert_eq!(age(5, 3), "0s", "clocks differ");
    }
}
