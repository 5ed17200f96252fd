//! Who is let in, and when the others may come again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::Work;
use super::deadlines::{HEADROOM, Need, ROUNDING, limits};

/// The longest wait that is ever asked for.
pub const MAX_WAIT: Duration = Duration::from_secs(600);
/// The most promises at a time.
const MOST_BOOKINGS: usize = 16_384;
/// How long after its time a promise holds: networks take time, and clients add to what they are told.
const GRACE: Duration = Duration::from_secs(2);
/// The share of a second that is promised: who comes back does not come evenly, and what is painted then has its steps.
const PROMISED: f64 = 0.8;
/// How far one promise, kept or not, moves the share of clients that come back.
const LEARNED: f64 = 1.0 / 16.0;

/// What a newcomer hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is let in.
    Admit,
    /// It does not fit now. Who comes again after this time is let in; whole seconds, as `Retry-After` has them.
    Later(Duration),
    /// Its deadline is nearer than what its fewest steps take on an idle machine: no time is better.
    Never,
}

/// A promise.
#[derive(Debug, Clone, Copy)]
struct Booking {
    /// From when it holds.
    from: Duration,
    /// What the picture will need; its slack begins when it comes.
    need: Need,
}

/// Lets in whom the machine can serve in time, and keeps its promises to the others.
///
/// Everything is counted at the fewest steps that plans may go down to. Where the plan policy would give more than a
/// work's floor whatever the load, hand in works whose `floor` says so.
#[derive(Debug, Default)]
pub struct Admission {
    bookings: HashMap<u64, Booking>,
    by_time: BTreeSet<(Duration, u64)>,
    /// Machine seconds that are promised, by the second in which the promise falls due.
    seconds: BTreeMap<u64, f64>,
    /// The share of clients that come back when they were told to: a promise holds so much of its place. None until
    /// somebody has: places that are kept for nobody would stay empty for seconds.
    come_back: f64,
}

impl Admission {
    /// Whether a picture is let in at `now`, a time that never goes back. `key` names the client and its request: whoever
    /// comes with it again is known by it. `works` are all that wait or are being painted.
    pub fn ask(&mut self, now: Duration, key: u64, new: &Work, works: &[Work]) -> Verdict {
        self.expire(now);
        let need = Need::of(new, new.floor);
        if need.limit(need.seconds).is_infinite() && new.slack.is_finite() {
            return Verdict::Never;
        }
        let line: Vec<Need> =
            works.iter().map(|work| Need::of(work, work.kept(true).unwrap_or(work.floor))).collect();
        let backlog: f64 = line.iter().filter(|n| n.slack.is_finite()).map(|n| n.seconds).sum();
        let booked = self.bookings.get(&key).map(|booking| booking.from);
        let fits = match booked {
            // Its place was kept: others were let in with it in mind.
            Some(from) if from <= now => makes_it(line, &need),
            _ => makes_it_alongside(self.with_due(line, now, key, new.slack), &need),
        };
        match booked {
            _ if fits => {
                self.remove(key, true);
                Verdict::Admit
            }
            Some(from) if from > now => Verdict::Later(whole_seconds(from - now)),
            _ => {
                self.remove(key, true);
                self.promise(now, key, need, backlog)
            }
        }
    }

    /// How many promises are open.
    pub fn bookings(&self) -> usize {
        self.bookings.len()
    }

    /// `line` and what was promised to others by the deadline of one who has `slack`, as far as clients come back.
    fn with_due(&self, mut line: Vec<Need>, now: Duration, key: u64, slack: f64) -> Vec<Need> {
        let due = self.by_time.iter().take_while(|(from, _)| seconds_until(now, *from) < slack);
        let others = due.filter(|(_, other)| *other != key).filter_map(|(_, other)| self.bookings.get(other));
        line.extend(others.map(|Booking { from, need }| Need {
            slack: seconds_until(now, *from) + need.slack,
            seconds: need.seconds * self.come_back,
            ..*need
        }));
        line
    }

