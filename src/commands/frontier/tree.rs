//! Many plans of one prompt and seed, painted together: steps that plans have in common are taken once.

use std::sync::Arc;

use pentimento_pipelines::{Conditioning, NoiseSource, Pipeline, Result, Size, StepPlan, Trajectory};

/// Pictures in a denoiser call. A call of so many is no slower per row than a larger one, which only takes more memory.
const BATCH: usize = 16;

/// A plan that is painted, by its number.
type Numbered = (usize, StepPlan);

/// Pictures that began together and part where their plans do.
pub struct Tree<'a> {
    pipeline: &'a Pipeline,
    conditioning: Arc<Conditioning>,
    seed: u64,
    branches: Vec<Branch>,
    /// Finished trajectories, and the plans that led to each.
    leaves: Vec<(Vec<usize>, Trajectory)>,
}

/// A trajectory, and the plans by which it goes on. Before a step they may differ, after [`Tree::part`] they agree in
/// the next step.
struct Branch {
    trajectory: Trajectory,
    plans: Vec<Numbered>,
}

impl<'a> Tree<'a> {
    /// Begins all plans with the noise of one seed.
    ///
    /// # Errors
    /// As [`Pipeline::start`].
    pub fn start(
        pipeline: &'a Pipeline,
        conditioning: Arc<Conditioning>,
        seed: u64,
        size: Size,
        plans: Vec<Numbered>,
    ) -> Result<Self> {
        let mut tree = Self { pipeline, conditioning, seed, branches: Vec::new(), leaves: Vec::new() };
        let first = |plan: &StepPlan| plan.steps().first().map(|step| step.timestep);
        for plans in groups(plans, |a, b| first(a) == first(b)) {
            let (conditioning, plan) = (Arc::clone(&tree.conditioning), plans[0].1.clone());
            let trajectory = pipeline.start(conditioning, seed, NoiseSource::default(), size, plan)?;
            tree.branches.push(Branch { trajectory, plans });
        }
        Ok(tree)
    }

    /// Lets further plans go on from where an unfinished one is. They must begin at its timestep.
    pub fn branch_off(&mut self, from: usize, plans: Vec<Numbered>) {
        let on = |branch: &&mut Branch| branch.plans.iter().any(|(number, _)| *number == from);
        if let Some(branch) = self.branches.iter_mut().find(on) {
            branch.plans.extend(plans);
        }
    }

    /// Takes the next step of every plan; `false` once all are finished.
    ///
    /// # Errors
    /// As [`Pipeline::step`].
    pub fn step(&mut self) -> Result<bool> {
        self.part()?;
        for batch in self.branches.chunks_mut(BATCH) {
            let mut batch: Vec<&mut Trajectory> = batch.iter_mut().map(|b| &mut b.trajectory).collect();
            self.pipeline.step(&mut batch)?;
        }
        for Branch { trajectory, plans } in &mut self.branches {
            for (_, plan) in plans {
                *plan = plan.after(trajectory.timestep());
            }
        }
        let finished = self.branches.extract_if(.., |branch| branch.trajectory.is_finished());
        let numbers = |plans: &[Numbered]| plans.iter().map(|(number, _)| *number).collect();
        self.leaves.extend(finished.map(|branch| (numbers(&branch.plans), branch.trajectory)));
        Ok(!self.branches.is_empty())
    }

    /// The finished trajectories, each with the numbers of the plans that led there.
    pub fn leaves(self) -> Vec<(Vec<usize>, Trajectory)> {
        self.leaves
    }

    /// Forks every branch whose plans differ in the next step: in how it is taken or where it leads.
    fn part(&mut self) -> Result<()> {
        let next = |plan: &StepPlan| {
            let mut steps = plan.steps().iter();
            (steps.next().copied(), steps.next().map(|step| step.timestep))
        };
        let mut parted = Vec::with_capacity(self.branches.len());
        for Branch { trajectory, plans } in self.branches.drain(..) {
            for plans in groups(plans, |a, b| next(a) == next(b)) {
                let mut trajectory = trajectory.fork(Arc::clone(&self.conditioning), self.seed)?;
                trajectory.replan(plans[0].1.clone())?;
                parted.push(Branch { trajectory, plans });
            }
        }
        self.branches = parted;
        Ok(())
    }
}

