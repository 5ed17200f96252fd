//! A whole installation in simulated time: the scheduler core and the workers' batch choice that production runs, with
//! fake engines, a fake clock and a network that loses, repeats, reorders and delays messages.
//!
//! A run is a function of its seed. [`run`] checks the invariants while it goes and says which one broke: nothing accepted
//! is lost, every end is told once, no floor is undercut, nothing grows beyond its bound, and all that was accepted ends
//! once the faults stop.

mod engine;
mod gateway;
mod ledger;
mod network;
mod world;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

pub use ledger::Violation;

use super::core::Config;
use super::menu::{Measured, Menu, MenuOption};

/// What is simulated.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// The scheduler's configuration.
    pub config: Config,
    /// Workers.
    pub workers: usize,
    /// Rows of a worker's batch.
    pub rows: u32,
    /// Models; each has the menu of [`menu`].
    pub models: usize,
    /// Clients, of which the first asks for as much as all the others.
    pub clients: usize,
    /// Requests.
    pub requests: usize,
    /// Requests per second, as a Poisson process.
    pub arrivals_per_second: f64,
    /// Seconds from a request to its deadline.
    pub deadline_seconds: f64,
    /// What goes wrong.
    pub faults: Faults,
}

/// What goes wrong, until all requests have been made.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// The part of messages that are lost.
    pub lost: f64,
    /// The part of messages that arrive twice.
    pub duplicated: f64,
    /// Seconds that messages take at most. They overtake each other.
    pub delay_seconds: f64,
    /// The part of requests that are cancelled.
    pub cancelled: f64,
    /// Seconds between two deaths of workers, on average; 0: none dies.
    pub death_every_seconds: f64,
    /// Seconds between two stalls of workers, on average; 0: none stalls.
    pub stall_every_seconds: f64,
    /// The part of pictures that kill the worker that paints them.
    pub deadly: f64,
    /// The part of pictures that cannot be painted.
    pub failing: f64,
}

/// What came of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Pictures that were accepted.
    pub accepted: usize,
    /// Requests that were told to come later, and requests that were refused for good.
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
    /// The most tasks at one time.
    pub most_tasks: usize,
    /// The most tasks that waited or were paused at their workers while others stepped.
    pub paused: usize,
}

/// Runs a scenario from a seed.
///
/// # Errors
/// [`Violation`] naming the invariant that broke.
pub fn run(seed: u64, scenario: &Scenario) -> Result<Outcome, Violation> {
    world::World::new(seed, scenario).run()
}

/// The menu of every simulated model: 4 to 32 steps, of which the last third is unguided.
pub fn menu() -> Menu {
    let option = |steps: usize, mean: f64| {
        let at = |noise_level: f64, mean: f64| Measured { noise_level, mean, low: mean, high: mean };
        let own = |share: f64| 1.0 - (1.0 - mean) * share;
        let quality = vec![at(1.0, mean), at(0.6, own(0.4)), at(0.4, own(0.2))];
        MenuOption::even(&steps.to_string(), steps, 1.0 / 3.0, quality)
    };
    let options = [(4, 0.90), (6, 0.94), (8, 0.96), (12, 0.98), (20, 0.995), (32, 1.0)];
    let menu = Menu::new(options.into_iter().map(|(steps, mean)| option(steps, mean)).collect());
    menu.unwrap_or_else(|error| unreachable!("{error}"))
}

/// A number from 0 to 1.
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Seconds to the next event of a Poisson process.
fn exponential(random: &mut ChaCha8Rng, mean: f64) -> f64 {
    -mean * (1.0 - uniform(random)).ln()
}

/// A whole number below `end`.
fn below(random: &mut ChaCha8Rng, end: usize) -> usize {
    ((uniform(random) * end as f64) as usize).min(end.saturating_sub(1))
}

#[cfg(test)]
mod tests;
