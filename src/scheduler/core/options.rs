//! Which option a task takes at a price.

use std::sync::Arc;

use super::config::Worth;
use super::demand::Class;
use super::latency::Pace;
use crate::scheduler::ModelId;
use crate::scheduler::menu::Menu;
use crate::scheduler::messages::{Shape, StoredStart, Terms};

/// Differences of quality or worth below this are rounding.
const ROUNDING: f64 = 1e-9;

/// What does not change of a task.
#[derive(Debug)]
pub(super) struct Facts {
    pub model: ModelId,
    pub shape: Shape,
    pub terms: Terms,
    pub menu: Arc<Menu>,
    /// The places of the options that the task may get; `None`: all.
    pub allowed: Option<Vec<usize>>,
    pub worth: Arc<Worth>,
    pub start: Option<StoredStart>,
    /// Tasks of one class choose from the same offers.
    pub class: Class,
}

impl Facts {
    fn options(&self) -> impl Iterator<Item = usize> {
        let all = if self.allowed.is_none() { self.menu.len() } else { 0 };
        self.allowed.iter().flatten().copied().chain(0..all)
    }

    /// Where a task that was not begun may begin: with its stored state, if it has one, and with noise.
    pub fn beginnings(&self) -> Vec<Position> {
        let state = self.start.map(|StoredStart { noise_level, loss, least_steps, required }| Position {
            origin: Origin::State,
            noise_level,
            lost: loss,
            least_steps: if required { 0 } else { least_steps },
            current: None,
        });
        let noise =
            Position { origin: Origin::Noise, noise_level: 1.0, lost: 0.0, least_steps: 0, current: None };
        let required = self.start.is_some_and(|start| start.required);
        state.into_iter().chain((!required).then_some(noise)).collect()
    }
}

/// Where a trajectory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The seed's noise.
    Noise,
    /// A stored state of another picture.
    State,
    /// A state of its own: it is in flight, or goes on from a checkpoint.
    Own,
}

/// A place on a trajectory from which options are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Position {
    pub origin: Origin,
    pub noise_level: f64,
    /// Quality that the steps so far, and the state that was started from, are expected to have cost.
    pub lost: f64,
    /// Options of fewer steps do not paint over what another picture's state says.
    pub least_steps: u32,
    /// The option that is being taken. It needs no measurement to be gone on with.
    pub current: Option<usize>,
}

/// An option from a position, with what it costs and what it is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Offer {
    /// The option's place in the menu.
    pub option: usize,
    pub position: Position,
    /// Expected quality of the whole picture.
    pub quality: f64,
    pub worth: f64,
    /// Rows of the step that has the most.
    pub rows: u32,
    /// Time taken from other pictures: rows, each at its part of a full batch.
    pub machine_seconds: f64,
    /// Time until the picture is finished if no step waits.
    pub clock_seconds: f64,
}

/// The option that a task takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub offer: Offer,
    /// Whether the picture cannot be in time with any option that reaches its floor.
    pub late: bool,
}

/// All options that can be taken from `positions`. `pace` says how fast a denoiser's steps are.
pub(super) fn offers(facts: &Facts, positions: &[Position], pace: impl Fn(&str) -> Pace) -> Vec<Offer> {
    let mut offers = Vec::with_capacity(positions.len() * facts.menu.len());
    // Mostly all options have one denoiser.
    let mut last: Option<(&str, Pace)> = None;
    for position in positions {
        for place in facts.options() {
            let Some(option) = facts.menu.get(place) else { continue };
            let own = position.origin == Origin::Own && position.current != Some(place);
            let resumed = position.origin != Origin::Noise && position.current != Some(place);
            let unmeasured = own && !option.is_measured_in_flight();
            if unmeasured || resumed && option.steps.len() < position.least_steps as usize {
                continue;
            }
            let quality = (option.quality_at(position.noise_level) - position.lost).clamp(0.0, 1.0);
            // The reuse policy has accepted what a state costs: it counts against the floor, not against the state.
            let forgiven = if position.origin == Origin::State { position.lost } else { 0.0 };
            let remaining = facts.menu.remaining(place, position.noise_level);
            let pace = match last {
                Some((denoiser, pace)) if denoiser == option.denoiser => pace,
                _ => pace(&option.denoiser),
            };
            last = Some((&option.denoiser, pace));
            offers.push(Offer {
                option: place,
                position: *position,
                quality,
                worth: facts.worth.of((quality + forgiven).min(facts.terms.best)),
                rows: remaining.peak_rows,
                machine_seconds: f64::from(remaining.rows) * pace.row_seconds,
                clock_seconds: f64::from(remaining.steps) * pace.step_seconds + pace.overhead_seconds,
            });
        }
    }
    offers
}

