//! Calibration tables as files: those that come with a model, and those that were measured of it.

use std::path::Path;

use anyhow::{Context, bail};
use pentimento_cache::{Calibration, Resume};
use pentimento_pipelines::Pipeline;

/// The folder of a model that holds its tables, and the pairs that they are measured on.
pub const FOLDER: &str = "calibration";

/// A table's file within that folder, or within `--out`.
pub fn file(resume: Resume) -> String {
    format!("{}.json", resume.name())
}

/// The tables that come with a model: one for steered resumes, one for plain ones, or none.
///
/// # Errors
/// A table that is damaged, or was measured of other weights.
pub fn tables_of(pipeline: &Pipeline) -> anyhow::Result<Vec<Calibration>> {
    let mut tables = Vec::new();
    for resume in Resume::ALL {
        let name = format!("{FOLDER}/{}", file(resume));
        if let Some(bytes) = pipeline.model().files().read(&name)? {
            tables.push(checked(&String::from_utf8_lossy(&bytes), pipeline).context(name)?);
        }
    }
    Ok(tables)
}

/// The tables that `pentimento calibrate` left in a folder.
///
/// # Errors
/// As [`tables_of`].
pub fn tables_in(folder: &Path, pipeline: &Pipeline) -> anyhow::Result<Vec<Calibration>> {
    let mut tables = Vec::new();
    for path in Resume::ALL.map(|resume| folder.join(file(resume))).iter().filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        tables.push(checked(&text, pipeline).with_context(|| path.display().to_string())?);
    }
    Ok(tables)
}

/// A table, if it was measured of this model's weights.
///
/// # Errors
/// It is damaged, or was measured of other weights.
pub fn checked(text: &str, pipeline: &Pipeline) -> anyhow::Result<Calibration> {
    let table = Calibration::from_json(text)?;
    let weights = pipeline.model().digest()?;
    if table.measured_for.weights != weights {
        bail!(
            "was measured of the model {} with weights {}, not of {} with {weights}",
            table.measured_for.model,
            table.measured_for.weights,
            pipeline.id()
        );
    }
    Ok(table)
}

#[cfg(test)]
#[cfg(feature = "embedded-model")]
mod tests {
    use pentimento_cache::{Content, Difference};
    use pentimento_pipelines::{Components, Device, Model};

    use super::*;
    use crate::gateway::embedder::for_model;

    fn storybook() -> Pipeline {
        Pipeline::load(&Model::find("storybook").unwrap(), &Components::default(), &Device::Cpu).unwrap()
    }

    #[test]
    fn the_embedded_models_tables_are_its_own() {
        let model = storybook();
        let embedder = for_model(&model).unwrap();
        let tables = tables_of(&model).unwrap();
        assert_eq!(tables.iter().map(|t| t.measured_for.resume).collect::<Vec<_>>(), Resume::ALL);
        for Calibration { measured_for, .. } in &tables {
            assert_eq!(measured_for.embedder, embedder.digest());
            assert_eq!(measured_for.latent_space, model.model().latent_space().unwrap());
            assert_eq!(measured_for.noise_schedule, model.schedule().id());
            assert_eq!(measured_for.model, model.id());
            assert_eq!(measured_for.guidance_scale, model.defaults().guidance_scale);
            assert!(measured_for.steps <= model.defaults().steps);
        }
    }

    /// Another place is what a resume takes up last; other words for the same are taken up at once.
    #[test]
    fn the_embedded_models_tables_tell_changes_apart() {
        let model = storybook();
        let embedder = for_model(&model).unwrap();
        let source = "a small red house on the left in the snow at night";
        for table in tables_of(&model).unwrap() {
            let bound = |wanted: &str| {
                let content = |prompt: &str| Content::of(prompt, &[0; 16]);
                let difference = Difference::between(&content(source), &content(wanted));
                let (a, b) = (embedder.embed(wanted).unwrap(), embedder.embed(source).unwrap());
                table.bounds(&a, &b, &difference).last().unwrap().1
            };
            let reworded = bound("a tiny red cottage on the left side in the snow by night");
            let moved = bound("a small red house on the right in the snow at night");
            assert!(moved > 1.3 * reworded, "{reworded} {moved}");
        }
    }

    #[test]
    fn a_table_of_other_weights_is_refused() {
        let model = storybook();
        let text = tables_of(&model).unwrap()[0].to_json().unwrap();
        let weights = model.model().digest().unwrap();
        let error = checked(&text.replace(weights, "0000"), &model).unwrap_err().to_string();
        assert!(error.contains("0000") && error.contains(weights), "{error}");
    }
}
