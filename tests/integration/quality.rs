//! The scorers see what the recipe's own see, on the picture that diffusers painted.

use candle_core::{DType, Device, safetensors};
use pentimento::quality::{AttributeClassifier, Attributes, ClipScorer, Share, Subject, fidelity};
use pentimento_pipelines::{Components, Model, Picture, Pipeline};

const PROMPT: &str = "a large red house on the left in the snow at night";

#[test]
fn classifier_and_clip_score_match_pytorch() {
    let golden =
        concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/tests/goldens/storybook_real/golden.safetensors");
    let golden = safetensors::load(golden, &Device::Cpu).unwrap();
    let rgb = golden["picture"].to_dtype(DType::U8).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let picture = Picture { width: 96, height: 128, rgb };

    let model = Model::find("storybook").unwrap();
    let classifier = AttributeClassifier::load(model.files(), &Device::Cpu).unwrap();
    let logits: Vec<f32> = classifier.logits(&picture).unwrap().to_vec1().unwrap();
    let want: Vec<f32> = golden["logits"].to_vec1().unwrap();
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let apart = logits.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / largest;
    println!("logits differ by {apart:.2e} of the largest");
    assert!(apart < 1e-4 && logits.len() == want.len());

    let pipeline = Pipeline::load(&model, &Components::default(), &Device::Cpu).unwrap();
    let clip = ClipScorer::load(&pipeline, &Device::Cpu).unwrap();
    let score = clip.score(PROMPT, &picture).unwrap();
    let want: Vec<f32> = golden["clip_score"].to_vec1().unwrap();
    println!("CLIP score {score}, PyTorch's {}", want[0]);
    assert!((score - want[0]).abs() < 1e-4);
    let stranger = clip.score("a white boat on the right at sea by day", &picture).unwrap();
    assert!(stranger < score, "another prompt fits better: {stranger} > {score}");
}

/// The model card has the numbers of 500 prompts; these few are held to its goals: 0.85, and 0.9 on time and terrain.
#[test]
fn the_embedded_model_paints_what_the_prompt_names() {
    let model = Model::find("storybook").unwrap();
    let pipeline = Pipeline::load(&model, &Components::default(), &Device::Cpu).unwrap();
    let classifier = AttributeClassifier::load(model.files(), &Device::Cpu).unwrap();
    let some = |s: &str| Some(s.to_owned());
    let (mut scene, mut all) = (Share::default(), Share::default());
    let add = |sum: &mut Share, share: Share| {
        *sum = Share { found: sum.found + share.found, named: sum.named + share.named };
    };
    for (seed, (kind, colour, time, when)) in [
        ("house", "red", "night", "at night"),
        ("balloon", "yellow", "day", "by day"),
        ("tent", "blue", "sunset", "at sunset"),
        ("tree", "green", "dawn", "at dawn"),
    ]
    .into_iter()
    .enumerate()
    {
        let prompt = format!("a large {colour} {kind} in the middle {when} in the snow");
        let size = pipeline.defaults().size;
        let conditioning = std::sync::Arc::new(pipeline.encode(&prompt, None, size).unwrap());
        let plan = pipeline.plan(20, pipeline.defaults().guidance_scale).unwrap();
        let mut t = pipeline.start(conditioning, seed as u64, Default::default(), size, plan).unwrap();
        while !t.is_finished() {
            pipeline.step(&mut [&mut t]).unwrap();
        }
        let found = classifier.classify(&pipeline.finish(&t).unwrap()).unwrap();
        let subject =
            Subject { kind: kind.into(), colour: some(colour), size: some("large"), place: some("center") };
        let place = Attributes { time: some(time), terrain: some("snow"), ..Default::default() };
        let whole = Attributes { subjects: vec![subject], ..place.clone() };
        let share = fidelity(&whole, &found);
        println!("{prompt}: {} of {}", share.found, share.named);
        add(&mut scene, fidelity(&place, &found));
        add(&mut all, share);
    }
    assert!(scene.ratio() >= 0.9, "{} of {} of the scenes' attributes", scene.found, scene.named);
    assert!(all.ratio() >= 0.85, "{} of {} attributes", all.found, all.named);
}
