//! What is simulated.

use std::sync::Arc;

use crate::scheduler::core::{Config, Limits, Policy};
use crate::scheduler::menu::{Measured, Menu, MenuOption};

/// What is simulated.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// The scheduler's configuration.
    pub config: Config,
    /// The menu of every model.
    pub menu: Arc<Menu>,
    /// How fast workers are.
    pub machine: Machine,
    /// Workers.
    pub workers: usize,
    /// Rows of a worker's batch.
    pub rows: u32,
    /// Models.
    pub models: usize,
    /// How many models fit into a worker's memory; 0: all.
    pub model_places: u32,
    /// What is asked for.
    pub requests: Requests,
    /// Seconds from a request of tier `auto` to its deadline. The other tiers' deadlines are proportional.
    pub deadline_seconds: f64,
    /// What goes wrong.
    pub faults: Faults,
}

/// How long a fake engine takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// Seconds of a step without rows.
    pub step_seconds: f64,
    /// Seconds that each row adds.
    pub row_seconds: f64,
    /// Seconds of encoding a prompt.
    pub encode_seconds: f64,
    /// Seconds from the last step to the file.
    pub finish_seconds: f64,
    /// Seconds until a model is loaded.
    pub load_seconds: f64,
    /// Workers are slower than this by up to so large a part.
    pub spread: f64,
}

impl Default for Machine {
    /// A step of eight rows takes 10 ms.
    fn default() -> Self {
        Self {
            step_seconds: 0.002,
            row_seconds: 0.001,
            encode_seconds: 0.001,
            finish_seconds: 0.005,
            load_seconds: 1.0,
            spread: 0.2,
        }
    }
}

impl Machine {
    /// Seconds of a step.
    pub fn seconds(&self, rows: u32) -> f64 {
        self.step_seconds + self.row_seconds * f64::from(rows)
    }
}

/// A tier of quality.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tier {
    /// Its name.
    pub name: &'static str,
    /// The least quality.
    pub floor: f64,
    /// Its time to the deadline, relative to that of `auto`.
    pub patience: f64,
}

/// The tiers, as [the service offers them](../../docs/api.md).
pub const TIERS: [Tier; 4] = [
    Tier { name: "low", floor: 0.90, patience: 2.0 / 3.0 },
    Tier { name: "auto", floor: 0.95, patience: 1.0 },
    Tier { name: "medium", floor: 0.97, patience: 4.0 / 3.0 },
    Tier { name: "high", floor: 0.99, patience: 2.0 },
];

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Requests {
    /// Drawn requests.
    Drawn(Drawn),
    /// Recorded ones, by rising time.
    Recorded(Arc<[Recorded]>),
}

impl Requests {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Drawn(drawn) => drawn.requests,
            Self::Recorded(recorded) => recorded.len(),
        }
    }
}

/// A Poisson process of requests. Half of them are the first client's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// Requests.
    pub requests: usize,
    /// Requests per second.
    pub per_second: f64,
    /// Clients.
    pub clients: usize,
    /// The part of the requests that ask for four pictures; the others ask for one.
    pub batches: f64,
    /// The part of the pictures that may start from a stored state.
    pub stored: f64,
}

/// A recorded request.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// Seconds from the start.
    pub at: f64,
    /// The client whose turn it uses.
    pub client: Arc<str>,
    /// Pictures.
    pub pictures: usize,
    /// Its model, of those that there are.
    pub model: usize,
    /// The place of its tier in [`TIERS`].
    pub tier: usize,
    /// A number of steps that the client pinned.
    pub steps: Option<usize>,
    /// Seconds to the deadline that the client named.
    pub deadline_seconds: Option<f64>,
    /// Whether a stored state of an earlier picture may be started from.
    pub stored: bool,
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
    /// The part of messages that arrive up to twenty seconds late: after their sender was given up.
    pub late: f64,
    /// The part of requests that are cancelled.
    pub cancelled: f64,
    /// Seconds between two deaths of workers, on average; 0: none dies. They come back within twenty seconds.
    pub death_every_seconds: f64,
    /// Seconds between two stalls of workers, on average; 0: none stalls. They last up to twenty seconds.
    pub stall_every_seconds: f64,
    /// The part of pictures that kill the worker that paints them.
    pub deadly: f64,
    /// The part of pictures that cannot be painted.
    pub failing: f64,
}

impl Faults {
    /// A bad day of a cluster: now and then a message is lost or late, a worker dies or stalls.
    pub fn mild() -> Self {
        Self {
            lost: 0.001,
            duplicated: 0.001,
            delay_seconds: 0.01,
            late: 0.0001,
            cancelled: 0.01,
            death_every_seconds: 60.0,
            stall_every_seconds: 60.0,
            deadly: 0.0001,
            failing: 0.001,
        }
    }
}

impl Scenario {
    /// A small installation of a seed, full of faults: bit by bit the seed says what goes wrong.
    pub fn drawn(seed: u64) -> Self {
        let pick = |bit: u64, one: f64, other: f64| if seed >> bit & 1 == 0 { one } else { other };
        let policy = match seed % 5 {
            0 => Policy::PerModel,
            1 => Policy::Fixed { option: Some("8".into()) },
            2 => Policy::Adaptive { replan: false },
            _ => Policy::default(),
        };
        let models = 1 + (seed % 2) as usize;
        let limits =
            Limits { pictures: 200, pictures_per_client: 120, remembered: 1000, ..Limits::default() };
        Self {
            config: Config { policy, limits, ..Config::default() },
            menu: Arc::new(menu()),
            machine: Machine::default(),
            workers: 1 + (seed % 4) as usize,
            rows: 8,
            models,
            model_places: (seed % 3 == 1).into(),
            requests: Requests::Drawn(Drawn {
                requests: 60,
                per_second: pick(0, 4.0, 60.0),
                clients: 5,
                batches: 0.2,
                stored: 0.25,
            }),
            deadline_seconds: pick(1, 1.0, 4.0),
            faults: Faults {
                lost: pick(2, 0.0, 0.2),
                duplicated: pick(3, 0.0, 0.2),
                delay_seconds: pick(4, 0.01, 0.5),
                late: if seed % 7 == 3 { 0.02 } else { 0.0 },
                cancelled: pick(5, 0.0, 0.2),
                death_every_seconds: pick(6, 0.0, 5.0),
                stall_every_seconds: pick(7, 0.0, 5.0),
                deadly: pick(8, 0.0, 0.01),
                failing: pick(9, 0.0, 0.05),
            },
        }
    }
}

/// An assumed menu: 4 to 32 steps, of which the last third is unguided, with qualities like those that are measured.
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
