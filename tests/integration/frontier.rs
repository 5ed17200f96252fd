//! `pentimento frontier`, as a user types it.

use std::path::Path;
use std::process::Output;

use crate::common::{Folder, pentimento};
use pentimento::menu::MenuFile;

fn frontier(folder: &Path, arguments: &[&str]) -> Output {
    pentimento().current_dir(folder).arg("frontier").args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn prompts_make_a_menu_and_a_cut_costs_one_prompt() {
    let folder = Folder::new("frontier");
    let arguments =
        ["--limit", "3", "--steps", "1,8", "--guided", "1,0.6", "--shares", "0.5", "--size", "64x64"];
    let output = frontier(folder.path(), &arguments);
    assert!(output.status.success(), "{}", said(&output));
    let json = std::fs::read_to_string(folder.path().join("frontier/menu.json")).unwrap();
    let menu = MenuFile::from_json(&json).unwrap();
    let of = menu.measured_for();
    assert_eq!((of.prompts, of.full_steps, menu.starts().len()), (3, 50, 2));
    assert!(of.scorer.starts_with("fidelity, "), "{json}");
    let few = menu.cheapest(0.5);
    assert!(few.option.steps == 8 && few.rows(0.5) < few.rows(0.0), "{json}");
    assert!(few.quality(0.5).mean >= few.quality(0.0).mean, "half the plan is behind it: {json}");
    assert!(menu.options().iter().all(|option| option.quality(0.0).mean > few.quality(0.0).mean - 1e-9));

    // Killed while it wrote the last line.
    let measured = folder.path().join("frontier/measured.jsonl");
    let whole = std::fs::read_to_string(&measured).unwrap();
    std::fs::write(&measured, &whole[..whole.len() - 20]).unwrap();
    let output = frontier(folder.path(), &arguments);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(std::fs::read_to_string(&measured).unwrap(), whole, "the same prompt gives the same numbers");
    assert_eq!(std::fs::read_to_string(folder.path().join("frontier/menu.json")).unwrap(), json);

    let other = frontier(folder.path(), &["--limit", "3", "--steps", "1,9", "--shares", "0.5"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(said(&other).contains("other settings"), "{}", said(&other));

    let report = String::from_utf8(frontier(folder.path(), &["--report"]).stdout).unwrap();
    assert!(report.starts_with("storybook at 64x64: 3 prompts"), "{report}");
    assert!(report.contains("Cheapest option, by tier: low ddim-"), "{report}");
    for option in ["ddim-1", "ddim-8-g5", "ddim-8", "ddim-50-g30", "ddim-50"] {
        assert!(
            report.contains(&format!("| {option} |")) || report.contains(&format!("| **{option}** |")),
            "{report}"
        );
    }
}

#[test]
fn pictures_for_a_critic_are_painted_once() {
    let folder = Folder::new("frontier-pictures");
    let prompts = "{\"prompt\": \"a red house\"}\n{\"prompt\": \"a boat\"}\n{\"prompt\": \"a red house\"}\n";
    std::fs::write(folder.path().join("prompts.jsonl"), prompts).unwrap();
    let arguments = [
        "--prompts",
        "prompts.jsonl",
        "--pictures",
        "painted",
        "--steps",
        "2,4",
        "--guided",
        "1,0.5",
        "--size",
        "64x64",
    ];
    let index = folder.path().join("painted/pictures.jsonl");
    let pixels = folder.path().join("painted/pictures.rgb");
    let output = frontier(folder.path(), &arguments);
    assert!(output.status.success(), "{}", said(&output));
    let (lines, painted) = (std::fs::read_to_string(&index).unwrap(), std::fs::read(&pixels).unwrap());
    let options: Vec<&str> = lines.lines().skip(1).filter_map(|line| line.split('"').nth(5)).collect();
    assert_eq!(options.len(), 6, "{lines}");
    assert!(
        ["ddim-2-g1", "ddim-2", "ddim-4-g2", "ddim-4", "ddim-50-g25", "ddim-50"]
            .iter()
            .all(|o| options.contains(o)),
        "{lines}"
    );
    assert_eq!(painted.len(), 6 * 64 * 64 * 3);

    // Killed between the pixels and the line of the last picture.
    let cut = lines.trim_end().rfind('\n').unwrap() + 1;
    std::fs::write(&index, &lines[..cut]).unwrap();
    assert!(frontier(folder.path(), &arguments).status.success());
    assert_eq!(std::fs::read_to_string(&index).unwrap(), lines);
    assert_eq!(std::fs::read(&pixels).unwrap(), painted);
    assert!(!folder.path().join("frontier").exists(), "nothing is measured");
}

#[test]
fn what_cannot_be_is_said_before_anything_is_painted() {
    let folder = Folder::new("frontier-misuse");
    std::fs::write(folder.path().join("broken.jsonl"), "{\"prompt\": \"a\"}\n{\"promt\": \"b\"}\n").unwrap();
    std::fs::write(folder.path().join("empty.jsonl"), "").unwrap();
    for (arguments, names) in [
        (&["--steps", "0"][..], "--steps"),
        (&["--steps", "1001"], "--steps"),
        (&["--guided", "0"], "--guided"),
        (&["--guided", "1.1"], "--guided"),
        (&["--shares", "1"], "--shares"),
        (&["--limit", "0"], "--limit"),
        (&["--size", "63x64"], "--size"),
        (&["--size", "large"], "--size"),
        (&["--pictures", "painted"], "--prompts"),
        (&["--prompts", "broken.jsonl"], "line 2"),
        (&["--prompts", "empty.jsonl"], "no prompts"),
        (&["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    ] {
        let output = frontier(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(names), "{arguments:?}: {}", said(&output));
    }
    assert!(!folder.path().join("frontier").exists());
}
