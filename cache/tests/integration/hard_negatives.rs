//! Hard negatives: pairs of prompts that embeddings hardly distinguish. No policy may answer one prompt with the other's
//! whole picture.
//!
//! The suite is in `tests/hard_negatives.jsonl`. `PENTIMENTO_RENEW=1 cargo test -p pentimento-cache hard_negatives` writes
//! it from its generator.

mod generate;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::policy_support::{KEY, Random, entry, measured_for, neighbour, query, timesteps};
use generate::{Expected, Pair};
use pentimento_cache::{
    Calibration, Content, Decision, Difference, Measured, PolicyConfig, Resume, ReusePolicy,
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hard_negatives.jsonl");

fn suite() -> Vec<Pair> {
    let text = std::fs::read_to_string(FILE).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_suite_is_what_its_generator_makes() {
    let pairs = generate::suite();
    if std::env::var_os("PENTIMENTO_RENEW").is_some() {
        let lines: Vec<String> = pairs.iter().map(|pair| serde_json::to_string(pair).unwrap()).collect();
        std::fs::write(FILE, lines.join("\n") + "\n").unwrap();
    }
    assert_eq!(suite(), pairs);
    let count = |expected| pairs.iter().filter(|pair| pair.expected == expected).count();
    assert!(count(Expected::Refuse) >= 500 && count(Expected::MayAccept) >= 200);
}

/// A table by which no resume loses quality, so that `calibrated` resumes as often as it can.
fn boldest() -> Arc<Calibration> {
    let free = |i: u32| Measured {
        wanted: vec![1.0, 0.0],
        source: if i.is_multiple_of(2) { vec![-1.0, 0.0] } else { vec![0.0, -1.0] },
        difference: Difference { removed: 8, added: 8, kept: 0, reordered: 0 },
        share: 0.9,
        loss: 0.0,
    };
    Arc::new(
        Calibration::fit(measured_for(Resume::Steered), &(0..400).map(free).collect::<Vec<_>>()).unwrap(),
    )
}

/// For each kind of pair: how many whole pictures the policy returned, and how many requests there were. Each pair is used
/// in both directions.
fn whole_pictures(policy: &dyn ReusePolicy, pairs: &[Pair]) -> BTreeMap<String, (u32, u32)> {
    let (mut random, plan) = (Random(1), timesteps());
    let mut whole = BTreeMap::<String, (u32, u32)>::new();
    for pair in pairs {
        for (source, wanted) in [(&pair.source, &pair.wanted), (&pair.wanted, &pair.source)] {
            let similarity = 0.97 + 0.029 * random.unit();
            let other = (1.0 - similarity * similarity).sqrt();
            let stored = entry(1, source, vec![similarity, other], &[0.1, 0.3, 0.5, 0.9, 1.0]);
            let content = Content::of(wanted, KEY);
            let request = query(&[1.0, 0.0], &content, &plan, random.next());
            let decision = policy.decide(&request, &[neighbour(stored, similarity)]);
            let (hits, asked) = whole.entry(pair.kind.clone()).or_default();
            *asked += 1;
            match decision {
                Decision::Semantic { .. } | Decision::Exact { .. } => *hits += 1,
                Decision::State { timestep, .. } => assert!(timestep > 0.0),
                // These policies must not pass by missing everything.
                Decision::Miss { why } => {
                    assert!(!matches!(policy.name(), "nirvana" | "calibrated" | "combined"), "{why}")
                }
            }
        }
    }
    whole
}

fn report(name: &str, pairs: &[Pair], expected: Expected) -> u32 {
    let config: PolicyConfig = serde_json::from_str(name).unwrap();
    let policy = config.build(&[boldest()], KEY).unwrap();
    let chosen: Vec<Pair> = pairs.iter().filter(|pair| pair.expected == expected).cloned().collect();
    let by_kind = whole_pictures(policy.as_ref(), &chosen);
    let (hits, asked) = by_kind.values().fold((0, 0), |sum, kind| (sum.0 + kind.0, sum.1 + kind.1));
    println!("{expected:?} {name}: {hits} of {asked} whole");
    for (kind, (hits, asked)) in by_kind {
        println!("    {kind:<20} {hits:>4} of {asked}");
    }
    hits
}

/// The default policy with synonyms.
const SYNONYMS: &str = r#"{
    "policy": "combined",
    "semantic": {"synonyms": [["house", "cottage"], ["boat", "ship"], ["castle", "fortress"], ["huge", "big"]]},
    "calibrated": {"max_quality_loss": 1.0, "variety": 1.0, "least_share": 0}
}"#;

#[test]
fn no_policy_of_ours_returns_a_wrong_whole_picture() {
    let pairs = suite();
    let ours = [
        r#"{"policy":"semantic","threshold":0.95}"#,
        r#"{"policy":"semantic","threshold":0.0}"#,
        r#"{"policy":"nirvana"}"#,
        r#"{"policy":"calibrated","max_quality_loss":1.0,"variety":1.0,"least_share":0}"#,
        r#"{"policy":"combined","calibrated":{"max_quality_loss":1.0,"variety":1.0,"least_share":0}}"#,
        SYNONYMS,
        r#"{"policy":"exact"}"#,
        r#"{"policy":"off"}"#,
    ];
    for policy in ours {
        assert_eq!(report(policy, &pairs, Expected::Refuse), 0);
    }
    let cosine_alone = r#"{"policy":"semantic","content_gate":false}"#;
    assert!(report(cosine_alone, &pairs, Expected::Refuse) > 500, "the suite is no longer hard");
    // How many paraphrases the gate accepts, for information.
    let without = report(ours[0], &pairs, Expected::MayAccept);
    let with = report(SYNONYMS, &pairs, Expected::MayAccept);
    assert!(without > 100 && with > without + 40, "{without} {with}");
    report(cosine_alone, &pairs, Expected::MayAccept);
}
