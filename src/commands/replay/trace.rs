//! A trace: JSON lines, a request each (docs/load.md).

use std::io::Read;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use pentimento_pipelines::MAX_STEPS;
use serde::{Deserialize, Serialize};

use crate::gateway::MAX_SEED;
use crate::quality::Attributes;

/// Bytes of a trace.
const MAX_BYTES: u64 = 256 << 20;
/// Lines of a trace, and requests of a run.
pub const MAX_REQUESTS: usize = 1_000_000;
/// Bytes of a prompt.
const MAX_PROMPT: usize = 32_000;
/// Characters of a class or a namespace, and of a size.
const MAX_NAME: usize = 64;
/// A day.
pub const MAX_SECONDS: f64 = 86_400.0;

/// A line of a trace.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Seconds from the start. Recorded arrivals need it; drawn ones do not look at it.
    #[serde(default)]
    pub at: Option<f64>,
    /// The prompt.
    pub prompt: String,
    /// What else is asked for.
    #[serde(default)]
    pub seed: Option<u64>,
    #[serde(default)]
    n: Option<usize>,
    #[serde(default)]
    size: Option<String>,
    #[serde(default)]
    quality: Option<Quality>,
    #[serde(default)]
    num_inference_steps: Option<usize>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    max_latency_ms: Option<f64>,
    #[serde(default)]
    cache: Option<CacheUse>,
    /// The attributes that the prompt names, for scoring.
    #[serde(default)]
    pub named: Option<Attributes>,
    /// What kind of request it is; goes into the report's rows as it is.
    #[serde(default)]
    pub class: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Quality {
    Low,
    Medium,
    High,
    Auto,
    Standard,
    Hd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum CacheUse {
    Auto,
    Off,
    Refresh,
    Only,
}

/// The body of a request to the Images API.
#[derive(Serialize)]
struct Body<'a> {
    prompt: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quality: Option<Quality>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_inference_steps: Option<usize>,
    pentimento: Extensions<'a>,
}

#[derive(Serialize)]
struct Extensions<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<CacheUse>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_latency_ms: Option<f64>,
}

impl Request {
    /// What is sent.
    ///
    /// # Errors
    /// serde_json's.
    pub fn body(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Body {
            prompt: &self.prompt,
            seed: self.seed,
            n: self.n,
            size: self.size.as_deref(),
            quality: self.quality,
            num_inference_steps: self.num_inference_steps,
            pentimento: Extensions {
                cache: self.cache,
                namespace: self.namespace.as_deref(),
                max_latency_ms: self.max_latency_ms,
            },
        })
    }

    /// The first field whose value makes no sense, and why. What a server supports, it says itself.
    fn wrong(&self) -> Option<(&'static str, String)> {
        let within = |name, value: Option<u64>, least: u64, most: u64| {
            let value = value.filter(|value| !(least..=most).contains(value))?;
            Some((name, format!("must be between {least} and {most}, not {value}")))
        };
        let positive = |name, value: Option<f64>, least: f64, most: f64| {
            let value = value.filter(|value| !(least..=most).contains(value))?;
            Some((name, format!("must be between {least} and {most}, not {value}")))
        };
        let named = |name, text: &Option<String>| {
            let length = text.as_ref()?.chars().count();
            let reason = format!("must be 1 to {MAX_NAME} characters long, not {length}");
            (!(1..=MAX_NAME).contains(&length)).then_some((name, reason))
        };
        let prompt = || {
            let length = self.prompt.len();
            let reason = format!("must be 1 to {MAX_PROMPT} bytes long, not {length}");
            (!(1..=MAX_PROMPT).contains(&length)).then_some(("prompt", reason))
        };
        let steps = self.num_inference_steps.map(|steps| steps as u64);
        positive("at", self.at, 0.0, MAX_SECONDS)
            .or_else(prompt)
            .or_else(|| within("seed", self.seed, 0, MAX_SEED))
            .or_else(|| within("n", self.n.map(|n| n as u64), 1, 10))
            .or_else(|| within("num_inference_steps", steps, 1, MAX_STEPS as u64))
            .or_else(|| positive("max_latency_ms", self.max_latency_ms, 1.0, MAX_SECONDS * 1e3))
            .or_else(|| named("size", &self.size))
            .or_else(|| named("namespace", &self.namespace))
            .or_else(|| named("class", &self.class))
    }
}

