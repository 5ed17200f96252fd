//! The networks equal diffusers' and transformers' on weights that both sides compute from tensor names.
//! `goldens/make_goldens.py` makes the golden files. Every test prints its measured error.

use std::borrow::Cow;

use crate::support::hash_weights::normal_like;
use crate::support::{
    Golden, SHAPES, TIME_IDS, added_width, difference, exists, load_text_encoder, load_unet, load_vae, read,
};
use candle_core::{DType, Device, Tensor};
use pentimento_pipelines::text::{ClipTextEncoder, ClipTokenizer};
use pentimento_pipelines::unet::{AddedConditioning, UNet};
use pentimento_pipelines::vae::Vae;
use pentimento_pipelines::{NoiseSchedule, ScheduleConfig, Spacing};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The tolerance of one call of a network, relative to the golden's largest value. Measured errors are 4e-7 to 3e-6. The
/// engine promises 1e-4, but a wrong epsilon or activation could stay below that.
const CALL: f32 = 2e-5;

/// The conditioning of one call, of `rows` rows, made from hashes.
fn added(unet: &UNet, shape: &str, name: &str, rows: usize) -> Option<AddedConditioning> {
    let pooled = normal_like(&format!("{shape}/{name}.pooled"), (rows, added_width(unet)?)).unwrap();
    let time_ids = Tensor::new(&TIME_IDS, &Device::Cpu).unwrap().narrow(0, 0, rows).unwrap();
    Some(AddedConditioning { pooled, time_ids })
}

#[test]
fn unet_matches_diffusers() {
    for shape in SHAPES {
        let golden = Golden::load(shape);
        let (unet, reads) = load_unet(shape);
        assert_eq!(reads.digest(), golden.digests["unet"], "{shape}: names or shapes of the weights");
        let width = unet.config().stages[0].token_width;
        let states = normal_like(&format!("{shape}/unet.states"), (2, 40, width)).unwrap();
        let added = added(&unet, shape, "unet", 2);
        let timesteps = Tensor::new(&[981f32, 240.0], &Device::Cpu).unwrap();
        for (name, h, w) in [("unet", 16, 16), ("unet.odd", 13, 11)] {
            let sample = normal_like(&format!("{shape}/{name}.sample"), (2, 4, h, w)).unwrap();
            let ours = unet.forward(&sample, &timesteps, &states, added.as_ref()).unwrap();
            golden.check(name, &ours, CALL);
        }
    }
}

/// The storybook shape is that of the shipped model, except for its small vocabulary.
#[test]
fn storybook_shape_is_the_shipped_models() {
    let json = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
    for file in ["unet/config.json", "vae/config.json", "text_encoder/config.json"] {
        let ours = json(read(format!("storybook/{file}")));
        let shipped = json(read(format!("../../../weights-manifest/storybook/model/{file}")));
        // The goldens have their own vocabulary and default size. No weight's shape depends on the size.
        let own =
            ["vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "sample_size"];
        for (key, value) in ours.as_object().unwrap() {
            assert!(own.contains(&key.as_str()) || shipped[key] == *value, "{file}: {key}");
        }
        println!("storybook  {file:30} as shipped");
    }
}

#[test]
fn vae_matches_diffusers() {
    for shape in SHAPES {
        let golden = Golden::load(shape);
        let (vae, reads) = load_vae(shape);
        assert_eq!(reads.digest(), golden.digests["vae"], "{shape}: names or shapes of the weights");
        let side = 64 / vae.config().spatial_factor();
        let image = normal_like(&format!("{shape}/vae.image"), (1, 3, 64, 64)).unwrap();
        let latent = normal_like(&format!("{shape}/vae.latent"), (1, 4, side, side)).unwrap();
        golden.check("vae.encode", &vae.encode(&image).unwrap(), CALL);
        golden.check("vae.decode", &vae.decode(&latent).unwrap(), CALL);
    }
}

#[test]
fn text_encoders_match_transformers() {
    for shape in SHAPES {
        let golden = Golden::load(shape);
        let tokens: Value = serde_json::from_slice(&read(format!("{shape}/tokens.json"))).unwrap();
        for (encoder, tokenizer) in [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")] {
            if !exists(format!("{shape}/{encoder}")) {
                continue;
            }
            let (model, reads) = load_text_encoder(shape, encoder);
            assert_eq!(reads.digest(), golden.digests[encoder], "{shape}: names or shapes of the weights");
            let ids: Vec<Vec<u32>> = serde_json::from_value(tokens[tokenizer].clone()).unwrap();
            let states = model.forward(&Tensor::new(ids[2..4].to_vec(), &Device::Cpu).unwrap()).unwrap();
            golden.check(&format!("{encoder}.last"), &states.last, CALL);
            golden.check(&format!("{encoder}.penultimate"), &states.penultimate, CALL);
            match states.projected {
                Some(projected) => golden.check(&format!("{encoder}.projected"), &projected, CALL),
                None => golden.check(&format!("{encoder}.pooled"), &states.pooled, CALL),
            }
        }
    }
}

/// The shape's own settings with the shared vocabulary, which is a tokenizer.json for the storybook and the older pair of
/// files for the other shapes.
fn tokenizer(shape: &str, folder: &str) -> ClipTokenizer {
    let shared: &[&str] =
        if shape == "storybook" { &["tokenizer.json"] } else { &["vocab.json", "merges.txt"] };
    ClipTokenizer::from_files(&|file| {
        let own = format!("{shape}/{folder}/{file}");
        if exists(&own) {
            return Ok(Some(Cow::Owned(read(own))));
        }
        Ok(shared.contains(&file).then(|| Cow::Owned(read(format!("tokenizer/{file}")))))
    })
    .unwrap()
}

#[test]
fn tokenizers_match_transformers() {
    for shape in SHAPES {
        let golden: Value = serde_json::from_slice(&read(format!("{shape}/tokens.json"))).unwrap();
        let prompts: Vec<String> = serde_json::from_value(golden["prompts"].clone()).unwrap();
        for folder in ["tokenizer", "tokenizer_2"] {
            let Some(rows) = golden.get(folder) else { continue };
            let rows: Vec<Vec<u32>> = serde_json::from_value(rows.clone()).unwrap();
            let ours = tokenizer(shape, folder);
            for (prompt, row) in prompts.iter().zip(&rows) {
                assert_eq!(ours.encode(prompt).unwrap(), *row, "{shape} {folder}: {prompt:?}");
            }
            println!("{shape:10} {folder:30} {} prompts equal", prompts.len());
        }
    }
}

/// Every step count from 1 to 1000 with every spacing, except those for which a rounding error gives diffusers an additional
/// timestep of -1. The golden omits the same step counts.
#[test]
fn timesteps_match_diffusers() {
    let golden: Value = serde_json::from_slice(&read("scheduler/timesteps.json")).unwrap();
    for (name, spacing) in
        [("leading", Spacing::Leading), ("linspace", Spacing::Linspace), ("trailing", Spacing::Trailing)]
    {
        let schedule =
            NoiseSchedule::new(ScheduleConfig { timestep_spacing: spacing, ..Default::default() }).unwrap();
        let left_out: Vec<usize> = serde_json::from_value(golden[name]["left_out"].clone()).unwrap();
        let line = |steps| {
            let timesteps = schedule.timesteps(steps).unwrap();
            timesteps.iter().map(f64::to_string).collect::<Vec<_>>().join(" ") + "\n"
        };
        let lines: String = (1..=1000).filter(|steps| !left_out.contains(steps)).map(line).collect();
        let digest: String = Sha256::digest(lines).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, golden[name]["sha256"], "{name}");
        println!("{name:10} {} step counts equal, {} left out", 1000 - left_out.len(), left_out.len());
    }
}