    /// The first whole second from which the backlog leaves room, and in which not too much is promised already.
    fn promise(&mut self, now: Duration, key: u64, need: Need, backlog: f64) -> Verdict {
        let soonest = (backlog + need.seconds + need.tail - HEADROOM * need.slack).max(1.0).ceil();
        // Of a second in which pictures come together, only what can be done before their deadlines is promised.
        let most = PROMISED * (need.slack - need.tail).min(1.0);
        let free = |wait: &u64| {
            let taken = self.seconds.get(&(now.as_secs() + wait)).copied().unwrap_or(0.0);
            taken == 0.0 || taken + need.seconds <= most
        };
        let full = self.bookings.len() >= MOST_BOOKINGS;
        match (soonest as u64..MAX_WAIT.as_secs()).find(free) {
            Some(wait) if !full => {
                let from = now + Duration::from_secs(wait);
                self.bookings.insert(key, Booking { from, need });
                self.by_time.insert((from, key));
                *self.seconds.entry(from.as_secs()).or_default() += need.seconds;
                Verdict::Later(Duration::from_secs(wait))
            }
            _ => Verdict::Later(MAX_WAIT),
        }
    }

    /// Drops promises that nobody came for.
    fn expire(&mut self, now: Duration) {
        while let Some(&(from, key)) = self.by_time.first()
            && from + GRACE < now
        {
            self.remove(key, false);
        }
    }

    fn remove(&mut self, key: u64, came: bool) {
        let Some(Booking { from, need }) = self.bookings.remove(&key) else { return };
        self.by_time.remove(&(from, key));
        if let Some(seconds) = self.seconds.get_mut(&from.as_secs()) {
            *seconds -= need.seconds;
            // What is left of a sum when all is taken from it is rounding.
            if *seconds <= 1e-9 {
                self.seconds.remove(&from.as_secs());
            }
        }
        self.come_back += LEARNED * (f64::from(u8::from(came)) - self.come_back);
    }
}

fn seconds_until(now: Duration, then: Duration) -> f64 {
    then.saturating_sub(now).as_secs_f64()
}

fn whole_seconds(wait: Duration) -> Duration {
    Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
}

/// Whether one more makes it itself, those first whose deadlines are no later.
fn makes_it(line: Vec<Need>, new: &Need) -> bool {
    let before: f64 = line.iter().filter(|need| need.slack <= new.slack).map(|need| need.seconds).sum();
    before + new.seconds + new.tail <= new.limit(new.seconds) + ROUNDING
}

/// Whether one more makes it, and nobody misses a deadline for it who would not miss it anyway.
fn makes_it_alongside(mut line: Vec<Need>, new: &Need) -> bool {
    line.sort_by(|a, b| a.slack.total_cmp(&b.slack));
    let limits = limits(&line);
    let mut used = new.seconds;
    let others_do = line.iter().zip(limits).all(|(need, limit)| {
        used += need.seconds;
        need.slack <= new.slack || used + need.tail <= limit + ROUNDING
    });
    others_do && makes_it(line, new)
}

#[cfg(test)]
mod tests {
    use super::super::work::example;
    use super::*;

