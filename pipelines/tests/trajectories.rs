//! Whole trajectories against diffusers' DDIM, through a model folder on disk: what a user of a diffusers model gets.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use common::hash_weights::normal_like;
use common::{Golden, SHAPES, TIME_IDS, added_width, goldens, load_text_encoder, load_unet, load_vae, read};
use pentimento_pipelines::{Components, Conditioning, DenoisingState, EncodedPrompt, Model, Pipeline};
use serde_json::{Map, Value, json};

const STEPS: usize = 20;
const GUIDANCE: f32 = 5.0;
const TOLERANCE: f32 = 1e-3;

/// Writes a shape as a diffusers folder with its hash weights, its scheduler's settings overridden by `schedule`.
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

fn write(file: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, bytes).unwrap();
}

/// The hash's conditioning; row 0 is the unconditional one.
fn conditioning(shape: &str, name: &str) -> Conditioning {
    let (unet, _) = load_unet(shape);
    let width = unet.config().stages[0].token_width;
    let states = normal_like(&format!("{shape}/{name}.states"), (2, 40, width)).unwrap();
    let pooled =
        added_width(&unet).map(|width| normal_like(&format!("{shape}/{name}.pooled"), (2, width)).unwrap());
    let prompt = |row| EncodedPrompt {
        token_states: states.get(row).unwrap(),
        pooled: pooled.as_ref().map(|p| p.get(row).unwrap()),
    };
    let time_ids = pooled.is_some().then(|| Tensor::new(&TIME_IDS[0], &Device::Cpu).unwrap());
    Conditioning { prompt: prompt(1), negative: prompt(0), time_ids }
}

fn trajectory_matches(shape: &'static str, name: &str, schedule: &Value) {
    let golden = Golden::load(shape);
    let folder = model_folder(shape, &format!("{shape}-{name}"), schedule);
    let model = Model::find(folder.to_str().unwrap()).unwrap();
    let pipeline = Pipeline::load(&model, &Components::default(), &Device::Cpu).unwrap();

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
