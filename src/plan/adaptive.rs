//! `adaptive`: the most total quality within deadlines.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::deadlines::{Budget, HEADROOM, Need, all_within, limits};
use super::policy::ladder;
use super::{Expected, Load, PlanPolicy, Plans, Work};

/// What is expected is planned for so far ahead, seconds: about as long as arrivals are remembered.
const HORIZON: f64 = 8.0;
/// What is expected is this many lumps at most.
const LUMPS: f64 = 32.0;
/// A picture that is being painted is only given so many times its steps, or more.
const WORTH_A_RAISE: f64 = 1.5;
/// While there is too little for all, a machine second is spent on more steps only where it brings at least this share of
/// what it would bring with a new picture at the floor: what nearly nothing is gained by is kept for who may come.
const LEAST_WORTH: f64 = 0.02;
/// More may come than is expected: room is left for so many standard deviations more, at the floor. What waits is
/// painted with fewer steps when they come; steps taken cannot be had back.
const CHANCE: f64 = 3.0;
/// Less quality is no reason for more steps.
const NO_GAIN: f64 = 1e-9;

/// Everybody begins at the floor; then those steps are given that bring the most quality per machine second, as
/// long as nobody misses a deadline for it who would not miss it anyway. Greedy is within one step of the best
/// where quality is concave in steps, as it is but for noise.
#[derive(Debug, Clone, Copy)]
pub struct Adaptive {
    /// Whether pictures that are being painted are planned anew.
    pub replan: bool,
}

impl PlanPolicy for Adaptive {
    fn plan(&self, load: &Load<'_>) -> Plans {
        let mut line = Line::new(load, self.replan);
        if !line.all_at_best() {
            line.only_lower(load.works);
            if !is_crowded(load) {
                line.raise(price(load));
            }
        }
        let mut steps = vec![0; load.works.len()];
        for place in &line.places {
            if let Some(work) = place.work {
                steps[work] = settled(&load.works[work], place.rungs[place.rung].steps, self.replan);
            }
        }
        Plans { steps, level: None }
    }

    fn replans(&self) -> bool {
        self.replan
    }
}

/// Fewer steps at once, more only where they are worth the change, and no other plan of as many steps still to be taken.
fn settled(work: &Work, steps: usize, replan: bool) -> usize {
    match work.planned {
        Some(planned) if work.kept(replan).is_none() => {
            let kept = work.within(planned);
            let raised = steps > planned && (steps as f64) < WORTH_A_RAISE * planned as f64;
            if raised || work.left(steps) == work.left(kept) { kept } else { steps }
        }
        _ => steps,
    }
}

/// What waits, is being painted and is expected, by deadline.
struct Line {
    places: Vec<Place>,
    /// By when the machine must be done with each.
    limits: Vec<f64>,
    /// The same with room for chance. Where there is none even at the floor, what is taken already is the limit.
    cautious: Vec<f64>,
}

/// One of them.
struct Place {
    /// Which work it is; `None`: expected.
    work: Option<usize>,
    /// What it may get, by rising steps; never empty.
    rungs: Vec<Rung>,
    /// What it has.
    rung: usize,
    /// Seconds until it comes; 0 for who is there.
    comes: f64,
    /// Machine seconds that those may take who come before it and are not expected.
    cushion: f64,
}

/// A number of steps, what it takes and what it brings.
#[derive(Debug, Clone, Copy)]
struct Rung {
    steps: usize,
    need: Need,
    quality: f64,
}

/// So many pictures like one work, which have so long to their deadline.
struct Lump<'a> {
    work: &'a Work,
    place: Option<usize>,
    slack: f64,
    comes: f64,
    pictures: f64,
    cushion: f64,
}

impl Line {
    fn new(load: &Load<'_>, replan: bool) -> Self {
        let real = load.works.iter().enumerate();
        let mut lumps: Vec<Lump<'_>> = real
            .map(|(i, work)| Lump {
                work,
                place: Some(i),
                slack: work.slack,
                comes: 0.0,
                pictures: 1.0,
                cushion: 0.0,
            })
            .chain(load.expected.iter().flat_map(coming))
            .collect();
        lumps.sort_by(|a, b| a.slack.total_cmp(&b.slack));
        let mut places: Vec<Place> = lumps.iter().map(|lump| lump.place(replan)).collect();
        let floors: Vec<Need> = places.iter().map(|place| place.rungs[0].need).collect();
        let limits = limits(&floors);
        for (place, limit) in places.iter_mut().zip(&limits) {
            // Who is late whatever is done gets the floor.
            if limit.is_infinite() && place.rungs[0].need.slack.is_finite() {
                place.rungs.truncate(1);
            }
        }
        let mut used = 0.0;
        let with_room = |(place, (floor, limit)): (&Place, (&Need, &f64))| {
            used += floor.seconds;
            (limit - place.cushion).max(limit.min(used + floor.tail))
        };
        let cautious = places.iter().zip(floors.iter().zip(&limits)).map(with_room).collect();
        Self { places, limits, cautious }
    }

    /// Gives everybody the top rung if that can be, and says whether. Of what is expected this asks only for what comes
    /// while those who are there may still be painted, and for no room: a client that asks for one picture after the
    /// other is no load, though the machine is never idle.
    fn all_at_best(&mut self) -> bool {
        let slack = |place: &Place| place.rungs[0].need.slack;
        let there = self.places.iter().filter(|place| place.work.is_some()).map(slack);
        let last = there.filter(|slack| slack.is_finite()).fold(0.0, f64::max);
        let near = self.places.iter().zip(&self.limits).filter(|(place, _)| place.comes <= last);
        let (best, limits): (Vec<Need>, Vec<f64>) =
            near.filter_map(|(place, limit)| Some((place.rungs.last()?.need, *limit))).unzip();
        let holds = all_within(&best, &limits);
        if holds {
            self.places.iter_mut().for_each(|place| place.rung = place.rungs.len() - 1);
        }
        holds
    }

