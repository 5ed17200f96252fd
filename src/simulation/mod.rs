//! A whole installation in simulated time: the scheduler core and the batch choice that production runs, with fake
//! engines, a fake clock and a network that loses, repeats, reorders and delays messages.
//!
//! A run is a function of its seed. [`run`] checks the invariants while it goes and says which one broke: nothing accepted
//! is lost, every end is told once, no floor is undercut, nothing grows beyond its bound, and all that was accepted ends
//! once the faults stop.
//!
//! `scenario` says what is simulated, `gateway` what is asked for, `worker` what a worker does, `agenda` what happens next
//! and what the network does to a message, `ledger` what must never happen, `world` hands each event to its receiver.

mod agenda;
mod gateway;
mod ledger;
mod outcome;
mod scenario;
mod worker;
mod world;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

pub use ledger::Violation;
pub use outcome::Outcome;
pub use scenario::{Drawn, Faults, Machine, Recorded, Requests, Scenario, TIERS, Tier, menu};

/// Runs a scenario from a seed. `progress` is told now and then how many requests were made so far.
///
/// # Errors
/// [`Violation`] naming the invariant that broke.
pub fn run(seed: u64, scenario: &Scenario, progress: &mut dyn FnMut(usize)) -> Result<Outcome, Violation> {
    world::World::new(seed, scenario).run(progress)
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
