//! `pentimento generate`, as a user types it.

use std::path::Path;
use std::process::{Command, Output};

use crate::common::{Folder, pentimento};

/// Paints at 64x64, a quarter of the work of the default size, unless the arguments name one.
fn generate(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = pentimento();
    command.current_dir(folder).arg("generate").args(arguments);
    if !arguments.contains(&"--size") {
        command.args(["--size", "64x64"]);
    }
    command.output().unwrap()
}

fn painted(folder: &Path, arguments: &[&str]) -> String {
    let output = generate(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The `parameters` chunk, as A1111's tools read it.
fn parameters(file: &Path) -> String {
    let file = std::io::BufReader::new(std::fs::File::open(file).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let info = reader.info();
    match info.utf8_text.first() {
        Some(chunk) => chunk.get_text().unwrap(),
        None => {
            info.uncompressed_latin1_text.iter().find(|c| c.keyword == "parameters").unwrap().text.clone()
        }
    }
}

#[test]
fn a_picture_says_how_it_was_painted_and_can_be_painted_again() {
    let folder = Folder::new("generate");
    let arguments = [
        "a red house — 雪",
        "--negative-prompt",
        "rain",
        "--seed",
        "7",
        "--steps",
        "3",
        "--guidance-scale",
        "2.5",
    ];
    let said = painted(folder.path(), &[&arguments[..], &["-o", "a.png"]].concat());
    assert_eq!(said, "a.png (seed 7)\n");
    let text = parameters(&folder.path().join("a.png"));
    assert_eq!(
        text,
        format!(
            "a red house — 雪\nNegative prompt: rain\nSteps: 3, Sampler: DDIM, CFG scale: 2.5, Seed: 7, \
             Size: 64x64, Model: storybook, Version: pentimento {}",
            env!("CARGO_PKG_VERSION")
        )
    );
    painted(folder.path(), &[&arguments[..], &["-o", "b.png", "--threads", "1"]].concat());
    assert_eq!(folder.read("a.png"), folder.read("b.png"), "the same seed must give the same bytes");
    painted(folder.path(), &[&arguments[..], &["-o", "c.png", "--precision", "bf16"]].concat());
    assert_ne!(folder.read("a.png"), folder.read("c.png"), "rounded weights paint another picture");
}

#[test]
fn a_picture_has_the_size_that_was_asked_for() {
    let folder = Folder::new("sizes");
    for size in ["128x128", "64x128", "112x80"] {
        painted(folder.path(), &["a boat", "--steps", "2", "--size", size, "-o", "p.png"]);
        let picture = image::load_from_memory(&folder.read("p.png")).unwrap();
        assert_eq!(format!("{}x{}", picture.width(), picture.height()), size);
    }
    let arguments = ["generate", "a boat", "--steps", "1", "-o", "default.png"];
    assert!(pentimento().current_dir(folder.path()).args(arguments).status().unwrap().success());
    let picture = image::load_from_memory(&folder.read("default.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (128, 128));
}

#[test]
fn what_had_no_effect_is_not_in_the_metadata() {
    let folder = Folder::new("unguided");
    let unguided = ["a boat", "--seed", "7", "--steps", "2", "--guidance-scale", "1.00000001"];
    painted(folder.path(), &[&unguided[..], &["--negative-prompt", "rain", "-o", "a.png"]].concat());
    painted(folder.path(), &[&unguided[..], &["-o", "b.png"]].concat());
    assert!(!parameters(&folder.path().join("a.png")).contains("rain"));
    assert_eq!(folder.read("a.png"), folder.read("b.png"));
}

#[test]
fn several_pictures_have_consecutive_seeds_and_names_by_extension() {
    let folder = Folder::new("several");
    painted(folder.path(), &["a boat", "-n", "2", "--seed", "5", "--steps", "2", "-o", "p.jpg"]);
    painted(folder.path(), &["a boat", "--seed", "6", "--steps", "2", "-o", "six.jpg"]);
    assert_eq!(folder.read("p-2.jpg"), folder.read("six.jpg"));
    assert_ne!(folder.read("p-1.jpg"), folder.read("p-2.jpg"));
    assert_eq!(image::guess_format(&folder.read("p-1.jpg")).unwrap(), image::ImageFormat::Jpeg);
}

#[test]
fn without_a_name_nothing_is_replaced() {
    let folder = Folder::new("names");
    for name in ["pentimento-5.png", "pentimento-5-2.png"] {
        let said = painted(folder.path(), &["a boat", "--seed", "5", "--steps", "1"]);
        assert_eq!(said, format!("{name} (seed 5)\n"));
    }
    let said = painted(folder.path(), &["a boat", "--steps", "1"]);
    let seed = said.split("seed ").nth(1).unwrap().trim_end().trim_end_matches(')');
    assert!(folder.path().join(format!("pentimento-{seed}.png")).is_file(), "{said}");
}

#[test]
fn latents_go_out_and_come_in() {
    let folder = Folder::new("latents");
    let run = |more: &[&str]| painted(folder.path(), &[&["a boat", "--seed", "3"], more].concat());
    run(&["--steps", "2", "-o", "a.png", "--latents-out", "a.safetensors"]);
    let latent = |name: &str| {
        let bytes = folder.read(name);
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor("latent").unwrap();
        (tensor.shape().to_vec(), tensor.data().to_vec())
    };
    let (shape, noise) = latent("a.safetensors");
    assert_eq!(shape.len(), 3);
    // The same noise, whichever seed: in other shapes too, as diffusers writes it.
    let batched = [&[1][..], &shape].concat();
    let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, batched, &noise).unwrap();
    let file = safetensors::serialize([("latent", tensor)], None).unwrap();
    std::fs::write(folder.path().join("batched.safetensors"), file).unwrap();
    for (name, input) in [("b", "a.safetensors"), ("c", "batched.safetensors")] {
        let (png, out) = (format!("{name}.png"), format!("{name}.safetensors"));
        run(&["--steps", "2", "-o", &png, "--latents-in", input, "--latents-out", &out]);
    }
    assert_eq!(latent("b.safetensors"), latent("c.safetensors"));
    assert_ne!(latent("a.safetensors"), latent("b.safetensors"));
}

#[test]
fn misuse_exits_with_2_and_says_which_argument() {
    let folder = Folder::new("misuse");
    std::fs::write(folder.path().join("not.safetensors"), "nonsense").unwrap();
    std::fs::write(folder.path().join("bad.toml"), "max_steps = 5\nmax_stepz = 6").unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&[], "PROMPT"),
        (&["  "], "PROMPT"),
        (&["a", "--steps", "0"], "--steps"),
        (&["a", "--steps", "100000"], "--steps"),
        (&["a", "--steps", "many"], "--steps"),
        (&["a", "--seed", "-1"], "--seed"),
        (&["a", "--guidance-scale", "NaN"], "--guidance-scale"),
        (&["a", "--guidance-scale", "-1"], "--guidance-scale"),
        (&["a", "--size", "63x64"], "--size"),
        (&["a", "--size", "640000x64"], "--size"),
        (&["a", "--size", "large"], "--size"),
        (&["a", "-n", "0"], "-n"),
        (&["a", "-n", "11"], "-n"),
        (&["a", "-o", "a.gif"], "--output"),
        (&["a", "-o", "no/such/folder/a.png"], "--output"),
        (&["a", "--model", "no-such-model"], "--model"),
        (&["a", "--noise", "white"], "--noise"),
        (&["a", "--precision", "f16"], "--precision"),
        (&["a", "--latents-in", "not.safetensors"], "--latents-in"),
        (&["a", "--latents-in", "missing.safetensors"], "--latents-in"),
        (&["a", "-n", "2", "--latents-out", "x"], "--latents-out"),
        (&["a", "--config", "missing.toml"], "missing.toml"),
        (&["a", "--config", "bad.toml"], "max_stepz"),
        (&["a", "--colour", "red"], "--colour"),
    ];
    for (arguments, name) in cases {
        let output = generate(folder.path(), arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(name), "{arguments:?} must be told of {name}: {stderr}");
    }
}

#[test]
fn every_command_explains_itself_with_examples() {
    for arguments in [&["--help"][..], &["generate", "--help"], &["serve", "--help"], &["frontier", "--help"]]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_pentimento")).args(arguments).output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && stdout.contains("Examples:"), "{arguments:?}: {stdout}");
    }
}