#[test]
fn older_names_are_read() {
    let (vae, reads) = load_vae("sd15");
    let latent = normal_like("older.latent", (1, 4, 4, 4)).unwrap();
    let older = reads.renamed(|name| {
        let name = name.replace("to_q", "query").replace("to_k", "key").replace("to_v", "value");
        name.replace("to_out.0", "proj_attn")
    });
    let older = Vae::new(vae.config().clone(), older).unwrap();
    assert_eq!(difference(&older.decode(&latent).unwrap(), &vae.decode(&latent).unwrap()), 0.0);

    let (encoder, reads) = load_text_encoder("sd15", "text_encoder");
    let ids = Tensor::new(&[[671u32, 544, 672, 672]], &Device::Cpu).unwrap();
    let older = reads.renamed(|name| format!("text_model.{name}"));
    let older = ClipTextEncoder::new(encoder.config().clone(), older).unwrap();
    let last = |encoder: &ClipTextEncoder| encoder.forward(&ids).unwrap().last;
    assert_eq!(difference(&last(&older), &last(&encoder)), 0.0);
}

#[test]
fn batch_company_is_invisible() {
    for shape in ["storybook", "sdxl"] {
        let (unet, _) = load_unet(shape);
        let width = unet.config().stages[0].token_width;
        let sample = normal_like("company.sample", (3, 4, 16, 16)).unwrap();
        let states = normal_like("company.states", (3, 20, width)).unwrap();
        let timesteps = Tensor::new(&[999f32, 500.5, 0.0], &Device::Cpu).unwrap();
        let added = added(&unet, shape, "company", 2).map(|two| AddedConditioning {
            pooled: Tensor::cat(&[&two.pooled, &two.pooled.narrow(0, 0, 1).unwrap()], 0).unwrap(),
            time_ids: Tensor::cat(&[&two.time_ids, &two.time_ids.narrow(0, 1, 1).unwrap()], 0).unwrap(),
        });
        let together = unet.forward(&sample, &timesteps, &states, added.as_ref()).unwrap();
        for row in 0..3 {
            let one = |x: &Tensor| x.narrow(0, row, 1).unwrap();
            let added = added
                .as_ref()
                .map(|a| AddedConditioning { pooled: one(&a.pooled), time_ids: one(&a.time_ids) });
            let alone = unet.forward(&one(&sample), &one(&timesteps), &one(&states), added.as_ref()).unwrap();
            let error = difference(&one(&together), &alone);
            println!("{shape:10} row {row} of 3 against alone         {error:.2e}");
            assert!(error <= 1e-5, "{shape} row {row}: {error:.2e}");
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let (unet, _) = load_unet("storybook");
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let (sample, time, states) = (zeros(&[2, 4, 8, 8]), zeros(&[2]), zeros(&[2, 5, 128]));
    let message = |s: &Tensor, t: &Tensor, c: &Tensor, a: Option<&AddedConditioning>| {
        unet.forward(s, t, c, a).unwrap_err().to_string()
    };
    let added = AddedConditioning { pooled: zeros(&[2, 8]), time_ids: zeros(&[2, 6]) };
    for (error, field) in [
        (message(&zeros(&[2, 3, 8, 8]), &time, &states, None), "sample"),
        (message(&sample, &zeros(&[1]), &states, None), "timesteps"),
        (message(&sample, &time, &zeros(&[2, 5, 64]), None), "token_states"),
        (message(&sample, &time, &zeros(&[1, 5, 128]), None), "token_states"),
        (message(&sample, &time, &states, Some(&added)), "added"),
    ] {
        assert!(error.starts_with(field), "{field}: {error}");
    }
}
