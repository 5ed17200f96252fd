//! `pentimento replay` against a real server.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;

use crate::common::{Folder, Server, complaint, pentimento, printed};
use serde_json::{Value, json};

/// Writes a trace of these lines.
fn trace(folder: &Folder, lines: &[Value]) -> PathBuf {
    let path = folder.path().join("trace.jsonl");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, text).unwrap();
    path
}

/// Replays, with the report in the folder's `run.json`.
fn replay(folder: &Folder, address: &str, trace: &Path, arguments: &[&str]) -> Output {
    let mut command = pentimento();
    command.arg("replay").arg(trace).arg("--target").arg(format!("http://{address}"));
    command.arg("--json").arg(folder.path().join("run.json")).args(arguments).output().unwrap()
}

fn report(folder: &Folder) -> Value {
    serde_json::from_slice(&folder.read("run.json")).unwrap()
}

/// How many of the offered requests ended so, by the summary, which must add up and say what the rows say.
fn fates(report: &Value) -> [u64; 6] {
    let (summary, rows) = (&report["summary"], report["requests"].as_array().unwrap());
    let violations = &summary["violations"];
    let names = ["late", "refused", "timed_out", "failed", "unsent"];
    let mut counts = [summary["good"].as_u64().unwrap(), 0, 0, 0, 0, 0];
    for (count, name) in counts[1..].iter_mut().zip(names) {
        *count = violations[name].as_u64().unwrap();
        assert_eq!(*count, rows.iter().filter(|row| row["fate"] == name).count() as u64, "{name}");
    }
    assert_eq!(counts.iter().sum::<u64>(), summary["offered"].as_u64().unwrap());
    assert_eq!(rows.len() as u64, summary["offered"].as_u64().unwrap());
    assert_eq!(summary["completed"].as_u64().unwrap(), counts[0] + counts[1]);
    counts
}

#[test]
fn a_poisson_replay_is_reported_drawn_and_judged() {
    let server = Server::ready(&[]);
    let folder = Folder::new("replay");
    let lines = [
        json!({"prompt": "a large red house in the snow at night", "seed": 1, "num_inference_steps": 4, "size": "64x64", "class": "edit",
            "named": {"time": "night", "terrain": "snow", "subjects": [{"kind": "house", "colour": "red"}]}}),
        json!({"prompt": "a boat", "seed": 2, "n": 2, "size": "64x64", "num_inference_steps": 4, "cache": "off"}),
        json!({"prompt": "a tree", "size": "64x64", "num_inference_steps": 4, "quality": "low", "namespace": "x"}),
    ];
    let trace = trace(&folder, &lines);
    let (svg, pictures) = (folder.path().join("run.svg"), folder.path().join("pictures"));
    let arguments =
        ["--arrivals", "poisson", "--rate", "4", "--seconds", "3", "--seed", "5", "--objective-ms", "1e7"];
    let files =
        ["--svg", svg.to_str().unwrap(), "--pictures", pictures.to_str().unwrap(), "--score", "storybook"];
    let table = printed(&replay(&folder, &server.address, &trace, &[&arguments[..], &files[..]].concat()));

    let report = report(&folder);
    let (summary, rows) = (&report["summary"], report["requests"].as_array().unwrap());
    assert_eq!(fates(&report)[1..], [0; 5], "an idle server has hours for each: {report}");
    assert!(rows.len() > 3 && summary["goodput"] == 1.0, "the trace is begun again: {report}");
    assert!(table.contains(&format!("| offered requests | {} |", rows.len())), "{table}");
    assert!(summary["generator"]["cpu_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(
        (&summary["mean_steps"], &rows[0]["class"], &rows[0]["line"]),
        (&json!(4.0), &json!("edit"), &json!(1))
    );
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row["line"], i % 3 + 1);
        assert!(row["at"].as_f64().unwrap() < 3.0 && row["lag"].as_f64().unwrap() >= 0.0);
        assert!(row["ended"].as_f64().unwrap() * 1e3 >= row["latency_ms"].as_f64().unwrap());
        assert!(
            row["pentimento"]["timings_ms"]["total"].as_f64().unwrap() <= row["latency_ms"].as_f64().unwrap()
        );
        assert_eq!(row["fidelity"].is_f64(), i % 3 == 0, "where the trace says what is named");
        assert!(row["clip_score"].is_f64());
    }
    assert!(
        summary["clip_score"]["completed"].is_f64()
            && summary["fidelity"]["known"].as_u64() < summary["completed"].as_u64()
    );
    assert!(
        table.contains("| fidelity is known of |") && !table.contains("CLIP score is known of"),
        "{table}"
    );
    let two = ["000001-0.png", "000001-1.png"].map(|name| std::fs::read(pictures.join(name)).unwrap());
    assert!(two[0] != two[1] && two[0].starts_with(b"\x89PNG"));
    let drawn = String::from_utf8(folder.read("run.svg")).unwrap();
    for word in
        ["<svg", "</svg>", "arrivals", "429", "latency p95", "seconds since the start", "requests per second"]
    {
        assert!(drawn.contains(word), "{word}");
    }
    let again = replay(&folder, &server.address, &trace, &[&arguments[..], &files[..]].concat());
    let told = complaint(&again, 2);
    assert!(told.contains("--pictures") && told.contains("not empty"), "{told}");
}

