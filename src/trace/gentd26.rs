//! GenTD26, the trace of a production text-to-image service (Alibaba, SoCC '25, doi 10.1145/3772052.3772206): one CSV
//! line for each request, with its time, session, pictures, steps and model, and the length of its prompt.
//!
//! Its prompts are not published. Here each session works on scenes of its own, and the length of a prompt says what
//! became of the one before it: of equal length, it is the same prompt with another seed (`variation`); within 20
//! characters, an edit of one attribute (`edit`); otherwise a new scene (`fresh`).

use std::collections::HashMap;

use csv::{ReaderBuilder, StringRecord};
use jiff::civil::DateTime;
use pentimento_pipelines::MAX_STEPS;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::request::{MAX_AT, MAX_PICTURES, Request};
use super::scene::Scene;
use super::{MAX_REQUESTS, Trace, TraceError};
use crate::gateway::MAX_SEED;

/// The first column, by which the format is known.
pub(super) const FIRST_COLUMN: &str = "gmt_create,";
/// Prompts whose lengths differ by more are of two scenes. Of consecutive prompts of a session 80 % differ by less.
const EDITED: u64 = 20;
/// The longest prompt, and the largest number of a checkpoint.
const MAX_NUMBER: u64 = 1_000_000;
/// Characters of a session's name.
const MAX_NAME: usize = 64;

const COLUMNS: [&str; 6] = [
    "gmt_create",
    "groupId",
    "prompt_length",
    "num_images_per_prompt",
    "num_inference_steps",
    "checkpoint_model_version_id",
];

/// A session's last prompt.
struct Session {
    scene: Scene,
    length: u64,
}

/// Reads the requests of a text. Lines without prompt, pictures, steps or model are left out.
pub(super) fn parse(text: &str, seed: u64) -> Result<Trace, TraceError> {
    let mut reader = ReaderBuilder::new().from_reader(text.as_bytes());
    let places = places(reader.headers().map_err(|error| unreadable(&error))?)?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut sessions: HashMap<String, Session> = HashMap::new();
    let mut trace = Trace { requests: vec![], left_out: 0 };
    let mut times: Option<(DateTime, f64)> = None;
    for record in reader.records() {
        let record = record.map_err(|error| unreadable(&error))?;
        let line = Line { number: record.position().map_or(0, csv::Position::line), record: &record, places };
        if (2..COLUMNS.len()).any(|column| line.text(column).is_empty()) {
            trace.left_out += 1;
            continue;
        }
        let time = line.time()?;
        let (first, last) = times.unwrap_or((time, 0.0));
        let at = time.duration_since(first).as_secs_f64();
        if !(last..=MAX_AT).contains(&at) {
            return Err(
                line.wrong(0, "must be within a year of the first line, and not before the line above")
            );
        }
        times = Some((first, at));
        if trace.requests.len() == MAX_REQUESTS {
            return Err(TraceError::Requests);
        }
        trace.requests.push(line.request(at, &mut sessions, &mut random)?);
    }
    Ok(trace)
}

/// Where each of the columns is.
fn places(headers: &StringRecord) -> Result<[usize; 6], TraceError> {
    let mut places = [0; 6];
    for (place, column) in places.iter_mut().zip(COLUMNS) {
        let found = headers.iter().position(|header| header == column);
        *place = found.ok_or_else(|| TraceError::field(1, column, "there is no such column"))?;
    }
    Ok(places)
}

fn unreadable(error: &csv::Error) -> TraceError {
    let line = error.position().map_or(0, csv::Position::line);
    TraceError::Line { line, reason: error.to_string() }
}

struct Line<'a> {
    number: u64,
    record: &'a StringRecord,
    places: [usize; 6],
}

