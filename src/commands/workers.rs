//! Scheduler and workers in this process, for `serve` and `generate`.

use std::sync::Arc;

use anyhow::anyhow;
use pentimento_pipelines::Pipeline;
use tokio::runtime::Handle;

use super::{Failure, policy_json};
use crate::config::Config;
use crate::menu::MenuFile;
use crate::picture::{FinishedPicture, PaintTask};
use crate::scheduler::core::{Config as SchedulerConfig, Limits, Policy};
use crate::scheduler::local::LocalScheduler;
use crate::worker::{Fleet, FleetOptions, Pipelines, Stored};

/// The scheduler of pictures.
pub type PictureScheduler = LocalScheduler<PaintTask, FinishedPicture>;

/// A scheduler as the configuration describes it.
///
/// # Errors
/// [`Failure::Misuse`] where there is no such plan policy.
pub fn scheduler(config: &Config) -> Result<PictureScheduler, Failure> {
    let policy: Policy = policy_json(&config.plan_policy)
        .and_then(serde_json::from_value)
        .map_err(|error| Failure::Misuse(anyhow!("plan_policy: {error}")))?;
    let limits = Limits {
        pictures: config.queue_length,
        pictures_per_client: config.queue_length_per_client,
        pictures_per_request: config.max_n,
        ..Limits::default()
    };
    Ok(LocalScheduler::new(SchedulerConfig { limits, policy, ..SchedulerConfig::default() }))
}

/// Starts the workers of these models, each with its menu.
///
/// # Errors
/// No thread is to be had.
pub fn start_workers(
    options: FleetOptions,
    models: Vec<(Pipeline, &MenuFile)>,
    stored: Option<Stored>,
    scheduler: &PictureScheduler,
    runtime: &Handle,
) -> std::io::Result<Fleet<Pipelines>> {
    let options_of = |menu: &MenuFile| menu.options().iter().map(|option| option.option.clone()).collect();
    let models = models.into_iter().map(|(model, menu)| (model, options_of(menu))).collect();
    Fleet::start(options, &Arc::new(Pipelines::new(models, stored)), scheduler, runtime)
}
