//! `pentimento serve`: API, admin API and worker in one process.

use std::future::pending;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use pentimento_pipelines::{Defaults, Pipeline};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use super::frontier::{checked, frontier_of};
use super::open_cache::{cache_directory, open_cache, stored};
use super::{ConfigFile, Failure, load_models, policy_json, use_threads};
use crate::api::admin::{self, Access, Admin};
use crate::api::{App, ConnectionLimits, Keys, Phase, router};
use crate::config::{Config, Flags};
use crate::gateway::webhook::Webhooks;
use crate::gateway::{Catalogue, Gateway, Jobs, Reuse};
use crate::plan::{Frontier, FrontierFile, ModelOffer, PlanPolicyConfig, Planner};
use crate::queue::{JobQueue, LocalQueue, QueueLimits};
use crate::worker::{self, Worker};
use crate::{api, telemetry};

/// What `serve` is given.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    file: ConfigFile,
}

const EXAMPLES: &str = "\
Every option can also be set by PENTIMENTO_<OPTION> and, with underscores, in the TOML file of --config.

Examples:
  pentimento serve
  pentimento serve --listen 127.0.0.1:9000 --model storybook --model ./my-diffusers-folder
  echo \"$(printf %s my-secret-key | sha256sum | cut -d' ' -f1) studio\" > keys
  pentimento serve --listen 0.0.0.0:8080 --api-keys-file keys --public-url https://paint.example.org

  curl http://127.0.0.1:8080/v1/images/generations -H 'Content-Type: application/json' \\
    -d '{\"prompt\": \"a red house in the snow\", \"seed\": 7}'";

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// [`Failure`], where it cannot start.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = Config::load(arguments.file.config.as_deref(), &arguments.flags)?;
    telemetry::init_logs(&config.log, config.log_format).map_err(|e| Failure::Misuse(anyhow!("log: {e}")))?;
    let keys = Keys::load(&config)?;
    if keys.is_empty() && !config.allow_anonymous && !config.listen.ip().is_loopback() {
        let reason = "without API keys only loopback addresses can be listened on; \
            give --api-keys-file, or --allow-anonymous if everybody may paint";
        return Err(Failure::Misuse(anyhow!("listen: {}: {reason}", config.listen)));
    }
    let access = Access::new(&config)?;
    let webhooks = Webhooks::new(&config)?;
    use_threads(config.threads)?;
    // The painting thread is the busy one; these only talk.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(serve(config, keys, access, webhooks));
    // A read from a store that hangs would be waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(config: Config, keys: Keys, access: Access, webhooks: Webhooks) -> Result<(), Failure> {
    let metrics = telemetry::init_metrics()?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    let admin_listener = TcpListener::bind(config.admin_listen).await.with_context(|| {
        let address = config.admin_listen;
        format!("cannot listen on {address} for the admin API; --admin-listen names another address")
    })?;
    let admin_address = admin_listener.local_addr()?;
    let models = load_models(&config.model, config.precision)?;
    let catalogue =
        Catalogue::new(models.clone(), &config.aliases.0).map_err(|e| Failure::Misuse(e.into()))?;
    let limits =
        QueueLimits { length: config.queue_length, length_per_client: config.queue_length_per_client };
    let queue = LocalQueue::new(limits);
    let reuse = Arc::new(open_cache(&config, &cache_directory(&config)?, &models).await?);
    let planner = Arc::new(planner(&config, &models)?);
    let stored = stored(&config, &reuse, Handle::current());
    let worker = worker::spawn(models, queue.clone(), Some(stored), Arc::clone(&planner))?;
    let gateway = Gateway::new(catalogue, Some(Arc::clone(&reuse)), planner, &config, queue.clone());
    let gateway = Arc::new(gateway);
    let (phase, phases) = watch::channel(Phase::Starting);
    let jobs = Arc::new(Jobs::new(&config, queue.clone(), webhooks));
    tokio::spawn(keep_metrics(metrics.clone(), Arc::clone(&reuse), Arc::clone(&jobs)));
    let admin = Admin::new(&config, access, Arc::clone(&gateway), Arc::clone(&reuse));
    let app = App::new(&config, address, gateway, Arc::clone(&jobs), keys, phases, metrics);
    let drain = Duration::from_secs(config.drain_seconds);
    let connections = ConnectionLimits {
        connections: config.max_connections,
        head: Duration::from_secs(config.read_timeout_seconds),
        piece: Duration::from_secs(config.write_timeout_seconds),
        end: Duration::from_secs(5),
    };
    // Whoever closed stdout does not want to know.
    let _ = writeln!(std::io::stdout(), "listening on http://{address}\nadmin on http://{admin_address}");
    let mut outcome = Ok(());
    let (ends, ended) = oneshot::channel::<()>();
    let life = async {
        outcome = live(worker, &queue, phase, drain).await;
        // However it ended: what is left is cancelled, and whoever waits hears of it. The painting thread
        // sees it before its next step.
        queue.stop();
        drop(ends);
    };
    tokio::join!(
        api::run(listener, router(app), connections, life),
        api::run(admin_listener, admin::router(admin), connections, async { _ = ended.await }),
    );
    tokio::select! {
        () = jobs.close() => {}
        _ = stop_signal() => tracing::warn!("asked again: not delivering webhooks"),
    }
    if let Err(error) = reuse.cache().close().await {
        tracing::warn!(%error, "the cache did not write all that it was to keep");
    }
    tracing::info!("stopped");
    outcome
}

