//! From a body's bytes to a request, or to an error that names the field.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ApiError;

/// How much of a body beyond its limit is still read, so that the client reads the answer instead of
/// finding the connection reset while it writes.
pub const POLITENESS: usize = 16;

/// The request's JSON body, of plain values and `pentimento`.
///
/// # Errors
/// [`ApiError`], for a wrong type, too large or too slow a body, broken JSON, or a field.
pub async fn json<T: DeserializeOwned>(
    request: Request,
    limit: usize,
    time: Duration,
) -> Result<T, ApiError> {
    parse(&bytes(request, limit, time).await?)
}

/// The request's JSON body, of any values.
///
/// # Errors
/// As [`json`].
pub async fn nested_json<T: DeserializeOwned>(
    request: Request,
    limit: usize,
    time: Duration,
) -> Result<T, ApiError> {
    Ok(parse_nested(&bytes(request, limit, time).await?)?.0)
}

/// The request's body, of JSON's media type.
///
/// # Errors
/// [`ApiError`], for a wrong type, too large or too slow a body.
pub async fn bytes(request: Request, limit: usize, time: Duration) -> Result<Vec<u8>, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::content_type());
    }
    tokio::time::timeout(time, read(request.into_body(), limit)).await.map_err(|_| ApiError::broken_body())?
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

async fn read(mut body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut total = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ApiError::broken_body())?.into_data() else { continue };
        total += data.len();
        if total <= limit {
            bytes.extend_from_slice(&data);
        } else if total > limit.saturating_mul(POLITENESS) {
            break;
        }
    }
    if total > limit { Err(ApiError::body_too_large(limit)) } else { Ok(bytes) }
}

/// A body of plain values, `pentimento` and what of it is an object.
///
/// # Errors
/// [`ApiError`], for broken JSON, or a field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let (value, fields) = parse_nested(bytes)?;
    only_plain_values(&fields, "")?;
    Ok(value)
}

fn parse_nested<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, serde_json::Map<String, Value>), ApiError> {
    // Whether it is JSON at all. The fields are then read from the text: a `Value` forgets those given twice.
    let fields = match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => return Err(ApiError::broken_json("it is not an object")),
        Err(error) => return Err(ApiError::broken_json(&error.to_string())),
    };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        describe(&path, &e.into_inner())
    })?;
    Ok((value, fields))
}

/// The fields that are objects.
const OBJECTS: [&str; 2] = ["pentimento", "pentimento.webhook"];

