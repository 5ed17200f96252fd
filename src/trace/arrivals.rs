//! When each request is sent: as recorded, or drawn.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{MAX_REQUESTS, Request, TraceError};

/// A request that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// Seconds from the start.
    pub at: f64,
    /// The request's index in the trace.
    pub request: usize,
}

/// Where arrival times come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Process {
    /// The trace's own times, divided by `speed`.
    Recorded {
        /// 2 sends twice as fast.
        speed: f64,
    },
    /// Independent exponential gaps.
    Poisson {
        /// Mean requests per second.
        rate: f64,
    },
    /// A Markov-modulated Poisson process of two states, whose stays are exponential.
    Bursty {
        /// Mean requests per second, of both states together.
        rate: f64,
        /// How the states differ.
        bursts: Bursts,
    },
}

/// The two states of a bursty process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bursts {
    /// The rate within a burst ÷ the rate outside.
    pub factor: f64,
    /// Mean seconds of a burst.
    pub burst_seconds: f64,
    /// Mean seconds between bursts.
    pub calm_seconds: f64,
}

/// The arrivals of a run. Recorded ones are the trace's. Drawn ones take the trace's requests in order: each once, or, with
/// `seconds`, over and over until time is up. The same seed draws the same times.
///
/// # Errors
/// Where a recorded request has no time, or there would be more than [`MAX_REQUESTS`].
pub fn arrivals(
    trace: &[Request],
    process: Process,
    seconds: Option<f64>,
    seed: u64,
) -> Result<Vec<Arrival>, TraceError> {
    let end = seconds.unwrap_or(f64::INFINITY);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut gaps = match process {
        Process::Recorded { speed } => return recorded(trace, speed, end),
        Process::Poisson { rate } => Gaps::new([rate, rate], [f64::INFINITY; 2], seed),
        Process::Bursty { rate, bursts } => {
            let Bursts { factor, burst_seconds, calm_seconds } = bursts;
            // The mean over both states is `rate`.
            let calm = rate * (calm_seconds + burst_seconds) / (calm_seconds + factor * burst_seconds);
            Gaps::new([calm, calm * factor], [calm_seconds, burst_seconds], seed)
        }
    };
    let most = if seconds.is_some() { usize::MAX } else { trace.len() };
    let mut arrivals = Vec::new();
    let mut at = 0.0;
    while arrivals.len() < most {
        at += gaps.next(&mut random);
        if at >= end {
            break;
        }
        if arrivals.len() == MAX_REQUESTS {
            return Err(TraceError::Arrivals);
        }
        arrivals.push(Arrival { at, request: arrivals.len() % trace.len() });
    }
    Ok(arrivals)
}

fn recorded(trace: &[Request], speed: f64, end: f64) -> Result<Vec<Arrival>, TraceError> {
    let arrival = |(request, line): (usize, &Request)| match line.at {
        Some(at) => Ok(Arrival { at: at / speed, request }),
        None => Err(TraceError::NoTime { request: request + 1 }),
    };
    let all: Vec<Arrival> = trace.iter().enumerate().map(arrival).collect::<Result<_, _>>()?;
    Ok(all.into_iter().take_while(|arrival| arrival.at < end).collect())
}

/// Gaps between the arrivals of a two-state process.
struct Gaps {
    rates: [f64; 2],
    stays: [f64; 2],
    /// Draws the stays: with one seed the bursts lie at the same times at any rate.
    random: ChaCha8Rng,
    state: usize,
    /// Seconds until the state changes.
    left: f64,
}

impl Gaps {
    /// Begins in either state as often as it is met later, so that the mean rate is the same from the first second on.
    fn new(rates: [f64; 2], stays: [f64; 2], seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(1);
        let in_second = if stays[0].is_finite() { stays[1] / (stays[0] + stays[1]) } else { 0.0 };
        let state = usize::from(unit(&mut random) < in_second);
        let left = exponential(stays[state], &mut random);
        Self { rates, stays, random, state, left }
    }

