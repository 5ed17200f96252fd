//! Which policies are in force, and others in their place.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use pentimento_cache::{PolicyError, eviction_policy};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Admin;
use super::wire::{PolicyChange, PolicyObject};
use crate::api::{ApiError, ErrorBody, body};
use crate::gateway::Reuse;

impl PolicyObject {
    /// The policies in force.
    pub(super) fn of(reuse: &Reuse) -> Self {
        Self { reuse: reuse.policy(), eviction: reuse.cache().eviction().to_owned() }
    }
}

/// The policies in force.
#[utoipa::path(get, path = "/admin/v1/cache/policy", tag = "cache",
    responses((status = 200, body = PolicyObject), (status = 401, body = ErrorBody)))]
pub async fn get(State(admin): State<Arc<Admin>>) -> Json<PolicyObject> {
    Json(PolicyObject::of(&admin.reuse))
}

/// Goes by other policies from now on, until the server ends: both, or neither where one is wrong.
#[utoipa::path(put, path = "/admin/v1/cache/policy", tag = "cache", request_body = PolicyChange,
    responses(
        (status = 200, description = "The policies now in force", body = PolicyObject),
        (status = 400, description = "A setting is wrong; `param` names it", body = ErrorBody),
        (status = 401, body = ErrorBody)))]
pub async fn put(State(admin): State<Arc<Admin>>, request: Request) -> Result<Json<PolicyObject>, ApiError> {
    let change: PolicyChange = body::nested_json(request, admin.max_body_bytes, admin.read_timeout).await?;
    if change.reuse.is_none() && change.eviction.is_none() {
        return Err(ApiError::missing("reuse"));
    }
    let eviction = change.eviction.map(|name| {
        let known = eviction_policy(&name);
        known.ok_or_else(|| {
            ApiError::invalid("eviction", &format!("{name:?} is none of lcbfu, lru, lfu, fifo"))
        })
    });
    let eviction = eviction.transpose()?;
    if let Some(settings) = change.reuse {
        admin.reuse.set_policy(parse("reuse", settings)?).map_err(refused)?;
    }
    if let Some(policy) = eviction {
        admin.reuse.cache().set_eviction(policy);
    }
    let now = PolicyObject::of(&admin.reuse);
    tracing::info!(reuse = ?now.reuse, eviction = now.eviction, "the policies were set");
    Ok(Json(now))
}

/// A policy with its settings, in the field `field`.
pub(super) fn parse<P: DeserializeOwned>(field: &str, settings: Map<String, Value>) -> Result<P, ApiError> {
    let read = |settings: Map<String, Value>| P::deserialize(Value::Object(settings));
    read(settings.clone()).map_err(|error| {
        // serde does not say which setting of a tagged enum it was. All have defaults: each alone beside the
        // policy's name says it.
        let policy = settings.get("policy").cloned().unwrap_or_default();
        let wrong = settings.iter().filter(|(name, _)| *name != "policy").find(|(name, value)| {
            let alone = [("policy".to_owned(), policy.clone()), ((*name).clone(), (*value).clone())];
            read(alone.into_iter().collect()).is_err()
        });
        let known = read([("policy".to_owned(), policy.clone())].into_iter().collect()).is_ok();
        match wrong {
            Some((name, _)) if known => ApiError::invalid(format!("{field}.{name}"), &plain(&error)),
            _ => ApiError::invalid(format!("{field}.policy"), &plain(&error)),
        }
    })
}

fn plain(error: &serde_json::Error) -> String {
    error.to_string().replace('`', "'").replace("expected f32", "expected a number")
}

fn refused(error: PolicyError) -> ApiError {
    match error {
        PolicyError::OutOfBounds { field, must } => {
            ApiError::invalid(format!("reuse.{field}"), &format!("must be {must}"))
        }
        other @ PolicyError::Synonyms(_) => ApiError::invalid("reuse.synonyms", &plain_text(&other)),
        other @ PolicyError::NoCalibration => ApiError::invalid("reuse.policy", &plain_text(&other)),
    }
}

fn plain_text(error: &PolicyError) -> String {
    error.to_string().replace('`', "'")
}

#[cfg(test)]
mod tests {
    use pentimento_cache::PolicyConfig;

    use super::*;

    #[test]
    fn a_wrong_setting_is_named() {
        for (json, param) in [
            (r#"{"policy": "telepathy"}"#, "reuse.policy"),
            (r#"{"policy": 5, "offset": 1}"#, "reuse.policy"),
            (r#"{"offset": 0.5}"#, "reuse.policy"),
            (r#"{"policy": "off", "offset": 0.5}"#, "reuse.offset"),
            (r#"{"policy": "semantic", "threshold": "high"}"#, "reuse.threshold"),
            (r#"{"policy": "semantic", "content_gate": true, "treshold": 0.5}"#, "reuse.treshold"),
            (r#"{"policy": "nirvana", "thresholds": [{"similarity": 0.5}]}"#, "reuse.thresholds"),
        ] {
            let error =
                parse::<PolicyConfig>("reuse", serde_json::from_str(json).unwrap()).unwrap_err().detail;
            assert_eq!(error.param.as_deref(), Some(param), "{json}: {}", error.message);
        }
        let fine = parse::<PolicyConfig>(
            "reuse",
            serde_json::from_str(r#"{"policy": "nirvana", "offset": 3}"#).unwrap(),
        )
        .unwrap();
        let error = refused(fine.build(&[], &[0; 16]).err().unwrap()).detail;
        assert_eq!(error.param.as_deref(), Some("reuse.offset"));
    }
}
