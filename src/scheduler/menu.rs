//! The plan menu: the options that the scheduler chooses from, what each costs and what it is worth.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::OptionId;

/// The most options of a menu: each is looked at whenever a plan is chosen.
pub const MAX_OPTIONS: usize = 64;
/// The most steps of an option.
pub const MAX_STEPS: usize = 1000;
/// Noise levels nearer than this are equal: they are computed by two programs.
const EQUAL: f64 = 1e-6;

/// One step of an option.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OptionStep {
    /// The noise level at which the step begins: 1 is pure noise, 0 the finished picture.
    pub noise_level: f64,
    /// Rows of a batch that the step takes: 2 with guidance, 1 without.
    pub rows: u32,
}

/// The measured quality of an option from one noise level on, relative to the full plan: 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The noise level of the states that were gone on from. 1: from noise. Below 1: states of the pictures' own.
    pub noise_level: f64,
    /// Mean quality.
    pub mean: f64,
    /// Lower end of the mean's 95 % interval.
    pub low: f64,
    /// Upper end of the mean's 95 % interval.
    pub high: f64,
}

/// An option as the scheduler sees it: a name, a cost curve and a quality. `pipelines` turns the name into a step plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MenuOption {
    /// Its name, unique in its menu.
    pub id: OptionId,
    /// The denoiser that takes its steps; empty: the model's only one.
    #[serde(default)]
    pub denoiser: String,
    /// Its steps from noise to picture, by falling noise level.
    pub steps: Vec<OptionStep>,
    /// Its quality by falling noise level; the first is from noise.
    pub quality: Vec<Measured>,
}

/// Why a menu is refused.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum MenuError {
    /// The number of options is out of bounds.
    #[error("a menu has 1 to {MAX_OPTIONS} options, not {0}")]
    Options(usize),
    /// Two options have one name.
    #[error("two options are called {0:?}")]
    Twice(OptionId),
    /// An option's steps are wrong.
    #[error(
        "option {0:?}: `steps` must be 1 to {MAX_STEPS}, the first at noise level 1, falling, each of 1 row or more"
    )]
    Steps(OptionId),
    /// An option's quality is wrong.
    #[error("option {0:?}: `quality` must be from 0 to 1, the first at noise level 1, falling")]
    Quality(OptionId),
}

/// What is left of an option from a noise level on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remaining {
    /// Steps.
    pub steps: u32,
    /// Rows of all these steps together.
    pub rows: u32,
    /// Rows of the step that has the most.
    pub peak_rows: u32,
}

/// The options of a model, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<MenuOption>", into = "Vec<MenuOption>")]
pub struct Menu {
    options: Vec<Priced>,
}

/// An option with what is left of it from each of its steps on.
#[derive(Debug, Clone, PartialEq)]
struct Priced {
    option: MenuOption,
    remaining: Vec<Remaining>,
}

impl MenuOption {
    /// An option of evenly spaced steps, of which those at noise levels above `guided_until` are guided.
    pub fn even(id: &str, steps: usize, guided_until: f64, quality: Vec<Measured>) -> Self {
        let step = |i: usize| {
            let noise_level = 1.0 - i as f64 / steps.max(1) as f64;
            OptionStep { noise_level, rows: if noise_level > guided_until + EQUAL { 2 } else { 1 } }
        };
        Self { id: id.into(), denoiser: String::new(), steps: (0..steps).map(step).collect(), quality }
    }

    fn check(&self) -> Result<(), MenuError> {
        let steps = &self.steps;
        let falling = steps.windows(2).all(|w| w[0].noise_level > w[1].noise_level + EQUAL);
        let whole = (1..=MAX_STEPS).contains(&steps.len()) && (steps[0].noise_level - 1.0).abs() < EQUAL;
        let in_bounds = steps.iter().all(|s| s.noise_level > 0.0 && (1..=1024).contains(&s.rows));
        if !(whole && falling && in_bounds) {
            return Err(MenuError::Steps(self.id.clone()));
        }
        let quality = &self.quality;
        let falling = quality.windows(2).all(|w| w[0].noise_level > w[1].noise_level);
        let first = quality.first().is_some_and(|m| m.noise_level == 1.0) && quality.len() <= MAX_OPTIONS;
        let bounded = |m: &Measured| [m.mean, m.low, m.high].iter().all(|q| (0.0..=1.0).contains(q));
        let in_bounds = quality.iter().all(|m| m.noise_level > 0.0 && bounded(m));
        if first && falling && in_bounds { Ok(()) } else { Err(MenuError::Quality(self.id.clone())) }
    }

    /// Expected quality of a picture that takes this option's steps from a noise level on, and had the full plan's
    /// before. Linear between the measured levels, and towards 1 at level 0, where nothing is left to be lost.
    pub fn quality_at(&self, noise_level: f64) -> f64 {
        let below = self.quality.partition_point(|m| m.noise_level >= noise_level);
        let point = |i: usize| self.quality.get(i).map_or((0.0, 1.0), |m| (m.noise_level, m.mean));
        let ((above_at, above), (below_at, below)) = (point(below.max(1) - 1), point(below.max(1)));
        if above_at <= below_at {
            return above;
        }
        let share = ((above_at - noise_level) / (above_at - below_at)).clamp(0.0, 1.0);
        above + share * (below - above)
    }

    /// Whether the option was measured from states of a picture's own. Only then may a picture change to it in flight.
    pub fn is_measured_in_flight(&self) -> bool {
        self.quality.len() > 1
    }
}

