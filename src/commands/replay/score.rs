//! Judges the pictures that a run kept.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use indicatif::ProgressBar;
use pentimento_pipelines::{Device, Picture, Pipeline};

use super::client::picture;
use super::row::Row;
use crate::quality::{AttributeClassifier, ClipScorer, fidelity};
use crate::trace::Request;

/// The model's scorers, as far as it comes with them.
pub struct Scorers {
    classifier: Option<AttributeClassifier>,
    clip: Option<ClipScorer>,
}

impl Scorers {
    /// Of a model.
    ///
    /// # Errors
    /// Where it has neither, or their files are damaged.
    pub fn load(model: &Pipeline) -> anyhow::Result<Self> {
        let files = model.model().files();
        let has = |file| anyhow::Ok(files.read(file)?.is_some());
        let device = Device::Cpu;
        let classifier = if has("classifier/config.json")? {
            Some(AttributeClassifier::load(files, &device)?)
        } else {
            None
        };
        let clip = if has("clip/config.json")? { Some(ClipScorer::load(model, &device)?) } else { None };
        if classifier.is_none() && clip.is_none() {
            return Err(anyhow!("the model {} comes with no scorer", model.id()));
        }
        Ok(Self { classifier, clip })
    }

    /// Fills in the scores of every completed row, from the pictures in `folder`.
    ///
    /// # Errors
    /// A picture that cannot be read or judged.
    pub fn score(
        &self,
        rows: &mut [Row],
        trace: &[Request],
        folder: &Path,
        progress: &ProgressBar,
    ) -> anyhow::Result<()> {
        for (number, row) in rows.iter_mut().enumerate() {
            progress.inc(1);
            if !row.completed() {
                continue;
            }
            let request = &trace[row.line - 1];
            let (mut fidelities, mut clips) = (Vec::new(), Vec::new());
            for path in pictures(folder, number) {
                let context = || path.display().to_string();
                let shown = read(&path).with_context(context)?;
                if let (Some(classifier), Some(named)) = (&self.classifier, &request.named) {
                    let found = classifier.classify(&shown).with_context(context)?;
                    fidelities.push(fidelity(named, &found).ratio());
                }
                if let Some(clip) = &self.clip {
                    clips.push(f64::from(clip.score(&request.prompt, &shown).with_context(context)?));
                }
            }
            let mean = |values: &[f64]| {
                (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
            };
            (row.fidelity, row.clip_score) = (mean(&fidelities), mean(&clips));
        }
        Ok(())
    }
}

fn pictures(folder: &Path, number: usize) -> impl Iterator<Item = PathBuf> {
    (0..).map(move |index| picture(folder, number, index)).take_while(|path| path.exists())
}

fn read(path: &Path) -> anyhow::Result<Picture> {
    let shown = image::ImageReader::open(path)?.with_guessed_format()?.decode()?.into_rgb8();
    Ok(Picture { width: shown.width(), height: shown.height(), rgb: shown.into_raw() })
}
