//! Scheduler and workers in this process, for `serve` and `generate`.

use std::sync::Arc;

use anyhow::anyhow;
use pentimento_pipelines::Pipeline;
use tokio::runtime::Handle;

use super::{Failure, policy_json};
use crate::api::admin::PlanPolicy;
use crate::config::Config;
use crate::gateway::{PictureScheduler, ServedModel};
use crate::scheduler::core::{Config as SchedulerConfig, Limits};
use crate::worker::{Fleet, FleetOptions, Pipelines, Stored};

/// A scheduler as the configuration describes it.
///
/// # Errors
/// [`Failure::Misuse`] where there is no such plan policy.
pub fn scheduler(config: &Config) -> Result<PictureScheduler, Failure> {
    let policy: PlanPolicy = policy_json(&config.plan_policy)
        .and_then(serde_json::from_value)
        .map_err(|error| Failure::Misuse(anyhow!("plan_policy: {error}")))?;
    let limits = Limits {
        pictures: config.queue_length,
        pictures_per_client: config.queue_length_per_client,
        pictures_per_request: config.max_n,
        ..Limits::default()
    };
    let config = SchedulerConfig { limits, policy: policy.into(), ..SchedulerConfig::default() };
    Ok(PictureScheduler::new(config))
}

/// Starts the workers of these models, each with what is served of it.
///
/// # Errors
/// No thread is to be had.
pub fn start_workers(
    fleet: FleetOptions,
    models: Vec<(Pipeline, &ServedModel)>,
    stored: Option<Stored>,
    scheduler: &PictureScheduler,
    runtime: &Handle,
) -> std::io::Result<Fleet<Pipelines>> {
    let options = |of: &ServedModel| of.menu.options().iter().map(|option| option.option.clone()).collect();
    let models = models.into_iter().map(|(model, served)| (model, options(served))).collect();
    Fleet::start(fleet, &Arc::new(Pipelines::new(models, stored)), scheduler, runtime)
}
