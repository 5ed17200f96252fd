//! Logs and metrics: how lines are written, and every metric by name.

use std::io::IsTerminal;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use pentimento_cache::{Decision, Stats};
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::queue::{Hit, Reused};

const REQUESTS: &str = "pentimento_http_requests_total";
const REQUEST_SECONDS: &str = "pentimento_http_request_duration_seconds";
const QUEUE_LENGTH: &str = "pentimento_queue_length";
const QUEUE_SECONDS: &str = "pentimento_queue_wait_seconds";
const PICTURES: &str = "pentimento_pictures_total";
const PICTURE_SECONDS: &str = "pentimento_picture_duration_seconds";
const FAILED: &str = "pentimento_failed_total";
const CANCELLED: &str = "pentimento_cancelled_total";
const STEPS: &str = "pentimento_steps_total";
const STEP_SECONDS: &str = "pentimento_step_duration_seconds";
const BATCH_ROWS: &str = "pentimento_batch_rows";
const PREDICTION_ERROR: &str = "pentimento_step_prediction_error_ratio";
const ARRIVAL_RATE: &str = "pentimento_arrival_rate";
const PLAN_STEPS: &str = "pentimento_plan_steps";
const REPLANNED: &str = "pentimento_replanned_total";
const JOINED: &str = "pentimento_joined_total";
const OVERLOADED: &str = "pentimento_overloaded_total";
const HANGING_STEPS: &str = "pentimento_hanging_steps_total";
const JOBS: &str = "pentimento_jobs";
const WEBHOOKS: &str = "pentimento_webhooks_total";
const LOOK_UPS: &str = "pentimento_cache_lookups_total";
const LOOK_UP_SECONDS: &str = "pentimento_cache_lookup_duration_seconds";
const LOADS: &str = "pentimento_cache_loads_total";
const LOAD_SECONDS: &str = "pentimento_cache_load_duration_seconds";
const HITS: &str = "pentimento_cache_hits_total";
const SHOWN: &str = "pentimento_cache_shown_total";
const STEPS_SKIPPED: &str = "pentimento_steps_skipped_total";
const CACHE_ENTRIES: &str = "pentimento_cache_entries";
const CACHE_BYTES: &str = "pentimento_cache_bytes";
const CACHE_MEMORY_BYTES: &str = "pentimento_cache_memory_bytes";
const CACHE_QUEUED: &str = "pentimento_cache_queued";
const CACHE_INSERT_DROPS: &str = "pentimento_cache_insert_drops_total";
const CACHE_EVICTIONS: &str = "pentimento_cache_evictions_total";
const CACHE_FAILURES: &str = "pentimento_cache_failures_total";

/// Starts writing logs to stderr.
///
/// # Errors
/// Where the filter does not parse, or logs are being written already.
pub fn init_logs(filter: &str, format: LogFormat) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::try_new(filter)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    }
}

