//! What one client waits for, the most urgent first.

use std::time::Instant;

use super::turns::Parts;

/// Something with a deadline.
pub(super) trait Urgent {
    /// When it should be done.
    fn deadline(&self) -> Instant;
}

/// The earliest deadline first; of equal ones, who came first.
pub(super) struct ByDeadline<T>(Vec<T>);

impl<T> Default for ByDeadline<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Urgent> ByDeadline<T> {
    /// Adds one.
    pub(super) fn push(&mut self, item: T) {
        // The last goes first: before it stand those less urgent, and those as urgent that came later.
        let place = self.0.partition_point(|other| other.deadline() > item.deadline());
        self.0.insert(place, item);
    }

    /// All, the most urgent first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().rev()
    }
}

impl<T> Parts for ByDeadline<T> {
    type Part = T;
    fn next(&mut self) -> Option<T> {
        self.0.pop()
    }
    fn peek(&self) -> Option<&T> {
        self.0.last()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn retain(&mut self, wanted: &mut dyn FnMut(&T) -> bool) {
        self.0.retain(wanted);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    impl Urgent for (Instant, u32) {
        fn deadline(&self) -> Instant {
            self.0
        }
    }

    #[test]
    fn the_earliest_deadline_goes_first_and_who_came_first_among_equals() {
        let now = Instant::now();
        let mut line = ByDeadline::default();
        for (seconds, name) in [(5, 1), (3, 2), (5, 3), (3, 4), (9, 5)] {
            line.push((now + Duration::from_secs(seconds), name));
        }
        assert_eq!(line.iter().map(|(_, name)| *name).collect::<Vec<_>>(), [2, 4, 1, 3, 5]);
        line.retain(&mut |(_, name)| *name != 4);
        assert_eq!(
            std::iter::from_fn(|| line.next()).map(|(_, name)| name).collect::<Vec<_>>(),
            [2, 1, 3, 5]
        );
    }
}
