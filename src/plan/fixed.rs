//! `fixed`: the same plan whatever the load.

use super::policy::{Load, PlanPolicy, Plans};
use super::work::Work;

/// So many steps for everybody, within each picture's bounds.
#[derive(Debug, Clone, Copy)]
pub struct Fixed {
    /// Steps of a whole plan; `None`: each picture's best.
    pub steps: Option<usize>,
}

impl PlanPolicy for Fixed {
    fn plan(&self, load: &Load<'_>) -> Plans {
        let steps = |work: &Work| work.kept(false).unwrap_or_else(|| self.least(work));
        Plans { steps: load.works.iter().map(steps).collect(), level: None }
    }

    fn replans(&self) -> bool {
        false
    }

    fn least(&self, work: &Work) -> usize {
        work.within(self.steps.unwrap_or(work.best))
    }
}

#[cfg(test)]
mod tests {
    use super::super::work::example;
    use super::*;

    #[test]
    fn fixed_is_fixed_within_each_pictures_bounds() {
        let works = [
            example(),
            Work { best: 8, floor: 4, ..example() },
            Work { floor: 30, ..example() },
            Work { planned: Some(40), ..example() },
        ];
        let plan = |steps| Fixed { steps }.plan(&Load { works: &works, expected: None, level: None });
        assert_eq!(plan(Some(20)).steps, [20, 8, 30, 40]);
        assert_eq!(plan(None).steps, [50, 8, 50, 40]);
    }
}