/// Starts counting.
///
/// # Errors
/// Where metrics are being counted already.
pub fn init_metrics() -> Result<PrometheusHandle, BuildError> {
    let requests = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
    let steps = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
    let cache = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];
    let rows = [1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0];
    let errors = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0];
    let handle = PrometheusBuilder::new()
        .set_buckets(&requests)?
        .set_buckets_for_metric(Matcher::Full(STEP_SECONDS.to_owned()), &steps)?
        .set_buckets_for_metric(Matcher::Full(LOOK_UP_SECONDS.to_owned()), &cache)?
        .set_buckets_for_metric(Matcher::Full(LOAD_SECONDS.to_owned()), &cache)?
        .set_buckets_for_metric(Matcher::Full(BATCH_ROWS.to_owned()), &rows)?
        .set_buckets_for_metric(Matcher::Full(PLAN_STEPS.to_owned()), &rows)?
        .set_buckets_for_metric(Matcher::Full(PREDICTION_ERROR.to_owned()), &errors)?
        .install_recorder()?;
    describe_counter!(REQUESTS, "HTTP requests answered, by route, method and status");
    describe_histogram!(REQUEST_SECONDS, "Time from a request's head to the end of its answer's head");
    describe_gauge!(QUEUE_LENGTH, "Pictures that wait");
    describe_histogram!(QUEUE_SECONDS, "Time a picture waited for its turn");
    describe_counter!(PICTURES, "Pictures painted");
    describe_histogram!(PICTURE_SECONDS, "Time from a picture's turn to its file");
    describe_counter!(FAILED, "Pictures that the engine failed at");
    describe_counter!(CANCELLED, "Pictures that nobody waited for any more, waiting or half painted");
    describe_counter!(STEPS, "Steps taken, of every picture of a batch");
    describe_histogram!(STEP_SECONDS, "Time of a batch's step");
    describe_histogram!(BATCH_ROWS, "Rows of a batch");
    describe_histogram!(PREDICTION_ERROR, "How far off a step's predicted time was, relative to it");
    describe_gauge!(ARRIVAL_RATE, "Pictures asked for that take steps, per second");
    describe_histogram!(PLAN_STEPS, "Steps of the plan that a picture got");
    describe_counter!(
        REPLANNED,
        "Pictures in flight that got another plan, by whether it has fewer steps or more"
    );
    describe_counter!(JOINED, "Pictures that were being painted for the same client already");
    describe_counter!(OVERLOADED, "Requests refused because they could not be painted in time");
    describe_counter!(HANGING_STEPS, "Steps that took ten times their predicted time, and a minute at least");
    describe_gauge!(JOBS, "Jobs kept, by status");
    describe_counter!(WEBHOOKS, "Webhooks, by what became of them");
    describe_counter!(
        LOOK_UPS,
        "Look-ups in the cache, by what was decided; `failed` where it could not be asked"
    );
    describe_histogram!(LOOK_UP_SECONDS, "Time of a request's look-ups, embedding included");
    describe_counter!(LOADS, "Stored states asked for, by whether they came");
    describe_histogram!(LOAD_SECONDS, "Time a picture waited for its stored state");
    describe_counter!(SHOWN, "Whole stored pictures shown: held decoded, or decoded for it");
    describe_counter!(HITS, "Pictures made from a stored state, by outcome and share of the plan skipped");
    describe_counter!(STEPS_SKIPPED, "Steps that stored states spared");
    describe_gauge!(CACHE_ENTRIES, "Pictures that the cache holds states of");
    describe_gauge!(CACHE_BYTES, "Bytes of states in the cache's store");
    describe_gauge!(CACHE_MEMORY_BYTES, "Bytes of states in memory");
    describe_gauge!(CACHE_QUEUED, "Pictures that wait to be written to the cache");
    describe_counter!(CACHE_INSERT_DROPS, "Pictures not kept because too many waited to be written");
    describe_counter!(CACHE_EVICTIONS, "States evicted, and entries that were too old");
    describe_counter!(CACHE_FAILURES, "Failures of the cache's index and store, damaged states among them");
    queue_length(0);
    counter!(CANCELLED).absolute(0);
    counter!(FAILED).absolute(0);
    counter!(HANGING_STEPS).absolute(0);
    Ok(handle)
}

/// A request was answered.
pub fn request(route: &str, method: &str, status: u16, time: Duration) {
    let (route, method) = (route.to_owned(), method.to_owned());
    histogram!(REQUEST_SECONDS, "route" => route.clone()).record(time.as_secs_f64());
    counter!(REQUESTS, "route" => route, "method" => method, "status" => status.to_string()).increment(1);
}

/// So many pictures wait.
pub fn queue_length(pictures: usize) {
    gauge!(QUEUE_LENGTH).set(pictures as f64);
}

/// Pictures that nobody waits for any more.
pub fn cancelled(pictures: usize) {
    counter!(CANCELLED).increment(pictures as u64);
}

/// The engine failed at a picture.
pub fn failed() {
    counter!(FAILED).increment(1);
}

/// A batch of so many pictures, and rows, took a step.
pub fn step(model: &str, pictures: usize, rows: usize, time: Duration) {
    counter!(STEPS, "model" => model.to_owned()).increment(pictures as u64);
    histogram!(STEP_SECONDS, "model" => model.to_owned()).record(time.as_secs_f64());
    histogram!(BATCH_ROWS, "model" => model.to_owned()).record(rows as f64);
}

/// A step took longer, or less long (below 0), than predicted, relative to the prediction.
pub fn prediction_error(error: f64) {
    histogram!(PREDICTION_ERROR).record(error.abs());
}

