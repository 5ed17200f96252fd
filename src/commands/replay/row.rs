//! What became of one request.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How a request ended. All but `Good` are violations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Answered within its objective, or answered and had none.
    Good,
    /// Answered later.
    Late,
    /// 429.
    Refused,
    /// No answer in time: ours or the server's (504).
    TimedOut,
    /// Any other status, a broken connection, or an answer that cannot be read.
    Failed,
    /// Not sent, because too many were under way: the generator's fault.
    Unsent,
}

/// What an answer says of itself in its object `pentimento`; what a server leaves out is `None`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
pub struct Provenance {
    /// Steps of the plan that the request got.
    pub steps: Option<f64>,
    /// Of these, the ones that reuse spared.
    pub skipped_steps: Option<f64>,
    /// `miss`, `state`, `semantic` or `exact`.
    pub outcome: Option<String>,
    /// Tolerance tier.
    pub tier: Option<String>,
    /// 0 to 1.
    pub expected_quality: Option<f64>,
    /// What the server aimed at, in milliseconds.
    pub objective_ms: Option<f64>,
    /// Where the server's time went, in milliseconds.
    #[serde(default)]
    pub timings_ms: BTreeMap<String, f64>,
}

/// One request of a run; times are seconds since its start.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The request's line in the trace, from 1.
    pub line: usize,
    /// The trace's word for it.
    pub class: Option<String>,
    /// When it was due.
    pub at: f64,
    /// How many seconds later it was sent.
    pub lag: Option<f64>,
    /// When it came back after a 429 that named a time.
    pub returned: Option<f64>,
    /// When it ended.
    pub ended: f64,
    /// How it ended.
    pub fate: Fate,
    /// HTTP's status, of the last answer.
    pub status: Option<u16>,
    /// What went wrong, where something did.
    pub error: Option<String>,
    /// From (the last) sending to the whole answer, in milliseconds.
    pub latency_ms: Option<f64>,
    /// Of an answer with pictures.
    pub pentimento: Option<Provenance>,
    /// Share of the named attributes that the pictures show, by `--score`.
    pub fidelity: Option<f64>,
    /// By `--score`.
    pub clip_score: Option<f64>,
}

impl Row {
    /// Whether it was answered with pictures.
    pub fn completed(&self) -> bool {
        matches!(self.fate, Fate::Good | Fate::Late)
    }
}

/// Whether an answer came in time. The objective is the user's, else the server's; without one it did.
pub fn judged(latency_ms: f64, wanted_ms: Option<f64>, answered: &Provenance) -> Fate {
    match wanted_ms.or(answered.objective_ms) {
        Some(objective) if latency_ms > objective => Fate::Late,
        _ => Fate::Good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_objective_goes_before_the_servers() {
        let says = |objective_ms| Provenance { objective_ms, ..Provenance::default() };
        assert_eq!(judged(900.0, None, &says(None)), Fate::Good);
        assert_eq!(judged(900.0, None, &says(Some(800.0))), Fate::Late);
        assert_eq!(judged(900.0, Some(1000.0), &says(Some(800.0))), Fate::Good);
        assert_eq!(judged(900.0, Some(500.0), &says(None)), Fate::Late);
    }

    #[test]
    fn a_server_that_says_little_is_understood() {
        let old: Provenance =
            serde_json::from_str(r#"{"outcome": "miss", "steps": 50, "seeds": [7], "x": {}}"#).unwrap();
        assert_eq!((old.steps, old.expected_quality), (Some(50.0), None));
        assert!(
            serde_json::from_str::<Provenance>(r#"{"expected_quality": null, "objective_ms": null}"#).is_ok()
        );
    }
}
