//! The embedded model paints the same picture as in diffusers, at a size that is not square. `goldens/make_storybook.py`
//! makes the golden file.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, safetensors};
use pentimento_pipelines::{Components, Model, NoiseSource, Pipeline, Size};

const PROMPT: &str = "a large red house on the left in the snow at night";
const SIZE: Size = Size { width: 96, height: 128 };

fn relative(name: &str, ours: &Tensor, golden: &Tensor) -> f32 {
    let largest = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let error = largest(&(ours - golden).unwrap()) / largest(golden);
    println!("storybook, real weights: {name} {error:.2e}");
    error
}

#[test]
fn a_prompt_becomes_the_same_picture_as_in_diffusers() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/storybook_real/golden.safetensors");
    let golden = safetensors::load(golden, &Device::Cpu).unwrap();
    let p = Pipeline::load(&Model::find("storybook").unwrap(), &Components::default(), &Device::Cpu).unwrap();

    let conditioning = Arc::new(p.encode(PROMPT, Some("a tree"), SIZE).unwrap());
    for (name, states) in [
        ("token_states", &conditioning.prompt.token_states),
        ("negative_token_states", &conditioning.negative.token_states),
    ] {
        assert!(relative(name, states, &golden[name]) < 1e-4);
    }

    let plan = p.plan(20, 3.0).unwrap();
    let mut t = p.start(conditioning, 7, NoiseSource::Torch, SIZE, plan).unwrap();
    while !t.is_finished() {
        p.step(&mut [&mut t]).unwrap();
    }
    let state = t.snapshot().unwrap();
    let latent = Tensor::from_vec(state.latent, &state.shape[..], &Device::Cpu).unwrap();
    assert!(relative("latent", &latent, &golden["latent"]) < 1e-3);

    let picture = p.finish(&t).unwrap();
    let want: Vec<u8> =
        golden["picture"].to_dtype(DType::U8).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let apart = picture.rgb.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    println!("storybook, real weights: picture differs by at most {apart} of 255");
    assert_eq!(picture.rgb.len(), want.len());
    assert!(apart <= 1);
}
