//! `pentimento frontier`, as a user types it.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

mod common;

use std::path::Path;
use std::process::Output;

use common::{Folder, pentimento};
use pentimento::plan::{Frontier, FrontierFile};

fn frontier(folder: &Path, arguments: &[&str]) -> Output {
    pentimento().current_dir(folder).arg("frontier").args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn prompts_make_a_frontier_and_a_cut_costs_one_prompt() {
    let folder = Folder::new("frontier");
    let arguments = ["--limit", "3", "--steps", "1,8", "--shares", "0.5"];
    let output = frontier(folder.path(), &arguments);
    assert!(output.status.success(), "{}", said(&output));
    let json = std::fs::read_to_string(folder.path().join("frontier/frontier.json")).unwrap();
    let file = FrontierFile::from_json(&json).unwrap();
    let shares: Vec<f64> = file.curves.iter().map(|curve| curve.skipped).collect();
    assert_eq!((file.measured_for.prompts, shares), (3, vec![0.0, 0.5]));
    let of = Frontier::from(&file);
    let full = file.measured_for.steps;
    assert!(of.quality(1, 0.0) < of.quality(8, 0.0) && of.quality(full, 0.0) == 1.0, "{json}");
    assert!(of.quality(1, 0.5) > of.quality(1, 0.0), "half the plan is behind it: {json}");

    // Killed while it wrote the last line.
    let measured = folder.path().join("frontier/measured.jsonl");
    let whole = std::fs::read_to_string(&measured).unwrap();
    std::fs::write(&measured, &whole[..whole.len() - 20]).unwrap();
    assert!(frontier(folder.path(), &arguments).status.success());
    assert_eq!(std::fs::read_to_string(&measured).unwrap(), whole, "the same prompt gives the same numbers");
    assert_eq!(std::fs::read_to_string(folder.path().join("frontier/frontier.json")).unwrap(), json);

    let other = frontier(folder.path(), &["--limit", "3", "--steps", "1,9", "--shares", "0.5"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(said(&other).contains("other settings"), "{}", said(&other));

    let report = String::from_utf8(frontier(folder.path(), &["--report"]).stdout).unwrap();
    assert!(report.starts_with("storybook: 3 prompts") && report.contains("| 8 |"), "{report}");
    let own = Folder::new("frontier-own");
    let report = String::from_utf8(frontier(own.path(), &["--report"]).stdout).unwrap();
    assert!(report.contains("Fewest steps, by tier: low "), "the model's own: {report}");
}

#[test]
fn what_cannot_be_is_said_before_anything_is_painted() {
    let folder = Folder::new("frontier-misuse");
    std::fs::write(folder.path().join("broken.jsonl"), "{\"prompt\": \"a\"}\n{\"promt\": \"b\"}\n").unwrap();
    std::fs::write(folder.path().join("empty.jsonl"), "").unwrap();
    for (arguments, names) in [
        (&["--steps", "0"][..], "--steps"),
        (&["--steps", "1001"], "--steps"),
        (&["--shares", "1"], "--shares"),
        (&["--limit", "0"], "--limit"),
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
