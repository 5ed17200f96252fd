//! Whole trajectories equal diffusers' DDIM. The models are read from folders on disk, as users' models are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::hash_weights::normal_like;
use crate::support::{
    Golden, SHAPES, TIME_IDS, added_width, goldens, largest, load_text_encoder, load_unet, load_vae, read,
};
use candle_core::{Device, Tensor};
use pentimento_pipelines::{
    Components, Conditioning, DenoisingState, EncodedPrompt, Model, NoiseSource, Pipeline, Size,
};
use serde_json::{Map, Value, json};

const STEPS: usize = 20;
const GUIDANCE: f32 = 5.0;
/// The tolerance relative to the golden's largest value. Measured errors are 2e-6 to 4e-6; the engine promises 1e-3.
const TOLERANCE: f32 = 3e-5;

// The values of make_goldens.py's SDXL pipeline.
const PROMPT: &str = "a large red house on the left in the snow at night";
const NEGATIVE: &str = "a tree!";
const SIZE: Size = Size { width: 96, height: 64 };
const SEED: u64 = 7;
const PIPELINE_STEPS: usize = 5;
/// The golden has every seventh token state.
const TOKEN_STRIDE: usize = 7;
/// The tolerance of encoded prompts. Measured errors are 5e-7 to 6e-7.
const ENCODED: f32 = 1e-5;

/// Writes a shape as a diffusers folder with hash weights. `schedule` overrides settings of its scheduler.
fn model_folder(shape: &str, name: &str, schedule: &Value) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let class = if shape == "sdxl" { "StableDiffusionXLPipeline" } else { "StableDiffusionPipeline" };
    write(&root.join("model_index.json"), &json!({"_class_name": class}).to_string().into_bytes());
    for component in std::fs::read_dir(goldens().join(shape)).unwrap() {
        let component = component.unwrap();
        if !component.file_type().unwrap().is_dir() {
            continue;
        }
        for file in std::fs::read_dir(component.path()).unwrap() {
            let file = file.unwrap().path();
            let to = root.join(component.file_name()).join(file.file_name().unwrap());
            write(&to, &std::fs::read(&file).unwrap());
        }
        let component = component.file_name().into_string().unwrap();
        let into = root.join(&component);
        match component.as_str() {
            "unet" => load_unet(shape).1.save(into.join("diffusion_pytorch_model.safetensors")).unwrap(),
            "vae" => load_vae(shape).1.save(into.join("diffusion_pytorch_model.safetensors")).unwrap(),
            "text_encoder" | "text_encoder_2" => {
                load_text_encoder(shape, &component).1.save(into.join("model.safetensors")).unwrap();
            }
            "tokenizer" | "tokenizer_2" => {
                for file in ["vocab.json", "merges.txt"] {
                    write(&into.join(file), &read(format!("tokenizer/{file}")));
                }
            }
            "scheduler" => {
                let file = into.join("scheduler_config.json");
                let mut config: Map<String, Value> =
                    serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
                config.extend(schedule.as_object().unwrap().clone());
                write(&file, &serde_json::to_vec(&config).unwrap());
            }
            other => panic!("{other}: a component that this test does not know"),
        }
    }
    root
}

fn load(folder: &Path) -> Pipeline {
    let model = Model::find(folder.to_str().unwrap()).unwrap();
    Pipeline::load(&model, &Components::default(), &Device::Cpu).unwrap()
}

fn write(file: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, bytes).unwrap();
}

/// The conditioning made from hashes; row 0 is the negative prompt's.
fn conditioning(shape: &str, name: &str) -> Conditioning {
    let (unet, _) = load_unet(shape);
    let width = unet.config().stages[0].token_width;
    let states = normal_like(&format!("{shape}/{name}.states"), (2, 40, width)).unwrap();
    let pooled =
        added_width(&unet).map(|width| normal_like(&format!("{shape}/{name}.pooled"), (2, width)).unwrap());
    let prompt = |row| EncodedPrompt {
        ids: [0; 40].into(),
        token_states: states.get(row).unwrap(),
        pooled: pooled.as_ref().map(|p| p.get(row).unwrap()),
    };
    let time_ids = pooled.is_some().then(|| Tensor::new(&TIME_IDS[0], &Device::Cpu).unwrap());
    Conditioning { prompt: prompt(1), negative: prompt(0), time_ids, source: None }
}

