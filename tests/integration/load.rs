//! `pentimento serve` under load: any company, floods, bursts, clients that do not read, and the end amid all that.

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::common::{Answer, Server, until};
use serde_json::{Value, json};

/// `printf %s KEY | sha256sum` of the keys "a" and "b".
const KEYS: &str = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb=anna,\
    3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d=bert";
/// One picture with guidance at a time, on any machine.
const ONE_BY_ONE: [&str; 2] = ["--max-batch-rows", "2"];

/// A server that has the machine to itself, and objectives that follow from its speed: two under load would be each
/// other's noise.
fn loaded(arguments: &[&str]) -> (MutexGuard<'static, ()>, Server) {
    static MACHINE: Mutex<()> = Mutex::new(());
    let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    (machine, Server::ready_in(&[("PENTIMENTO_LATENCY_OBJECTIVE_MS", "0")], arguments))
}

/// A request that the cache has no part in.
fn uncached(mut body: Value) -> Value {
    body["pentimento"]["cache"] = json!("off");
    body
}

/// So many requests of these tiers in turn, each for a picture of its own.
fn of_tiers(tiers: &[&str], requests: usize) -> Vec<Value> {
    let request = |i: usize| json!({"prompt": format!("boat {i}"), "quality": tiers[i % tiers.len()]});
    (0..requests).map(request).map(uncached).collect()
}

fn post_as(server: &Server, key: &str, body: &Value) -> Answer {
    let key = format!("Bearer {key}");
    let headers = [("content-type", "application/json"), ("authorization", &*key)];
    server.post_with(&crate::common::small(body), &headers)
}