    /// 10 steps at least: 5 ms of the machine, 10 ms on the clock.
    fn work(slack: f64) -> Work {
        Work { slack, ..example() }
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn who_fits_is_let_in_and_nobody_misses_for_it() {
        let ask = |new: &Work, works: &[Work]| Admission::default().ask(at(0), 1, new, works);
        assert_eq!(ask(&work(0.1), &[]), Verdict::Admit);
        assert_eq!(ask(&work(0.1), &vec![work(0.1); 15]), Verdict::Admit);
        assert!(
            matches!(ask(&work(0.1), &vec![work(0.1); 17]), Verdict::Later(_)),
            "0.9 of the time is full"
        );
        assert_eq!(ask(&work(f64::INFINITY), &vec![work(0.1); 500]), Verdict::Admit, "it holds nobody up");
        assert_eq!(ask(&work(0.05), &vec![work(0.1); 15]), Verdict::Admit);
        let full = vec![work(0.1); 18];
        assert!(matches!(ask(&work(0.05), &full), Verdict::Later(_)), "it would, but the last would miss");
        let late = vec![work(-1.0); 3];
        assert_eq!(ask(&work(0.1), &late), Verdict::Admit, "who is late anyway is no reason");
        let fixed = vec![Work { planned: Some(50), replannable: false, ..work(0.1) }; 4];
        assert!(matches!(ask(&work(0.1), &fixed), Verdict::Later(_)), "what is not replanned takes its plan");
    }

    #[test]
    fn what_no_machine_could_do_is_never_let_in() {
        assert_eq!(Admission::default().ask(at(0), 1, &work(0.009), &[]), Verdict::Never);
        assert_eq!(Admission::default().ask(at(0), 1, &work(0.0101), &[]), Verdict::Admit);
    }

    #[test]
    fn a_promise_is_kept_and_holds_its_place() {
        let mut admission = Admission { come_back: 1.0, ..Admission::default() };
        let full = vec![work(0.2); 60];
        let Verdict::Later(wait) = admission.ask(at(0), 7, &work(0.2), &full) else { panic!("let in") };
        assert_eq!(wait, at(1000));
        assert_eq!(
            admission.ask(at(250), 7, &work(0.2), &full),
            Verdict::Later(at(1000)),
            "in 750 ms, whole"
        );
        // A machine that is full but for one place: it is promised.
        let nearly = vec![work(0.2); 34];
        assert!(matches!(admission.ask(at(999), 8, &work(0.2), &nearly), Verdict::Later(_)));
        assert_eq!(admission.ask(at(1010), 7, &work(0.2), &nearly), Verdict::Admit);
        assert_eq!(admission.bookings(), 1, "the other's");
    }

    #[test]
    fn a_place_is_kept_once_clients_have_come_back() {
        let mut admission = Admission::default();
        let (full, nearly) = (vec![work(0.2); 60], vec![work(0.2); 34]);
        let promised = |admission: &mut Admission, keys: std::ops::Range<u64>, now| {
            for key in keys {
                assert!(matches!(admission.ask(now, key, &work(0.2), &full), Verdict::Later(_)));
            }
        };
        promised(&mut admission, 0..30, at(0));
        assert_eq!(
            admission.ask(at(999), 100, &work(0.2), &nearly),
            Verdict::Admit,
            "none has ever come back"
        );
        for key in 0..30 {
            assert_eq!(admission.ask(at(1010), key, &work(0.2), &nearly), Verdict::Admit);
        }
        promised(&mut admission, 200..230, at(1010));
        assert!(
            matches!(admission.ask(at(2500), 101, &work(0.2), &nearly), Verdict::Later(_)),
            "all came back"
        );
    }

    #[test]
    fn promises_nobody_comes_for_expire_and_weigh_less() {
        let mut admission = Admission { come_back: 1.0, ..Admission::default() };
        let full = vec![work(0.2); 60];
        for key in 0..100 {
            assert!(matches!(admission.ask(at(0), key, &work(0.2), &full), Verdict::Later(_)));
        }
        assert_eq!(admission.bookings(), 100);
        assert_eq!(admission.ask(at(20_000), 1000, &work(0.2), &[]), Verdict::Admit);
        assert_eq!(admission.bookings(), 0);
        assert!(admission.come_back < 0.01 && admission.seconds.is_empty());
    }

    #[test]
    fn promises_are_bounded() {
        let mut admission = Admission::default();
        let full = vec![work(0.2); 60];
        let waits: Vec<Duration> = (0..MOST_BOOKINGS as u64 + 1000)
            .map(|key| match admission.ask(at(0), key, &work(0.2), &full) {
                Verdict::Later(wait) => wait,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(admission.bookings(), MOST_BOOKINGS);
        assert_eq!(waits.iter().max(), Some(&MAX_WAIT));
        // 34 or so pictures of 5 ms in each second.
        assert!(waits[4000] > at(100_000) && waits[4000] < at(140_000), "{:?}", waits[4000]);
    }
}
