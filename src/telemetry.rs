//! Logs and metrics: how lines are written, and every metric by name.

use std::io::IsTerminal;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

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
    let handle = PrometheusBuilder::new()
        .set_buckets(&requests)?
        .set_buckets_for_metric(Matcher::Full(STEP_SECONDS.to_owned()), &steps)?
        .install_recorder()?;
    describe_counter!(REQUESTS, "HTTP requests answered, by route, method and status");
    describe_histogram!(REQUEST_SECONDS, "Time from a request's head to the end of its answer's head");
    describe_gauge!(QUEUE_LENGTH, "Pictures that wait");
    describe_histogram!(QUEUE_SECONDS, "Time a picture waited for its turn");
    describe_counter!(PICTURES, "Pictures painted");
    describe_histogram!(PICTURE_SECONDS, "Time from a picture's turn to its file");
    describe_counter!(FAILED, "Pictures that the engine failed at");
    describe_counter!(CANCELLED, "Pictures that nobody waited for any more, waiting or half painted");
    describe_counter!(STEPS, "Steps taken");
    describe_histogram!(STEP_SECONDS, "Time of a step");
    queue_length(0);
    counter!(CANCELLED).absolute(0);
    counter!(FAILED).absolute(0);
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

/// A model took a step.
pub fn step(model: &str, time: Duration) {
    counter!(STEPS, "model" => model.to_owned()).increment(1);
    histogram!(STEP_SECONDS, "model" => model.to_owned()).record(time.as_secs_f64());
}

/// A model finished a picture.
pub fn picture(model: &str, waited: Duration, time: Duration) {
    counter!(PICTURES, "model" => model.to_owned()).increment(1);
    histogram!(QUEUE_SECONDS).record(waited.as_secs_f64());
    histogram!(PICTURE_SECONDS, "model" => model.to_owned()).record(time.as_secs_f64());
}
