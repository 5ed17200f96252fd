//! `pentimento serve`, as its users see it: pictures, turns, hang-ups, shutdown.

use std::io::{BufRead, BufReader, Write};
use std::time::Instant;

use crate::common::{Answer, Folder, Server, pentimento, until};
use base64::Engine;
use serde_json::{Value, json};

// printf %s KEY | sha256sum
const KEYS: &str = "\
ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb anna
3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d bert";

fn with_keys(folder: &Folder) -> String {
    let path = folder.path().join("keys");
    std::fs::write(&path, KEYS).unwrap();
    path.to_str().unwrap().to_owned()
}

fn post_as(server: &Server, key: &str, body: &Value) -> Answer {
    let key = format!("Bearer {key}");
    server.post_with(
        &crate::common::small(body),
        &[("content-type", "application/json"), ("authorization", &key)],
    )
}

fn picture(answer: &Answer, index: usize) -> Vec<u8> {
    let json = answer.json();
    let text = json["data"][index]["b64_json"].as_str().unwrap_or_else(|| panic!("{}", answer.text));
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[test]
fn an_answer_has_openais_shape_and_says_how_it_came_about() {
    let server = Server::ready(&[]);
    let body = json!({"prompt": "a red house", "model": "dall-e-3", "n": 2, "seed": 7, "num_inference_steps": 3,
        "quality": "hd", "size": "auto", "user": "me", "pentimento": {"cache": "off"}});
    let answer = server.post(&body);
    assert_eq!(answer.status, 200, "{}", answer.text);
    let json = answer.json();
    for (field, value) in [
        ("size", "128x128"),
        ("quality", "high"),
        ("background", "opaque"),
        ("output_format", "png"),
        ("safety_identifier", "me"),
    ] {
        assert_eq!(json[field], value, "{field}");
    }
    assert!(json["created"].as_u64().unwrap() > 1_700_000_000 && json["usage"]["total_tokens"].is_u64());
    let ours = &json["pentimento"];
    let told = json!({"outcome": ours["outcome"], "model": ours["model"], "steps": ours["steps"], "seeds": ours["seeds"],
        "skipped_steps": ours["skipped_steps"], "similarity": ours["similarity"], "source": ours["source"]});
    assert_eq!(
        told,
        json!({"outcome": "miss", "model": "storybook", "steps": 3, "seeds": [7, 8],
        "skipped_steps": 0, "similarity": null, "source": null})
    );
    for part in ["queue", "encode", "wait", "denoise", "decode", "total"] {
        assert!(ours["timings_ms"][part].as_f64().unwrap() > 0.0, "{part}");
    }

    let folder = Folder::new("same");
    let arguments = ["generate", "a red house", "--seed", "8", "--steps", "3", "-o", "p.png"];
    assert!(pentimento().current_dir(folder.path()).args(arguments).status().unwrap().success());
    assert_eq!(picture(&answer, 1), folder.read("p.png"), "the server paints what the command line paints");
    assert_ne!(picture(&answer, 0), picture(&answer, 1));

    let jpeg =
        json!({"prompt": "a", "num_inference_steps": 1, "output_format": "jpeg", "output_compression": 50});
    assert_eq!(&picture(&server.post(&jpeg), 0)[..3], b"\xff\xd8\xff");
    let webp = json!({"prompt": "a", "num_inference_steps": 1, "output_format": "webp"});
    assert_eq!(&picture(&server.post(&webp), 0)[8..12], b"WEBP");
}

#[test]
fn a_stream_previews_and_completes_every_picture() {
    let server = Server::ready(&[]);
    let body = json!({"prompt": "a boat", "n": 2, "seed": 1, "num_inference_steps": 4, "stream": true, "partial_images": 2});
    let answer = server.post(&body);
    assert!(answer.header("content-type").starts_with("text/event-stream"));
    let partial = "image_generation.partial_image";
    let completed = "image_generation.completed";
    let got: Vec<_> = answer
        .events()
        .into_iter()
        .map(|(name, data)| {
            assert_eq!(data["type"], name.as_str());
            let file = base64::engine::general_purpose::STANDARD.decode(data["b64_json"].as_str().unwrap());
            let format = image::guess_format(&file.unwrap()).unwrap().extensions_str()[0];
            let said = data["output_format"].as_str().unwrap();
            assert_eq!((said.replace("jpeg", "jpg"), name == partial), (format.to_owned(), said == "jpeg"));
            assert!(data["created_at"].is_u64());
            (name, data["partial_image_index"].as_u64(), data["pentimento"]["image_index"].as_u64().unwrap())
        })
        .collect();
    let want = |name: &str, preview, image| (name.to_owned(), preview, image);
    assert_eq!(
        got,
        [
            want(partial, Some(0), 0),
            want(partial, Some(1), 0),
            want(completed, None, 0),
            want(partial, Some(0), 1),
            want(partial, Some(1), 1),
            want(completed, None, 1)
        ]
    );
    let last = &answer.events()[5].1;
    assert_eq!(last["pentimento"]["seeds"], json!([2]));
    let plain = server.post(&json!({"prompt": "a boat", "seed": 2, "num_inference_steps": 4}));
    assert_eq!(last["b64_json"], plain.json()["data"][0]["b64_json"], "previews change nothing");
}

#[test]
fn urls_lead_to_pictures_for_a_while() {
    let server = Server::ready(&["--url-lifetime-seconds", "2"]);
    let answer = server
        .post(&json!({"prompt": "a boat", "seed": 2, "num_inference_steps": 1, "response_format": "url"}));
    let url = answer.json()["data"][0]["url"].as_str().unwrap().to_owned();
    let path = url.strip_prefix(&server.url("")).expect("the url starts with the server's address");
    let file = server.get(path);
    assert_eq!((file.status, file.header("content-type")), (200, "image/png"));
    let same = server.post(&json!({"prompt": "a boat", "seed": 2, "num_inference_steps": 1}));
    assert_eq!(file.bytes, picture(&same, 0));
    until("the url has expired", || server.get(path).status == 404);
    assert_eq!(server.get(path).json()["error"]["code"], "file_not_found");

    let server = Server::ready(&["--public-url", "https://paint.example.org/"]);
    let answer = server.post(&json!({"prompt": "a", "num_inference_steps": 1, "response_format": "url"}));
    let url = answer.json()["data"][0]["url"].as_str().unwrap().to_owned();
    assert!(url.starts_with("https://paint.example.org/v1/images/files/"), "{url}");
}

#[test]
fn readiness_comes_with_the_warm_up_and_stays() {
    let server = Server::start(&[]);
    let mut seen = vec![];
    until("the server is ready", || {
        seen.push(server.get("/readyz").status);
        seen.last() == Some(&200)
    });
    assert!(seen.len() > 1, "ready before the warm-up");
    assert!(seen[..seen.len() - 1].iter().all(|&status| status == 503), "{seen:?}");
    assert_eq!(
        (server.get("/readyz").status, server.get("/healthz").status, server.get("/health").status),
        (200, 200, 200)
    );
}

/// One client's ten pictures delay another client by one picture, not by ten.
fn another_is_served_soon(server: &Server, ten: (&str, Value), one: (&str, Value)) {
    std::thread::scope(|scope| {
        let long = scope.spawn(|| post_as(server, ten.0, &ten.1));
        until("the ten have begun", || server.metric("pentimento_pictures_total") >= 1.0);
        let before = server.metric("pentimento_pictures_total");
        assert_eq!(post_as(server, one.0, &one.1).status, 200);
        let after = server.metric("pentimento_pictures_total");
        // The one being painted and our own; one more may have ended between the count and our asking.
        assert!(after - before <= 3.0, "{} pictures were painted meanwhile", after - before);
        let ten = long.join().unwrap();
        assert_eq!(ten.json()["data"].as_array().map(Vec::len), Some(10), "{}", ten.text);
    });
}

#[test]
fn clients_are_served_in_turn() {
    let folder = Folder::new("turns");
    // Long enough that few end between a count and a question.
    let ten = json!({"prompt": "a boat", "n": 10, "num_inference_steps": 40});
    let one = json!({"prompt": "a house", "num_inference_steps": 4});
    // In batches of one picture: those of a batch end together.
    let server = Server::ready(&["--api-keys-file", &with_keys(&folder), "--max-batch-rows", "2"]);
    another_is_served_soon(&server, ("a", ten.clone()), ("b", one.clone()));
    // So are the requests of one client, such as two programs on one machine without keys.
    let server = Server::ready(&["--max-batch-rows", "2"]);
    another_is_served_soon(&server, ("", ten), ("", one));
}

#[test]
fn whoever_hangs_up_costs_nothing_more() {
    let server = Server::ready(&["--max-batch-rows", "2"]); // so that the second waits
    let endless = json!({"prompt": "a boat", "num_inference_steps": 1000});
    let painting = server.open(&endless);
    until("the first is being painted", || server.metric("pentimento_steps_total") > 2.0);
    // Its first picture has a place at the worker, the others wait.
    let waiting = server.open(&json!({"prompt": "a boat", "num_inference_steps": 1000, "n": 3}));
    until("the second waits", || server.metric("pentimento_queue_length") == 2.0);

    drop(waiting);
    until("the second is forgotten", || server.metric("pentimento_cancelled_total") == 3.0);
    until("nothing waits", || server.metric("pentimento_queue_length") == 0.0);

    drop(painting);
    let steps = server.metric("pentimento_steps_total");
    until("the first is cancelled", || server.metric("pentimento_cancelled_total") == 4.0);
    let more = server.metric("pentimento_steps_total") - steps;
    assert!(more <= 2.0, "{more} steps after hanging up");

    let streaming = server
        .open(&json!({"prompt": "a boat", "num_inference_steps": 400, "stream": true, "partial_images": 3}));
    let mut lines = BufReader::new(streaming).lines();
    lines
        .find(|line| line.as_ref().unwrap().starts_with("event: image_generation.partial_image"))
        .unwrap()
        .unwrap();
    drop(lines);
    until("the stream is cancelled", || server.metric("pentimento_cancelled_total") == 5.0);

    // A stray byte after the request does not hide that the client is gone.
    for (cancelled, stream) in [(6.0, false), (7.0, true)] {
        let mut stray =
            server.open(&json!({"prompt": "a boat", "num_inference_steps": 1000, "stream": stream}));
        stray.write_all(b"\r\n").unwrap();
        let before = server.metric("pentimento_steps_total");
        until("it is being painted", || server.metric("pentimento_steps_total") > before + 2.0);
        drop(stray);
        until("it is cancelled", || server.metric("pentimento_cancelled_total") == cancelled);
    }
    assert_eq!(server.metric("pentimento_pictures_total"), 0.0);
    assert_eq!(server.post(&json!({"prompt": "a", "num_inference_steps": 1})).status, 200, "it still paints");
}

#[test]
fn shutdown_finishes_what_was_accepted_and_refuses_more() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::ready(&[]);
        let body = json!({"prompt": "a boat", "n": 3, "num_inference_steps": 8});
        std::thread::scope(|scope| {
            let accepted = scope.spawn(|| server.post(&body));
            until("it is being painted", || server.metric("pentimento_steps_total") > 0.0);
            server.signal(signal);
            until("it drains", || server.get("/readyz").status == 503);
            let refused = server.post(&body);
            assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("shutting_down")));
            assert!(!refused.header("retry-after").is_empty());
            let accepted = accepted.join().unwrap();
            assert_eq!(accepted.json()["data"].as_array().map(Vec::len), Some(3), "{}", accepted.text);
        });
        assert!(server.end().success());
    }
}

