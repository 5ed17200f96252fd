//! Our own format: JSON lines, a request each (docs/load.md).

use super::request::Request;
use super::{MAX_REQUESTS, Trace, TraceError};

/// Reads the requests of a text.
pub(super) fn parse(text: &str) -> Result<Trace, TraceError> {
    let mut requests: Vec<Request> = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let request = parse_line(line, text)?;
        if let (Some(before), Some(at)) = (requests.last().and_then(|r| r.at), request.at)
            && at < before
        {
            return Err(TraceError::field(
                line,
                "at",
                format!("{at} lies before the {before} of the line above"),
            ));
        }
        if requests.len() == MAX_REQUESTS {
            return Err(TraceError::Requests);
        }
        requests.push(request);
    }
    Ok(Trace { requests, left_out: 0 })
}

fn parse_line(line: u64, text: &str) -> Result<Request, TraceError> {
    let request: Request = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text))
        .map_err(|error| {
            let field = error.path().to_string();
            // The column is of this line, but serde_json calls every line 1.
            let reason = error.into_inner().to_string().replace(" at line 1 column ", " at column ");
            if field == "." {
                TraceError::Line { line, reason }
            } else {
                TraceError::Field { line, field, reason }
            }
        })?;
    match request.wrong() {
        Some((field, reason)) => Err(TraceError::field(line, field, reason)),
        None => Ok(request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        super::super::parse(text, 0).unwrap_err().to_string()
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
            (r#"{"prompt": "a", "client": ""}"#, "client"),
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
            serde_json::from_slice(&parse_line(1, line).unwrap().body().unwrap()).unwrap();
        let want = serde_json::json!({"prompt": "a", "seed": 7, "n": 2, "size": "64x64", "quality": "low",
            "num_inference_steps": 5,
            "pentimento": {"cache": "off", "namespace": "x", "max_latency_ms": 900.5}});
        assert_eq!(sent, want);
        let least = parse_line(1, r#"{"prompt": "a"}"#).unwrap().body().unwrap();
        assert_eq!(String::from_utf8(least).unwrap(), r#"{"prompt":"a","pentimento":{}}"#);
    }
}