    /// While there is too little for all, what is being painted is not given more: plans would go up and down with
    /// every arrival. What is left over is for those not begun.
    fn only_lower(&mut self, works: &[Work]) {
        for place in &mut self.places {
            let planned = place.work.and_then(|work| Some(works[work].within(works[work].planned?)));
            if let Some(planned) = planned {
                let above = place.rungs.partition_point(|rung| rung.steps <= planned);
                place.rungs.truncate(above.max(1));
            }
        }
    }

    /// Gives steps, those first that bring the most, and none that bring less than `price` per machine second. Says how
    /// many changes were tried: for each work, each rung once at most.
    fn raise(&mut self, price: f64) -> usize {
        let needs: Vec<Need> = self.places.iter().map(|place| place.rungs[place.rung].need).collect();
        let mut budget = Budget::new(&needs, &self.cautious);
        let candidate = |(i, place): (usize, &Place)| place.candidate(i, place.rungs.len(), price);
        let mut candidates: BinaryHeap<Candidate> =
            self.places.iter().enumerate().filter_map(candidate).collect();
        let mut tried = 0;
        while let Some(Candidate { place: i, rung, end, .. }) = candidates.pop() {
            tried += 1;
            let place = &mut self.places[i];
            let fits = budget.try_set(i, &place.rungs[rung].need, self.cautious[i]);
            if fits {
                place.rung = rung;
            }
            // What did not fit never will: the room only shrinks.
            candidates.extend(place.candidate(i, if fits { end } else { rung }, price));
        }
        tried
    }
}

/// Whether what is expected takes all of the machine at the fewest steps: every step more for one turns another away,
/// whose whole picture is worth more.
fn is_crowded(load: &Load<'_>) -> bool {
    let fewest = |Expected { rate, typical }: &Expected| rate * typical.seconds(typical.floor);
    load.expected.as_ref().is_some_and(|expected| fewest(expected) > HEADROOM)
}

/// The least quality per machine second that steps must bring.
fn price(load: &Load<'_>) -> f64 {
    let worth = |Expected { typical, .. }: &Expected| {
        typical.quality(typical.floor) / typical.seconds(typical.floor).max(1e-12)
    };
    load.expected.as_ref().map_or(0.0, |expected| LEAST_WORTH * worth(expected))
}

/// What is expected within the horizon, evenly spread; in smaller lumps what comes sooner.
fn coming(Expected { rate, typical }: &Expected) -> impl Iterator<Item = Lump<'_>> {
    let pictures = if rate.is_finite() { (rate * HORIZON).max(0.0) } else { 0.0 };
    let lumps = pictures.ceil().min(LUMPS);
    (0..lumps as usize).map(move |i| {
        let (from, to) = ((i as f64 / lumps).powi(2), ((i + 1) as f64 / lumps).powi(2));
        let share = (from + to) / 2.0;
        Lump {
            work: typical,
            place: None,
            slack: share * HORIZON + typical.slack,
            comes: share * HORIZON,
            pictures: pictures * (to - from),
            // The number of Poisson arrivals has its mean as variance.
            cushion: CHANCE * (share * pictures).sqrt() * typical.seconds(typical.floor),
        }
    })
}

impl Lump<'_> {
    fn place(&self, replan: bool) -> Place {
        let rung = |steps| {
            let Need { seconds, tail, .. } = Need::of(self.work, steps);
            let need = Need { slack: self.slack, seconds: seconds * self.pictures, tail };
            Rung { steps, need, quality: self.work.quality(steps) * self.pictures }
        };
        let rungs = match self.work.kept(replan) {
            Some(kept) => vec![rung(kept)],
            None => {
                let mut steps: Vec<usize> =
                    ladder(self.work.floor, self.work.best.max(self.work.floor)).collect();
                // A picture that is being painted can stay as it is.
                let planned = self.work.planned.map(|planned| self.work.within(planned));
                if let Some((Err(place), planned)) = planned.map(|p| (steps.binary_search(&p), p)) {
                    steps.insert(place, planned);
                }
                steps.into_iter().map(rung).collect()
            }
        };
        Place { work: self.place, rungs, rung: 0, comes: self.comes, cushion: self.cushion }
    }
}

impl Place {
    /// The rung above its own and below `end` that brings the most quality per machine second.
    fn candidate(&self, place: usize, end: usize, price: f64) -> Option<Candidate> {
        let now = &self.rungs[self.rung];
        let worth = |rung: usize| {
            let then = &self.rungs[rung];
            let (gain, seconds) = (then.quality - now.quality, then.need.seconds - now.need.seconds);
            let worth = gain / seconds.max(1e-12);
            (gain > NO_GAIN && worth >= price).then_some(Candidate { worth, place, rung, end })
        };
        (self.rung + 1..end).filter_map(worth).max()
    }
}

/// A change that might be made.
#[derive(Debug)]
struct Candidate {
    /// Quality per machine second.
    worth: f64,
    place: usize,
    rung: usize,
    /// Rungs from this one on do not fit.
    end: usize,
}

impl Ord for Candidate {
    /// By worth; of equal ones the earlier deadline's, then the smaller change.
    fn cmp(&self, other: &Self) -> Ordering {
        let earlier = (other.place, other.rung).cmp(&(self.place, self.rung));
        self.worth.total_cmp(&other.worth).then(earlier)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

#[cfg(test)]
mod tests;
