//! One machine, pictures in order of their deadlines: who makes it.
//!
//! With everybody's machine seconds counted up in order of deadlines (Liu and Layland, 1973: no order of one machine
//! meets more), a picture ends at the latest when the machine has done all up to its own, and its last steps,
//! which come one after the other, have followed (the bound of Graham, 1966, for places of a batch).

/// The share of the time to a deadline that plans fill: predictions err, and a step that is under way is not
/// interrupted.
pub const HEADROOM: f64 = 0.9;
/// What sums may err by, seconds.
pub const ROUNDING: f64 = 1e-9;

/// What a picture needs of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Seconds to its deadline.
    pub slack: f64,
    /// Machine seconds.
    pub seconds: f64,
    /// Seconds on the clock beyond its machine seconds.
    pub tail: f64,
}

impl Need {
    /// A work's, with a whole plan of `steps`.
    pub fn of(work: &super::Work, steps: usize) -> Self {
        let seconds = work.seconds(steps);
        Self { slack: work.slack, seconds, tail: (work.clock(steps) - seconds).max(0.0) }
    }

    /// By when the machine must have done everything up to this one, where it has done that at `used` at the earliest.
    /// Infinite for one that is late whatever is done: it holds nobody back.
    pub fn limit(&self, used: f64) -> f64 {
        let end = used + self.tail;
        if end > self.slack + ROUNDING { f64::INFINITY } else { end.max(HEADROOM * self.slack) }
    }
}

/// The limit of each, where all have what they need at least. `needs` are by rising slack.
pub fn limits(needs: &[Need]) -> Vec<f64> {
    let mut used = 0.0;
    let limit = |need: &Need| {
        used += need.seconds;
        need.limit(used)
    };
    needs.iter().map(limit).collect()
}

/// Whether everybody is within the limit. `needs` are by rising slack.
pub fn all_within(needs: &[Need], limits: &[f64]) -> bool {
    let mut used = 0.0;
    needs.iter().zip(limits).all(|(need, limit)| {
        used += need.seconds;
        used + need.tail <= limit + ROUNDING
    })
}

/// Who has how much machine time in order of deadlines, and whether all are within their limits. One change costs the
/// logarithm of their number: a segment tree.
#[derive(Debug)]
pub struct Budget {
    leaves: usize,
    nodes: Vec<Node>,
}

/// Some neighbours in that order.
#[derive(Debug, Clone, Copy)]
struct Node {
    /// Machine seconds of all.
    sum: f64,
    /// Seconds that may come before all of them without anybody's limit being passed.
    room: f64,
}

impl Node {
    const NOBODY: Self = Self { sum: 0.0, room: f64::INFINITY };

    fn followed_by(self, later: Self) -> Self {
        Self { sum: self.sum + later.sum, room: self.room.min(later.room - self.sum) }
    }
}

impl Budget {
    /// `needs` by rising slack, and their [`limits`].
    pub fn new(needs: &[Need], limits: &[f64]) -> Self {
        let leaves = needs.len().next_power_of_two();
        let mut nodes = vec![Node::NOBODY; 2 * leaves];
        for (i, (need, limit)) in needs.iter().zip(limits).enumerate() {
            nodes[leaves + i] = leaf(need, *limit);
        }
        for i in (1..leaves).rev() {
            nodes[i] = nodes[2 * i].followed_by(nodes[2 * i + 1]);
        }
        Self { leaves, nodes }
    }

    fn holds(&self) -> bool {
        self.nodes[1].room >= -ROUNDING
    }

    /// Gives one of them another need, if everybody stays within the limit.
    pub fn try_set(&mut self, i: usize, need: &Need, limit: f64) -> bool {
        let before = self.nodes[self.leaves + i];
        self.set(i, leaf(need, limit));
        let holds = self.holds();
        if !holds {
            self.set(i, before);
        }
        holds
    }

    fn set(&mut self, i: usize, node: Node) {
        let mut i = self.leaves + i;
        self.nodes[i] = node;
        while i > 1 {
            i /= 2;
            self.nodes[i] = self.nodes[2 * i].followed_by(self.nodes[2 * i + 1]);
        }
    }
}

fn leaf(need: &Need, limit: f64) -> Node {
    Node { sum: need.seconds, room: limit - need.tail - need.seconds }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn need(slack: f64, seconds: f64) -> Need {
        Need { slack, seconds, tail: 0.0 }
    }

    #[test]
    fn who_is_late_holds_nobody_back() {
        let limits = limits(&[need(-1.0, 1.0), need(2.0, 1.0), need(2.05, 0.05), need(f64::INFINITY, 9.0)]);
        assert_eq!(limits[0], f64::INFINITY);
        assert_eq!(limits[1], 2.0, "it just makes it: nothing more may come before it");
        assert!((limits[2] - 2.05).abs() < 1e-12);
        assert_eq!(limits[3], f64::INFINITY);
        assert_eq!(super::limits(&[need(10.0, 1.0)]), [9.0]);
        let slow = Need { tail: 9.5, ..need(10.0, 0.25) };
        assert_eq!(super::limits(&[slow, need(10.0, 9.0)]), [9.75, 9.25]);
    }

    proptest! {
        #[test]
        fn the_tree_says_what_adding_up_says(
            mut needs in prop::collection::vec((0.0..10.0f64, 0.0..1.0f64, 0.0..1.0f64), 1..40),
            changes in prop::collection::vec((0usize..40, 0.0..2.0f64), 0..60),
        ) {
            needs.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut needs: Vec<Need> =
                needs.into_iter().map(|(slack, seconds, tail)| Need { slack, seconds, tail }).collect();
            let limits = limits(&needs);
            let mut budget = Budget::new(&needs, &limits);
            prop_assert!(budget.holds());
            for (i, seconds) in changes {
                let i = i % needs.len();
                let mut changed = needs.clone();
                changed[i].seconds = seconds;
                let fits = all_within(&changed, &limits);
                let change = changed[i];
                prop_assert_eq!(budget.try_set(i, &change, limits[i]), fits);
                if fits {
                    needs = changed;
                }
            }
        }
    }
}
