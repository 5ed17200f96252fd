//! `pentimento serve`: API, admin API and worker in one process.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use pentimento_pipelines::Pipeline;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use super::menus::menus;
use super::open_cache::{cache_directory, open_cache, stored};
use super::workers::{PictureScheduler, scheduler, start_workers};
use super::{ConfigFile, Failure, load_models, use_threads};
use crate::api::admin::{self, Access, Admin};
use crate::api::{App, ConnectionLimits, Keys, Phase, router};
use crate::config::{Config, Flags};
use crate::gateway::webhook::Webhooks;
use crate::gateway::{Catalogue, Gateway, Jobs, Reuse};
use crate::plan::{Frontier, ModelOffer, PlanPolicyConfig, Planner};
use crate::queue::{LocalQueue, QueueLimits};
use crate::worker::{Fleet, FleetOptions, Pipelines};
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
    // The workers' threads are the busy ones; these only talk.
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
    let menus = menus(&config, &models)?;
    let scheduler = scheduler(&config)?;
    for (model, menu) in models.iter().zip(&menus) {
        let offered = menu.offered(model.schedule(), model.defaults().guidance_scale)?;
        scheduler.set_menu(model.id().into(), offered);
    }
    let fleet = FleetOptions {
        workers: config.workers,
        threads: config.threads,
        rows: config.max_batch_rows as u32,
        warm_up: true,
    };
    let stored = stored(&config, &reuse);
    let models = models.into_iter().zip(&menus).collect();
    let workers = start_workers(fleet, models, Some(stored), &scheduler, &Handle::current())?;
    let gateway = Gateway::new(catalogue, Some(Arc::clone(&reuse)), planner, &config, queue.clone());
    let gateway = Arc::new(gateway);
    let (phase, phases) = watch::channel(Phase::Starting);
    let jobs = Arc::new(Jobs::new(&config, queue.clone(), webhooks));
    tokio::spawn(keep_metrics(metrics.clone(), Arc::clone(&reuse), Arc::clone(&jobs), scheduler.clone()));
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
        outcome = live(workers, &scheduler, phase, drain).await;
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

/// The old gateway's planner, until it submits to the scheduler.
fn planner(config: &Config, models: &[Pipeline]) -> Result<Planner, Failure> {
    let offer = |model: &Pipeline| {
        let (steps, size) = (model.defaults().steps.min(config.max_steps), model.defaults().size);
        let offer = ModelOffer { steps, size, frontier: Frontier::flat(steps).into(), measured: false };
        (model.id().to_owned(), offer)
    };
    let policy: PlanPolicyConfig = serde_json::from_value(serde_json::json!({ "policy": "adaptive" }))?;
    let models = models.iter().map(offer).collect();
    Planner::new(models, config.max_batch_rows, None, policy)
        .map_err(|error| Failure::Misuse(anyhow!("plan_policy: {error}")))
}

/// From start to the end of drain. Afterwards nothing is painted any more, and the listeners of what is left heard so.
async fn live(
    mut workers: Fleet<Pipelines>,
    scheduler: &PictureScheduler,
    phase: watch::Sender<Phase>,
    drain: Duration,
) -> Result<(), Failure> {
    let warm = workers.warm();
    let mut asked_to_stop = std::pin::pin!(stop_signal());
    let outcome: Result<(), Failure> = tokio::select! {
        reason = &mut asked_to_stop => reason.map_err(Failure::from),
        () = workers.died() => Err(anyhow!("a worker's thread panicked").into()),
        () = tell_health(&workers, warm, &phase) => Ok(()),
    };
    phase.send_replace(Phase::Draining);
    scheduler.close();
    if outcome.is_ok() {
        let tasks = || scheduler.load().tasks;
        tracing::info!(tasks = tasks(), "shutting down: finishing what was accepted");
        tokio::select! {
            () = scheduler.idle() => {}
            () = tokio::time::sleep(drain) => tracing::warn!(tasks = tasks(), "drain time is over"),
            _ = stop_signal() => tracing::warn!(tasks = tasks(), "asked again: not finishing"),
        }
    }
    scheduler.stop();
    // The work in hand is ended, unless it hangs.
    let joined = tokio::task::spawn_blocking(|| workers.join());
    if tokio::time::timeout(JOIN_PATIENCE, joined).await.is_err() {
        tracing::warn!("a worker's thread hangs");
    }
    outcome
}

/// For how long the end of the work in hand is waited for.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);

/// Says when the workers are ready, and when one of their steps hangs. Never resolves: workers whose first steps failed
/// stay unready, and fail the pictures that they are asked for.
async fn tell_health(
    workers: &Fleet<Pipelines>,
    warm: impl Future<Output = Result<(), String>>,
    phase: &watch::Sender<Phase>,
) {
    match warm.await {
        Ok(()) => {
            phase.send_replace(Phase::Ready);
            tracing::info!("ready");
        }
        Err(why) => tracing::error!(why, "the first steps failed: the server stays unready"),
    }
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        every.tick().await;
        let hangs = workers.hangs();
        phase.send_if_modified(|phase| {
            let now = match (*phase, hangs) {
                (Phase::Ready, true) => Phase::Hanging,
                (Phase::Hanging, false) => Phase::Ready,
                (other, _) => other,
            };
            std::mem::replace(phase, now) != now
        });
    }
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

/// Histograms keep every sample until they are summed up; cache, jobs and scheduler count by themselves.
async fn keep_metrics<A: Send + Sync + 'static>(
    metrics: metrics_exporter_prometheus::PrometheusHandle,
    reuse: Arc<Reuse>,
    jobs: Arc<Jobs<A>>,
    scheduler: PictureScheduler,
) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        every.tick().await;
        telemetry::cache(&reuse.cache().stats());
        telemetry::queue_length(scheduler.waiting());
        telemetry::left(scheduler.cancelled());
        telemetry::jobs(jobs.sweep().map(|(status, count)| (status.name(), count)));
        metrics.run_upkeep();
    }
}