impl Line<'_> {
    fn text(&self, column: usize) -> &str {
        self.record.get(self.places[column]).unwrap_or_default().trim()
    }

    fn wrong(&self, column: usize, reason: impl Into<String>) -> TraceError {
        TraceError::field(self.number, COLUMNS[column], reason)
    }

    fn time(&self) -> Result<DateTime, TraceError> {
        self.text(0).parse().map_err(|_| self.wrong(0, format!("{:?} is no date and time", self.text(0))))
    }

    /// A whole number, which the trace writes as `30.0`.
    fn number(&self, column: usize, text: &str, least: u64, most: u64) -> Result<u64, TraceError> {
        let number =
            text.strip_suffix(".0").unwrap_or(text).parse().ok().filter(|n| (least..=most).contains(n));
        number.ok_or_else(|| {
            let found = self.text(column);
            self.wrong(column, format!("must be a whole number between {least} and {most}, not {found:?}"))
        })
    }

    fn request(
        &self,
        at: f64,
        sessions: &mut HashMap<String, Session>,
        random: &mut ChaCha8Rng,
    ) -> Result<Request, TraceError> {
        let session = self.text(1);
        if !(1..=MAX_NAME).contains(&session.chars().count()) {
            return Err(self.wrong(1, format!("must be 1 to {MAX_NAME} characters long")));
        }
        let length = self.number(2, self.text(2), 0, MAX_NUMBER)?;
        let pictures = self.number(3, self.text(3), 1, MAX_PICTURES as u64)?;
        let steps = self.number(4, self.text(4), 1, MAX_STEPS as u64)?;
        let Some(checkpoint) = self.text(5).strip_prefix('M') else {
            return Err(self.wrong(5, "must be M and a number"));
        };
        let checkpoint = self.number(5, checkpoint, 0, MAX_NUMBER)?;
        let (class, scene) = match sessions.get(session) {
            Some(before) if before.length == length => ("variation", before.scene),
            Some(before) if before.length.abs_diff(length) <= EDITED => ("edit", before.scene.edited(random)),
            _ => ("fresh", Scene::draw(random)),
        };
        sessions.insert(session.to_owned(), Session { scene, length });
        Ok(Request {
            at: Some(at),
            prompt: scene.prompt(),
            // All pictures of a request have seeds of their own, from this one on.
            seed: Some(random.next_u64() % (MAX_SEED - MAX_PICTURES as u64)),
            n: Some(pictures as usize),
            num_inference_steps: Some(steps as usize),
            named: Some(scene.named()),
            class: Some(class.to_owned()),
            client: Some(session.to_owned()),
            checkpoint: checkpoint as usize,
            ..Request::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "gmt_create,predict_type,predict_status,exec_time_seconds,groupId,prompt_length,\
        negative_prompt_length,num_images_per_prompt,num_inference_steps,checkpoint_model_version_id,num_lora";

    fn read(lines: &[&str]) -> Result<Trace, TraceError> {
        super::super::parse(&format!("{HEADER}\n{}\n", lines.join("\n")), 1)
    }

    #[test]
    fn a_session_edits_its_scenes() {
        let lines = [
            "2020-02-28 23:59:50,TXT_2_IMG,SUCCEED,9.0,A,40.0,,1.0,30.0,M0007,0",
            "2020-02-28 23:59:55,TXT_2_IMG,PENDING,0.0,A,,,,,,0",
            "2020-02-29 00:00:00,TXT_2_IMG,SUCCEED,9.0,B,40.0,5.0,4.0,30.0,M0000,2",
            "2020-02-29 00:00:30,IMG_2_IMG,FAILED,9.0,A,40.0,,8.0,20.0,M0007,0",
            "2020-03-01 00:00:00,TXT_2_IMG,SUCCEED,9.0,A,60.0,,2.0,30.0,M0007,0",
            "2020-03-01 00:00:00,TXT_2_IMG,SUCCEED,9.0,A,81.0,,2.0,30.0,M0007,0",
        ];
        let trace = read(&lines).unwrap();
        assert_eq!(trace.left_out, 1);
        let [a, b, again, edit, new] = &trace.requests[..] else { panic!("{trace:?}") };
        let day = 86_400.0;
        let times: Vec<f64> = trace.requests.iter().map(|request| request.at.unwrap()).collect();
        assert_eq!(times, [0.0, 10.0, 40.0, day + 10.0, day + 10.0]);
        let classes = trace.requests.iter().map(|request| request.class.as_deref().unwrap());
        assert_eq!(classes.collect::<Vec<_>>(), ["fresh", "fresh", "variation", "edit", "fresh"]);
        assert!(a.prompt == again.prompt && a.seed != again.seed && a.prompt != b.prompt);
        let differing =
            again.prompt.split(' ').zip(edit.prompt.split(' ')).filter(|(one, other)| one != other);
        assert!((1..=3).contains(&differing.count()), "{} / {}", again.prompt, edit.prompt);
        assert!(new.prompt != edit.prompt);
        assert_eq!(
            (b.n, b.num_inference_steps, b.checkpoint, b.client.as_deref()),
            (Some(4), Some(30), 0, Some("B"))
        );
        assert_eq!(read(&lines).unwrap(), trace, "the seed decides");
        let sent: serde_json::Value = serde_json::from_slice(&b.body().unwrap()).unwrap();
        assert_eq!(
            (&sent["n"], &sent["num_inference_steps"], sent.get("client")),
            (&4.into(), &30.into(), None)
        );
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_column() {
        let good = "2020-02-29 00:00:00,T,S,9.0,A,40.0,,1.0,30.0,M0007,0";
        for (line, column) in [
            ("yesterday,T,S,9.0,A,40.0,,1.0,30.0,M0007,0", "gmt_create"),
            ("2020-02-28 00:00:00,T,S,9.0,A,40.0,,1.0,30.0,M0007,0", "gmt_create"),
            ("2025-02-28 00:00:00,T,S,9.0,A,40.0,,1.0,30.0,M0007,0", "gmt_create"),
            ("2020-02-29 00:00:00,T,S,9.0,,40.0,,1.0,30.0,M0007,0", "groupId"),
            ("2020-02-29 00:00:00,T,S,9.0,A,-1,,1.0,30.0,M0007,0", "prompt_length"),
            ("2020-02-29 00:00:00,T,S,9.0,A,40.5,,1.0,30.0,M0007,0", "prompt_length"),
            ("2020-02-29 00:00:00,T,S,9.0,A,40.0,,0.0,30.0,M0007,0", "num_images_per_prompt"),
            ("2020-02-29 00:00:00,T,S,9.0,A,40.0,,11,30.0,M0007,0", "num_images_per_prompt"),
            ("2020-02-29 00:00:00,T,S,9.0,A,40.0,,1.0,1001.0,M0007,0", "num_inference_steps"),
            ("2020-02-29 00:00:00,T,S,9.0,A,40.0,,1.0,30.0,X,0", "checkpoint_model_version_id"),
            ("2020-02-29 00:00:00,T,S,9.0,A,40.0,,1.0,30.0,M9999999,0", "checkpoint_model_version_id"),
        ] {
            let error = read(&[good, line]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("line 3: {column}: ")), "{line}: {error}");
        }
        let short = read(&[good, "2020-02-29 00:00:00,T"]).unwrap_err().to_string();
        assert!(short.starts_with("line 3: "), "{short}");
        let missing = super::super::parse("gmt_create,groupId\n", 0).unwrap_err().to_string();
        assert!(missing.starts_with("line 1: prompt_length: "), "{missing}");
        assert!(matches!(read(&[]), Err(TraceError::Empty)));
    }
}
