//! One file per subcommand, and what they share: how a command ends.

pub mod cache;
pub mod calibrate;
pub mod frontier;
pub mod generate;
mod latents;
mod menus;
mod offered;
mod open_cache;
pub mod replay;
mod rows;
pub mod serve;
pub mod simulate;
mod terminal;
mod workers;

use std::process::ExitCode;

use clap::{Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use pentimento_pipelines::{Components, Device, Model, Pipeline, Precision};

use crate::config::{Config, ConfigError};

/// Text-to-image diffusion serving.
#[derive(Debug, Parser)]
#[command(name = "pentimento", version, about, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

const EXAMPLES: &str = "\
Examples:
  pentimento generate \"a large red house in the snow at night\" -o house.png --seed 7
  pentimento serve --listen 127.0.0.1:8080
  pentimento cache stats";

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "one is made, once")]
enum Subcommands {
    /// Measure what reuse costs in quality, for the `calibrated` reuse policy.
    Calibrate(calibrate::Arguments),
    /// Measure what plans are worth, for a menu of those that are worth their cost.
    Frontier(frontier::Arguments),
    /// Paint pictures without a server.
    Generate(generate::Arguments),
    /// Send a trace of requests to a server, and report what came of them.
    Replay(replay::Arguments),
    /// Serve the Images API: one process with API and worker.
    Serve(serve::Arguments),
    /// Run scheduler and workers in simulated time, with faults, and report what came of it.
    Simulate(simulate::Arguments),
    /// Look at a running server's cache, and change it.
    Cache(cache::Arguments),
}

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// The user asked for what cannot be: exit code 2.
    Misuse(anyhow::Error),
    /// Something went wrong on the way: exit code 1.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        if error.is::<ConfigError>() { Self::Misuse(error) } else { Self::Other(error) }
    }
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let matches = with_environment(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let outcome = match cli.command {
        Subcommands::Calibrate(arguments) => calibrate::run(arguments),
        Subcommands::Frontier(arguments) => frontier::run(arguments),
        Subcommands::Generate(arguments) => generate::run(arguments),
        Subcommands::Replay(arguments) => replay::run(arguments),
        Subcommands::Serve(arguments) => serve::run(arguments),
        Subcommands::Simulate(arguments) => simulate::run(arguments),
        Subcommands::Cache(arguments) => cache::run(arguments),
    };
    let (error, code) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Misuse(error)) => (error, 2),
        Err(Failure::Other(error)) => (error, 1),
    };
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}

/// Lets the environment set every configuration key: `PENTIMENTO_<KEY>`.
fn with_environment(command: Command) -> Command {
    command.mut_subcommands(|subcommand| {
        subcommand.mut_args(|argument| {
            let id = argument.get_id().as_str().to_owned();
            if !Config::KEYS.contains(&id.as_str()) {
                return argument;
            }
            argument.env(format!("PENTIMENTO_{}", id.to_uppercase()))
        })
    })
}

/// The file of the configuration.
#[derive(Debug, Args)]
struct ConfigFile {
    /// TOML file with configuration keys.
    #[arg(long, value_name = "FILE", env = "PENTIMENTO_CONFIG")]
    config: Option<std::path::PathBuf>,
}

/// Bounds the threads that paint. Must come before the first tensor, and before any other thread.
fn use_threads(threads: usize) -> anyhow::Result<()> {
    if threads > 0 {
        // candle's elementwise operators have a pool of their own, which only the environment bounds.
        // SAFETY: no other thread has been started.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var("CANDLE_NUM_THREADS", threads.to_string());
        }
    }
    // 0 is rayon's own word for one per core.
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?)
}

/// A policy as people write it: its name, or JSON with its settings.
fn policy_json(text: &str) -> serde_json::Result<serde_json::Value> {
    match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text),
        false => Ok(serde_json::json!({ "policy": text })),
    }
}

/// Loads the models of these names; what several share is loaded once.
fn load_models(names: &[String], precision: Precision) -> Result<Vec<Pipeline>, Failure> {
    let components = Components::of(precision);
    let load = |name: &String| {
        let model = Model::find(name).map_err(|e| Failure::Misuse(anyhow::anyhow!("--model: {e}")))?;
        Ok(Pipeline::load(&model, &components, &Device::Cpu)?)
    };
    names.iter().map(load).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        with_environment(Cli::command()).debug_assert();
    }

    #[test]
    fn every_key_of_serve_has_its_variable() {
        let command = with_environment(Cli::command());
        let serve = command.find_subcommand("serve").unwrap();
        for key in Config::KEYS {
            let argument = serve.get_arguments().find(|a| a.get_id() == key).unwrap();
            let variable = format!("PENTIMENTO_{}", key.to_uppercase());
            assert_eq!(argument.get_env().unwrap().to_str(), Some(variable.as_str()));
        }
    }
}