/// Pictures come at this rate per second.
pub fn arrival_rate(rate: f64) {
    gauge!(ARRIVAL_RATE).set(rate);
}

/// A picture in flight goes on with another plan.
pub fn replanned(before: usize, after: usize) {
    counter!(REPLANNED, "to" => if after < before { "fewer" } else { "more" }).increment(1);
}

/// A request's picture is being painted already, for the same client.
pub fn joined() {
    counter!(JOINED).increment(1);
}

/// A request was refused because it could not be painted in time.
pub fn overloaded() {
    counter!(OVERLOADED).increment(1);
}

/// A model finished a picture, so long after it was assigned.
pub fn picture(model: &str, time: Duration, steps: usize) {
    histogram!(PLAN_STEPS, "model" => model.to_owned()).record(steps as f64);
    counter!(PICTURES, "model" => model.to_owned()).increment(1);
    histogram!(PICTURE_SECONDS, "model" => model.to_owned()).record(time.as_secs_f64());
}

/// A step hangs.
pub fn step_hangs() {
    counter!(HANGING_STEPS).increment(1);
}

/// The listeners of so many pictures left before their end, since the start.
pub fn left(pictures: u64) {
    counter!(CANCELLED).absolute(pictures);
}

/// So many jobs are kept in each status, by its name.
pub fn jobs(counts: impl IntoIterator<Item = (&'static str, usize)>) {
    for (status, jobs) in counts {
        gauge!(JOBS, "status" => status).set(jobs as f64);
    }
}

/// A webhook was `delivered`, `failed` in all its tries, was `refused` because of its address, or was `dropped` because
/// too many were being sent.
pub fn webhook(outcome: &'static str) {
    counter!(WEBHOOKS, "outcome" => outcome).increment(1);
}

/// A picture was looked up in the cache.
pub fn looked_up(decision: &Decision) {
    let decision = match decision {
        Decision::Miss { .. } => "miss",
        Decision::State { .. } => Hit::State.name(),
        Decision::Semantic { .. } => Hit::Semantic.name(),
        Decision::Exact { .. } => Hit::Exact.name(),
    };
    counter!(LOOK_UPS, "decision" => decision).increment(1);
}

/// The cache could not be asked.
pub fn look_up_failed() {
    counter!(LOOK_UPS, "decision" => "failed").increment(1);
}

/// A request's look-ups are done.
pub fn look_up_time(time: Duration) {
    histogram!(LOOK_UP_SECONDS).record(time.as_secs_f64());
}

/// A picture waited for its state, which came or did not.
pub fn state_loaded(time: Duration, came: bool) {
    counter!(LOADS, "result" => if came { "ok" } else { "failed" }).increment(1);
    histogram!(LOAD_SECONDS).record(time.as_secs_f64());
}

/// A picture is finished that skipped so many of its plan's steps.
pub fn reused(reused: Option<&Reused>, skipped: usize, steps: usize) {
    let Some(Reused { hit, .. }) = reused else { return };
    // In twentieths: NIRVANA's K of 50 are even ones.
    let share = (20 * skipped).checked_div(steps).unwrap_or(0) as f64 / 20.0;
    counter!(HITS, "outcome" => hit.name(), "share" => format!("{share:.2}")).increment(1);
    counter!(STEPS_SKIPPED).increment(skipped as u64);
}

/// A whole stored picture was shown, which was `held` decoded or had to be `decoded`.
pub fn shown(how: &'static str) {
    counter!(SHOWN, "picture" => how).increment(1);
}

/// How the cache is doing.
pub fn cache(stats: &Stats) {
    gauge!(CACHE_ENTRIES).set(stats.entries as f64);
    gauge!(CACHE_BYTES).set(stats.bytes as f64);
    gauge!(CACHE_MEMORY_BYTES).set(stats.memory_bytes as f64);
    gauge!(CACHE_QUEUED).set(stats.queued as f64);
    counter!(CACHE_INSERT_DROPS).absolute(stats.insert_drops);
    counter!(CACHE_EVICTIONS).absolute(stats.evictions);
    counter!(CACHE_FAILURES).absolute(stats.failures);
}
