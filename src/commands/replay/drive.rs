//! The open loop: requests leave at their times, whatever the server does.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use indicatif::ProgressBar;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::client::{Client, Reply};
use super::row::{Fate, Row, judged};
use crate::trace::{Arrival, Request};

/// The longest `Retry-After` that is obeyed.
const MAX_RETURN: Duration = Duration::from_secs(600);

/// How requests are sent and judged.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Requests under way at a time.
    pub max_in_flight: usize,
    /// Time for an answer.
    pub timeout: Duration,
    /// Milliseconds, in place of each answer's own.
    pub objective_ms: Option<f64>,
    /// Whether a refused request comes back, once.
    pub obey_retry_after: bool,
}

/// Sends all; a row for each, in their order.
///
/// # Errors
/// A request that cannot be written as JSON, or a bug.
pub async fn drive(
    client: Client,
    trace: &[Request],
    arrivals: &[Arrival],
    settings: Settings,
    progress: &ProgressBar,
) -> anyhow::Result<Vec<Row>> {
    let places = Arc::new(Semaphore::new(settings.max_in_flight));
    let sender = Arc::new(Sender { client, settings, places, start: Instant::now() });
    let mut under_way = JoinSet::new();
    let mut rows: Vec<(usize, Row)> = Vec::with_capacity(arrivals.len());
    let mut refused = 0;
    let mut ended = |rows: &mut Vec<(usize, Row)>, (number, row): (usize, Row), left: usize| {
        refused += usize::from(row.fate == Fate::Refused);
        progress.set_message(format!("{left} under way, {refused} refused"));
        rows.push((number, row));
    };
    for (number, arrival) in arrivals.iter().enumerate() {
        let request = &trace[arrival.request];
        let row = Row {
            line: arrival.request + 1,
            class: request.class.clone(),
            at: arrival.at,
            lag: None,
            returned: None,
            ended: arrival.at,
            fate: Fate::Unsent,
            status: None,
            error: None,
            latency_ms: None,
            pentimento: None,
            fidelity: None,
            clip_score: None,
        };
        let body = Bytes::from(request.body()?);
        sleep_until(sender.start + Duration::from_secs_f64(arrival.at)).await;
        let sender = Arc::clone(&sender);
        under_way.spawn(async move { (number, sender.fulfil(row, body, number).await) });
        progress.inc(1);
        while let Some(joined) = under_way.try_join_next() {
            ended(&mut rows, joined?, under_way.len());
        }
    }
    while let Some(joined) = under_way.join_next().await {
        ended(&mut rows, joined?, under_way.len());
    }
    rows.sort_by_key(|(number, _)| *number);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

struct Sender {
    client: Client,
    settings: Settings,
    places: Arc<Semaphore>,
    start: Instant,
}

impl Sender {
    /// Sends a request that is due now, and again if it is told to come back.
    async fn fulfil(&self, mut row: Row, body: Bytes, number: usize) -> Row {
        let after = self.attempt(&mut row, body.clone(), number).await;
        if let Some(after) = after.filter(|after| self.settings.obey_retry_after && *after <= MAX_RETURN) {
            sleep(after).await;
            row.returned = Some(self.now());
            self.attempt(&mut row, body, number).await;
        }
        row
    }

    /// One sending. When to come back, if the server says so.
    async fn attempt(&self, row: &mut Row, body: Bytes, number: usize) -> Option<Duration> {
        (row.status, row.error) = (None, None);
        let Ok(_place) = self.places.try_acquire() else {
            row.fate = Fate::Unsent;
            row.error = Some(format!("{} requests were under way", self.settings.max_in_flight));
            row.ended = self.now();
            return None;
        };
        row.lag.get_or_insert(self.now() - row.at);
        let begun = Instant::now();
        let reply = timeout(self.settings.timeout, self.client.send(body, number)).await;
        let latency_ms = begun.elapsed().as_secs_f64() * 1e3;
        row.ended = self.now();
        let mut after = None;
        match reply {
            Err(_) => {
                row.fate = Fate::TimedOut;
                row.error = Some(format!("no answer within {} s", self.settings.timeout.as_secs_f64()));
            }
            Ok(Err(error)) => {
                row.fate = Fate::Failed;
                row.error = Some(error.to_string());
            }
            Ok(Ok(Reply::Pictures(provenance))) => {
                row.status = Some(200);
                row.fate = judged(latency_ms, self.settings.objective_ms, &provenance);
                row.latency_ms = Some(latency_ms);
                row.pentimento = Some(provenance);
            }
            Ok(Ok(Reply::Refused(when))) => {
                row.status = Some(429);
                row.fate = Fate::Refused;
                after = when;
            }
            Ok(Ok(Reply::TimedOut)) => {
                row.status = Some(504);
                row.fate = Fate::TimedOut;
            }
            Ok(Ok(Reply::Failed(status, told))) => {
                row.status = Some(status.as_u16());
                row.fate = Fate::Failed;
                row.error = Some(told);
            }
        }
        after
    }

    fn now(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}
