//! Pictures for training a critic: every prompt painted with options of the grid.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use pentimento_pipelines::{Pipeline, PlanOption, Size};
use serde::{Deserialize, Serialize};

use super::super::rows::Rows;
use super::measure::{Prompt, seed};
use super::progress;
use super::tree::Tree;

/// The pixels of all pictures, one after the other: 8 bits each of red, green and blue, row by row.
const PIXELS: &str = "pictures.rgb";
/// A line for each picture.
const INDEX: &str = "pictures.jsonl";

/// What pictures were painted under: the first line of the index.
#[derive(Debug, PartialEq, Deserialize, Serialize)]
struct Settings {
    model: String,
    weights: String,
    size: Size,
    guidance_scale: f32,
    options: Vec<PlanOption>,
}

/// A painted picture.
#[derive(Debug, Deserialize, Serialize)]
struct Painted {
    /// Place of its prompt in the file of prompts.
    prompt: usize,
    /// Id of its option.
    option: String,
}

/// Paints each prompt with the options of one step count, in turn. What is painted already is not painted again.
pub fn paint(
    pipeline: &Pipeline,
    options: Vec<PlanOption>,
    prompts: &[Prompt],
    size: Size,
    folder: &Path,
) -> anyhow::Result<()> {
    let guidance_scale = pipeline.defaults().guidance_scale;
    let weights = pipeline.model().digest()?.to_owned();
    let settings = Settings { model: pipeline.id().to_owned(), weights, size, guidance_scale, options };
    let (mut index, painted) = Rows::open::<_, Painted>(&folder.join(INDEX), &settings)?;
    let mut pixels = open(&folder.join(PIXELS), painted.len() * bytes(size))?;
    let painted: HashSet<(usize, String)> = painted.into_iter().map(|p| (p.prompt, p.option)).collect();
    let by_count: Vec<&[PlanOption]> = settings.options.chunk_by(|a, b| a.steps == b.steps).collect();
    let bar = progress(prompts.len());
    for (i, prompt) in prompts.iter().enumerate() {
        let options = by_count[i % by_count.len()];
        let before = |option: &PlanOption| painted.contains(&(i, option.id.clone()));
        if !options.iter().all(before) {
            let conditioning = Arc::new(pipeline.encode(&prompt.prompt, None, size)?);
            let plan = |option: &PlanOption| pipeline.plan_of(option, guidance_scale);
            let missing: Vec<&PlanOption> = options.iter().filter(|option| !before(option)).collect();
            let plans = missing.iter().map(|option| plan(option)).collect::<Result<Vec<_>, _>>()?;
            let plans = plans.into_iter().enumerate().collect();
            let mut tree = Tree::start(pipeline, conditioning, seed(&prompt.prompt), size, plans)?;
            while tree.step()? {}
            for (numbers, trajectory) in tree.leaves() {
                let picture = pipeline.finish(&trajectory)?;
                for number in numbers {
                    // The index says what is there, so it comes last.
                    pixels.write_all(&picture.rgb)?;
                    index.add(&Painted { prompt: i, option: missing[number].id.clone() })?;
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

fn bytes(size: Size) -> usize {
    size.width as usize * size.height as usize * 3
}

/// Opens the pixels for more, without what the index does not know.
fn open(path: &Path, known: usize) -> anyhow::Result<File> {
    let name = || path.display().to_string();
    let file = OpenOptions::new().append(true).create(true).open(path).with_context(name)?;
    let there = file.metadata().with_context(name)?.len();
    if there < known as u64 {
        anyhow::bail!("{}: is shorter than {INDEX} says; remove both", name());
    }
    file.set_len(known as u64).with_context(name)?;
    Ok(file)
}
