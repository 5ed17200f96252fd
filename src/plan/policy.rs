//! What a plan policy is asked, and what it answers.

use super::Work;

/// What a policy decides upon.
#[derive(Debug, Clone)]
pub struct Load<'a> {
    /// What waits and what is being painted.
    pub works: &'a [Work],
    /// What is likely to come.
    pub expected: Option<Expected>,
    /// [`Plans::level`] of the plans before.
    pub level: Option<usize>,
}

/// What is likely to come.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Pictures per second.
    pub rate: f64,
    /// A picture as they come; its slack is its latency objective.
    pub typical: Work,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plans {
    /// Steps of the whole plan, for each work.
    pub steps: Vec<usize>,
    /// The steps that the load allows everybody, where the policy has such a number. For the next [`Load`].
    pub level: Option<usize>,
}

/// Decides how many steps each picture gets: never fewer than its floor, never more than its best. What is begun
/// keeps its plan, unless the policy replans and the work is replannable.
pub trait PlanPolicy: Send + Sync + std::fmt::Debug {
    /// The plans. The same load gives the same plans.
    fn plan(&self, load: &Load<'_>) -> Plans;
    /// Whether it changes plans of pictures that are being painted.
    fn replans(&self) -> bool;
    /// The fewest steps that it may ever give a picture: what admission counts with.
    fn least(&self, work: &Work) -> usize {
        work.floor
    }
}

/// Step counts that are told apart between a floor and a best.
const LADDER: [usize; 24] =
    [1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 25, 30, 35, 42, 50, 70, 100, 140, 200, 300, 500, 1000];

/// `floor`, some step counts between, `best`: rising.
pub(super) fn ladder(floor: usize, best: usize) -> impl DoubleEndedIterator<Item = usize> {
    let between = LADDER.into_iter().filter(move |steps| floor < *steps && *steps < best);
    std::iter::once(floor).chain(between).chain((floor < best).then_some(best))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ladders_begin_at_the_floor_and_end_at_the_best() {
        let of = |floor, best| ladder(floor, best).collect::<Vec<_>>();
        assert_eq!(of(9, 20), [9, 10, 12, 14, 16, 20]);
        assert_eq!(of(10, 12), [10, 12]);
        assert_eq!(of(7, 7), [7]);
    }
}
