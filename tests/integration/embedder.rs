//! The cache embedders against transformers, and what their digests and errors name.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::common::Folder;
use pentimento::gateway::embedder::{
    CachedEmbedder, ClipEmbedder, EmbedError, Embedder, OwnEmbedder, SentenceEmbedder, for_model,
};
use pentimento_pipelines::{Components, Device, Model, Pipeline};
use safetensors::SafeTensors;
use safetensors::tensor::serialize_to_file;
use serde_json::{Value, json};

const PROMPT: &str = "a large red house on the left in the snow at night";

/// all-MiniLM-L6-v2's folder; `None`, and said so, outside ./test.
fn minilm() -> Option<PathBuf> {
    let folder = std::env::var_os("PENTIMENTO_TEST_MINILM").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("SKIPPED: PENTIMENTO_TEST_MINILM names no all-MiniLM-L6-v2 folder; ./test installs one");
    }
    folder
}

fn storybook() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("weights-manifest/storybook/model")
}

fn load(model: &str) -> Pipeline {
    Pipeline::load(&Model::find(model).unwrap(), &Components::default(), &Device::Cpu).unwrap()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Holds an embedder to the golden vectors of that name, and to what every embedder promises.
fn check(embedder: &dyn Embedder, name: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/embeddings.json");
    let golden: Vec<Value> = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    for row in &golden {
        let want: Vec<f32> = serde_json::from_value(row[name].clone()).unwrap();
        let prompt = row["prompt"].as_str().unwrap();
        let ours = embedder.embed(prompt).unwrap();
        let cosine = dot(&ours, &want);
        println!("{name:12} {:44} cosine {cosine:.7}", prompt.chars().take(40).collect::<String>());
        assert!(cosine >= 0.9999, "{prompt}: {cosine}");
        assert!((dot(&ours, &ours) - 1.0).abs() < 1e-5 && ours.len() == embedder.dimensions());
        assert_eq!(ours, embedder.embed(prompt).unwrap(), "the same prompt, the same vector");
    }
    assert!(golden.len() >= 6);
    let digest = embedder.digest();
    assert!(digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()), "{digest}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

/// Another last weight, in a file that parses all the same.
fn spoil(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// Changes a JSON file; the callback gets what it says.
fn edit(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(file, json.to_string()).unwrap();
}

/// Storybook's text tower as a CLIP text folder; with the projection as a whole CLIP's.
fn clip_folder(projection: bool) -> Folder {
    let folder = Folder::new("clip");
    let model = storybook();
    copy(&model.join("tokenizer"), folder.path());
    let config = if projection { "clip" } else { "text_encoder" };
    std::fs::copy(model.join(config).join("config.json"), folder.path().join("config.json")).unwrap();
    let tower = std::fs::read(model.join("text_encoder/model.safetensors")).unwrap();
    let clip = std::fs::read(model.join("clip/model.safetensors")).unwrap();
    let (tower, clip) = (SafeTensors::deserialize(&tower).unwrap(), SafeTensors::deserialize(&clip).unwrap());
    let mut tensors = tower.tensors();
    if projection {
        let name = "text_projection.weight".to_owned();
        tensors.push((name.clone(), clip.tensor(&name).unwrap()));
    }
    serialize_to_file(tensors, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

#[test]
fn a_models_own_text_tower_embeds_as_in_transformers() {
    let embedder = for_model(&load("storybook")).unwrap();
    check(&*embedder, "storybook");
    assert_eq!(embedder.dimensions(), 128);
}

#[test]
fn the_digest_names_what_the_embedding_comes_from_and_nothing_else() {
    let digest =
        |folder: &Path| OwnEmbedder::load(&load(folder.to_str().unwrap())).unwrap().digest().to_owned();
    let folder = Folder::new("own");
    copy(&storybook(), folder.path());
    let before = digest(folder.path());
    assert_eq!(before, OwnEmbedder::load(&load("storybook")).unwrap().digest(), "in the binary as on disk");
    spoil(&folder.path().join("unet/diffusion_pytorch_model.safetensors"));
    assert_eq!(before, digest(folder.path()), "another denoiser");
    let mut seen = vec![before];
    for file in ["text_encoder/model.safetensors", "clip/model.safetensors"] {
        spoil(&folder.path().join(file));
        seen.push(digest(folder.path()));
    }
    edit(&folder.path().join("tokenizer/tokenizer_config.json"), |json| json["model_max_length"] = json!(20));
    seen.push(digest(folder.path()));
    std::fs::remove_dir_all(folder.path().join("clip")).unwrap();
    let own = OwnEmbedder::load(&load(folder.path().to_str().unwrap())).unwrap();
    assert!((dot(&own.embed(PROMPT).unwrap(), &own.embed(PROMPT).unwrap()) - 1.0).abs() < 1e-5);
    seen.push(own.digest().to_owned());
    let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "{seen:?}");
}

#[test]
fn a_clip_folder_embeds_with_its_projection_and_without() {
    let own = for_model(&load("storybook")).unwrap();
    let (whole, tower) = (clip_folder(true), clip_folder(false));
    let projected = ClipEmbedder::load(whole.path()).unwrap();
    check(&projected, "storybook");
    assert_ne!(projected.digest(), own.digest());
    let pooled = ClipEmbedder::load(tower.path()).unwrap();
    assert_ne!(pooled.digest(), projected.digest());
    // What is left without clip/ is the tower alone.
    let folder = Folder::new("pooled");
    copy(&storybook(), folder.path());
    std::fs::remove_dir_all(folder.path().join("clip")).unwrap();
    let plain = for_model(&load(folder.path().to_str().unwrap())).unwrap();
    assert!(dot(&pooled.embed(PROMPT).unwrap(), &plain.embed(PROMPT).unwrap()) > 0.99999);
    // vocab.json and merges.txt serve where there is no tokenizer.json.
    std::fs::remove_file(whole.path().join("tokenizer.json")).unwrap();
    check(&ClipEmbedder::load(whole.path()).unwrap(), "storybook");
}

#[test]
fn a_manifest_names_its_models_embedder() {
    let (folder, clip) = (Folder::new("manifest"), clip_folder(true));
    let manifest = std::fs::read_to_string(storybook().with_file_name("../storybook.toml")).unwrap();
    let at = |embedder: &str| {
        let text = manifest.replace(
            "folder = \"storybook/model\"",
            &format!("folder = {:?}\ncache_embedder = {embedder:?}", storybook()),
        );
        let path = folder.path().join("model.toml");
        std::fs::write(&path, text).unwrap();
        for_model(&load(path.to_str().unwrap()))
    };
    copy(clip.path(), &folder.path().join("clip"));
    assert_eq!(at("clip").unwrap().digest(), ClipEmbedder::load(clip.path()).unwrap().digest());
    if let Some(minilm) = minilm() {
        let named = at(minilm.to_str().unwrap()).unwrap();
        assert_eq!(named.digest(), SentenceEmbedder::load(&minilm).unwrap().digest());
    }
    let error = at("nowhere").err().unwrap().to_string();
    assert!(error.contains("nowhere/config.json"), "{error}");
}

#[test]
fn errors_of_a_clip_folder_name_the_file() {
    type Break = fn(&Path);
    let cases: [(&str, Break, &str); 7] = [
        ("config.json", |f| std::fs::remove_file(f).unwrap(), "not found"),
        ("config.json", |f| edit(f, |json| json["text_config"]["model_type"] = json!("t5")), "model_type"),
        ("config.json", |f| edit(f, |json| json["text_config"]["hidden_act"] = json!("relu")), "hidden_act"),
        ("tokenizer.json", |f| std::fs::write(f, "{").unwrap(), ""),
        ("tokenizer_config.json", |f| edit(f, |json| json["model_max_length"] = json!(41)), "takes 40"),
        ("model.safetensors", |f| std::fs::write(f, "short").unwrap(), "safetensors"),
        ("model.safetensors", |f| std::fs::remove_file(f).unwrap(), ""),
    ];
    for (file, break_it, reason) in cases {
        let folder = clip_folder(true);
        break_it(&folder.path().join(file));
        let error = ClipEmbedder::load(folder.path()).err().unwrap().to_string();
        let place = folder.path().file_name().unwrap().to_str().unwrap();
        assert!(error.contains(place) && error.contains(file) && error.contains(reason), "{file}: {error}");
    }
    let folder = clip_folder(true);
    edit(&folder.path().join("config.json"), |json| json["projection_dim"] = json!(64));
    let error = ClipEmbedder::load(folder.path()).err().unwrap();
    assert!(
        matches!(&error, EmbedError::File { file, .. } if file.ends_with("model.safetensors")),
        "{error}"
    );
}

/// all-MiniLM-L6-v2's folder to change: the weights are a link.
fn minilm_copy(minilm: &Path) -> Folder {
    let folder = Folder::new("minilm");
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    for file in [
        "config.json",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "1_Pooling/config.json",
    ] {
        std::fs::copy(minilm.join(file), folder.path().join(file)).unwrap();
    }
    std::os::unix::fs::symlink(minilm.join("model.safetensors"), folder.path().join("model.safetensors"))
        .unwrap();
    folder
}

#[test]
fn a_sentence_transformers_folder_embeds_as_in_transformers() {
    let Some(minilm) = minilm() else { return };
    let embedder = SentenceEmbedder::load(&minilm).unwrap();
    check(&embedder, "minilm_mean");
    assert_eq!(embedder.dimensions(), 384);

    let folder = minilm_copy(&minilm);
    assert_eq!(SentenceEmbedder::load(folder.path()).unwrap().digest(), embedder.digest());
    edit(&folder.path().join("1_Pooling/config.json"), |json| {
        json["pooling_mode_mean_tokens"] = json!(false);
        json["pooling_mode_cls_token"] = json!(true);
    });
    let cls = SentenceEmbedder::load(folder.path()).unwrap();
    check(&cls, "minilm_cls");
    assert_ne!(cls.digest(), embedder.digest());
}

#[test]
fn a_text_is_cut_off_where_the_folder_says() {
    let Some(minilm) = minilm() else { return };
    let folder = minilm_copy(&minilm);
    edit(&folder.path().join("sentence_bert_config.json"), |json| json["max_seq_length"] = json!(5));
    let embedder = SentenceEmbedder::load(folder.path()).unwrap();
    assert_eq!(embedder.embed("a red house").unwrap(), embedder.embed("a red house and a tree").unwrap());
    // Never beyond the network's own positions, whatever the files say.
    edit(&folder.path().join("sentence_bert_config.json"), |json| json["max_seq_length"] = json!(100_000));
    SentenceEmbedder::load(folder.path()).unwrap().embed(&"house ".repeat(5000)).unwrap();
}

#[test]
fn errors_of_a_sentence_transformers_folder_name_the_file() {
    let Some(minilm) = minilm() else { return };
    type Break = fn(&Path);
    let cases: [(&str, Break, &str); 8] = [
        ("modules.json", |f| std::fs::remove_file(f).unwrap(), "not found"),
        (
            "modules.json",
            |f| edit(f, |json| json[1]["type"] = json!("sentence_transformers.models.Dense")),
            "Dense",
        ),
        ("modules.json", |f| std::fs::write(f, "[]").unwrap(), "Transformer"),
        ("config.json", |f| edit(f, |json| json["model_type"] = json!("roberta")), "roberta"),
        ("config.json", |f| edit(f, |json| json["hidden_size"] = json!(383)), "num_attention_heads"),
        (
            "1_Pooling/config.json",
            |f| edit(f, |json| json["pooling_mode_max_tokens"] = json!(true)),
            "pooling_mode",
        ),
        (
            "sentence_bert_config.json",
            |f| edit(f, |json| json["max_seq_length"] = json!("long")),
            "invalid type",
        ),
        ("tokenizer.json", |f| std::fs::write(f, "{").unwrap(), ""),
    ];
    for (file, break_it, reason) in cases {
        let folder = minilm_copy(&minilm);
        break_it(&folder.path().join(file));
        let error = SentenceEmbedder::load(folder.path()).err().unwrap().to_string();
        let path = folder.path().join(file);
        assert!(error.starts_with(path.to_str().unwrap()) && error.contains(reason), "{file}: {error}");
    }
}

/// Prints what an embedding costs; `--nocapture` shows it.
#[test]
fn an_embedding_from_the_lru_costs_next_to_nothing() {
    let median = |embedder: &dyn Embedder| {
        let mut times: Vec<_> = (0..101)
            .map(|_| {
                let start = Instant::now();
                embedder.embed(PROMPT).unwrap();
                start.elapsed()
            })
            .collect();
        times.sort();
        times[50]
    };
    let own = for_model(&load("storybook")).unwrap();
    let plain = median(&*own);
    println!("storybook's own tower {plain:?}");
    if let Some(minilm) = minilm() {
        println!("all-MiniLM-L6-v2      {:?}", median(&SentenceEmbedder::load(&minilm).unwrap()));
    }
    let repeated = median(&CachedEmbedder::new(own, NonZeroUsize::new(16).unwrap()));
    println!("out of the LRU        {repeated:?}");
    assert!(repeated * 10 < plain);
}