/// Whether an offer reaches the floor. Where no offer does, the best quality there is takes the floor's place.
pub(super) fn reaching(offers: &[Offer], floor: f64) -> impl Iterator<Item = &Offer> {
    let best = offers.iter().map(|offer| offer.quality).fold(0.0, f64::max);
    let floor = floor.min(best) - ROUNDING;
    offers.iter().filter(move |offer| offer.quality >= floor)
}

/// The cheapest offer that reaches the floor.
pub(super) fn cheapest(offers: &[Offer], floor: f64) -> Option<&Offer> {
    reaching(offers, floor).min_by(|a, b| {
        let machine = a.machine_seconds.total_cmp(&b.machine_seconds);
        machine.then(a.clock_seconds.total_cmp(&b.clock_seconds)).then(b.quality.total_cmp(&a.quality))
    })
}

/// The offer that is worth most at a price, of those that reach the floor and are finished within `seconds`. If none is,
/// the one that is finished first among those that reach the floor, and the picture is late.
pub(super) fn choose(offers: &[Offer], floor: f64, price: f64, seconds: f64) -> Option<Choice> {
    let value = |offer: &Offer| offer.worth - price * offer.machine_seconds;
    let mut best: Option<&Offer> = None;
    for offer in reaching(offers, floor).filter(|offer| offer.clock_seconds <= seconds) {
        let better = best.is_none_or(|best| {
            let gain = value(offer) - value(best);
            gain > ROUNDING || gain > -ROUNDING && offer.machine_seconds < best.machine_seconds
        });
        if better {
            best = Some(offer);
        }
    }
    if let Some(offer) = best {
        return Some(Choice { offer: *offer, late: false });
    }
    let first = reaching(offers, floor).min_by(|a, b| {
        let clock = a.clock_seconds.total_cmp(&b.clock_seconds);
        clock.then(a.machine_seconds.total_cmp(&b.machine_seconds))
    });
    first.map(|offer| Choice { offer: *offer, late: true })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::scheduler::menu::{Measured, MenuOption};

    /// Options of 4, 8 and 16 guided steps with qualities 0.9, 0.96 and 1, measured at a half, too.
    pub fn menu() -> Menu {
        let measured = |mean: f64, half: f64| {
            let at = |noise_level, mean| Measured { noise_level, mean, low: mean, high: mean };
            vec![at(1.0, mean), at(0.5, half)]
        };
        let option = |id, steps, mean, half| MenuOption::even(id, steps, 0.0, measured(mean, half));
        Menu::new(vec![option("4", 4, 0.9, 0.97), option("8", 8, 0.96, 0.99), option("16", 16, 1.0, 1.0)])
            .unwrap()
    }

    pub fn facts(floor: f64, best: f64) -> Facts {
        let terms = Terms { tier: String::new(), floor, best, deadline_seconds: 1.0, firm: false };
        let shape = Shape { width: 64, height: 64 };
        let menu = menu();
        Facts {
            model: "m".into(),
            shape,
            class: Class::of(&terms, shape, &menu, None, None),
            terms,
            menu: Arc::new(menu),
            allowed: None,
            worth: Arc::new(Worth::default()),
            start: None,
        }
    }

    fn pace(_: &str) -> Pace {
        Pace { step_seconds: 0.01, row_seconds: 0.001, overhead_seconds: 0.0, measured: true }
    }

    fn id(facts: &Facts, positions: &[Position], price: f64, seconds: f64) -> (String, bool) {
        let choice = choose(&offers(facts, positions, pace), facts.terms.floor, price, seconds).unwrap();
        (facts.menu.get(choice.offer.option).unwrap().id.to_string(), choice.late)
    }

    #[test]
    fn dearer_time_buys_cheaper_options_within_the_terms() {
        // 8, 16 and 32 rows: 8 more rows bring 0.06, 16 more 0.04.
        let all = facts(0.0, 1.0);
        let noise = all.beginnings();
        for (price, wanted) in [(0.0, "16"), (2.4, "16"), (2.6, "8"), (7.4, "8"), (7.6, "4"), (1e9, "4")] {
            assert_eq!(id(&all, &noise, price, 9.0), (wanted.into(), false), "at {price}");
        }
        assert_eq!(id(&facts(0.95, 1.0), &noise, 1e9, 9.0).0, "8", "the floor holds at any price");
        assert_eq!(id(&facts(0.0, 0.95), &noise, 0.0, 9.0).0, "8", "more than the best is worth nothing");
        let pinned = Facts { allowed: Some(vec![0]), ..facts(0.95, 1.0) };
        assert_eq!(id(&pinned, &noise, 0.0, 9.0), ("4".into(), false), "what was pinned counts as the floor");
    }

    #[test]
    fn options_that_miss_the_deadline_are_left_out_and_the_floor_wins() {
        let all = facts(0.95, 1.0);
        assert_eq!(id(&all, &all.beginnings(), 0.0, 0.1), ("8".into(), false));
        assert_eq!(
            id(&all, &all.beginnings(), 0.0, 0.05),
            ("8".into(), true),
            "4 steps do not reach the floor"
        );
    }

    #[test]
    fn in_flight_only_measured_options_are_offered() {
        let mut unmeasured = menu().iter().cloned().collect::<Vec<_>>();
        unmeasured[0].quality.truncate(1);
        let facts = Facts { menu: Arc::new(Menu::new(unmeasured).unwrap()), ..facts(0.0, 1.0) };
        let own =
            |current| Position { origin: Origin::Own, noise_level: 0.5, lost: 0.0, least_steps: 0, current };
        assert_eq!(id(&facts, &[own(Some(2))], 1e9, 9.0).0, "8");
        assert_eq!(id(&facts, &[own(Some(0))], 1e9, 9.0).0, "4", "its own option it may keep");
        let lost = Position { lost: 0.02, ..own(Some(2)) };
        let eight = offers(&facts, &[lost], pace).into_iter().find(|offer| offer.option == 1).unwrap();
        assert!((eight.quality - 0.97).abs() < 1e-9 && eight.rows == 2);
        assert!((eight.machine_seconds - 0.008).abs() < 1e-9);
    }

    #[test]
    fn a_stored_state_is_taken_where_it_is_worth_it() {
        let start = StoredStart { noise_level: 0.5, loss: 0.03, least_steps: 8, required: false };
        let facts = Facts { start: Some(start), ..facts(0.9, 1.0) };
        let taken = |price| {
            let offers = offers(&facts, &facts.beginnings(), pace);
            let choice = choose(&offers, 0.9, price, 9.0).unwrap().offer;
            (choice.option, choice.position.origin)
        };
        assert_eq!(taken(0.0), (2, Origin::State), "what it costs was accepted");
        let all = offers(&facts, &facts.beginnings(), pace);
        let strict = choose(&all, 0.98, 0.0, 9.0).unwrap().offer;
        assert_eq!((strict.option, strict.position.origin), (2, Origin::Noise), "but the floor holds");
        assert_eq!(taken(2.0), (1, Origin::State));
        assert_eq!(taken(1e6), (1, Origin::State), "four steps from noise cost as much, and give less");
        let required = Facts { start: Some(StoredStart { required: true, ..start }), ..facts };
        assert!(required.beginnings().iter().all(|position| position.origin == Origin::State));
    }
}
