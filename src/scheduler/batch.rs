//! Which tasks share the next step: the one decision that is the worker's own.

use std::collections::BTreeMap;

use super::messages::Rank;

/// A batch key that was passed over so many times is stepped next. Without it, tasks of a rare size or model wait at
/// their worker for as long as tasks of better rank keep coming.
const PASSED_OVER: u32 = 8;

/// A held task that could take a step now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<K> {
    /// Tasks of one key may share a batch.
    pub key: K,
    /// Its place in the order.
    pub rank: Rank,
    /// Rows that its next step takes.
    pub rows: u32,
}

/// Chooses batches, and remembers which batch keys were passed over.
#[derive(Debug, Clone)]
pub struct Batcher<K> {
    passed_over: BTreeMap<K, u32>,
}

impl<K> Default for Batcher<K> {
    fn default() -> Self {
        Self { passed_over: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Batcher<K> {
    /// The places of the tasks that take the next step: those of the best rank that share its batch key, up to `rows`
    /// rows and one task at least.
    ///
    /// The key is that of the best rank, or the one that was passed over eight times.
    pub fn choose(&mut self, candidates: &[Candidate<K>], rows: u32) -> Vec<usize> {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        order.sort_by_key(|&i| candidates[i].rank);
        let passed_over = |i: &&usize| self.passed_over.get(&candidates[**i].key).copied().unwrap_or(0);
        // Of keys passed over as often, the one of the best rank: `max_by_key` takes the last.
        let overdue = order.iter().rev().filter(|i| passed_over(i) >= PASSED_OVER).max_by_key(passed_over);
        let Some(&first) = overdue.or(order.first()) else {
            self.passed_over.clear();
            return vec![];
        };
        let key = &candidates[first].key;
        let (mut taken, mut chosen) = (0, Vec::new());
        for i in order {
            let candidate = &candidates[i];
            if candidate.key == *key && (chosen.is_empty() || taken + candidate.rows <= rows) {
                taken += candidate.rows;
                chosen.push(i);
            }
        }
        let before = std::mem::take(&mut self.passed_over);
        for candidate in candidates.iter().filter(|candidate| candidate.key != *key) {
            let times = before.get(&candidate.key).map_or(1, |times| times + 1);
            self.passed_over.insert(candidate.key.clone(), times);
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(key: char, tag: f64, rows: u32) -> Candidate<char> {
        Candidate { key, rank: Rank { yields: false, tag }, rows }
    }

    #[test]
    fn the_best_rank_goes_first_and_its_key_with_it() {
        let tasks =
            [candidate('a', 3.0, 2), candidate('b', 2.0, 2), candidate('a', 1.0, 2), candidate('a', 4.0, 1)];
        let choose = |rows| Batcher::default().choose(&tasks, rows);
        assert_eq!(choose(16), [2, 0, 3]);
        assert_eq!(choose(3), [2, 3], "a smaller one fills the batch");
        assert_eq!(choose(1), [2], "one steps, however many rows it takes");
        assert!(Batcher::<char>::default().choose(&[], 16).is_empty());
        let late = Candidate { rank: Rank { yields: true, tag: 0.0 }, ..candidate('c', 0.0, 2) };
        assert_eq!(Batcher::default().choose(&[late, candidate('a', 9.0, 2)], 16), [1]);
    }

    #[test]
    fn a_key_that_was_passed_over_eight_times_is_next() {
        let tasks = [candidate('a', 1.0, 2), candidate('b', 2.0, 2), candidate('c', 3.0, 2)];
        let mut batcher = Batcher::default();
        let chosen: String = (0..20).map(|_| tasks[batcher.choose(&tasks, 16)[0]].key).collect();
        assert_eq!(chosen, "aaaaaaaabcaaaaaaabca");
        batcher.choose(&tasks[..1], 16);
        assert!(batcher.passed_over.is_empty(), "keys that left are forgotten");
    }
}