/// Reads a trace.
///
/// # Errors
/// Those of the file, and what makes no sense, with line and field.
pub fn read(path: &Path) -> anyhow::Result<Vec<Request>> {
    let name = || path.display().to_string();
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(name)?;
    let length = file.take(MAX_BYTES + 1).read_to_string(&mut text).with_context(name)?;
    if length as u64 > MAX_BYTES {
        bail!("{}: longer than {MAX_BYTES} bytes", path.display());
    }
    parse(&text).with_context(name)
}

fn parse(text: &str) -> anyhow::Result<Vec<Request>> {
    let mut requests: Vec<Request> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let request = parse_line(line).with_context(|| format!("line {}", i + 1))?;
        if let (Some(before), Some(at)) = (requests.last().and_then(|r| r.at), request.at)
            && at < before
        {
            bail!("line {}: at: {at} lies before the {before} of the line above", i + 1);
        }
        if requests.len() == MAX_REQUESTS {
            bail!("more than {MAX_REQUESTS} lines");
        }
        requests.push(request);
    }
    if requests.is_empty() {
        bail!("no requests");
    }
    Ok(requests)
}

fn parse_line(line: &str) -> anyhow::Result<Request> {
    let request: Request = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(line))
        .map_err(|error| {
            let field = error.path().to_string();
            let reason = error.into_inner().to_string();
            // The column is of this line, but serde_json calls every line 1.
            let reason = reason.replace(" at line 1 column ", " at column ");
            if field == "." { anyhow!("{reason}") } else { anyhow!("{field}: {reason}") }
        })?;
    match request.wrong() {
        Some((field, reason)) => Err(anyhow!("{field}: {reason}")),
        None => Ok(request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", parse(text).unwrap_err())
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_field() {
        for (line, field) in [
            (r#"{"prompt": 5}"#, "prompt"),
            (r#"{"prompt": ""}"#, "prompt"),
            (r#"{"at": 1}"#, "prompt"),
            (r#"{"prompt": "a", "at": -1}"#, "at"),
            (r#"{"prompt": "a", "at": 1e9}"#, "at"),
            (r#"{"prompt": "a", "seed": -1}"#, "seed"),
            (r#"{"prompt": "a", "seed": 9007199254740992}"#, "seed"),
            (r#"{"prompt": "a", "n": 11}"#, "n"),
            (r#"{"prompt": "a", "n": 0}"#, "n"),
            (r#"{"prompt": "a", "size": ""}"#, "size"),
            (r#"{"prompt": "a", "quality": "ultra"}"#, "quality"),
            (r#"{"prompt": "a", "num_inference_steps": 1001}"#, "num_inference_steps"),
            (r#"{"prompt": "a", "namespace": ""}"#, "namespace"),
            (r#"{"prompt": "a", "max_latency_ms": 0}"#, "max_latency_ms"),
            (r#"{"prompt": "a", "cache": "never"}"#, "cache"),
            (r#"{"prompt": "a", "named": {"subjects": [{"colour": "red"}]}}"#, "named.subjects"),
            (r#"{"prompt": "a", "steps": 5}"#, "steps"),
            (r#"{"prompt": "a", "n": 1, "n": 2}"#, "n"),
            ("", "EOF"),
            ("{", "EOF"),
        ] {
            let error = error(&format!("{{\"prompt\": \"fine\"}}\n{line}\n"));
            assert!(error.starts_with("line 2: ") && error.contains(field), "{line}: {error}");
        }
        assert!(error("").contains("no requests"));
        let backwards = error("{\"prompt\": \"a\", \"at\": 2}\n{\"prompt\": \"a\", \"at\": 1}");
        assert!(backwards.starts_with("line 2: at: "), "{backwards}");
    }

    #[test]
    fn what_is_asked_for_is_sent_and_nothing_else() {
        let line = r#"{"at": 1, "prompt": "a", "seed": 7, "n": 2, "size": "64x64", "quality": "low", "namespace": "x",
            "num_inference_steps": 5, "max_latency_ms": 900.5, "cache": "off", "named": {"time": "day"}, "class": "edit"}"#;
        let sent: serde_json::Value =
            serde_json::from_slice(&parse_line(line).unwrap().body().unwrap()).unwrap();
        let want = serde_json::json!({"prompt": "a", "seed": 7, "n": 2, "size": "64x64", "quality": "low",
            "num_inference_steps": 5,
            "pentimento": {"cache": "off", "namespace": "x", "max_latency_ms": 900.5}});
        assert_eq!(sent, want);
        let least = parse_line(r#"{"prompt": "a"}"#).unwrap().body().unwrap();
        assert_eq!(String::from_utf8(least).unwrap(), r#"{"prompt":"a","pentimento":{}}"#);
    }
}