#[test]
fn shutdown_takes_no_longer_than_it_may() {
    let mut server = Server::ready(&["--drain-seconds", "1"]);
    std::thread::scope(|scope| {
        let accepted =
            scope.spawn(|| server.post(&json!({"prompt": "a boat", "n": 2, "num_inference_steps": 1000})));
        until("it is being painted", || server.metric("pentimento_steps_total") > 0.0);
        let start = Instant::now();
        server.signal("TERM");
        let answer = accepted.join().unwrap();
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("shutting_down")));
        assert!(start.elapsed().as_secs() < 15);
    });
    assert!(server.end().success());
}

#[test]
fn without_keys_it_keeps_to_loopback_unless_told_otherwise() {
    let serve = |arguments: &[&str]| {
        let output = pentimento().arg("serve").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, stderr) = serve(&["--listen", "0.0.0.0:0"]);
    assert!(code == Some(2) && stderr.contains("--allow-anonymous"), "{stderr}");
    for (arguments, name) in [
        (&["--max-n", "11"][..], "max_n"),
        (&["--model", "nope"], "--model"),
        (&["--aliases", "x=nope"], "aliases"),
        (&["--api-keys", "secret=anna"], "api_keys"),
        (&["--log", "=="], "log"),
    ] {
        let (code, stderr) = serve(&[&["--listen", "127.0.0.1:0"], arguments].concat());
        assert!(code == Some(2) && stderr.contains(name), "{arguments:?}: {code:?} {stderr}");
        assert!(!stderr.contains("secret"), "a key that was not hashed is not repeated: {stderr}");
    }
    let open = Server::ready(&["--listen", "0.0.0.0:0", "--allow-anonymous"]);
    assert!(open.address.starts_with("0.0.0.0:"));
    let folder = Folder::new("public");
    Server::ready(&["--listen", "0.0.0.0:0", "--api-keys-file", &with_keys(&folder)]);
}