impl Priced {
    fn new(option: MenuOption) -> Self {
        let mut remaining = Vec::with_capacity(option.steps.len());
        let mut left = Remaining { steps: 0, rows: 0, peak_rows: 0 };
        for step in option.steps.iter().rev() {
            left = Remaining {
                steps: left.steps + 1,
                rows: left.rows + step.rows,
                peak_rows: left.peak_rows.max(step.rows),
            };
            remaining.push(left);
        }
        remaining.reverse();
        Self { option, remaining }
    }
}

impl Menu {
    /// Checks options.
    ///
    /// # Errors
    /// [`MenuError`] naming the option.
    pub fn new(options: Vec<MenuOption>) -> Result<Self, MenuError> {
        if !(1..=MAX_OPTIONS).contains(&options.len()) {
            return Err(MenuError::Options(options.len()));
        }
        for (i, option) in options.iter().enumerate() {
            option.check()?;
            if options[..i].iter().any(|other| other.id == option.id) {
                return Err(MenuError::Twice(option.id.clone()));
            }
        }
        Ok(Self { options: options.into_iter().map(Priced::new).collect() })
    }

    /// How many options there are.
    pub fn len(&self) -> usize {
        self.options.len()
    }

    /// Always false: a menu has an option.
    pub fn is_empty(&self) -> bool {
        self.options.is_empty()
    }

    /// The options.
    pub fn iter(&self) -> impl Iterator<Item = &MenuOption> {
        self.options.iter().map(|priced| &priced.option)
    }

    /// The option at a place.
    pub fn get(&self, place: usize) -> Option<&MenuOption> {
        self.options.get(place).map(|priced| &priced.option)
    }

    /// The place of an option.
    pub fn find(&self, id: &OptionId) -> Option<usize> {
        self.options.iter().position(|priced| priced.option.id == *id)
    }

    /// What is left of the option at a place for a picture at a noise level: the steps that begin there or at cleaner
    /// levels, and one at least until the picture is finished.
    pub fn remaining(&self, place: usize, noise_level: f64) -> Remaining {
        let none = Remaining { steps: 0, rows: 0, peak_rows: 0 };
        let Some(Priced { option, remaining }) = self.options.get(place) else { return none };
        if noise_level < EQUAL {
            return none;
        }
        let first = option.steps.partition_point(|step| step.noise_level > noise_level + EQUAL);
        remaining.get(first).or(remaining.last()).copied().unwrap_or(none)
    }
}

impl TryFrom<Vec<MenuOption>> for Menu {
    type Error = MenuError;
    fn try_from(options: Vec<MenuOption>) -> Result<Self, MenuError> {
        Self::new(options)
    }
}

impl From<Menu> for Vec<MenuOption> {
    fn from(menu: Menu) -> Self {
        menu.options.into_iter().map(|priced| priced.option).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(points: &[(f64, f64)]) -> Vec<Measured> {
        points
            .iter()
            .map(|&(noise_level, mean)| Measured { noise_level, mean, low: mean, high: mean })
            .collect()
    }

    #[test]
    fn what_is_left_is_counted_from_a_noise_level() {
        let menu = Menu::new(vec![MenuOption::even("7+5", 12, 5.0 / 12.0, measured(&[(1.0, 0.9)]))]).unwrap();
        let left = |level| {
            let Remaining { steps, rows, peak_rows } = menu.remaining(0, level);
            (steps, rows, peak_rows)
        };
        assert_eq!(left(1.0), (12, 19, 2));
        assert_eq!(left(0.5), (6, 7, 2));
        assert_eq!(left(5.0 / 12.0), (5, 5, 1));
        assert_eq!(left(0.01), (1, 1, 1), "one step until it is finished");
        assert_eq!(left(0.0), (0, 0, 0));
    }

    #[test]
    fn quality_is_read_between_what_was_measured() {
        let option = MenuOption::even("4", 4, 0.0, measured(&[(1.0, 0.8), (0.6, 0.9), (0.4, 0.95)]));
        for (level, wanted) in [(1.0, 0.8), (0.8, 0.85), (0.6, 0.9), (0.5, 0.925), (0.2, 0.975), (0.0, 1.0)] {
            let found = option.quality_at(level);
            assert!((found - wanted).abs() < 1e-9, "{level}: {found}, not {wanted}");
        }
        assert!(option.is_measured_in_flight());
        assert!(!MenuOption::even("4", 4, 0.0, measured(&[(1.0, 0.8)])).is_measured_in_flight());
    }

    #[test]
    fn what_is_wrong_with_a_menu_is_named() {
        let good = MenuOption::even("good", 4, 0.0, measured(&[(1.0, 0.8)]));
        let wrong = |change: fn(&mut MenuOption)| {
            let mut option = good.clone();
            change(&mut option);
            Menu::new(vec![option]).unwrap_err().to_string()
        };
        assert!(Menu::new(vec![]).is_err());
        assert!(Menu::new(vec![good.clone(), good.clone()]).unwrap_err().to_string().contains("two options"));
        assert!(wrong(|o| o.steps.clear()).contains("`steps`"));
        assert!(wrong(|o| o.steps[1].noise_level = 1.0).contains("`steps`"));
        assert!(wrong(|o| o.steps[0].rows = 0).contains("`steps`"));
        assert!(wrong(|o| o.quality.clear()).contains("`quality`"));
        assert!(wrong(|o| o.quality[0].mean = 1.5).contains("`quality`"));
        let menu = Menu::new(vec![good]).unwrap();
        let wire = serde_json::to_string(&menu).unwrap();
        assert_eq!(serde_json::from_str::<Menu>(&wire).unwrap(), menu);
        assert!(serde_json::from_str::<Menu>("[]").is_err());
    }
}
