//! `pentimento cache`: what operators do to a running server's cache, by its admin API.

mod client;
mod show;

use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Subcommand;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use super::{ConfigFile, Failure, policy_json};
use crate::api::admin::AdminToken;
use crate::api::admin::wire::{
    EntryList, ImportAnswer, LookUpAnswer, LookUpRequest, PolicyObject, PurgeAnswer, PurgeRequest,
    StatsObject,
};
use crate::config::{Config, Flags};
use client::Client;

/// Entries asked for at once.
const PAGE: usize = 200;

/// What `cache` is given.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// The server's admin API; `pentimento serve` says where it is. Without it http://127.0.0.1:8081, or where the
    /// file of --config has `admin_listen`.
    #[arg(long, value_name = "URL", env = "PENTIMENTO_ADMIN_URL", global = true)]
    admin: Option<String>,
    /// File with the admin API's token; PENTIMENTO_ADMIN_TOKEN, the token itself, goes before it.
    #[arg(long, value_name = "FILE", global = true)]
    admin_token_file: Option<PathBuf>,
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    file: ConfigFile,
}

const EXAMPLES: &str = "\
Examples:
  pentimento cache stats
  pentimento cache ls --prompt house --limit 20
  pentimento cache lookup \"a red house in the snow\" --steps 25 --seed 7
  pentimento cache policy '{\"policy\": \"nirvana\", \"offset\": 0.02}' --eviction lru
  pentimento cache purge --prompt \"what nobody should see again\"
  pentimento cache purge --older-than 30d --yes
  pentimento cache export cache.tar
  pentimento cache import cache.tar --admin http://127.0.0.1:9081";

#[derive(Debug, Subcommand)]
enum Action {
    /// List what the cache holds.
    Ls(Ls),
    /// How the cache is doing.
    Stats,
    /// What a request would start from, and why. Paints nothing.
    Lookup(Box<LookUp>),
    /// The policies in force; with a policy, goes by that from now on, until the server ends.
    Policy(Policy),
    /// Remove pictures and their states.
    Purge(Purge),
    /// Write the cache to a file, to be imported elsewhere.
    Export(Export),
    /// Add what another cache exported. Both must have the same file `secret` in their directories.
    Import {
        /// The archive.
        file: PathBuf,
    },
}

/// Which pictures are meant.
#[derive(Debug, clap::Args)]
struct Which {
    /// Only those with this text in the prompt.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Only this tenant's.
    #[arg(long)]
    tenant: Option<String>,
    /// Only this namespace's.
    #[arg(long)]
    namespace: Option<String>,
    /// Only those that this model painted.
    #[arg(long, value_name = "ID")]
    model: Option<String>,
}