    fn next(&mut self, random: &mut ChaCha8Rng) -> f64 {
        let mut gap = 0.0;
        loop {
            // An exponential forgets how long it has waited: after a change of state it is drawn anew.
            let next = exponential(1.0 / self.rates[self.state], random);
            if next < self.left {
                self.left -= next;
                return gap + next;
            }
            gap += self.left;
            self.state = 1 - self.state;
            self.left = exponential(self.stays[self.state], &mut self.random);
        }
    }
}

/// Uniform on [0, 1).
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

fn exponential(mean: f64, random: &mut ChaCha8Rng) -> f64 {
    -(1.0 - unit(random)).ln().min(-f64::MIN_POSITIVE) * mean
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURSTS: Bursts = Bursts { factor: 4.0, burst_seconds: 5.0, calm_seconds: 20.0 };

    fn trace(times: &[Option<f64>]) -> Vec<Request> {
        let line = |at: &Option<f64>| serde_json::json!({"prompt": "a", "at": at});
        times.iter().map(|at| serde_json::from_value(line(at)).unwrap()).collect()
    }

    /// Mean, and variance ÷ mean (1 of a Poisson process), of the arrivals per five seconds.
    fn dispersion(process: Process) -> (f64, f64) {
        let arrivals = arrivals(&trace(&[None]), process, Some(20_000.0), 3).unwrap();
        let mut counts = vec![0.0; 4000];
        arrivals.iter().for_each(|arrival| counts[(arrival.at / 5.0) as usize] += 1.0);
        let mean = counts.iter().sum::<f64>() / 4000.0;
        let variance = counts.iter().map(|count| (count - mean) * (count - mean)).sum::<f64>() / 3999.0;
        (mean / 5.0, variance / mean)
    }

    #[test]
    fn the_rate_is_the_one_asked_for_and_bursts_are_bursts() {
        let (rate, spread) = dispersion(Process::Poisson { rate: 10.0 });
        assert!((rate - 10.0).abs() < 0.1 && (spread - 1.0).abs() < 0.1, "{rate} {spread}");
        let (rate, spread) = dispersion(Process::Bursty { rate: 10.0, bursts: BURSTS });
        assert!((rate - 10.0).abs() < 0.5 && spread > 5.0, "{rate} {spread}");
        let (_, spread) =
            dispersion(Process::Bursty { rate: 10.0, bursts: Bursts { factor: 1.0, ..BURSTS } });
        assert!((spread - 1.0).abs() < 0.1, "a burst that is none: {spread}");
    }

    #[test]
    fn the_seed_decides_and_requests_come_in_order() {
        let process = Process::Bursty { rate: 5.0, bursts: BURSTS };
        let three = trace(&[None, None, None]);
        let draw = |seconds, seed| arrivals(&three, process, seconds, seed).unwrap();
        assert_eq!(draw(None, 1).len(), 3);
        let long = draw(Some(60.0), 1);
        assert_eq!(long[..3], draw(None, 1)[..]);
        assert!(long != draw(Some(60.0), 2) && long.iter().all(|arrival| arrival.at < 60.0));
        assert!(long.iter().enumerate().all(|(i, arrival)| arrival.request == i % 3));
        assert!(long.windows(2).all(|pair| pair[0].at < pair[1].at));
        let flood = arrivals(&three, Process::Poisson { rate: 1e4 }, Some(1e4), 0).unwrap_err().to_string();
        assert!(flood.contains("--rate"), "{flood}");
    }

    #[test]
    fn recorded_times_are_kept_and_scaled() {
        let process = Process::Recorded { speed: 2.0 };
        let two = trace(&[Some(1.0), Some(3.0)]);
        let times =
            |seconds| arrivals(&two, process, seconds, 0).unwrap().iter().map(|a| a.at).collect::<Vec<_>>();
        assert_eq!(times(None), [0.5, 1.5]);
        assert_eq!(times(Some(1.0)), [0.5]);
        let missing = arrivals(&trace(&[Some(1.0), None]), process, None, 0).unwrap_err().to_string();
        assert!(missing.starts_with("request 2: at:"), "{missing}");
    }
}
