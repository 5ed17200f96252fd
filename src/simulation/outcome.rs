//! What came of a run.

/// What came of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Requests that were made.
    pub requests: usize,
    /// Pictures that were accepted.
    pub accepted: usize,
    /// Times that a request was told to come later. Gateways do not ask again.
    pub later: usize,
    /// Requests that were refused for good.
    pub never: usize,
    /// Pictures that were painted.
    pub painted: usize,
    /// Pictures that were painted in time.
    pub in_time: usize,
    /// Pictures that failed.
    pub failed: usize,
    /// Pictures that were cancelled before they ended.
    pub cancelled: usize,
    /// Sum of the quality of all painted pictures.
    pub quality: f64,
    /// The longest time from a request to the end of its picture, seconds.
    pub longest_seconds: f64,
    /// Messages that the scheduler took.
    pub messages: usize,
    /// Simulated seconds.
    pub seconds: f64,
    /// Simulated seconds until the last request.
    pub loaded_seconds: f64,
    /// Seconds in which workers took steps, of all workers together, until the last request.
    pub busy_seconds: f64,
    /// Seconds that all workers together had, until the last request.
    pub available_seconds: f64,
    /// The most tasks at one time.
    pub most_tasks: usize,
    /// The most tasks that were paused at their workers at one time.
    pub most_paused: usize,
    /// Sum of the first model's price at each full second until the last request, worth per machine second.
    pub price_sum: f64,
    /// The highest price, worth per machine second.
    pub price_highest: f64,
}

impl Outcome {
    /// Adds another run's: what is summed is summed, of maxima the greater one stays.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.accepted += other.accepted;
        self.later += other.later;
        self.never += other.never;
        self.painted += other.painted;
        self.in_time += other.in_time;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.quality += other.quality;
        self.longest_seconds = self.longest_seconds.max(other.longest_seconds);
        self.messages += other.messages;
        self.seconds += other.seconds;
        self.loaded_seconds += other.loaded_seconds;
        self.busy_seconds += other.busy_seconds;
        self.available_seconds += other.available_seconds;
        self.most_tasks = self.most_tasks.max(other.most_tasks);
        self.most_paused = self.most_paused.max(other.most_paused);
        self.price_sum += other.price_sum;
        self.price_highest = self.price_highest.max(other.price_highest);
    }

    /// The part of the painted pictures that were in time.
    pub fn in_time_share(&self) -> f64 {
        self.in_time as f64 / self.painted.max(1) as f64
    }

    /// Mean quality of the painted pictures.
    pub fn mean_quality(&self) -> f64 {
        self.quality / self.painted.max(1) as f64
    }

    /// The part of the workers' time in which they took steps, until the last request.
    pub fn utilisation(&self) -> f64 {
        self.busy_seconds / self.available_seconds.max(1e-9)
    }

    /// Mean price, worth per machine second.
    pub fn mean_price(&self) -> f64 {
        self.price_sum / self.loaded_seconds.floor().max(1.0)
    }
}
