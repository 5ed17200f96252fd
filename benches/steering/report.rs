//! The tables.

use std::collections::BTreeMap;

use crate::Line;

/// Sums over pictures.
#[derive(Default)]
struct Sum {
    pictures: usize,
    taken: usize,
    changed: usize,
    found: usize,
    named: usize,
    clip: f32,
    rows: usize,
}

impl Sum {
    fn of<'a>(lines: impl Iterator<Item = &'a Line>) -> Self {
        lines.fold(Self::default(), |s, l| Self {
            pictures: s.pictures + 1,
            taken: s.taken + l.taken,
            changed: s.changed + l.changed,
            found: s.found + l.found,
            named: s.named + l.named,
            clip: s.clip + l.clip,
            rows: s.rows + l.rows,
        })
    }

    fn taken(&self) -> String {
        share(self.taken, self.changed)
    }
}

fn share(part: usize, whole: usize) -> String {
    if whole == 0 { "–".into() } else { format!("{:.3}", part as f64 / whole as f64) }
}

/// Prints, as Markdown, what each setting makes of each K, and of each class of change.
pub fn print(lines: &[Line]) {
    let mut cells: BTreeMap<(usize, &str), Vec<&Line>> = BTreeMap::new();
    for line in lines {
        cells.entry((line.k, &line.setting)).or_default().push(line);
    }
    println!("| K of 50 | setting | pictures | rows | taken up, one / two changed | fidelity | CLIP score |");
    println!("|---|---|---|---|---|---|---|");
    for ((k, setting), lines) in &cells {
        let all = Sum::of(lines.iter().copied());
        let of =
            |changed: usize| Sum::of(lines.iter().copied().filter(move |l| l.changed == changed)).taken();
        println!(
            "| {k} | {setting} | {} | {} | {} / {} | {} | {:.3} |",
            all.pictures,
            all.rows / all.pictures,
            of(1),
            of(2),
            share(all.found, all.named),
            all.clip / all.pictures as f32
        );
    }
    let classes = ["time", "terrain", "weather", "kind", "colour", "size", "place", "two", "paraphrase"];
    println!(
        "\nTaken up by class; of paraphrases, fidelity.\n\n| K of 50 | setting | {} |",
        classes.join(" | ")
    );
    println!("|---|---{}|", "|---".repeat(classes.len()));
    for ((k, setting), lines) in &cells {
        let of = |class: &&str| {
            let sum = Sum::of(lines.iter().copied().filter(|l| l.class == **class));
            if sum.changed == 0 { share(sum.found, sum.named) } else { sum.taken() }
        };
        println!("| {k} | {setting} | {} |", classes.iter().map(of).collect::<Vec<_>>().join(" | "));
    }
}