fn trajectory_matches(shape: &'static str, name: &str, schedule: &Value) {
    let golden = Golden::load(shape);
    let folder = model_folder(shape, &format!("{shape}-{name}"), schedule);
    let pipeline = load(&folder);

    let plan = pipeline.plan(STEPS, GUIDANCE).unwrap();
    let timesteps: Vec<f32> = plan.steps().iter().map(|step| step.timestep as f32).collect();
    assert_eq!(timesteps, golden.tensors[&format!("{name}.timesteps")].to_vec1::<f32>().unwrap());

    let noise = normal_like(&format!("{shape}/{name}.noise"), (4, 16, 16)).unwrap();
    let latent = noise.flatten_all().unwrap().to_vec1().unwrap();
    let state = DenoisingState { timestep: plan.steps()[0].timestep, shape: [4, 16, 16], latent };
    let mut trajectory = pipeline.resume(&state, Arc::new(conditioning(shape, name)), 0, plan).unwrap();
    while !trajectory.is_finished() {
        pipeline.step(&mut [&mut trajectory]).unwrap();
    }
    let latent = trajectory.snapshot().unwrap().latent;
    golden.check(name, &Tensor::from_vec(latent, (1, 4, 16, 16), &Device::Cpu).unwrap(), TOLERANCE);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn ddim_matches_diffusers() {
    for shape in SHAPES {
        trajectory_matches(shape, "trajectory", &json!({}));
    }
}

#[test]
fn zero_terminal_snr_matches_diffusers() {
    let schedule = json!({"timestep_spacing": "trailing", "rescale_betas_zero_snr": true});
    trajectory_matches("sd21", "trajectory_zero_snr", &schedule);
}

fn check_encoded(golden: &Golden, name: &str, ours: &EncodedPrompt) {
    let rows: Vec<u32> = (0..ours.token_states.dim(0).unwrap() as u32).step_by(TOKEN_STRIDE).collect();
    let states = ours.token_states.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
    golden.check(&format!("{name}.token_states"), &states, ENCODED);
    golden.check(&format!("{name}.pooled"), ours.pooled.as_ref().unwrap(), ENCODED);
}

#[test]
fn sdxl_prompts_match_diffusers() {
    let golden = Golden::load("sdxl");
    let folder = model_folder("sdxl", "sdxl-prompts", &json!({}));
    let pipeline = load(&folder);

    let both = pipeline.encode(PROMPT, Some(NEGATIVE), SIZE).unwrap();
    check_encoded(&golden, "prompt", &both.prompt);
    check_encoded(&golden, "negative", &both.negative);
    golden.check("time_ids", both.time_ids.as_ref().unwrap(), 0.0);

    let empty = pipeline.encode(PROMPT, Some(""), SIZE).unwrap();
    check_encoded(&golden, "empty_negative", &empty.negative);

    // All zeros, for which no relative error is defined.
    let absent = pipeline.encode(PROMPT, None, SIZE).unwrap().negative;
    for (part, ours) in [("token_states", &absent.token_states), ("pooled", absent.pooled.as_ref().unwrap())]
    {
        let name = format!("absent_negative.{part}");
        assert_eq!((largest(ours), largest(&golden.tensors[&name])), (0.0, 0.0), "{name}");
        println!("sdxl       {name:30} 0, as diffusers");
    }

    let index = json!({"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": false});
    write(&folder.join("model_index.json"), index.to_string().as_bytes());
    let unforced = load(&folder).encode(PROMPT, None, SIZE).unwrap();
    check_encoded(&golden, "absent_negative_unforced", &unforced.negative);
    std::fs::remove_dir_all(folder).unwrap();
}

/// From prompt and seed to the latent, as in `StableDiffusionXLPipeline.__call__`.
#[test]
fn sdxl_pipeline_matches_diffusers() {
    let golden = Golden::load("sdxl");
    let folder = model_folder("sdxl", "sdxl-pipeline", &json!({}));
    let pipeline = load(&folder);
    for (name, negative) in [("pipeline", Some(NEGATIVE)), ("pipeline_absent_negative", None)] {
        let conditioning = Arc::new(pipeline.encode(PROMPT, negative, SIZE).unwrap());
        let plan = pipeline.plan(PIPELINE_STEPS, GUIDANCE).unwrap();
        let mut trajectory = pipeline.start(conditioning, SEED, NoiseSource::Torch, SIZE, plan).unwrap();
        while !trajectory.is_finished() {
            pipeline.step(&mut [&mut trajectory]).unwrap();
        }
        let state = trajectory.snapshot().unwrap();
        let [c, h, w] = state.shape;
        golden.check(name, &Tensor::from_vec(state.latent, (1, c, h, w), &Device::Cpu).unwrap(), TOLERANCE);
    }
    std::fs::remove_dir_all(folder).unwrap();
}