#[test]
fn a_server_that_refuses_violates_and_may_be_tried_again() {
    let server = Server::ready(&[
        "--max-batch-rows",
        "2",
        "--queue-length",
        "1",
        "--queue-length-per-client",
        "1",
        "--max-n",
        "1",
    ]);
    let folder = Folder::new("replay");
    let lines: Vec<Value> = (0..12)
        .map(
            |i| json!({"at": 0.0, "prompt": "a boat", "seed": i, "size": "64x64", "num_inference_steps": 25}),
        )
        .collect();
    let trace = trace(&folder, &lines);
    let table = printed(&replay(&folder, &server.address, &trace, &["--objective-ms", "86400000"]));
    let [good, late, refused, ..] = fates(&report(&folder));
    assert!(good >= 1 && late == 0 && refused >= 6 && good + refused == 12, "{table}");
    assert!(table.contains(&format!("| violations: 429 | {refused} |")), "{table}");

    printed(&replay(&folder, &server.address, &trace, &["--obey-retry-after", "--objective-ms", "1"]));
    let report = report(&folder);
    let [good, late, ..] = fates(&report);
    assert!(good == 0 && late >= 1, "a millisecond is too short: {report}");
    let rows = report["requests"].as_array().unwrap();
    let returned: Vec<&Value> = rows.iter().filter(|row| row["returned"].is_f64()).collect();
    assert!(returned.len() >= 6 && report["summary"]["returned"]["requests"] == returned.len());
    let admitted = returned.iter().filter(|row| row["fate"] != "refused").count();
    let share = report["summary"]["returned"]["admitted"].as_f64().unwrap();
    assert!((share - admitted as f64 / returned.len() as f64).abs() < 1e-9);
    for row in returned {
        let (back, ended) = (row["returned"].as_f64().unwrap(), row["ended"].as_f64().unwrap());
        assert!(back >= 1.0, "Retry-After is at least a second: {row}");
        let latency = row["latency_ms"].as_f64().unwrap_or_default();
        assert!(latency <= (ended - back) * 1e3 + 1.0, "counted from the return: {row}");
    }
}

/// A server that answers whatever it reads with `answer`.
fn told(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 65_536];
                while stream.read(&mut buffer).unwrap_or(0) > 0 {
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
        }
    });
    address
}

#[test]
fn recorded_times_are_kept_whatever_the_server_does() {
    // Says nothing at all.
    let silent = told("");
    let folder = Folder::new("replay");
    let times = [0.0, 0.4, 0.4, 6.0];
    let lines = times.map(|at| json!({"at": at, "prompt": "a", "size": "64x64"}));
    let trace = trace(&folder, &lines);
    let arguments = ["--timeout-seconds", "1.5", "--max-in-flight", "2", "--speed", "2"];
    assert!(complaint(&replay(&folder, &silent, &trace, &arguments), 1).contains("no request was completed"));
    let report = report(&folder);
    let rows = report["requests"].as_array().unwrap();
    for (row, at) in rows.iter().zip(times) {
        assert_eq!(row["at"], at / 2.0);
        assert!(row["lag"].is_null() || row["lag"].as_f64().unwrap() < 1.0, "{row}");
    }
    // The first two are under way until 1.5 and 1.7 s: the third, due at 0.2 s, finds no place, the fourth at 3 s does.
    let fates: Vec<&str> = rows.iter().map(|row| row["fate"].as_str().unwrap()).collect();
    assert_eq!(fates, ["timed_out", "timed_out", "unsent", "timed_out"], "{report}");
    assert!(rows[2]["error"].as_str().unwrap().contains('2') && rows[2]["lag"].is_null());
}