impl Which {
    fn query(self) -> [(&'static str, Option<String>); 4] {
        let Self { prompt, tenant, namespace, model } = self;
        [("prompt", prompt), ("tenant", tenant), ("namespace", namespace), ("model", model)]
    }
}

#[derive(Debug, clap::Args)]
struct Ls {
    #[command(flatten)]
    which: Which,
    /// How many at most.
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

#[derive(Debug, clap::Args)]
struct LookUp {
    /// The prompt.
    prompt: String,
    /// A model's id or alias.
    #[arg(long, value_name = "ID")]
    model: Option<String>,
    /// What not to paint.
    #[arg(long, value_name = "PROMPT")]
    negative_prompt: Option<String>,
    /// Size in pixels.
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    size: Option<String>,
    /// Steps to take.
    #[arg(long, allow_negative_numbers = true)]
    steps: Option<i64>,
    /// How closely to follow the prompt.
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    guidance_scale: Option<f64>,
    /// The seed. Without one there is no exact hit.
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<i64>,
    /// Whose request it is.
    #[arg(long)]
    tenant: Option<String>,
    /// The tenant's namespace.
    #[arg(long)]
    namespace: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Policy {
    /// `combined`, `calibrated`, `nirvana`, `semantic`, `exact`, `off`, or such a policy with its settings as JSON.
    #[arg(value_name = "NAME|JSON")]
    reuse: Option<String>,
    /// What goes first when the cache is full: `lcbfu`, `lru`, `lfu` or `fifo`.
    #[arg(long, value_name = "NAME")]
    eviction: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Purge {
    /// Those of exactly this prompt, be prompts stored or not.
    #[arg(long)]
    prompt: Option<String>,
    /// This tenant's.
    #[arg(long)]
    tenant: Option<String>,
    /// This namespace's.
    #[arg(long)]
    namespace: Option<String>,
    /// Those that this model painted.
    #[arg(long, value_name = "ID")]
    model: Option<String>,
    /// Those painted longer ago, such as 90s, 15m, 12h or 30d.
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Option<u64>,
    /// Everything.
    #[arg(long, conflicts_with_all = ["prompt", "tenant", "namespace", "model", "older_than"])]
    all: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
struct Export {
    /// The file to write; it is replaced only by a whole archive.
    file: PathBuf,
    #[command(flatten)]
    which: Which,
}

/// An age in seconds.
fn age(text: &str) -> Result<u64, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit))).unzip();
    let seconds = number.zip(unit).and_then(|(number, unit)| number.parse::<u64>().ok()?.checked_mul(*unit));
    seconds.ok_or_else(|| "not a number with s, m, h or d behind it, such as 12h".to_owned())
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`].
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { action, admin, admin_token_file, json, file } = arguments;
    let flags = Flags { admin_token_file, ..Flags::default() };
    let config = Config::load(file.config.as_deref(), &flags)?;
    let url = admin.unwrap_or_else(|| format!("http://{}", config.admin_listen));
    let client = Client::new(&url, AdminToken::load(&config)?)?;
    match action {
        Action::Ls(wanted) => print(json, &list(&client, wanted)?, |list| {
            let more = if list.next.is_some() { "There are more: --limit shows them.\n" } else { "" };
            show::entries(&list.data) + more
        }),
        Action::Stats => print(json, &client.get::<StatsObject>("stats", &[])?, show::stats),
        Action::Lookup(wanted) => {
            print(json, &client.post::<LookUpAnswer>("lookup", &wanted.request())?, show::look_up)
        }
        Action::Policy(wanted) => print(json, &policy(&client, wanted)?, show::policy),
        Action::Purge(wanted) => match purge(&client, wanted)? {
            Some(answer) => print(json, &answer, |answer| format!("{} removed\n", pictures(answer.entries))),
            None => Ok(()),
        },
        Action::Export(wanted) => {
            let Export { file, which } = wanted;
            let bytes = export(&client, &file, which)?;
            print(json, &json!({ "bytes": bytes }), |_| {
                format!("{}: {}\n", file.display(), HumanBytes(bytes))
            })
        }
        Action::Import { file } => print(json, &import(&client, &file)?, |answer| {
            format!("{} with {} states imported\n", pictures(answer.entries), answer.states)
        }),
    }
}

fn pictures(n: usize) -> String {
    if n == 1 { "1 picture".to_owned() } else { format!("{n} pictures") }
}

fn print<T: Serialize>(json: bool, answer: &T, text: impl Fn(&T) -> String) -> Result<(), Failure> {
    let text = if json { serde_json::to_string_pretty(answer)? + "\n" } else { text(answer) };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()), // `| head` has seen enough
        written => Ok(written?),
    }
}

fn list(client: &Client, wanted: Ls) -> Result<EntryList, Failure> {
    let Ls { which, limit } = wanted;
    let which = which.query();
    let mut all = EntryList { data: Vec::new(), next: None };
    while all.data.len() < limit {
        let page = PAGE.min(limit - all.data.len());
        let mut query = vec![("after", all.next.take()), ("limit", Some(page.to_string()))];
        query.extend(which.iter().cloned());
        let page: EntryList = client.get("entries", &query)?;
        all.data.extend(page.data);
        all.next = page.next;
        if all.next.is_none() {
            break;
        }
    }
    Ok(all)
}

impl LookUp {
    fn request(self) -> LookUpRequest {
        LookUpRequest {
            prompt: Some(self.prompt),
            model: self.model,
            negative_prompt: self.negative_prompt,
            size: self.size,
            num_inference_steps: self.steps,
            guidance_scale: self.guidance_scale,
            seed: self.seed,
            tenant: self.tenant,
            namespace: self.namespace,
        }
    }
}

fn policy(client: &Client, wanted: Policy) -> Result<PolicyObject, Failure> {
    if wanted.reuse.is_none() && wanted.eviction.is_none() {
        return client.get("policy", &[]);
    }
    let mut change = serde_json::Map::new();
    if let Some(reuse) = wanted.reuse {
        let settings = policy_json(&reuse).map_err(|e| Failure::Misuse(anyhow!("NAME|JSON: {e}")))?;
        change.insert("reuse".to_owned(), settings);
    }
    if let Some(eviction) = wanted.eviction {
        change.insert("eviction".to_owned(), eviction.into());
    }
    client.put("policy", &change)
}

/// `None` where the user thought better of it.
fn purge(client: &Client, wanted: Purge) -> Result<Option<PurgeAnswer>, Failure> {
    let Purge { prompt, tenant, namespace, model, older_than: older_than_seconds, all, yes } = wanted;
    let mut order = PurgeRequest {
        prompt,
        tenant,
        namespace,
        model,
        older_than_seconds,
        all: all.then_some(true),
        dry_run: Some(true),
    };
    let PurgeRequest { prompt, tenant, namespace, model, older_than_seconds, all, .. } = &order;
    let parts = [prompt, tenant, namespace, model];
    if parts.iter().all(|part| part.is_none()) && older_than_seconds.is_none() && all.is_none() {
        let say = "say what to purge: --prompt, --tenant, --namespace, --model, --older-than, or --all";
        return Err(Failure::Misuse(anyhow!(say)));
    }
    if !yes {
        if !std::io::stdin().is_terminal() {
            return Err(Failure::Misuse(anyhow!("nobody is there to be asked: give --yes")));
        }
        let found: PurgeAnswer = client.post("purge", &order)?;
        let what = pictures(found.entries);
        eprint!("This removes {what}, states included, from the cache at {}. Go on? [y/N] ", client.url());
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
            eprintln!("Nothing was removed.");
            return Ok(None);
        }
    }
    order.dry_run = None;
    client.post("purge", &order).map(Some)
}

/// Writes beside the file first: what is there under its name is whole.
fn export(client: &Client, file: &Path, which: Which) -> Result<u64, Failure> {
    let archive = client.download("export", &which.query())?;
    let mut unfinished = file.to_owned().into_os_string();
    unfinished.push(".part");
    let unfinished = PathBuf::from(unfinished);
    let context = || format!("{}", unfinished.display());
    // Prompts may be in it.
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut out = BufWriter::new(options.open(&unfinished).with_context(context)?);
    let progress = bar("{spinner} {bytes} {bytes_per_sec}", None)?;
    let copied = std::io::copy(&mut progress.wrap_read(archive), &mut out)
        .and_then(|bytes| out.flush().and_then(|()| out.get_ref().sync_all()).map(|()| bytes));
    progress.finish_and_clear();
    match copied {
        Ok(bytes) => {
            std::fs::rename(&unfinished, file).with_context(|| format!("{}", file.display()))?;
            Ok(bytes)
        }
        Err(error) => {
            let _ = std::fs::remove_file(&unfinished);
            Err(error).context("the export did not come to its end")?
        }
    }
}

fn import(client: &Client, path: &Path) -> Result<ImportAnswer, Failure> {
    let open = || {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        std::io::Result::Ok((file, length))
    };
    let (file, length) = open().map_err(|e| Failure::Misuse(anyhow!("{}: {e}", path.display())))?;
    let progress = bar("{wide_bar} {bytes}/{total_bytes} {eta}", Some(length))?;
    let answer = client.upload("import", &mut progress.wrap_read(BufReader::new(file).take(length)));
    progress.finish_and_clear();
    answer
}

/// Shown on a terminal only.
fn bar(template: &str, length: Option<u64>) -> anyhow::Result<ProgressBar> {
    let bar = length.map_or_else(ProgressBar::no_length, ProgressBar::new);
    Ok(bar.with_style(ProgressStyle::with_template(template)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_a_number_with_a_unit() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000)] {
            assert_eq!(age(text), Ok(seconds));
        }
        for wrong in ["", "5", "d", "-1d", "1.5h", "99999999999999999999d", "300000000000000000d", "5 d"] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
