//! Jobs, as their clients see them: painted without a connection, followed, cancelled, bounded.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use crate::common::{Answer, Folder, Server, until};
use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");

fn create_with(server: &Server, headers: &[(&str, &str)], body: &Value) -> Answer {
    server.send("POST", "/v1/jobs", &[headers, &[JSON]].concat(), &crate::common::small(body))
}

/// Creates a job; its path.
#[track_caller]
fn create(server: &Server, body: &Value) -> String {
    let answer = create_with(server, &[], body);
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer.header("location").to_owned()
}

/// The job once it has this status.
fn once(server: &Server, path: &str, status: &str) -> Value {
    let mut job = Value::Null;
    until(&format!("the job is {status}"), || {
        job = server.get(path).json();
        job["status"] == status
    });
    job
}

fn delete(server: &Server, path: &str) -> Answer {
    server.send("DELETE", path, &[], b"")
}

fn events(server: &Server, path: &str) -> Vec<(String, Value)> {
    let answer = server.get(&format!("{path}/events"));
    assert!(answer.header("content-type").starts_with("text/event-stream"), "{}", answer.text);
    let events = answer.events();
    for (name, data) in &events {
        assert_eq!(data["type"], name.as_str());
    }
    events
}

fn names(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _)| name.as_str()).collect()
}

/// A body of so many steps, which the cache has no part in.
fn body(steps: u64, n: u64) -> Value {
    json!({"prompt": "a boat", "seed": 7, "n": n, "num_inference_steps": steps, "pentimento": {"cache": "off"}})
}

#[test]
fn a_job_is_painted_without_its_client_and_is_what_the_images_api_answers() {
    let server = Server::ready(&[]);
    let created = create_with(&server, &[], &body(4, 2));
    assert_eq!(created.status, 202, "{}", created.text);
    let job = created.json();
    let id = job["id"].as_str().unwrap();
    assert!(id.len() == 36 && id.starts_with("job_"), "{id}");
    assert_eq!((job["object"].as_str(), job["pictures"].as_array().map(Vec::len)), (Some("job"), Some(2)));
    assert!(job["created"].as_u64().unwrap() > 1_700_000_000 && job["result"].is_null());
    let path = created.header("location");
    assert_eq!(path, format!("/v1/jobs/{id}"));

    let job = once(&server, path, "completed");
    assert!(job["finished"].as_u64() >= job["created"].as_u64() && job["position"].is_null());
    assert!(job["pictures"].as_array().unwrap().iter().all(|p| p["status"] == "completed"), "{job}");
    let (result, plain) = (&job["result"], server.post(&body(4, 2)).json());
    for index in [0, 1] {
        assert!(plain["data"][index]["b64_json"].is_string());
        assert_eq!(result["data"][index], plain["data"][index], "picture {index}");
    }
    for field in ["size", "quality", "background", "output_format", "usage"] {
        assert_eq!(result[field], plain[field], "{field}");
    }
    assert_eq!(result["pentimento"]["seeds"], json!([7, 8]));
    assert_eq!(server.get(path).json(), job, "it does not change any more");

    assert_eq!(delete(&server, path).status, 204);
    for answer in [server.get(path), delete(&server, path), server.get(&format!("{path}/events"))] {
        assert_eq!((answer.status, answer.json_code().as_str()), (404, "job_not_found"));
    }
}

#[test]
fn urls_of_a_job_lead_to_its_pictures_and_stay_the_same() {
    let server = Server::ready(&[]);
    let mut urls = body(2, 2);
    urls["response_format"] = json!("url");
    let path = create(&server, &urls);
    let job = once(&server, &path, "completed");
    assert_eq!(server.get(&path).json(), job);
    let url = |index: usize| job["result"]["data"][index]["url"].as_str().unwrap().to_owned();
    assert_ne!(url(0), url(1));
    for index in [0, 1] {
        let file = server.get(url(index).strip_prefix(&server.url("")).unwrap());
        assert_eq!((file.status, &file.bytes[1..4]), (200, &b"PNG"[..]));
    }
}