/// Sends all at once; the answers, in order.
fn together(bodies: &[Value], post: impl Fn(&Value) -> Answer + Sync) -> Vec<Answer> {
    std::thread::scope(|scope| {
        let post = &post;
        let asked: Vec<_> = bodies.iter().map(|body| scope.spawn(move || post(body))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    })
}

/// The time after which a client that was refused because of the load may come again; nothing else may be refused.
#[track_caller]
fn retry_after(refused: &Answer) -> Duration {
    assert_eq!(refused.status, 429, "{}", refused.text);
    let code = refused.json_code();
    assert!(["overloaded", "queue_full", "rate_limit_exceeded"].contains(&&*code), "{code}");
    let seconds = refused.header("retry-after").parse().unwrap();
    assert!(seconds >= 1, "{}", refused.text);
    Duration::from_secs(seconds)
}

/// The steps of an answer's plan.
#[track_caller]
fn steps(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["pentimento"]["steps"].as_u64().unwrap()
}

/// Steps of the cheapest and of the best option of a tier.
fn range(server: &Server, tier: &str) -> (u64, u64) {
    let tiers = server.get("/v1/tiers").json();
    let tier = tiers["data"].as_array().unwrap().iter().find(|known| known["quality"] == tier).unwrap();
    (tier["min_steps"].as_u64().unwrap(), tier["max_steps"].as_u64().unwrap())
}

/// Requests that were answered, or refused, so.
fn answered(server: &Server, status: u16) -> f64 {
    server.metric_with("pentimento_http_requests_total{", &format!("status=\"{status}\""))
}

#[test]
fn sizes_share_a_server_and_each_has_batches_of_its_own() {
    let server = Server::ready(&[]);
    let body = |size: &str, n: u64| {
        uncached(json!({"prompt": "a boat", "seed": 3, "n": n, "num_inference_steps": 40, "size": size}))
    };
    let sizes = ["64x64", "128x64"];
    let both = together(&sizes.map(|size| body(size, 2)), |body| server.post(body));
    // 4 pictures of 40 steps, guided.
    assert_eq!(server.metric("pentimento_batch_rows_sum"), 320.0);
    let batches = server.metric("pentimento_batch_rows_count");
    // The two pictures of a size share steps where the machine steps four rows about as fast as two. Sizes never share one,
    // or there could be 40 batches.
    assert!((80.0..=160.0).contains(&batches), "{batches} batches");
    for (size, answer) in sizes.iter().zip(&both) {
        let picture = |answer: &Answer| answer.json()["data"][0]["b64_json"].as_str().unwrap().to_owned();
        assert_eq!(answer.json()["size"], *size, "{}", answer.text);
        assert_eq!(picture(answer), picture(&server.post(&body(size, 1))), "{size}: company changes nothing");
    }
}

#[test]
fn a_picture_is_the_same_in_any_company() {
    let (_machine, server) = loaded(&[]);
    let subject = |guidance: f64, steps: u64| {
        let ours = json!({"max_latency_ms": 120_000});
        uncached(json!({"prompt": "a red house in the snow", "negative_prompt": "night", "seed": 7,
            "guidance_scale": guidance, "num_inference_steps": steps, "pentimento": ours}))
    };
    let subjects = [subject(4.0, 20), subject(1.0, 30), subject(9.0, 7), subject(1.0, 11)];
    let paint = |subject| {
        let answer = server.post(subject);
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["data"][0]["b64_json"].as_str().unwrap().to_owned()
    };
    let shared = || {
        let batches = server.metric("pentimento_step_duration_seconds_count");
        server.metric("pentimento_steps_total") - batches
    };
    let alone: Vec<String> = subjects.iter().map(paint).collect();
    assert_eq!(shared(), 0.0, "each was alone");

    // Patient company of one row and of two fills what room the subject leaves in its batches.
    let patient = [(1.0, 1000), (1.0, 40), (5.0, 35), (1.0, 3)].map(|(guidance, steps)| {
        server.open(&uncached(json!({"prompt": format!("{steps} boats"), "n": 10, "seed": 1,
            "guidance_scale": guidance, "num_inference_steps": steps,
            "pentimento": {"max_latency_ms": 3_600_000}})))
    });
    until("company is being painted", || server.metric("pentimento_running_pictures") > 8.0);
    let in_company: Vec<String> = std::thread::scope(|scope| {
        // Urgent company interrupts it.
        let urgent = scope.spawn(|| {
            for i in 0..30 {
                let body = json!({"prompt": format!("a ball {i}"), "num_inference_steps": 1 + i % 4,
                    "guidance_scale": 1 + i % 3, "pentimento": {"max_latency_ms": 60_000}});
                assert_eq!(server.post(&uncached(body)).status, 200);
            }
        });
        let painted = subjects.iter().cycle().take(3 * subjects.len()).map(paint).collect();
        urgent.join().unwrap();
        painted
    });
    drop(patient);
    until("all is still", || server.metric("pentimento_queue_length") == 0.0);
    for (i, picture) in in_company.iter().enumerate() {
        let i = i % subjects.len();
        assert!(*picture == alone[i], "another picture in company: {}", subjects[i]);
    }
    assert!(shared() > 0.0, "no batch had two pictures: nothing was tested");
}

/// Whoever floods has a queue of his own, and leaves room in the plan: others wait for what is in the machine's hand.
#[test]
fn a_flood_of_one_tenant_costs_another_a_picture_or_two() {
    let patience = ["--latency-objective-ms", "3600000", "--queue-length-per-client", "10"];
    let (_machine, server) = loaded(&[&ONE_BY_ONE[..], &patience, &["--api-keys", KEYS]].concat());
    let flood: Vec<Value> = (0..30)
        .map(|i| uncached(json!({"prompt": format!("boat {i}"), "num_inference_steps": 40})))
        .collect();
    let insistent = |body: &Value| {
        let ask = || post_as(&server, "a", body);
        let mut answer = ask();
        for _ in 0..16 {
            if answer.status == 200 {
                break;
            }
            retry_after(&answer);
            assert_eq!(answer.json_code(), "rate_limit_exceeded");
            std::thread::sleep(Duration::from_millis(500)); // he does not care when he was told to come
            answer = ask();
        }
        answer.status
    };
    let (meanwhile, painted) = std::thread::scope(|scope| {
        let flooding = flood.iter().map(|body| scope.spawn(|| insistent(body))).collect::<Vec<_>>();
        until("the flood is refused", || answered(&server, 429) >= 15.0);
        let before = server.metric("pentimento_pictures_total");
        let one = uncached(json!({"prompt": "a house", "num_inference_steps": 4}));
        let answer = post_as(&server, "b", &one);
        assert_eq!(answer.status, 200, "{}", answer.text);
        let meanwhile = server.metric("pentimento_pictures_total") - before;
        let painted = flooding.into_iter().map(|asked| asked.join().unwrap());
        (meanwhile, painted.filter(|status| *status == 200).count())
    });
    // The one being painted, one that overtakes, and his own; one more may have ended between count and asking.
    assert!(meanwhile <= 4.0, "{meanwhile} pictures were painted meanwhile");
    assert!(painted > 13, "only {painted} of the flood were let in: nothing was tested");
}

#[test]
fn without_load_everybody_gets_the_best_plan_and_keeps_it() {
    // Ten times and more what a picture takes, so that a crowded machine is no load.
    let unhurried = ["--plan-policy", "adaptive", "--latency-objective-ms", "20000"];
    let (_machine, server) = loaded(&unhurried);
    for body in of_tiers(&["low", "auto", "medium", "high"], 12) {
        let (_, best) = range(&server, body["quality"].as_str().unwrap());
        let started = std::time::Instant::now();
        assert_eq!(steps(&server.post(&body)), best, "{body}");
        // Half of the machine's time is nobody's.
        std::thread::sleep(started.elapsed());
    }
    assert_eq!(server.metric("pentimento_replanned_total"), 0.0);
    assert_eq!(server.metric("pentimento_overloaded_total"), 0.0);
}

#[test]
fn a_burst_gets_fewer_steps_but_no_fewer_than_its_tiers_and_the_rest_a_time_to_come_again() {
    let (_machine, server) = loaded(&[&ONE_BY_ONE[..], &["--plan-policy", "adaptive"]].concat());
    let burst = of_tiers(&["auto", "low", "medium", "auto", "high"], 60);
    let answers = together(&burst, |body| server.post(body));
    let mut shorter = 0;
    let mut refused = Vec::new();
    for (body, answer) in burst.iter().zip(&answers) {
        let (fewest, most) = range(&server, body["quality"].as_str().unwrap());
        if answer.status == 200 {
            let steps = steps(answer);
            assert!((fewest..=most).contains(&steps), "{steps} of {fewest} to {most}: {body}");
            shorter += usize::from(steps < most);
        } else {
            refused.push((retry_after(answer), body));
        }
    }
    assert!(shorter > 0, "no plan followed the load");
    assert!(!refused.is_empty(), "this was no overload");
    assert_eq!(server.metric("pentimento_overloaded_total"), refused.len() as f64);
}

#[test]
fn requests_that_come_again_when_they_were_told_to_are_let_in() {
    let (_machine, server) = loaded(&ONE_BY_ONE);
    let refusals = |body: &Value| {
        let mut refusals = 0;
        let mut answer = server.post(body);
        while answer.status != 200 {
            std::thread::sleep(retry_after(&answer));
            answer = server.post(body);
            refusals += 1;
        }
        refusals
    };
    let burst = of_tiers(&["auto"], 45);
    let refusals: u32 = std::thread::scope(|scope| {
        let asked: Vec<_> = burst.iter().map(|body| scope.spawn(|| refusals(body))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).sum()
    });
    assert!(refusals > 0, "this was no overload");
}

#[test]
fn a_number_of_steps_is_not_changed_by_load_and_no_load_makes_an_impossible_time_possible() {
    let (_machine, server) = loaded(&ONE_BY_ONE);
    let mut burst = of_tiers(&["auto"], 20);
    let explicit =
        json!({"prompt": "a house", "num_inference_steps": 33, "pentimento": {"max_latency_ms": 600_000}});
    let impossible = json!({"prompt": "a tree", "quality": "high", "pentimento": {"max_latency_ms": 0.1}});
    for i in 0..5 {
        let mut explicit = explicit.clone();
        explicit["seed"] = json!(i);
        burst.insert(4 * i, uncached(explicit));
        burst.insert(4 * i, uncached(impossible.clone()));
    }
    let answers = together(&burst, |body| server.post(body));
    let mut shorter = 0;
    for (body, answer) in burst.iter().zip(&answers) {
        if body["num_inference_steps"].is_u64() {
            assert_eq!(steps(answer), 33);
        } else if body["quality"] == "high" {
            let param = &answer.json()["error"]["param"];
            assert_eq!((answer.status, param), (400, &json!("pentimento.max_latency_ms")), "{}", answer.text);
        } else if answer.status == 200 {
            shorter += usize::from(steps(answer) < range(&server, "auto").1);
        } else {
            retry_after(answer);
        }
    }
    assert!(shorter > 0, "no plan followed the load");
}

#[test]
fn a_stored_picture_takes_no_worker() {
    let arguments =
        ["--max-batch-rows", "2", "--reuse-policy", "exact", "--request-timeout-seconds", "86400"];
    let (_machine, server) = loaded(&arguments);
    // The least urgent of all.
    let stored = json!({"prompt": "a boat", "seed": 1, "num_inference_steps": 25,
        "pentimento": {"max_latency_ms": 86_400_000}});
    crate::common::painted(&server, &stored);
    let before = server.metric("pentimento_steps_total");
    let _painted = server.open(&uncached(json!({"prompt": "a house", "n": 10, "num_inference_steps": 1000,
        "pentimento": {"max_latency_ms": 3_600_000}})));
    until("the others are painted", || server.metric("pentimento_steps_total") > before + 2.0);
    let answers: Vec<Answer> = (0..3).map(|_| server.post(&stored)).collect();
    assert_eq!(server.metric("pentimento_pictures_total"), 1.0, "none is painted, and no other is finished");
    until("the others still wait", || server.metric("pentimento_queue_length") >= 7.0);
    assert!(answers.iter().all(|answer| crate::common::outcome(answer) == "exact"));
    let file = |answer: &Answer| answer.json()["data"][0]["b64_json"].clone();
    assert!(answers.iter().all(|answer| file(answer) == file(&answers[0])));
    for part in ["queue", "encode", "wait", "denoise", "decode"] {
        assert_eq!(answers[0].json()["pentimento"]["timings_ms"][part], 0.0, "{part}");
    }
}

#[test]
fn whoever_reads_slowly_or_not_at_all_holds_nobody_up() {
    let (_machine, mut server) = loaded(&[
        "--reuse-policy",
        "exact",
        "--write-timeout-seconds",
        "2",
        "--latency-objective-ms",
        "60000",
    ]);
    let kept = json!({"prompt": "a boat", "seed": 1, "n": 10, "num_inference_steps": 25, "stream": true});
    assert_eq!(server.post(&kept).status, 200);
    until("the pictures are kept", || crate::common::entries(&server) == 10);

    // Many streams on one connection, more than any buffer takes, and nobody reads.
    let mut deaf = server.open(&kept);
    let text = kept.to_string();
    for _ in 1..500 {
        write!(
            deaf,
            "POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
            content-length: {}\r\n\r\n{text}",
            text.len()
        )
        .unwrap();
    }
    let stream = |prompt: &str| {
        server.open(&uncached(json!({"prompt": prompt, "seed": 1, "n": 10, "num_inference_steps": 60,
            "stream": true, "partial_images": 3})))
    };
    let mut lines = BufReader::new(stream("a ball")).lines();
    lines.find(|line| line.as_ref().unwrap() == "event: image_generation.partial_image").unwrap().unwrap();
    drop(lines);
    until("whoever left is forgotten", || server.metric("pentimento_cancelled_total") == 10.0);

    let mut slow = stream("a tree");
    let mut head = [0; 4];
    for i in 0..4 {
        slow.read_exact(&mut head[i..=i]).unwrap();
        let other = server.post(&uncached(json!({"prompt": "a house", "seed": i, "num_inference_steps": 4})));
        assert_eq!(other.status, 200, "{}", other.text);
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(&head, b"HTTP");
    until("whoever never reads is cut off", || deaf.write_all(b" ").is_err());
    server.signal("TERM");
    assert!(server.end().success());
    let mut rest = String::new();
    slow.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.matches("event: image_generation.completed").count(), 10, "all that was accepted came");
}

#[test]
fn a_picture_is_the_same_whoever_encodes_and_finishes_it() {
    let body = |i: usize| {
        uncached(json!({"prompt": format!("a red boat {i}"), "negative_prompt": "night", "seed": i,
            "num_inference_steps": 4 + i, "pentimento": {"max_latency_ms": 60_000}}))
    };
    let bodies: Vec<Value> = (0..24).map(body).collect();
    // With fewer threads than cores prompts are encoded and pictures finished beside the steps, as far as they find room.
    let painted = |threads: &str| -> Vec<Value> {
        let (_machine, mut server) = loaded(&["--threads", threads]);
        let answers = together(&bodies, |body| server.post(body));
        server.signal("TERM");
        assert!(server.end().success(), "it ends with all its threads");
        answers.iter().map(|answer| answer.json()["data"][0]["b64_json"].clone()).collect()
    };
    let (beside, between) = (painted("1"), painted("64"));
    assert!(beside.iter().all(Value::is_string) && beside == between);
}

#[test]
fn shutdown_amid_a_burst_answers_all_that_was_accepted() {
    let (_machine, mut server) = loaded(&[&ONE_BY_ONE[..], &["--drain-seconds", "100"]].concat());
    let mut burst = of_tiers(&["auto"], 60);
    for (i, body) in burst.iter_mut().enumerate() {
        body["stream"] = json!(i % 4 == 0);
    }
    let answers = std::thread::scope(|scope| {
        let burst = scope.spawn(|| together(&burst, |body| server.post(body)));
        until("the burst is there", || {
            answered(&server, 429) >= 1.0 && server.metric("pentimento_queue_length") >= 3.0
        });
        server.signal("TERM");
        burst.join().unwrap()
    });
    assert!(server.end().success());
    let of = |status: u16| answers.iter().filter(move |answer| answer.status == status);
    assert!(of(200).count() >= 2 && of(429).count() >= 1);
    for answer in of(200).filter(|answer| answer.header("content-type").starts_with("text/event-stream")) {
        let events = answer.events();
        assert!(events.iter().all(|(name, _)| name == "image_generation.completed"), "{}", answer.text);
        assert!(!events.is_empty());
    }
    of(429).for_each(|refused| _ = retry_after(refused));
    for late in of(503) {
        assert_eq!(late.json_code(), "shutting_down");
    }
    assert_eq!(answers.len(), of(200).count() + of(429).count() + of(503).count());
}
