//! What gateway, scheduler and worker say to each other: data, without channels and without absolute times.
//!
//! Each message is readable by the version before and the version after: fields that came later have a default, unknown
//! fields are skipped, and an unknown kind of change or outcome reads as `Unknown`.
//!
//! The picture's specification (`Spec`) and the finished picture (`Picture`) are opaque here.

mod end;
mod poll;
mod submit;

pub use end::{EndAnswer, Failure, Notice, Outcome, PictureResult, TaskEnd};
pub use poll::{
    Assignment, AttemptId, Beginning, Change, Checkpoint, Held, OverheadTime, Place, Poll, PollAnswer, Rank,
    Report, StepTimes,
};
pub use submit::{
    Busy, Cancel, MOST_PREVIEWS, MenuChoice, NewTask, PictureId, Refusal, Shape, StoredStart, Submit,
    SubmitAnswer, Terms,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_another_version_is_read() {
        let report: Report<()> =
            serde_json::from_str(r#"{"rows": 8, "of_the_next_version": [1, 2]}"#).unwrap();
        assert_eq!(report, Report { rows: 8, ..Report::default() });
        let change: Change = serde_json::from_str(r#"{"kind": "of_the_next_version", "task": 3}"#).unwrap();
        assert_eq!(change, Change::Unknown);
        let outcome: Outcome<()> = serde_json::from_str(r#"{"kind": "of_the_next_version"}"#).unwrap();
        assert_eq!(outcome, Outcome::Unknown);
        let place: Place = serde_json::from_str(r#"{"kind": "of_the_next_version"}"#).unwrap();
        assert_eq!(place, Place::Preparing);
        let terms: Terms = serde_json::from_str(r#"{"floor": 0.9, "deadline_seconds": 3.0}"#).unwrap();
        assert_eq!((terms.best, terms.tier.as_str(), terms.firm), (1.0, "", false));
    }

    #[test]
    fn messages_survive_the_wire() {
        let task = crate::scheduler::TaskId { request: "r".into(), index: 2 };
        let submit = Submit {
            request: "r".into(),
            client: "tenant:a".into(),
            tasks: vec![NewTask {
                spec: "a red house".to_owned(),
                model: "m".into(),
                shape: Shape { width: 64, height: 32 },
                picture: PictureId { scope: "tenant:a".into(), hash: [7; 32] },
                terms: Terms {
                    tier: "high".into(),
                    floor: 0.9,
                    best: 1.0,
                    deadline_seconds: 2.5,
                    firm: true,
                },
                menu: MenuChoice::Only { options: vec!["8".into()] },
                start: Some(StoredStart { noise_level: 0.5, loss: 0.01, least_steps: 12, required: false }),
                previews: 2,
            }],
        };
        let wire = serde_json::to_string(&submit).unwrap();
        assert_eq!(serde_json::from_str::<Submit<String>>(&wire).unwrap(), submit);
        let answer: PollAnswer<String> = PollAnswer {
            sequence: 4,
            assignments: vec![Assignment {
                task: task.clone(),
                attempt: 1,
                spec: "a red house".into(),
                model: "m".into(),
                option: "8".into(),
                beginning: Beginning::Checkpoint { key: "k".into() },
                rank: Rank { yields: false, tag: 1.5 },
                paused: false,
                previews: 2,
                deadline_seconds: -0.5,
            }],
            changes: vec![
                Change::Plan { task: task.clone(), attempt: 1, option: "4".into() },
                Change::Pause { task: task.clone(), attempt: 1, paused: true },
                Change::Previews { task: task.clone(), attempt: 1, previews: 3 },
                Change::Load { model: "m".into() },
            ],
            acknowledged: vec![AttemptId { task: task.clone(), attempt: 1 }],
        };
        let wire = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<PollAnswer<String>>(&wire).unwrap(), answer);
        let outcome =
            Outcome::Done { option: "8".into(), machine_seconds: Some(0.5), picture: "key".to_owned() };
        let end = TaskEnd { task, attempt: 1, outcome };
        let wire = serde_json::to_string(&end).unwrap();
        assert_eq!(serde_json::from_str::<TaskEnd<String>>(&wire).unwrap(), end);
    }

    #[test]
    fn ranks_are_ordered_by_who_yields_and_then_by_tag() {
        let rank = |yields, tag| Rank { yields, tag };
        assert!(rank(false, 9.0) < rank(true, 1.0) && rank(true, 1.0) < rank(true, 2.0));
    }
}