#[test]
fn whoever_listens_hears_previews_and_the_end_however_late_he_comes() {
    let server = Server::ready(&[]);
    let mut previewed = body(30, 2);
    previewed["partial_images"] = json!(2);
    let path = create(&server, &previewed);
    let early = std::thread::scope(|scope| {
        let listeners = [0; 3].map(|_| scope.spawn(|| events(&server, &path)));
        listeners.map(|listener| listener.join().unwrap())
    });
    let previews = |events: &[(String, Value)]| -> Vec<_> {
        let partial = events.iter().filter(|(name, _)| name == "job.partial_image");
        partial
            .map(|(_, data)| {
                let file = data["b64_json"].as_str().unwrap().to_owned();
                assert!(!file.is_empty() && data["size"] == "64x64" && data["created_at"].is_u64());
                (data["pentimento"]["image_index"].as_u64(), data["partial_image_index"].as_u64(), file)
            })
            .collect()
    };
    let late = events(&server, &path);
    assert_eq!(names(&late).last(), Some(&"job.completed"));
    let heard = previews(&late);
    let mut which: Vec<_> =
        heard.iter().map(|(image, preview, _)| (image.unwrap(), preview.unwrap())).collect();
    which.sort_unstable();
    assert_eq!(which, [(0, 0), (0, 1), (1, 0), (1, 1)]);
    let job = server.get(&path).json();
    for events in &early {
        assert_eq!(previews(events), heard, "all hear the same");
        let first = names(events)[0];
        assert!(["job.queued", "job.painting"].contains(&first), "{first}: the state comes first");
        let (name, last) = events.last().unwrap();
        assert_eq!((name.as_str(), &last["result"]), ("job.completed", &job["result"]));
    }
    assert!(job["pictures"].as_array().unwrap().iter().all(|p| p["previews"] == 2), "{job}");
    let plain = server.post(&body(30, 2)).json();
    assert_eq!(job["result"]["data"], plain["data"], "previews change nothing");
}

#[test]
fn a_listener_that_does_not_read_holds_nothing_up() {
    let server = Server::ready(&[]);
    let mut previewed = body(30, 10);
    previewed["partial_images"] = json!(3);
    let path = create(&server, &previewed);
    let mut deaf = TcpStream::connect(&server.address).unwrap();
    write!(deaf, "GET {path}/events HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    once(&server, &path, "completed");
    // It can still hear all.
    let lines = BufReader::new(deaf).lines().map_while(Result::ok);
    let mut partial = 0;
    for line in lines {
        partial += u32::from(line == "event: job.partial_image");
        if line == "event: job.completed" {
            break;
        }
    }
    assert_eq!(partial, 30);
}

#[test]
fn a_job_knows_its_place_and_cancelling_gives_it_up() {
    let server = Server::ready(&["--max-batch-rows", "2"]); // one picture at a time
    let painting = create(&server, &body(1000, 10));
    until("the first is being painted", || server.metric("pentimento_steps_total") > 2.0);
    assert_eq!(once(&server, &painting, "painting")["position"], Value::Null);
    let second = create(&server, &body(999, 2));
    let mut patient = body(998, 1);
    patient["pentimento"] = json!({"max_latency_ms": 86_400_000}); // the least urgent of all
    let third = create(&server, &patient);
    let job = server.get(&third).json();
    assert_eq!(job["status"], "queued", "{job}");
    let behind = job["position"].as_u64().unwrap();
    assert!(behind >= 1 && job["expected_seconds"].as_f64().unwrap() > 0.0, "{job}");
    assert_eq!(job["pictures"][0], json!({"status": "queued", "position": behind, "previews": 0}));

    let stream = TcpStream::connect(&server.address).unwrap();
    write!(&stream, "GET {third}/events HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let mut heard = || -> Value {
        let line = lines.find(|line| line.starts_with("data: ")).unwrap();
        serde_json::from_str(line.trim_start_matches("data: ")).unwrap()
    };
    let first = heard();
    assert_eq!((first["type"].as_str(), first["position"].as_u64()), (Some("job.queued"), Some(behind)));

    let cancelled = delete(&server, &second);
    assert_eq!((cancelled.status, &cancelled.json()["status"]), (200, &json!("cancelled")));
    until("its pictures are forgotten", || server.metric("pentimento_cancelled_total") == 2.0);
    let moved = heard();
    assert_eq!(moved["type"], "job.queued");
    assert!(moved["position"].as_u64().unwrap() < behind, "{moved}");
    assert_eq!(names(&events(&server, &second)), ["job.cancelled"]);

    assert_eq!(delete(&server, &painting).status, 200);
    let steps = server.metric("pentimento_steps_total");
    until("the third is begun", || server.get(&third).json()["status"] == "painting");
    until("the first one's place is free", || server.metric("pentimento_steps_total") > steps);
    assert_eq!(heard()["type"], "job.painting");
    assert_eq!(delete(&server, &third).status, 200);
    assert_eq!(heard()["type"], "job.cancelled");
    until("nothing is left", || server.metric("pentimento_queue_length") == 0.0);
    assert_eq!(server.metric("pentimento_pictures_total"), 0.0);
    until("jobs are counted", || server.metric_with("pentimento_jobs{", "\"cancelled\"") == 3.0);
    assert_eq!(delete(&server, &second).status, 204, "a second time it is forgotten");
}

#[test]
fn a_job_is_its_tenants_alone() {
    let folder = Folder::new("jobs");
    let keys = folder.path().join("keys");
    // printf %s KEY | sha256sum, of the keys "a" and "b"
    let text = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb anna\n\
        3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d bert";
    std::fs::write(&keys, text).unwrap();
    let server = Server::ready(&["--api-keys-file", keys.to_str().unwrap()]);
    let (anna, bert) = (("authorization", "Bearer a"), ("authorization", "Bearer b"));
    let key = ("idempotency-key", "order-66");
    let created = create_with(&server, &[anna, key], &body(2, 1));
    let path = created.header("location").to_owned();
    for (method, path) in [("GET", path.clone()), ("DELETE", path.clone()), ("GET", format!("{path}/events"))]
    {
        let foreign = server.send(method, &path, &[bert], b"");
        assert_eq!((foreign.status, foreign.json_code().as_str()), (404, "job_not_found"), "{method} {path}");
        assert_eq!(server.send(method, &path, &[], b"").status, 401);
    }
    until("the job is completed", || server.send("GET", &path, &[anna], b"").json()["status"] == "completed");
    // A key means the same request of the same tenant.
    let again = create_with(&server, &[anna, key], &body(2, 1));
    assert_eq!(
        (again.status, again.header("location"), &again.json()["status"]),
        (202, &*path, &json!("completed"))
    );
    let other = create_with(&server, &[anna, key], &body(3, 1));
    assert_eq!((other.status, other.json_code().as_str()), (409, "idempotency_key_reused"));
    assert_ne!(create_with(&server, &[bert, key], &body(3, 1)).header("location"), path);
    for wrong in ["", "a b", &"a".repeat(256)] {
        let answer = create_with(&server, &[anna, ("idempotency-key", wrong)], &body(2, 1));
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("Idempotency-Key")));
    }
}