/// Plans in groups of like ones, none of them empty.
fn groups(plans: Vec<Numbered>, alike: impl Fn(&StepPlan, &StepPlan) -> bool) -> Vec<Vec<Numbered>> {
    let mut groups: Vec<Vec<Numbered>> = Vec::new();
    for plan in plans {
        match groups.iter_mut().find(|group| alike(&group[0].1, &plan.1)) {
            Some(group) => group.push(plan),
            None => groups.push(vec![plan]),
        }
    }
    groups
}

#[cfg(test)]
#[cfg(feature = "embedded-model")]
mod tests {
    use pentimento_pipelines::{Components, DenoisingState, Device, Model, PlanOption};

    use super::*;

    const SIZE: Size = Size { width: 64, height: 64 };

    #[test]
    fn every_plan_is_painted_as_if_alone() {
        let model = Model::find("storybook").unwrap();
        let pipeline = Pipeline::load(&model, &Components::default(), &Device::Cpu).unwrap();
        let conditioning = Arc::new(pipeline.encode("a red house at night", None, SIZE).unwrap());
        let options = [(8, 8), (8, 5), (8, 2), (5, 3), (4, 4)]
            .map(|(steps, guided)| PlanOption::ddim(pipeline.schedule(), steps, guided).unwrap());
        let plans: Vec<StepPlan> =
            options.iter().map(|option| pipeline.plan_of(option, 3.0).unwrap()).collect();
        let at = plans[0].steps()[4].timestep;
        let rests: Vec<StepPlan> =
            options.iter().map(|option| pipeline.rest_of(option, 3.0, at).unwrap()).collect();

        let numbered = |plans: &[StepPlan], from: usize| -> Vec<Numbered> {
            plans.iter().cloned().enumerate().map(|(i, plan)| (from + i, plan)).collect()
        };
        let mut tree =
            Tree::start(&pipeline, Arc::clone(&conditioning), 3, SIZE, numbered(&plans, 0)).unwrap();
        let mut branches = Vec::new();
        let mut taken = 0;
        while tree.step().unwrap() {
            taken += 1;
            branches.push(tree.branches.len());
            if taken == 4 {
                tree.branch_off(0, numbered(&rests, 5));
            }
        }
        // Three plans of 8 steps share the first two, and two of them three more.
        assert_eq!(branches[..3], [3, 3, 4]);
        let leaves = tree.leaves();
        let mut seen: Vec<usize> = leaves.iter().flat_map(|(numbers, _)| numbers.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        let state = |number: usize| -> DenoisingState {
            leaves.iter().find(|(numbers, _)| numbers.contains(&number)).unwrap().1.snapshot().unwrap()
        };
        let run_out = |mut trajectory: Trajectory| {
            while !trajectory.is_finished() {
                pipeline.step(&mut [&mut trajectory]).unwrap();
            }
            trajectory.snapshot().unwrap()
        };
        let begin =
            |plan| pipeline.start(Arc::clone(&conditioning), 3, NoiseSource::default(), SIZE, plan).unwrap();
        for (number, plan) in plans.iter().enumerate() {
            assert_eq!(state(number), run_out(begin(plan.clone())), "{number}");
        }
        let mut donor = begin(plans[0].clone());
        for _ in 0..4 {
            pipeline.step(&mut [&mut donor]).unwrap();
        }
        let donor = donor.snapshot().unwrap();
        for (i, rest) in rests.iter().enumerate() {
            let alone = pipeline.resume(&donor, Arc::clone(&conditioning), 3, rest.clone()).unwrap();
            assert_eq!(state(5 + i), run_out(alone), "option {i} from the state");
        }
        assert_eq!(state(5), state(0), "the full plan's own state goes on to the same picture");
    }
}
