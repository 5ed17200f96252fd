//! The `config.json` files of diffusers and transformers: parsing that names the key at fault, and refuses keys that the
//! engine does not support.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Parses a `config.json`; `file` is its name in errors. A null means the same as an absent key. `adjust` sees the file
/// before nulls are removed, and may change it.
pub(crate) fn parse<T: DeserializeOwned>(
    file: &str,
    bytes: &[u8],
    adjust: impl FnOnce(&mut Map<String, Value>) -> Result<()>,
) -> Result<T> {
    let mut map: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|e| Error::config(file, e.to_string()))?;
    adjust(&mut map)?;
    map.retain(|_, value| !value.is_null());
    // After an error each key is parsed alone, so that the error can name the key with the wrong value.
    serde_json::from_value(Value::Object(map.clone())).map_err(|e| {
        let culprit = map.iter().find(|(key, value)| {
            let alone = Map::from_iter([((*key).clone(), (*value).clone())]);
            serde_json::from_value::<T>(Value::Object(alone))
                .is_err_and(|e| !e.to_string().contains("missing"))
        });
        let key = culprit.map(|(key, _)| format!("{key}: ")).unwrap_or_default();
        Error::config(file, format!("{key}{e}"))
    })
}

/// Refuses every key that the parsed type does not have. Three kinds of keys are allowed: those with the value in `fixed`
/// ("any" allows every value), those that are switched off (null or false), and diffusers' internal ones, whose names begin
/// with an underscore.
pub(crate) fn check_rest(file: &str, rest: &Map<String, Value>, fixed: &[(&str, &str)]) -> Result<()> {
    for (key, value) in rest {
        let off = value.is_null() || *value == Value::Bool(false);
        let list_of_off = value.as_array().is_some_and(|l| l.iter().all(|v| *v == Value::Bool(false)));
        let allowed = fixed.iter().find(|(name, _)| name == key).is_some_and(|(_, only)| same(value, only));
        if !(key.starts_with('_') || off || list_of_off || allowed) {
            return Err(unsupported(file, key, value));
        }
    }
    Ok(())
}

/// Whether `value` equals the JSON text `only`. Numbers are compared by value, so that 1 equals 1.0.
fn same(value: &Value, only: &str) -> bool {
    let wanted: Value = serde_json::from_str(only).unwrap_or(Value::Null);
    only == "any" || *value == wanted || (value.is_number() && value.as_f64() == wanted.as_f64())
}

/// The error for a key whose value the engine does not support.
pub(crate) fn unsupported(file: &str, key: &str, value: &Value) -> Error {
    Error::config(file, format!("{key}: {value} is not supported"))
}
