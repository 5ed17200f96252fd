//! Who takes the next step.

/// A picture in flight, as the choice of a batch sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<K> {
    /// Who may share its batch.
    pub key: K,
    /// Rows that its next step takes.
    pub rows: usize,
    /// Seconds to its deadline, below 0 after it.
    pub slack: f64,
    /// Steps still to be taken.
    pub left: usize,
}

/// The candidates of the next batch: the one with the earliest deadline, and with it, in that order, whoever may share its
/// batch and finds room in `most` rows. No order of one machine meets more deadlines, where all can be met (Horn, 1974);
/// the least laxity first would let equally urgent pictures take turns and all end late. Whoever waits becomes the
/// earliest in the end, so nobody starves. `seconds` predicts the time of a step of so many rows.
///
/// Nobody is taken along whose rows would make one miss its deadline that is taken already and would meet it otherwise.
pub fn choose<K: PartialEq + Copy>(
    candidates: &[Candidate<K>],
    most: usize,
    seconds: impl Fn(usize) -> f64,
) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|&a, &b| candidates[a].slack.total_cmp(&candidates[b].slack));
    let Some(first) = order.first().map(|&i| candidates[i]) else { return order };
    let (mut rows, mut chosen) = (0, Vec::with_capacity(order.len()));
    // The step time at which the first of those chosen would miss its deadline, of those that can still meet it.
    let mut patience = f64::INFINITY;
    for i in order {
        let candidate = candidates[i];
        let together = rows + candidate.rows;
        if candidate.key != first.key || !chosen.is_empty() && together > most {
            continue;
        }
        if !chosen.is_empty() && seconds(together) > patience {
            continue;
        }
        let own = candidate.slack / candidate.left.max(1) as f64;
        if own >= seconds(together) {
            patience = patience.min(own);
        }
        rows = together;
        chosen.push(i);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(key: u8, slack: f64, left: usize) -> Candidate<u8> {
        Candidate { key, rows: 2, slack, left }
    }

    fn linear(rows: usize) -> f64 {
        0.002 + 0.001 * rows as f64
    }

    #[test]
    fn the_earliest_go_first_and_only_their_kind_with_them() {
        let candidates =
            [candidate(1, 9.0, 50), candidate(2, 1.0, 10), candidate(1, 0.5, 5), candidate(1, 5.0, 1)];
        assert_eq!(choose(&candidates, 16, linear), [2, 3, 0]);
        assert_eq!(choose(&candidates, 4, linear), [2, 3]);
        assert_eq!(choose(&candidates, 1, linear), [2], "one steps, however many rows it takes");
        assert!(choose::<u8>(&[], 16, linear).is_empty());
    }

    #[test]
    fn company_does_not_make_the_urgent_late() {
        // 10 steps in 0.05 s: alone (0.004 a step) it makes it, with one more (0.006) not.
        let urgent = candidate(1, 0.05, 10);
        assert_eq!(choose(&[candidate(1, 9.0, 50), urgent], 16, linear), [1]);
        // With a little more time it does.
        let slower = candidate(1, 0.065, 10);
        assert_eq!(choose(&[candidate(1, 9.0, 50), slower], 16, linear), [1, 0]);
        // Who is late anyway holds up nobody.
        let late = candidate(1, -1.0, 10);
        assert_eq!(choose(&[candidate(1, 9.0, 50), late], 16, linear), [1, 0]);
    }

    #[test]
    fn nobody_starves() {
        let mut slack = [0.2, 0.4, 0.6, 5.0];
        let mut left = [30, 30, 30, 30];
        let mut steps = 0;
        while left.iter().any(|left| *left > 0) {
            let flying: Vec<usize> = (0..4).filter(|i| left[*i] > 0).collect();
            let candidates: Vec<_> = flying.iter().map(|&i| candidate(i as u8, slack[i], left[i])).collect();
            for i in choose(&candidates, 16, linear) {
                left[flying[i]] -= 1;
                assert!(flying[i] == 0 || left[flying[i] - 1] == 0, "one after the other, not all at once");
            }
            slack.iter_mut().for_each(|slack| *slack -= linear(2));
            steps += 1;
        }
        assert_eq!(steps, 120, "different kinds never share a batch, and each step is somebody's");
    }
}
