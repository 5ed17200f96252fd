//! Which requests of a trace are offered, and when: the options that `replay` and `simulate` share.

use std::path::Path;

use anyhow::{Context, anyhow};

use crate::trace::{Arrival, Bursts, Process, Request, Trace, arrivals, read};

/// Which requests of a trace are offered, and when.
#[derive(Debug, clap::Args)]
pub(super) struct Offered {
    /// When requests are offered: at the trace's own times, or at drawn ones.
    #[arg(long, value_enum, default_value = "recorded")]
    arrivals: Arrivals,
    /// Recorded arrivals: how many times faster than recorded.
    #[arg(long, value_name = "FACTOR", conflicts_with = "rate", value_parser = between::<1, 1_000_000_000>)]
    speed: Option<f64>,
    /// Mean requests per second. Recorded arrivals are made so much faster or slower; drawn ones need it.
    #[arg(long, value_name = "PER_SECOND", value_parser = between::<1, 1_000_000_000>)]
    rate: Option<f64>,
    /// Offer requests for so long. Drawn arrivals then begin the trace again where it ends.
    #[arg(long, value_parser = between::<1, 86_400_000>)]
    pub seconds: Option<f64>,
    /// Take the first so many requests of the trace alone.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000_000))]
    pub requests: Option<u64>,
    /// Leave out the trace's steps: the server's plans decide.
    #[arg(long)]
    free_steps: bool,
    /// Bursty arrivals: the rate within a burst ÷ the rate outside.
    #[arg(long, value_name = "FACTOR", default_value = "4", value_parser = between::<1, 1_000_000>)]
    burst_factor: f64,
    /// Bursty arrivals: mean seconds of a burst.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = between::<1, 86_400_000>)]
    burst_seconds: f64,
    /// Bursty arrivals: mean seconds between bursts.
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = between::<1, 86_400_000>)]
    calm_seconds: f64,
    /// Seed of all that is drawn: arrivals, and the prompts of a trace that has none.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Arrivals {
    Recorded,
    Poisson,
    /// A Markov-modulated Poisson process: bursts and calm.
    Bursty,
}

/// A number between LEAST and MOST thousandths.
pub(super) fn between<const LEAST: u64, const MOST: u64>(text: &str) -> Result<f64, String> {
    let (least, most) = (LEAST as f64 / 1e3, MOST as f64 / 1e3);
    match text.parse::<f64>() {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("must be a number between {least} and {most}")),
    }
}

impl Offered {
    /// Reads a trace, and says when each of its requests is offered: at least one is.
    ///
    /// # Errors
    /// The file's, and options that do not fit together.
    pub fn read(&self, path: &Path) -> anyhow::Result<(Vec<Request>, Vec<Arrival>)> {
        let Trace { mut requests, left_out } =
            read(path, self.seed).with_context(|| path.display().to_string())?;
        if left_out > 0 {
            eprintln!(
                "{}: {left_out} lines say nothing of what was asked for and are left out",
                path.display()
            );
        }
        requests.truncate(self.requests.map_or(usize::MAX, |most| most as usize));
        if self.free_steps {
            requests.iter_mut().for_each(|request| request.num_inference_steps = None);
        }
        let arrivals = arrivals(&requests, self.process(&requests)?, self.seconds, self.seed)?;
        if arrivals.is_empty() {
            return Err(anyhow!("--seconds: nothing is due so soon"));
        }
        Ok((requests, arrivals))
    }

    fn process(&self, requests: &[Request]) -> anyhow::Result<Process> {
        match (self.arrivals, self.rate) {
            (Arrivals::Recorded, None) => Ok(Process::Recorded { speed: self.speed.unwrap_or(1.0) }),
            (Arrivals::Recorded, Some(rate)) => {
                let last = requests.last().and_then(|request| request.at).unwrap_or(0.0);
                if last <= 0.0 {
                    return Err(anyhow!(
                        "--rate: the trace has no times, which --arrivals poisson or bursty draws"
                    ));
                }
                Ok(Process::Recorded { speed: rate * last / requests.len() as f64 })
            }
            _ if self.speed.is_some() => Err(anyhow!("--speed: needs --arrivals recorded")),
            (_, None) => Err(anyhow!("--rate: must be given with --arrivals poisson or bursty")),
            (Arrivals::Poisson, Some(rate)) => Ok(Process::Poisson { rate }),
            (Arrivals::Bursty, Some(rate)) => {
                let Self { burst_factor: factor, burst_seconds, calm_seconds, .. } = *self;
                Ok(Process::Bursty { rate, bursts: Bursts { factor, burst_seconds, calm_seconds } })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        offered: Offered,
    }

    fn process(arguments: &str, times: &[f64]) -> Result<Process, String> {
        let command = Command::try_parse_from(format!("x {arguments}").split_whitespace());
        let offered = command.map_err(|error| error.to_string())?.offered;
        let request = |at: &f64| Request { at: Some(*at), ..Request::default() };
        offered.process(&times.iter().map(request).collect::<Vec<_>>()).map_err(|error| error.to_string())
    }

    #[test]
    fn recorded_arrivals_are_scaled_by_a_factor_or_to_a_rate() {
        let speed = |arguments| match process(arguments, &[0.0, 1.0, 20.0, 40.0]) {
            Ok(Process::Recorded { speed }) => speed,
            other => panic!("{other:?}"),
        };
        assert_eq!((speed(""), speed("--speed 3"), speed("--rate 2")), (1.0, 3.0, 20.0));
        assert!(process("--rate 2", &[0.0]).unwrap_err().starts_with("--rate: "));
        assert!(process("--rate 2 --speed 2", &[1.0]).is_err());
    }

    #[test]
    fn drawn_arrivals_need_a_rate() {
        assert_eq!(process("--arrivals poisson --rate 4", &[]), Ok(Process::Poisson { rate: 4.0 }));
        assert!(process("--arrivals bursty", &[]).unwrap_err().starts_with("--rate: "));
        assert!(process("--arrivals poisson --speed 2", &[]).unwrap_err().starts_with("--speed: "));
    }
}