/// Who decides how many steps pictures get.
fn planner(config: &Config, models: &[Pipeline]) -> Result<Planner, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::Misuse(anyhow!("plan_policy: {error}"));
    let policy = policy_json(&config.plan_policy).and_then(serde_json::from_value);
    let policy: PlanPolicyConfig = policy.map_err(|error| wrong(&error))?;
    let given = read_frontiers(&config.frontier, models).map_err(Failure::Misuse)?;
    let offer = |model: &Pipeline| {
        let Defaults { steps, size, .. } = *model.defaults();
        let steps = steps.min(config.max_steps);
        let measured = given.iter().find(|file| file.measured_for.model == model.id()).cloned();
        let measured = measured.or_else(|| {
            frontier_of(model).unwrap_or_else(|error| {
                tracing::warn!(error = format!("{error:#}"), "a model's own frontier is not used");
                None
            })
        });
        let frontier = measured.as_ref().map_or_else(|| Frontier::flat(steps), Frontier::from);
        let offer = ModelOffer { steps, size, frontier: frontier.into(), measured: measured.is_some() };
        (model.id().to_owned(), offer)
    };
    let objective = Some(Duration::from_millis(config.latency_objective_ms)).filter(|time| !time.is_zero());
    let models = models.iter().map(offer).collect();
    Planner::new(models, config.max_batch_rows, objective, policy).map_err(|error| wrong(&error))
}

/// The frontiers that the configuration names, each measured of the weights of one of these models.
fn read_frontiers(files: &[PathBuf], models: &[Pipeline]) -> anyhow::Result<Vec<FrontierFile>> {
    let read = |path: &PathBuf| {
        let context = || format!("frontier: {}", path.display());
        let text = std::fs::read_to_string(path).with_context(context)?;
        let model = FrontierFile::from_json(&text).with_context(context)?.measured_for.model;
        let model = models.iter().find(|known| known.id() == model);
        let model = model.ok_or_else(|| anyhow!("it was measured of a model that is not served"));
        checked(&text, model.with_context(context)?).with_context(context)
    };
    files.iter().map(read).collect()
}

/// From start to the end of drain.
async fn live(
    worker: Worker,
    queue: &LocalQueue,
    phase: watch::Sender<Phase>,
    drain: Duration,
) -> Result<(), Failure> {
    let Worker { warm, mut done } = worker;
    let mut asked_to_stop = std::pin::pin!(stop_signal());
    let warmed = async {
        warm.await.context("the painting thread died")?.context("the warm-up step failed")?;
        phase.send_replace(Phase::Ready);
        tracing::info!("ready");
        anyhow::Ok(())
    };
    tokio::select! {
        biased; // a failed warm-up ends the thread too, and says more
        reason = &mut asked_to_stop => reason?,
        failure = async { match warmed.await { Ok(()) => pending().await, Err(e) => e } } => {
            return Err(failure.into());
        }
        _ = &mut done => return Err(anyhow!("the painting thread died").into()),
    }
    phase.send_replace(Phase::Draining);
    queue.close();
    tracing::info!(waiting = queue.len(), "shutting down: finishing what was accepted");
    let again = stop_signal();
    tokio::select! {
        _ = &mut done => {}
        () = tokio::time::sleep(drain) => tracing::warn!(waiting = queue.len(), "drain time is over"),
        _ = again => tracing::warn!(waiting = queue.len(), "asked again: not finishing"),
    }
    Ok(())
}

/// Resolves on SIGTERM and SIGINT.
async fn stop_signal() -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Histograms keep every sample until somebody sums them up; the cache and the jobs count by themselves.
async fn keep_metrics<A: Send + Sync + 'static>(
    metrics: metrics_exporter_prometheus::PrometheusHandle,
    reuse: Arc<Reuse>,
    jobs: Arc<Jobs<A>>,
) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        every.tick().await;
        telemetry::cache(&reuse.cache().stats());
        telemetry::jobs(jobs.sweep().map(|(status, count)| (status.name(), count)));
        metrics.run_upkeep();
    }
}
