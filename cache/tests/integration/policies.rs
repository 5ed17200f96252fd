//! Properties of the reuse policies.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use crate::policy_support::{KEY, Random, entry, measured_for, neighbour, query, timestep, timesteps};
use pentimento_cache::{
    Calibration, Content, Decision, Difference, Entry, Measured, Neighbour, PaintedPlan, PolicyConfig,
    Resume, ResumedFrom, ReusePolicy,
};
use proptest::prelude::*;

const DIMENSIONS: usize = 8;
const SHARES: [f32; 5] = [0.1, 0.3, 0.5, 0.7, 0.9];
const PROMPTS: [&str; 4] = ["a red house", "a blue house", "a red house at night", "two boats on the sea"];

fn unit(random: &mut Random) -> Vec<f32> {
    unit_length((0..DIMENSIONS).map(|_| random.unit() - 0.5).collect())
}

fn unit_length(v: Vec<f32>) -> Vec<f32> {
    let length = v.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
    v.into_iter().map(|x| x / length).collect()
}

/// A vector near `v`.
fn moved(v: &[f32], random: &mut Random) -> Vec<f32> {
    unit_length(v.iter().map(|x| x + 0.5 * (random.unit() - 0.5)).collect())
}

/// The true loss: only a change of the first component loses quality, and a later state loses more.
fn true_loss(wanted: &[f32], source: &[f32], share: f32) -> f32 {
    (8.0 * share * (wanted[0] - source[0]).powi(2)).min(1.0)
}

const CHANGED: Difference = Difference { removed: 1, added: 1, kept: 3, reordered: 0 };

/// Measurements whose losses are 0 or 1, like an attribute that is painted or not.
fn measured(random: &mut Random, pairs: usize) -> Vec<Measured> {
    let mut all = Vec::new();
    for _ in 0..pairs {
        let wanted = unit(random);
        let source = moved(&wanted, random);
        for share in SHARES {
            let loss = f32::from(u8::from(random.unit() < true_loss(&wanted, &source, share)));
            all.push(Measured {
                wanted: wanted.clone(),
                source: source.clone(),
                difference: CHANGED,
                share,
                loss,
            });
        }
    }
    all
}

fn table(seed: u64, pairs: usize) -> Calibration {
    Calibration::fit(measured_for(Resume::Steered), &measured(&mut Random(seed), pairs)).unwrap()
}

static TABLE: LazyLock<Arc<Calibration>> = LazyLock::new(|| Arc::new(table(1, 2000)));

fn policy(json: &str) -> Box<dyn ReusePolicy> {
    serde_json::from_str::<PolicyConfig>(json).unwrap().build(std::slice::from_ref(&TABLE), KEY).unwrap()
}

/// A request's embedding and its neighbours, nearest first, each with some of the states.
fn scene(seed: u64) -> (Vec<f32>, Vec<Neighbour>) {
    let mut random = Random(seed);
    let wanted = unit(&mut random);
    let mut near: Vec<Neighbour> = (0..6)
        .map(|number| {
            let source = moved(&wanted, &mut random);
            let similarity = wanted.iter().zip(&source).map(|(a, b)| a * b).sum();
            let bits = random.next();
            let kept: Vec<f32> = SHARES
                .into_iter()
                .chain([1.0])
                .enumerate()
                .filter(|(i, _)| bits >> i & 1 == 1)
                .map(|(_, s)| s)
                .collect();
            neighbour(entry(number, random.of(&PROMPTS), source, &kept), similarity)
        })
        .collect();
    near.sort_by(|a, b| b.similarity.total_cmp(&a.similarity));
    (wanted, near)
}