#[test]
fn what_else_goes_wrong_is_counted_by_kind() {
    let folder = Folder::new("replay");
    let trace = trace(&folder, &[json!({"at": 0, "prompt": "a", "size": "64x64"})]);
    let ended = |answer: &'static str| {
        complaint(&replay(&folder, &told(answer), &trace, &[]), 1);
        report(&folder)["requests"][0].clone()
    };
    let row = ended("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
    assert!(row["fate"] == "failed" && row["error"].as_str().unwrap().contains("not understood"), "{row}");
    let row = ended("HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 2\r\n\r\n{}");
    assert!(row["fate"] == "timed_out" && row["status"] == 504, "{row}");
    let row = ended(
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 36\r\n\r\n{\"error\": {\"message\": \"no such size\"}}",
    );
    assert!(row["fate"] == "failed" && row["status"] == 400, "{row}");
    let row = ended("HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n");
    assert!(row["fate"] == "refused" && row["returned"].is_null(), "{row}");
    let row = ended("this is no HTTP\r\n\r\n");
    assert!(row["fate"] == "failed" && row["status"].is_null(), "{row}");
}

#[test]
fn misuse_is_named() {
    let folder = Folder::new("replay");
    let fine = [json!({"prompt": "a", "at": 0.0}), json!({"prompt": "a", "at": 1.0})];
    let complain = |lines: &[Value], arguments: &[&str]| {
        complaint(&replay(&folder, "127.0.0.1:9", &trace(&folder, lines), arguments), 2)
    };
    let told = complain(&[fine[0].clone(), json!({"prompt": "a", "at": 1.0, "n": 99})], &[]);
    assert!(told.contains("trace.jsonl") && told.contains("line 2: n:"), "{told}");
    assert!(complain(&[json!({"prompt": "a"})], &[]).contains("request 1: at:"));
    assert!(complain(&[], &[]).contains("no requests"));
    for (arguments, named) in [
        (&["--arrivals", "poisson"][..], "--rate"),
        (&["--rate", "3", "--speed", "2"], "--rate"),
        (&["--requests", "0"], "--requests"),
        (&["--arrivals", "bursty", "--rate", "0"], "--rate"),
        (&["--arrivals", "bursty", "--speed", "2"], "--speed"),
        (&["--arrivals", "poisson", "--rate", "10000", "--seconds", "86400"], "--seconds"),
        (&["--seconds", "NaN"], "--seconds"),
        (&["--max-in-flight", "0"], "--max-in-flight"),
        (&["--speed", "0.001", "--timeout-seconds", "0"], "--timeout-seconds"),
        (&["--score", "storybook"], "--pictures"),
        (&["--api-key-env", "NOT_THERE"], "NOT_THERE"),
    ] {
        assert!(complain(&fine, arguments).contains(named), "{arguments:?}");
    }
    let none = folder.path().join("none.jsonl");
    assert!(complaint(&replay(&folder, "127.0.0.1:9", &none, &[]), 2).contains("none.jsonl"));
    let mut command = pentimento();
    command.arg("replay").arg(trace(&folder, &fine)).args(["--target", "https://example.org"]);
    assert!(complaint(&command.output().unwrap(), 2).contains("--target"));
}

#[test]
fn a_key_is_sent_and_a_server_that_is_not_there_is_named() {
    // The sha256 of "secret".
    let key = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b=studio";
    let server = Server::start_in(&[("PENTIMENTO_API_KEYS", key)], &[]);
    crate::common::until("the server is ready", || server.get("/readyz").status == 200);
    let folder = Folder::new("replay");
    let trace =
        trace(&folder, &[json!({"at": 0, "prompt": "a boat", "size": "64x64", "num_inference_steps": 1})]);
    let refused = complaint(&replay(&folder, &server.address, &trace, &[]), 1);
    assert!(refused.contains("API key"), "{refused}");
    let mut command = pentimento();
    command.env("KEY", "secret").arg("replay").arg(&trace).args([
        "--target",
        &server.url("/"),
        "--api-key-env",
        "KEY",
    ]);
    printed(&command.output().unwrap());

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let told = complaint(&replay(&folder, &nobody, &trace, &[]), 1);
    assert!(told.contains("refused"), "{told}");
}
