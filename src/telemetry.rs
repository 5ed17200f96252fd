//! Logs and metrics: how lines are written, and every metric by name.

use std::io::IsTerminal;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use pentimento_cache::Stats;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::scheduler::core::Load;

const WORKERS: &str = "pentimento_workers";
const RUNNING: &str = "pentimento_running_pictures";
const PRICE: &str = "pentimento_machine_price";
const CACHE_PICTURES: &str = "pentimento_cache_pictures";
const CACHE_PICTURE_MEMORY_BYTES: &str = "pentimento_cache_picture_memory_bytes";
const CACHE_DUPLICATES: &str = "pentimento_cache_duplicates_total";
const CACHE_REPLACEMENTS: &str = "pentimento_cache_replacements_total";
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
const PLAN_STEPS: &str = "pentimento_plan_steps";
const REPLANNED: &str = "pentimento_replanned_total";
const OVERLOADED: &str = "pentimento_overloaded_total";
const HANGING_STEPS: &str = "pentimento_hanging_steps_total";
const JOBS: &str = "pentimento_jobs";
const WEBHOOKS: &str = "pentimento_webhooks_total";
const LOOK_UPS: &str = "pentimento_cache_lookups_total";
const LOOK_UP_SECONDS: &str = "pentimento_cache_lookup_duration_seconds";
const LOADS: &str = "pentimento_cache_loads_total";
const LOAD_SECONDS: &str = "pentimento_cache_load_duration_seconds";
const HITS: &str = "pentimento_cache_hits_total";
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
    let handle = PrometheusBuilder::new()
        .set_buckets(&requests)?
        .set_buckets_for_metric(Matcher::Full(STEP_SECONDS.to_owned()), &steps)?
        .set_buckets_for_metric(Matcher::Full(LOOK_UP_SECONDS.to_owned()), &cache)?
        .set_buckets_for_metric(Matcher::Full(LOAD_SECONDS.to_owned()), &cache)?
        .set_buckets_for_metric(Matcher::Full(BATCH_ROWS.to_owned()), &rows)?
        .set_buckets_for_metric(Matcher::Full(PLAN_STEPS.to_owned()), &rows)?
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
    describe_histogram!(PLAN_STEPS, "Steps of the plan that a picture got");
    describe_counter!(
        REPLANNED,
        "Pictures in flight that got another plan, by whether it has fewer steps or more"
    );
    describe_counter!(OVERLOADED, "Requests refused because they could not be painted in time");
    describe_counter!(HANGING_STEPS, "Steps that took ten times their predicted time, and a minute at least");
    describe_gauge!(JOBS, "Jobs kept, by status");
    describe_counter!(WEBHOOKS, "Webhooks, by what became of them");
    describe_counter!(
        LOOK_UPS,
        "Look-ups in the cache, by what was decided; `failed` where it could not be asked"
    );
    describe_histogram!(LOOK_UP_SECONDS, "Time of a request's look-ups, embedding included");
    describe_counter!(LOADS, "Stored states and pictures asked for, by whether they came");
    describe_histogram!(LOAD_SECONDS, "Time a picture waited for its stored state, or its stored file");
    describe_counter!(
        HITS,
        "Pictures that the cache had a part in, by outcome and share of the plan skipped"
    );
    describe_counter!(STEPS_SKIPPED, "Steps that the cache spared");
    describe_gauge!(CACHE_ENTRIES, "Pictures that the cache holds anything of");
    describe_gauge!(CACHE_PICTURES, "Pictures whose file the cache holds");
    describe_gauge!(CACHE_PICTURE_MEMORY_BYTES, "Bytes of pictures' files in memory");
    describe_counter!(CACHE_DUPLICATES, "Pictures not kept because one as good was kept already");
    describe_counter!(
        CACHE_REPLACEMENTS,
        "Pictures that took the place of a stored one of the same specification"
    );
    describe_gauge!(WORKERS, "Workers that poll");
    describe_gauge!(RUNNING, "Pictures that workers hold");
    describe_gauge!(PRICE, "Price of a second of machine time, in worth, by the first model of its workers");
    describe_gauge!(CACHE_BYTES, "Bytes of states and pictures in the cache's store");
    describe_gauge!(CACHE_MEMORY_BYTES, "Bytes of states in memory");
    describe_gauge!(CACHE_QUEUED, "Pictures that wait to be written to the cache");
    describe_counter!(CACHE_INSERT_DROPS, "Pictures not kept because too many waited to be written");
    describe_counter!(CACHE_EVICTIONS, "States and pictures evicted, and entries that were too old");
    describe_counter!(CACHE_FAILURES, "Failures of the cache's index and store, damaged files among them");
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

/// A picture in flight goes on with another plan.
pub fn replanned(before: usize, after: usize) {
    counter!(REPLANNED, "to" => if after < before { "fewer" } else { "more" }).increment(1);
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

/// What a scheduler has to do, and how many pictures were never begun.
pub fn load(load: &Load, waiting: usize) {
    queue_length(waiting);
    gauge!(WORKERS).set(load.workers as f64);
    gauge!(RUNNING).set(load.running as f64);
    for set in &load.sets {
        if let Some(model) = set.models.first() {
            gauge!(PRICE, "model" => model.as_str().to_owned()).set(set.price);
        }
    }
}

/// A painted picture waited for its turn.
pub fn queue_wait(time: Duration) {
    histogram!(QUEUE_SECONDS).record(time.as_secs_f64());
}

/// The cache had a part in a picture, and spared so many of its steps.
pub fn hit(outcome: &'static str, skipped: usize, steps: usize) {
    // In twentieths: NIRVANA's K of 50 are even ones.
    let share = (20 * skipped).checked_div(steps).unwrap_or(0) as f64 / 20.0;
    counter!(HITS, "outcome" => outcome, "share" => format!("{share:.2}")).increment(1);
    counter!(STEPS_SKIPPED).increment(skipped as u64);
}

/// A picture was looked up in the cache: `miss`, `state`, `semantic` or `exact`.
pub fn looked_up(decision: &'static str) {
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

/// A picture waited for its stored state, or its stored file, which came or did not.
pub fn state_loaded(time: Duration, came: bool) {
    counter!(LOADS, "result" => if came { "ok" } else { "failed" }).increment(1);
    histogram!(LOAD_SECONDS).record(time.as_secs_f64());
}

/// How the cache is doing.
pub fn cache(stats: &Stats) {
    gauge!(CACHE_ENTRIES).set(stats.entries as f64);
    gauge!(CACHE_PICTURES).set(stats.pictures as f64);
    gauge!(CACHE_PICTURE_MEMORY_BYTES).set(stats.picture_memory_bytes as f64);
    counter!(CACHE_DUPLICATES).absolute(stats.duplicates);
    counter!(CACHE_REPLACEMENTS).absolute(stats.replacements);
    gauge!(CACHE_BYTES).set(stats.bytes as f64);
    gauge!(CACHE_MEMORY_BYTES).set(stats.memory_bytes as f64);
    gauge!(CACHE_QUEUED).set(stats.queued as f64);
    counter!(CACHE_INSERT_DROPS).absolute(stats.insert_drops);
    counter!(CACHE_EVICTIONS).absolute(stats.evictions);
    counter!(CACHE_FAILURES).absolute(stats.failures);
}
