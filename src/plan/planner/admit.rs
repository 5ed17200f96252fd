//! Who is let in: what [`Admission`] is asked, for which line, and what is learned from who asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Planner, State, Work, spared};
use crate::plan::{Ewma, Verdict};
use crate::queue::{Job, Line, Start};

/// The share that a new arrival has in what is expected of the next.
const SHARE: f64 = 0.1;
/// The share of the time to its deadline that a client's picture leaves free where most requests are his and others ask,
/// too: a newcomer finds a place however much one client asks for.
const RESERVE: f64 = 0.25;
/// A picture whose objective cannot be met may take so many times what its fewest steps take on an idle machine.
const LATE: f64 = 3.0;
/// So long after the store failed stored pictures are admitted as if they were to be painted, as they mostly will be: it
/// must not let in more than can be painted.
const FAILING: Duration = Duration::from_secs(10);

impl Planner {
    /// The line in which there must be time for a request's jobs: where those wait that keep it waiting longest. While the
    /// store fails that is where stored pictures end, but for those that nothing is painted for.
    pub fn line(&self, jobs: &[Job]) -> Line {
        let painted = jobs.iter().any(|job| !matches!(job.start, Start::State(_)));
        if self.store_fails() && painted { Line::Paint } else { Line::of(jobs) }
    }

    /// Whether what waits to be shown will have to be painted.
    pub fn store_fails(&self) -> bool {
        self.state.lock().store_failed.is_some_and(|last| last.elapsed() < FAILING)
    }

    /// The store did not answer, and a stored picture was not shown for it.
    pub fn store_failed(&self) {
        self.state.lock().store_failed = Some(Instant::now());
    }

    /// A job that waits in a line, as admission sees it.
    pub fn in_line(&self, line: Line, job: &Job, deadline: Instant) -> Work {
        match line {
            Line::Paint => self.waiting(job, deadline),
            Line::Show => self.stored(job, deadline),
        }
    }

    /// A stored picture: nothing is left to do but to decode it.
    fn stored(&self, job: &Job, deadline: Instant) -> Work {
        let decode = self.state.lock().speeds.of(&job.model, job.size).map_or(0.0, |speed| speed.show());
        Work { overhead: decode, aside: 0.0, ..self.from_noise(job, deadline).sparing(1.0) }
    }

    /// Whether there is time for a request's jobs beside all that is `waiting` in that [`Planner::line`]; `key` knows the
    /// client and his request again. Only who `insists` on the time that he named hears [`Verdict::Never`]: a tier's
    /// objective is none of the client's doing, and a late picture is better than none.
    pub fn admit(
        &self,
        key: u64,
        line: Line,
        jobs: &[Job],
        mut waiting: Vec<Work>,
        insists: bool,
    ) -> Verdict {
        let all = line == Line::Paint && self.store_fails();
        let asked: Vec<&Job> = jobs.iter().filter(|job| all || job.line() == line).collect();
        let Some(job) = asked.first() else { return Verdict::Admit };
        let (now, budget, count) = (Instant::now(), job.budget(), asked.len() as f64);
        let skipped = match line {
            Line::Paint => asked.iter().map(|job| spared(job)).sum::<f64>() / count,
            Line::Show => 1.0,
        };
        let one = match line {
            Line::Paint => self.from_noise(job, now + budget),
            Line::Show => self.stored(job, now + budget),
        };
        // All of a request are one work: they are admitted together.
        let mut new = Work {
            cost: one.cost * count,
            overhead: one.overhead * count,
            slack: budget.as_secs_f64(),
            ..one.clone().sparing(skipped)
        };
        let policy = Arc::clone(&self.live.read().policy);
        let mut state = self.state.lock();
        let state = &mut *state;
        let since = now - self.born;
        let crowds_others = state.callers.call(&job.client, since);
        let Some(alone) = state.speeds.of(&job.model, job.size).map(|speed| speed.alone()) else {
            return Verdict::Admit; // nothing is known that could refuse it
        };
        let admission = match line {
            Line::Paint => &mut state.admission,
            Line::Show => &mut state.showing,
        };
        if line == Line::Paint {
            waiting.extend(state.flying.iter().map(|flying| flying.now(now)));
        }
        for work in waiting.iter_mut().chain([&mut new]) {
            work.floor = policy.least(work);
        }
        let reserve = if crowds_others { RESERVE * new.slack } else { 0.0 };
        let asking = Work { overhead: new.overhead + reserve, ..new.clone() };
        let mut verdict = admission.ask(since, key, &asking, &waiting);
        if verdict == Verdict::Never {
            // Who is in a hurry is not made late by company in its batches.
            new.latency = alone;
            verdict = admission.ask(since, key, &new, &waiting);
        }
        if verdict == Verdict::Never && !insists {
            tracing::warn!(?budget, "the latency objective cannot be met");
            new.slack = LATE * new.clock(new.floor).max(new.seconds(new.floor));
            verdict = admission.ask(since, key, &new, &waiting);
        }
        // What no machine could do is no load, and neither is what is painted already.
        if verdict != Verdict::Never && line == Line::Paint {
            state.arrivals.arrive(since, asked.len());
            state.expect(one, skipped, budget);
        }
        verdict
    }
}

impl State {
    /// The next picture will be like `from_noise`, and spare what they spare on average.
    fn expect(&mut self, from_noise: Work, skipped: f64, budget: Duration) {
        let before = self.typical.take().map_or(skipped, |before| before.skipped);
        let skipped = before + SHARE * (skipped - before);
        let budget = budget.as_secs_f64();
        let budgets = self.budgets.get_or_insert(Ewma::new(budget));
        budgets.observe(budget);
        self.typical = Some(Work { slack: budgets.seconds(), ..from_noise.sparing(skipped) });
    }
}