/// Refuses arrays and objects, which serde takes for structs and enums in its own notation; no field's value
/// is one, but for these.
fn only_plain_values(fields: &serde_json::Map<String, Value>, parent: &str) -> Result<(), ApiError> {
    for (name, value) in fields {
        match value {
            Value::Object(ours) if OBJECTS.contains(&format!("{parent}{name}").as_str()) => {
                only_plain_values(ours, &format!("{parent}{name}."))?;
            }
            Value::Array(_) => {
                return Err(ApiError::invalid(format!("{parent}{name}"), "an array is not possible"));
            }
            Value::Object(_) => {
                return Err(ApiError::invalid(format!("{parent}{name}"), "an object is not possible"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// serde's error about a field, for people who do not write Rust.
fn describe(path: &str, error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    if reason.starts_with("unknown field `") {
        return ApiError::unknown_parameter(path);
    }
    if let Some(field) = reason.strip_prefix("duplicate field `").and_then(|r| r.split('`').next()) {
        let parent = path.strip_suffix(field).unwrap_or(path).trim_end_matches(['.', '?']);
        let name = if parent.is_empty() { field.to_owned() } else { format!("{parent}.{field}") };
        return ApiError::invalid(name, "is given twice");
    }
    if reason == "expected value" {
        return ApiError::invalid(path, "it has the wrong type"); // of an enum
    }
    let reason = reason
        .replace("expected i64", "expected an integer")
        .replace("expected f64", "expected a number")
        .replace("unknown variant ", "unknown value ")
        .replace("expected struct Extensions", "expected an object")
        .replace("expected struct WebhookRequest", "expected an object")
        .replace('`', "'");
    ApiError::invalid(path, &reason)
}

#[cfg(test)]
mod tests {
    use super::super::wire::ImageRequest;
    use super::*;

    fn error(text: &str) -> (Option<String>, &'static str, String) {
        let detail = parse::<ImageRequest>(text.as_bytes()).unwrap_err().detail;
        (detail.param, detail.code.unwrap(), detail.message)
    }

    #[test]
    fn an_error_names_its_field() {
        for (text, param, code) in [
            (r#"{"prompt": 5}"#, "prompt", "invalid_value"),
            (r#"{"prompt": "a", "n": 1.5}"#, "n", "invalid_value"),
            (r#"{"n": "x"}"#, "n", "invalid_value"),
            (r#"{"seed": 1e300}"#, "seed", "invalid_value"),
            (r#"{"seed": 99999999999999999999}"#, "seed", "invalid_value"),
            (r#"{"quality": "ultra"}"#, "quality", "invalid_value"),
            (r#"{"stream": "yes"}"#, "stream", "invalid_value"),
            (r#"{"n": 1, "n": 2}"#, "n", "invalid_value"),
            (r#"{"steps": 5}"#, "steps", "unknown_parameter"),
            (r#"{"pentimento": {"cash": 5}}"#, "pentimento.cash", "unknown_parameter"),
            (r#"{"pentimento": {"cache": "never"}}"#, "pentimento.cache", "invalid_value"),
            (r#"{"pentimento": 5}"#, "pentimento", "invalid_value"),
            (r#"{"pentimento": ["auto", null, null, null]}"#, "pentimento", "invalid_value"),
            (r#"{"pentimento": {"cache": true}}"#, "pentimento.cache", "invalid_value"),
            (r#"{"quality": 5}"#, "quality", "invalid_value"),
            (r#"{"quality": ["low"]}"#, "quality", "invalid_value"),
            (r#"{"style": {}}"#, "style", "invalid_value"),
            (r#"{"a`b": 1}"#, "a`b", "unknown_parameter"),
            (r#"{"pentimento": {"cache": {"auto": null}}}"#, "pentimento.cache", "invalid_value"),
            (r#"{"pentimento": {"cache": "auto", "cache": "off"}}"#, "pentimento.cache", "invalid_value"),
            (r#"{"quality": {"low": null}}"#, "quality", "invalid_value"),
            (r#"{"pentimento": {"webhook": "https://a"}}"#, "pentimento.webhook", "invalid_value"),
            (r#"{"pentimento": {"webhook": ["https://a"]}}"#, "pentimento.webhook", "invalid_value"),
            (r#"{"pentimento": {"webhook": {"uri": "a"}}}"#, "pentimento.webhook.uri", "unknown_parameter"),
            (r#"{"pentimento": {"webhook": {"url": {}}}}"#, "pentimento.webhook.url", "invalid_value"),
            (r#"{"webhook": {"url": "a"}}"#, "webhook", "unknown_parameter"),
            (r#"{"": 5}"#, "", "unknown_parameter"),
        ] {
            let (got, got_code, message) = error(text);
            assert_eq!((got.as_deref(), got_code), (Some(param), code), "{text}: {message}");
            assert!(message.contains(param) && !message.contains("struct"), "{message}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_said_to_be_none() {
        for text in [
            "",
            "[]",
            "null",
            r#"["a"]"#,
            "{",
            r#"{"prompt": "a"} x"#,
            r#"{"guidance_scale": NaN}"#,
            "{\"n\": \u{7}}",
        ] {
            let (param, code, message) = error(text);
            assert_eq!((param, code), (None, "invalid_json"), "{text}: {message}");
        }
        assert!(parse::<ImageRequest>(br#" {"prompt": null, "n": null} "#).is_ok());
    }
}
