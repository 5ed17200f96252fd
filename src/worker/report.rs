//! What is said of a picture that is not painted to its end.

use std::time::Duration;

use crate::queue::{Failure, JobLease, Lease};
use crate::telemetry;

pub(super) fn span(lease: &Lease) -> tracing::Span {
    let job = lease.job();
    tracing::info_span!("picture", request_id = job.request_id, index = job.index, model = job.model)
}

pub(super) fn cancelled(lease: &Lease, after: Duration) {
    telemetry::cancelled(1);
    span(lease).in_scope(|| tracing::info!(?after, "cancelled"));
}

pub(super) fn fail(lease: Lease, reason: &str) {
    telemetry::failed();
    tracing::error!(reason, request_id = lease.job().request_id, "the picture failed");
    lease.fail(Failure::Engine(reason.to_owned()));
}
