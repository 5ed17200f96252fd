//! `pentimento calibrate`, as a user types it.

use std::path::Path;
use std::process::Output;

use crate::common::{Folder, pentimento};

fn calibrate(folder: &Path, arguments: &[&str]) -> Output {
    pentimento().current_dir(folder).arg("calibrate").args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn lines(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("calibration/measured.jsonl")).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_cut_costs_one_pair_and_other_settings_are_refused() {
    let folder = Folder::new("calibrate-cut");
    let arguments = ["--limit", "3", "--steps", "4", "--shares", "0.25,0.5", "--sizes", "64x64"];
    let first = calibrate(folder.path(), &arguments);
    assert_eq!(first.status.code(), Some(1));
    assert!(
        said(&first).contains("3 measured pairs at a share of 0.25: at least 100 are needed"),
        "{}",
        said(&first)
    );
    let whole = lines(folder.path());
    assert_eq!(whole.len(), 4, "the settings and three pairs");

    // Killed while it wrote the last line.
    let file = folder.path().join("calibration/measured.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &text[..text.len() - 20]).unwrap();
    calibrate(folder.path(), &arguments);
    assert_eq!(lines(folder.path()), whole, "the same pair is measured to the same numbers");

    let other = calibrate(folder.path(), &["--limit", "3", "--steps", "5"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(said(&other).contains("other settings"), "{}", said(&other));
    assert_eq!(lines(folder.path()), whole);
}

#[test]
fn measured_pairs_make_tables_and_a_report() {
    let folder = Folder::new("calibrate-table");
    let arguments = ["--limit", "120", "--steps", "2", "--shares", "0.5", "--sizes", "64x64,80x64"];
    let output = calibrate(folder.path(), &arguments);
    assert!(output.status.success(), "{}", said(&output));
    for kind in ["steered", "plain"] {
        let text = std::fs::read_to_string(folder.path().join(format!("calibration/{kind}.json"))).unwrap();
        let table = pentimento_cache::Calibration::from_json(&text).unwrap();
        assert_eq!(table.measured_for.resume.name(), kind);
        assert_eq!(table.measured_for.sizes, [(64, 64), (80, 64)]);
        assert_eq!((table.measured_for.steps, table.shares().collect::<Vec<_>>()), (2, vec![0.5]));
    }
    let report =
        calibrate(folder.path(), &[&arguments[..], &["--report", "--tables", "calibration"]].concat());
    let printed = String::from_utf8(report.stdout).unwrap();
    assert!(printed.starts_with("120 pairs; 2 steps"), "{printed}");
    for part in [
        "Loss by what changed, plain resume",
        "| paraphrase | 10 |",
        "where the table for steered resumes decides",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
}

#[test]
fn what_cannot_be_is_said_before_anything_is_painted() {
    let folder = Folder::new("calibrate-misuse");
    std::fs::write(
        folder.path().join("broken.jsonl"),
        "{\"source\": \"a\", \"prompt\": \"b\"}\n{\"source\": 3}\n",
    )
    .unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["--shares", "0.5,1.5"], "--shares"),
        (&["--steps", "1"], "--steps"),
        (&["--sizes", "64x64,63x64"], "--sizes"),
        (&["--pairs", "broken.jsonl"], "broken.jsonl: line 2"),
        (&["--pairs", "absent.jsonl"], "absent.jsonl"),
        (&["--model", "nowhere"], "--model"),
    ];
    for (arguments, names) in cases {
        let output = calibrate(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(names), "{arguments:?}: {}", said(&output));
    }
    assert!(!folder.path().join("calibration").exists());
}

/// Prompts of which nothing is known but their words are judged by the CLIP score.
#[test]
fn without_named_attributes_the_clip_score_judges() {
    let folder = Folder::new("calibrate-clip");
    std::fs::write(
        folder.path().join("pairs.jsonl"),
        "{\"source\": \"a red house\", \"prompt\": \"a blue house\"}\n",
    )
    .unwrap();
    let arguments = ["--pairs", "pairs.jsonl", "--steps", "2", "--shares", "0.5", "--sizes", "64x64"];
    calibrate(folder.path(), &arguments);
    assert!(lines(folder.path())[0].contains(r#""scorer":"clip score""#));
    assert!(lines(folder.path())[1].contains(r#""class":"""#));
}