/// The share of the plan that a decision skips; 0 for a miss.
fn share(decision: &Decision) -> f32 {
    match decision {
        Decision::State { timestep: at, .. } => {
            SHARES.into_iter().find(|&share| timestep(share) == *at).expect("a kept state")
        }
        _ => 0.0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn only_kept_states_are_chosen(seed: u64, chance: u64) {
        let (wanted, near) = scene(seed);
        let (plan, content) = (timesteps(), Content::of("a red house", KEY));
        for json in [
            r#"{"policy":"nirvana","offset":-0.5}"#,
            r#"{"policy":"calibrated","max_quality_loss":0.5,"least_share":0}"#,
            r#"{"policy":"semantic","threshold":0.5}"#,
            r#"{"policy":"combined","calibrated":{"max_quality_loss":0.5,"least_share":0}}"#,
        ] {
            let decision = policy(json).decide(&query(&wanted, &content, &plan, chance), &near);
            prop_assert!(!decision.why().is_empty());
            let keeps = |id, at: f64| {
                near.iter().any(|n| n.entry.id == id && n.entry.states.iter().any(|state| state.timestep == at))
            };
            match decision {
                Decision::State { entry, timestep, .. } => prop_assert!(timestep >= 0.0 && keeps(entry, timestep)),
                Decision::Semantic { entry, .. } => prop_assert!(keeps(entry, -1.0)),
                Decision::Miss { .. } => {}
                Decision::Exact { .. } => prop_assert!(false),
            }
        }
    }

    #[test]
    fn nirvana_is_monotone_in_similarity(seed: u64, a in 0f32..1.0, b in 0f32..1.0, offset in -0.3f32..0.3) {
        let (wanted, near) = scene(seed);
        let (plan, content) = (timesteps(), Content::default());
        let nirvana = policy(&format!(r#"{{"policy":"nirvana","offset":{offset}}}"#));
        let at = |similarity| {
            let one = neighbour(near[0].entry.clone(), similarity);
            share(&nirvana.decide(&query(&wanted, &content, &plan, 0), &[one]))
        };
        prop_assert!(at(a.min(b)) <= at(a.max(b)));
    }

    #[test]
    fn calibrated_is_monotone_in_the_loss_allowed(seed: u64, chance: u64, a in 0f32..1.0, b in 0f32..1.0) {
        let (wanted, near) = scene(seed);
        let (plan, content) = (timesteps(), Content::of("a red house", KEY));
        let at = |loss: f32| {
            let calibrated = policy(&format!(r#"{{"policy":"calibrated","max_quality_loss":{loss},"least_share":0}}"#));
            share(&calibrated.decide(&query(&wanted, &content, &plan, chance), &near))
        };
        prop_assert!(at(a.min(b)) <= at(a.max(b)));
    }

    #[test]
    fn chance_changes_the_source_and_nothing_else(seed: u64, a: u64, b: u64) {
        let (wanted, near) = scene(seed);
        let (plan, content) = (timesteps(), Content::of("a red house", KEY));
        for json in [r#"{"policy":"calibrated","max_quality_loss":0.4,"least_share":0}"#, r#"{"policy":"nirvana"}"#] {
            let decide = |chance| share(&policy(json).decide(&query(&wanted, &content, &plan, chance), &near));
            prop_assert_eq!(decide(a), decide(b));
        }
    }

    #[test]
    fn bounds_do_not_fall_with_the_share(seed: u64) {
        let (wanted, near) = scene(seed);
        for n in near {
            let bounds = TABLE.bounds(&wanted, &n.entry.embedding, &CHANGED);
            prop_assert_eq!(bounds.len(), SHARES.len());
            prop_assert!(bounds.windows(2).all(|w| w[0].1 <= w[1].1));
        }
    }
}

/// For 95 % of the bounds, new pairs with that bound lose at most that much on average. Several tables with independent
/// measurements are counted together.
#[test]
fn bounds_cover_fresh_pairs() {
    let (mut covered, mut all, mut slack) = (0, 0, 0.0);
    for seed in 0..12 {
        let table = table(100 + seed, 4000);
        let mut random = Random(1000 + seed);
        // Sum of true losses and count, per level and bound.
        let mut groups = BTreeMap::<(usize, u32), (f32, f32)>::new();
        for _ in 0..3000 {
            let wanted = unit(&mut random);
            let source = moved(&wanted, &mut random);
            for (level, (share, bound)) in table.bounds(&wanted, &source, &CHANGED).into_iter().enumerate() {
                let (sum, count) = groups.entry((level, bound.to_bits())).or_default();
                *sum += true_loss(&wanted, &source, share);
                *count += 1.0;
            }
        }
        groups.retain(|(_, bound), (_, count)| *count >= 30.0 && f32::from_bits(*bound).is_finite());
        for ((_, bound), (sum, count)) in groups {
            slack += f32::from_bits(bound) - sum / count;
            covered += usize::from(sum / count <= f32::from_bits(bound));
            all += 1;
        }
    }
    println!("{covered} of {all} bounds hold, by {:.4} on average", slack / all as f32);
    assert!(all > 200 && covered as f64 >= 0.93 * all as f64, "{covered} of {all}");
    // With 160 pairs per bound and losses of 0 or 1, the expected slack is 1.645 · 0.5 / √160 = 0.065.
    assert!(slack / (all as f32) < 0.1, "bounds that say nothing");
}

#[test]
fn calibrated_skips_more_if_the_change_is_harmless() {
    let (plan, content) = (timesteps(), Content::of("a blue house", KEY));
    let wanted = unit_length(vec![0.2, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1]);
    let at = |component: usize| {
        let mut source = wanted.clone();
        source[component] += 0.25;
        let stored = entry(1, "a red house", unit_length(source), &[0.1, 0.3, 0.5, 0.7, 0.9, 1.0]);
        let calibrated = policy(r#"{"policy":"calibrated","max_quality_loss":0.1}"#);
        share(&calibrated.decide(&query(&wanted, &content, &plan, 0), &[neighbour(stored, 0.97)]))
    };
    let (harmful, harmless) = (at(0), at(7));
    assert!(harmless > harmful + 0.3, "{harmful} {harmless}");
}

#[test]
fn variety_caps_requests_without_a_seed_and_repeats() {
    let (wanted, plan, content) = (unit(&mut Random(3)), timesteps(), Content::of("a red house", KEY));
    let calibrated = policy(r#"{"policy":"calibrated","max_quality_loss":1.0,"least_share":0}"#);
    let at = |seeded, similarity| {
        let near = moved(&wanted, &mut Random(4));
        let stored = entry(1, "a blue house", near, &[0.1, 0.3, 0.5, 0.9, 1.0]);
        let request = pentimento_cache::Query { seeded, ..query(&wanted, &content, &plan, 0) };
        share(&calibrated.decide(&request, &[neighbour(stored, similarity)]))
    };
    assert_eq!(at(true, 0.97), 0.9);
    assert_eq!(at(false, 0.97), 0.3);
    assert_eq!(at(true, 1.0), 0.0, "it would be the stored picture again");
}

#[test]
fn a_share_below_the_least_share_is_not_skipped() {
    let (wanted, plan, content) = (unit(&mut Random(3)), timesteps(), Content::of("a red house", KEY));
    let at = |least: f32, kept: &[f32]| {
        let json = format!(r#"{{"policy":"calibrated","max_quality_loss":1.0,"least_share":{least}}}"#);
        let stored = entry(1, "a blue house", moved(&wanted, &mut Random(4)), kept);
        share(&policy(&json).decide(&query(&wanted, &content, &plan, 0), &[neighbour(stored, 0.97)]))
    };
    assert_eq!(at(0.5, &[0.1, 0.3]), 0.0);
    assert_eq!(at(0.3, &[0.1, 0.3]), 0.3);
    assert_eq!(at(0.5, &[0.1, 0.3, 0.5]), 0.5);
}

#[test]
fn a_table_survives_json_and_serves_only_what_it_was_measured_for() {
    let json = TABLE.to_json().unwrap();
    assert_eq!(Calibration::from_json(&json).unwrap(), **TABLE);
    assert!(Calibration::from_json(&json.replacen("\"version\":3", "\"version\":1", 1)).is_err());
    assert!(Calibration::from_json("{}").is_err());
    let (wanted, plan, content) = (unit(&mut Random(3)), timesteps(), Content::of("a red house", KEY));
    let calibrated = policy(r#"{"policy":"calibrated","max_quality_loss":1.0}"#);
    let says_nothing_of = |change: fn(&mut Entry), plan: &[f64]| {
        let mut stored = entry(1, "a red house", wanted.clone(), &SHARES);
        change(&mut stored);
        let decision = calibrated.decide(&query(&wanted, &content, plan, 0), &[neighbour(stored, 1.0)]);
        matches!(&decision, Decision::Miss { why } if why.contains("no calibration table"))
    };
    assert!(!says_nothing_of(|_| (), &plan) && !says_nothing_of(|e| e.guidance_scale = 4.2, &plan));
    assert!(!says_nothing_of(|e| e.compatibility.width = 128, &plan), "a table serves all of its sizes");
    let others: [fn(&mut Entry); 9] = [
        |e| e.compatibility.embedder = "another".into(),
        |e| e.compatibility.latent_space = "another".into(),
        |e| e.compatibility.noise_schedule = "another".into(),
        |e| e.compatibility.width = 256,
        |e| e.model = "another".into(),
        |e| e.guidance_scale = 8.0,
        |e| e.guidance_scale = 0.0,
        |e| e.plan.guided_steps -= 1, // painted by a cheaper plan than any source measured
        |e| e.prompt = None,          // its resume is plain, and the table steered
    ];
    assert!(others.into_iter().all(|change| says_nothing_of(change, &plan)));
    let fewer: Vec<f64> = plan.iter().copied().step_by(2).collect();
    assert!(says_nothing_of(|_| (), &fewer));
}

#[test]
fn a_state_must_fit_the_plan() {
    let (wanted, content) = (unit(&mut Random(3)), Content::default());
    let stored = neighbour(entry(1, "a red house", wanted.clone(), &[0.1, 0.3, 0.5]), 0.99);
    let nirvana = policy(r#"{"policy":"nirvana"}"#);
    let at = |plan: &[f64]| {
        share(&nirvana.decide(&query(&wanted, &content, plan, 0), std::slice::from_ref(&stored)))
    };
    assert_eq!(at(&timesteps()), 0.5);
    assert_eq!(at(&[999.0, 749.0, 599.0]), 0.3, "a step must be left");
    assert_eq!(at(&[499.0, 249.0]), 0.0, "a step must be saved");
    assert_eq!(at(&[]), 0.0);
}

/// Two models may share a latent space and therefore a partition of the index.
#[test]
fn a_picture_of_another_model_is_never_returned_whole() {
    let (embedding, plan) = (vec![1.0; DIMENSIONS], timesteps());
    let content = Content::of(PROMPTS[0], KEY);
    let near = [neighbour(entry(1, PROMPTS[0], embedding.clone(), &[0.3, 1.0]), 1.0)];
    let policy = serde_json::from_str::<PolicyConfig>(r#"{"policy": "semantic"}"#).unwrap();
    let policy = policy.build(&[], KEY).unwrap();
    let ask = |model| {
        let request = pentimento_cache::Query { model, ..query(&embedding, &content, &plan, 0) };
        policy.decide(&request, &near)
    };
    assert!(matches!(ask("model"), Decision::Semantic { .. }));
    assert!(matches!(ask("another"), Decision::Miss { .. }));
}

/// The decision for a request of the prompt `wanted` with one stored picture near it.
fn asked(
    policy: &dyn ReusePolicy,
    wanted: &str,
    stored: &Entry,
    similarity: f32,
    change: fn(&mut pentimento_cache::Query<'_>),
) -> Decision {
    let (plan, content, embedding) = (timesteps(), Content::of(wanted, KEY), unit(&mut Random(3)));
    let mut request = query(&embedding, &content, &plan, 0);
    change(&mut request);
    policy.decide(&request, &[neighbour(stored.clone(), similarity)])
}

#[test]
fn combined_returns_what_means_the_same_and_resumes_the_rest() {
    let json = r#"{"policy":"combined","semantic":{"synonyms":[["house","cottage"]]},
        "calibrated":{"max_quality_loss":1.0,"least_share":0}}"#;
    let combined = policy(json);
    let stored = entry(1, "a red house", unit(&mut Random(3)), &[0.1, 0.3, 0.5, 0.9, 1.0]);
    let ask = |wanted, similarity| asked(&*combined, wanted, &stored, similarity, |_| ());
    for same in ["please show me a red house", "There is a red house", "the red cottage"] {
        assert!(matches!(ask(same, 0.98), Decision::Semantic { .. }), "{same}");
    }
    for other in ["a blue house", "a red house at night", "a red tent"] {
        assert_eq!(share(&ask(other, 0.98)), 0.9, "{other}");
    }
    assert_eq!(share(&ask("the red cottage", 0.8)), 0.9, "not near enough");
    assert!(
        matches!(ask("a red house", 1.0), Decision::Miss { .. }),
        "the stored prompt again wants another picture"
    );
    let second = |query: &mut pentimento_cache::Query<'_>| query.whole = false;
    assert_eq!(share(&asked(&*combined, "the red cottage", &stored, 0.98, second)), 0.9);
}

#[test]
fn a_whole_picture_must_be_as_good_as_is_asked() {
    let semantic = policy(r#"{"policy":"semantic"}"#);
    let mut stored = entry(1, "a red house", unit(&mut Random(3)), &[1.0]);
    let good = |query: &mut pentimento_cache::Query<'_>| query.least_quality = 0.9;
    let found = |stored: &Entry, change| {
        matches!(asked(&*semantic, "the red house", stored, 0.98, change), Decision::Semantic { .. })
    };
    assert!(found(&stored, |_| ()) && !found(&stored, good), "its quality is not known");
    stored.expected_quality = Some(0.85);
    assert!(found(&stored, |_| ()) && !found(&stored, good));
    stored.expected_quality = Some(0.95);
    assert!(found(&stored, good));
}

#[test]
fn a_request_may_bear_less_loss_than_the_policy() {
    let json = r#"{"policy":"calibrated","max_quality_loss":1.0,"least_share":0}"#;
    let config: PolicyConfig = serde_json::from_str(json).unwrap();
    let calibrated = config.build(std::slice::from_ref(&*TABLE), KEY).unwrap();
    let stored = entry(1, "a red house", unit(&mut Random(3)), &[0.1, 0.3, 0.5, 0.9]);
    let found = |change| asked(&*calibrated, "a blue house", &stored, 0.97, change);
    let all = found(|query| query.most_loss = 1.0);
    assert!(
        matches!(all, Decision::State { loss: Some(loss), .. } if (0.0..=1.0).contains(&loss)),
        "{all:?}"
    );
    match found(|query| query.most_loss = 0.0) {
        Decision::State { loss, .. } => assert_eq!(loss, Some(0.0)),
        decision => assert!(matches!(decision, Decision::Miss { .. }), "{decision:?}"),
    }
    assert!(matches!(found(|query| query.most_loss = -1.0), Decision::Miss { .. }));
}

#[test]
fn states_of_cheap_plans_and_of_resumed_pictures_serve_where_that_was_measured() {
    let mut cheap = entry(1, "a red house", unit(&mut Random(3)), &[0.1, 0.3, 0.5, 0.9]);
    cheap.plan = PaintedPlan { option: Some("cheap".into()), steps: 12, guided_steps: 7 };
    let by = |table: &Arc<Calibration>| {
        let json = r#"{"policy":"calibrated","max_quality_loss":1.0,"least_share":0}"#;
        let config: PolicyConfig = serde_json::from_str(json).unwrap();
        config.build(std::slice::from_ref(table), KEY).unwrap()
    };
    let at = |table: &Arc<Calibration>, stored: &Entry| {
        share(&asked(&*by(table), "a blue house", stored, 0.97, |_| ()))
    };
    let measured_on_cheap_ones = |rows| Arc::new(Calibration::clone(&TABLE).for_sources_of(rows));
    assert_eq!(at(&TABLE, &cheap), 0.0);
    assert_eq!(at(&measured_on_cheap_ones(20), &cheap), 0.0);
    let table = measured_on_cheap_ones(19);
    assert_eq!(at(&table, &cheap), 0.9);
    assert_eq!(Calibration::from_json(&table.to_json().unwrap()).unwrap(), *table);
    cheap.resumed = Some(ResumedFrom { entry: cheap.id.clone(), loss: 0.01 });
    assert_eq!(at(&table, &cheap), 0.0);
}