#[test]
fn jobs_are_bounded_in_number_and_time() {
    let server = Server::ready(&[
        "--max-jobs",
        "2",
        "--job-lifetime-seconds",
        "2",
        "--latency-objective-ms",
        "3600000",
    ]);
    let (first, second) = (create(&server, &body(1000, 10)), create(&server, &body(999, 1)));
    let full = create_with(&server, &[], &body(1, 1));
    assert_eq!((full.status, full.json_code().as_str()), (429, "too_many_jobs"));
    assert!(full.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert_eq!(delete(&server, &first).status, 200);
    let third = create(&server, &body(1, 1));
    assert_eq!(server.get(&first).status, 404, "what had ended gave way");
    assert_eq!(delete(&server, &second).status, 200);
    once(&server, &third, "completed");
    until("it is forgotten", || server.get(&third).status == 404);

    let server = Server::ready(&["--job-timeout-seconds", "1", "--latency-objective-ms", "3600000"]);
    let path = create(&server, &body(1000, 10));
    let job = once(&server, &path, "failed");
    assert_eq!((&job["error"]["code"], &job["result"]), (&json!("timeout"), &Value::Null));
    assert_eq!(events(&server, &path).last().unwrap().1["error"], job["error"]);
    until("its pictures are cancelled", || server.metric("pentimento_cancelled_total") >= 9.0);
}

#[test]
fn a_wrong_value_names_its_field() {
    let server = Server::ready(&[]);
    for (field, value, param) in [
        ("prompt", json!(""), "prompt"),
        ("prompt", Value::Null, "prompt"),
        ("n", json!(11), "n"),
        ("num_inference_steps", json!(0), "num_inference_steps"),
        ("stream", json!(true), "stream"),
        ("partial_images", json!(4), "partial_images"),
        ("webhook", json!({"url": "https://a"}), "webhook"),
        ("pentimento", json!({"webhook": "https://a"}), "pentimento.webhook"),
        ("pentimento", json!({"webhook": {}}), "pentimento.webhook.url"),
        ("pentimento", json!({"webhook": {"url": 5}}), "pentimento.webhook.url"),
        ("pentimento", json!({"webhook": {"url": "https://a"}}), "pentimento.webhook.url"),
        ("pentimento", json!({"webhook": {"to": "https://a"}}), "pentimento.webhook.to"),
    ] {
        let mut wrong = body(1, 1);
        wrong[field] = value;
        let answer = create_with(&server, &[], &wrong);
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (400, &json!(param)),
            "{}",
            answer.text
        );
    }
    assert_eq!(server.send("POST", "/v1/jobs", &[], b"{}").status, 415);
    assert_eq!(server.get("/v1/jobs/job_1").json_code(), "job_not_found");
    assert_eq!(server.get("/v1/jobs/%ff").json_code(), "job_not_found");
    assert_eq!(server.get("/v1/jobs").json_code(), "method_not_supported");
    let mut image = body(1, 1);
    image["pentimento"] = json!({"webhook": {"url": "https://a"}});
    assert_eq!(server.post(&image).json()["error"]["param"], "pentimento.webhook");
    assert_eq!(server.metric("pentimento_jobs"), 0.0);
}