#[test]
fn the_description_knows_every_route_and_requests_have_ids() {
    let server = Server::ready(&[]);
    let description = server.get("/openapi.json").json();
    let paths: Vec<_> = description["paths"].as_object().unwrap().keys().cloned().collect();
    for path in [
        "/v1/images/generations",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/jobs",
        "/v1/jobs/{id}",
        "/v1/jobs/{id}/events",
        "/v1/images/files/{name}",
        "/readyz",
        "/metrics",
    ] {
        assert!(paths.iter().any(|p| p == path), "{path} is not described");
    }
    for path in &paths {
        assert_ne!(server.get(path).json_code(), "unknown_url", "{path} is described but not served");
    }
    let body = json!({"prompt": "a", "num_inference_steps": 0}).to_string();
    let headers = [("content-type", "application/json"), ("x-request-id", "my-id.1")];
    assert_eq!(server.post_with(body.as_bytes(), &headers).header("x-request-id"), "my-id.1");
    assert!(server.get("/nope").header("x-request-id").starts_with("req_"));
    let models = server.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("storybook")));
    assert_eq!(server.get("/v1/models/gpt-image-1").json()["pentimento"]["model"], "storybook");
}

#[test]
fn tiers_say_what_a_quality_gets_and_answers_say_what_a_picture_got() {
    let server = Server::ready(&[]);
    let tiers = server.get("/v1/tiers").json();
    let tiers = tiers["data"].as_array().unwrap();
    assert_eq!(tiers.len(), 4, "{tiers:?}");
    for tier in tiers {
        let of = |name: &str| tier[name].as_f64().unwrap();
        assert!(1.0 <= of("min_steps") && of("min_steps") <= of("max_steps"), "{tier}");
        assert!(
            0.0 < of("min_quality") && of("min_quality") <= of("max_quality") && of("max_quality") <= 1.0
        );
        let body = json!({"prompt": "a boat", "quality": tier["quality"], "pentimento": {"cache": "off"}});
        let answer = server.post(&body);
        let ours = answer.json()["pentimento"].clone();
        assert_eq!(ours["tier"], tier["quality"]);
        assert_eq!(ours["option"], tier["max_option"], "without load each tier gets its best: {ours}");
        assert_eq!(ours["steps"], tier["max_steps"]);
        assert_eq!(answer.header("pentimento-option"), tier["max_option"].as_str().unwrap());
        assert_eq!(answer.header("pentimento-steps"), tier["max_steps"].to_string());
        assert!(ours["objective_ms"].as_f64().unwrap() > 0.0);
    }
    let body = json!({"prompt": "a boat", "pentimento": {"max_latency_ms": 60_000, "min_quality": 0.5}});
    let ours = server.post(&body).json()["pentimento"].clone();
    assert_eq!(ours["objective_ms"], 60_000.0);
}
