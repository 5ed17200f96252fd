//! The cache as the API's users meet it.

use crate::common::{Answer, Folder, STEPS, Server, body, entries, outcome, painted, pentimento, until};
use base64::Engine;
use pentimento::menu::{Estimate, MeasuredOption, MenuFile, MenuFor, MenuPoint, MenuStart};
use pentimento_pipelines::{Model, PlanOption, Size};
use serde_json::{Value, json};

const NIRVANA: [&str; 2] =
    ["--reuse-policy", r#"{"policy":"nirvana","thresholds":[{"similarity":0.5,"share":0.4}]}"#];

/// The same with an object of ours.
fn with(mut body: Value, ours: Value) -> Value {
    body["pentimento"] = ours;
    body
}

fn picture(answer: &Answer) -> Vec<u8> {
    picture_of(answer, 0)
}

fn picture_of(answer: &Answer, index: usize) -> Vec<u8> {
    let json = answer.json();
    let text = json["data"][index]["b64_json"].as_str().unwrap();
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

/// Mean difference of two pictures' values, 0 to 255.
fn difference(a: &[u8], b: &[u8]) -> f64 {
    let [a, b] = [a, b].map(|file| image::load_from_memory(file).unwrap().into_rgb8().into_raw());
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[test]
fn the_same_request_brings_the_same_picture_from_the_cache() {
    let server = Server::ready(&["--reuse-policy", "exact"]);
    let first = painted(&server, &body("a red house", 7));
    assert_eq!(first.header("pentimento-outcome"), "miss");
    let again = server.post(&body("a red house", 7));
    assert_eq!(outcome(&again), "exact");
    assert_eq!(picture(&again), picture(&first));
    let ours = &again.json()["pentimento"];
    assert_eq!((&ours["skipped_steps"], &ours["similarity"]), (&json!(STEPS), &json!(1.0)));
    assert_eq!(again.json()["data"][0]["pentimento"]["outcome"], "exact");
    for (header, value) in [
        ("pentimento-outcome", "exact"),
        ("pentimento-skipped-steps", "25"),
        ("pentimento-similarity", "1.0000"),
        ("pentimento-source", ours["source"].as_str().unwrap()),
    ] {
        assert_eq!(again.header(header), value);
    }
    for (field, value) in
        [("seed", json!(8)), ("guidance_scale", json!(2.5)), ("negative_prompt", json!("snow"))]
    {
        let mut other = body("a red house", 7);
        other[field] = value;
        assert_eq!(outcome(&server.post(&other)), "miss", "another {field} is another picture");
    }
    let both =
        server.post(&json!({"prompt": "a red house", "seed": 7, "n": 2, "num_inference_steps": STEPS}));
    let of_each: Vec<_> =
        both.json()["data"].as_array().unwrap().iter().map(|d| d["pentimento"]["outcome"].clone()).collect();
    assert_eq!(of_each[0], "exact");
    assert_eq!(outcome(&both), of_each[1], "the answer tells of the one that reused least");

    let event = server.post(&with(body("a red house", 7), json!({}))).json();
    assert!(event["pentimento"]["timings_ms"]["lookup"].as_f64().unwrap() > 0.0);
    let mut stream = body("a red house", 7);
    stream["stream"] = json!(true);
    stream["partial_images"] = json!(2);
    let events = server.post(&stream).events();
    assert_eq!(events.len(), 1, "what is not painted has no previews");
    assert_eq!(events[0].1["pentimento"]["outcome"], "exact");
    assert!(server.metric("pentimento_cache_hits_total") >= 4.0);
    assert!(server.metric("pentimento_steps_skipped_total") >= 4.0 * STEPS as f64);
    until("the cache's own counts follow", || server.metric("pentimento_cache_entries") >= 1.0);
}

#[test]
fn a_similar_prompt_starts_from_the_others_early_strokes() {
    let server = Server::ready(&NIRVANA);
    let source = painted(&server, &body("a large red house on the left in the snow at night", 7));
    let edited = body("a large blue house on the left in the snow at night", 8);
    let answer = server.post(&edited);
    assert_eq!(outcome(&answer), "state");
    let ours = answer.json()["pentimento"].clone();
    assert_eq!((&ours["skipped_steps"], &ours["steps"]), (&json!(10), &json!(STEPS)));
    let similarity = ours["similarity"].as_f64().unwrap();
    assert!((0.5..0.9999).contains(&similarity), "{similarity}");
    assert!(difference(&picture(&answer), &picture(&source)) > 2.0, "the house is of another colour");
    let scratch = server.post(&with(edited.clone(), json!({"cache": "off"})));
    assert_eq!(outcome(&scratch), "miss");
    assert!(difference(&picture(&answer), &picture(&scratch)) > 2.0, "the early strokes show through");

    // A resumed picture is kept for its own repeats, and is no source of others.
    until("the resumed picture is kept", || entries(&server) == 2);
    let again = server.post(&edited);
    assert_eq!((outcome(&again), picture(&again)), ("exact".to_owned(), picture(&answer)));
    let listed = server.admin_get("cache/entries").json();
    let resumed = |entry: &&Value| entry["resumed_from"]["entry"].is_string();
    let kept: Vec<&Value> = listed["data"].as_array().unwrap().iter().filter(resumed).collect();
    assert_eq!((kept.len(), &kept[0]["states"]), (1, &json!([])));
    // A few steps of another plan, from the same state.
    let quick =
        json!({"prompt": "a large blue house on the left in the snow at night", "num_inference_steps": 5});
    assert_eq!(server.post(&quick).json()["pentimento"]["skipped_steps"], 2);

    let file = picture(&answer);
    let info = png::Decoder::new(std::io::Cursor::new(&file)).read_info().unwrap();
    let text = &info.info().uncompressed_latin1_text[0].text;
    let told = format!("Reused steps: 10 of {}", ours["source"].as_str().unwrap());
    assert!(text.contains(&told), "{text}");
}

/// A file with a measured menu of the storybook: numbers of guided steps, and their quality.
fn write_menu(folder: &Folder, options: &[(usize, f64)]) -> String {
    let model = Model::find("storybook").unwrap();
    let option = |&(steps, quality): &(usize, f64)| {
        let point = MenuPoint {
            share: 0.0,
            steps: steps as f64,
            rows: 2.0 * steps as f64,
            quality: Estimate::exactly(quality),
            fidelity: None,
            realism: None,
            clip_score: None,
            closeness: None,
        };
        MeasuredOption { option: PlanOption::guided(steps), from: vec![point] }
    };
    let measured_for = MenuFor {
        model: "storybook".to_owned(),
        weights: model.digest().unwrap().to_owned(),
        size: Size { width: 64, height: 64 },
        guidance_scale: 5.0,
        full_steps: 50,
        scorer: "fidelity".to_owned(),
        scorer_digest: String::new(),
        prompts: 2,
    };
    let options = options.iter().map(option).collect();
    let starts = vec![MenuStart { share: 0.0, noise_level: 1.0 }];
    let menu = MenuFile::new(measured_for, starts, options).unwrap();
    let file = folder.path().join("menu.json");
    std::fs::write(&file, menu.to_json().unwrap()).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Four steps reach the floor of every tier.
const FEW_STEPS: [(usize, f64); 4] = [(4, 0.995), (6, 0.996), (20, 0.998), (50, 1.0)];

#[test]
fn a_plan_too_short_to_paint_over_another_picture_begins_with_noise() {
    let folder = Folder::new("menu");
    let menu = write_menu(&folder, &FEW_STEPS);
    let server = Server::ready(&[&NIRVANA[..], &["--menu", &menu]].concat());
    let ask = |prompt: &str, seed: u64| json!({"prompt": prompt, "seed": seed});
    painted(&server, &ask("a large red house on the left in the snow at night", 7));
    let follow = |steps: u64| {
        let option = format!("ddim-{steps}");
        let plan = json!({"plan": {"policy": "fixed", "option": option}});
        assert_eq!(server.admin_json("PUT", "plan", &plan).status, 200);
        let answer = server.post(&ask("a large blue house on the left in the snow at night", steps));
        let ours = answer.json()["pentimento"].clone();
        assert_eq!((&ours["option"], &ours["steps"]), (&json!(option), &json!(steps)), "{}", answer.text);
        let quality = ours["expected_quality"].as_f64().unwrap();
        (ours["outcome"].clone(), ours["skipped_steps"].clone(), quality)
    };
    let (outcome, skipped, quality) = follow(20);
    assert_eq!((outcome, skipped), (json!("state"), json!(8)));
    assert!(quality > 0.998 && quality < 1.0, "its noisiest steps were the full plan's: {quality}");
    assert_eq!(follow(6), (json!("miss"), json!(0), 0.996));
}

/// The answer of a request that is repeated for as long as it is refused because of the load.
fn insistent(server: &Server, body: &Value) -> Answer {
    loop {
        let answer = server.post(body);
        if answer.status != 429 {
            return answer;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn an_exact_repeat_on_a_loaded_server_is_a_hit() {
    // One picture at a time, deadlines that follow from the machine's speed, and a choice of two plans: while others keep
    // the machine busy, everybody gets the cheap one.
    let folder = Folder::new("menu");
    let menu = write_menu(&folder, &[(4, 0.995), (50, 1.0)]);
    let arguments = ["--max-batch-rows", "2", "--reuse-policy", "exact", "--menu", &menu];
    let server = Server::ready_in(&[("PENTIMENTO_LATENCY_OBJECTIVE_MS", "0")], &arguments);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (server, done) = (&server, &done);
        for client in 0..6 {
            scope.spawn(move || {
                let mut seed = 1_000_000 * client;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    seed += 1;
                    let other = json!({"prompt": "a boat", "seed": seed, "pentimento": {"cache": "off"}});
                    assert_eq!(insistent(server, &other).status, 200);
                }
            });
        }
        let price = || server.metric("pentimento_machine_price");
        until("machine time has a price", || price() > 0.0);
        let asked = json!({"prompt": "a red house", "seed": 7});
        let first = insistent(server, &asked);
        until("the picture is kept", || entries(server) == 1);
        let mut answers: Vec<_> = (0..4).map(|_| insistent(server, &asked)).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        answers.insert(0, first);
        // It is painted again only where the load had gone for a moment, and then better than before.
        let option = |answer: &Answer| answer.json()["pentimento"]["option"].as_str().unwrap().to_owned();
        let painted: Vec<_> = answers.iter().filter(|answer| outcome(answer) == "miss").map(option).collect();
        assert!(
            painted == ["ddim-4"] || painted == ["ddim-4", "ddim-50"] || painted == ["ddim-50"],
            "{painted:?}"
        );
    });
}

#[test]
fn a_better_picture_replaces_a_worse_one_once_it_can_be_had() {
    let folder = Folder::new("menu");
    let server = Server::ready(&["--reuse-policy", "exact", "--menu", &write_menu(&folder, &FEW_STEPS)]);
    let plan = |policy: Value| {
        assert_eq!(server.admin_json("PUT", "plan", &json!({ "plan": policy })).status, 200);
    };
    let ask = |tier: &str| {
        let answer = server.post(&json!({"prompt": "a boat", "seed": 3, "quality": tier}));
        let option = answer.json()["pentimento"]["option"].clone();
        (outcome(&answer), option)
    };
    plan(json!({"policy": "fixed", "option": "ddim-4"}));
    assert_eq!(ask("auto"), ("miss".to_owned(), json!("ddim-4")));
    until("the cheap picture is kept", || entries(&server) == 1);
    assert_eq!(ask("high"), ("exact".to_owned(), json!("ddim-4")), "it is as good as what would be painted");
    plan(json!({"policy": "adaptive"}));
    assert_eq!(ask("low"), ("exact".to_owned(), json!("ddim-4")), "more is worth nothing to this tier");
    assert_eq!(ask("auto"), ("miss".to_owned(), json!("ddim-50")), "a better one can be had");
    until("it has taken the other's place", || ask("auto") == ("exact".to_owned(), json!("ddim-50")));
    assert_eq!(entries(&server), 1);
    until("it is counted", || server.metric("pentimento_cache_replacements_total") == 1.0);
    plan(json!({"policy": "fixed", "option": "ddim-4"}));
    let refreshed = json!({"prompt": "a boat", "seed": 3, "pentimento": {"cache": "refresh"}});
    assert_eq!(outcome(&server.post(&refreshed)), "miss");
    until("refresh replaces a better one, too", || ask("auto").1 == json!("ddim-4"));
}

#[test]
fn what_the_client_wants_of_its_file_does_not_make_another_picture() {
    let server = Server::ready(&["--reuse-policy", "exact"]);
    let first = painted(&server, &body("a windmill", 3));
    for format in ["jpeg", "webp"] {
        let mut other = body("a windmill", 3);
        other["output_format"] = json!(format);
        let answer = server.post(&other);
        assert_eq!(outcome(&answer), "exact", "{format}");
        let file = picture(&answer);
        let guessed = image::guess_format(&file).unwrap();
        assert_eq!(guessed.extensions_str()[0], if format == "jpeg" { "jpg" } else { format });
        assert!(difference(&file, &picture(&first)) < 3.0, "{format}");
    }
    // An empty negative prompt is another picture than none.
    let mut empty = body("a windmill", 3);
    empty["negative_prompt"] = json!("");
    assert_eq!(outcome(&server.post(&empty)), "miss");
}

#[test]
fn by_default_a_model_with_tables_has_the_combined_policy() {
    let server = Server::ready(&[]);
    let policy = server.admin_get("cache/policy").json();
    assert_eq!(policy["reuse"]["policy"], "combined", "{policy}");
    let ours = json!({"min_quality": 0.7});
    let full = |prompt: &str, seed: u64| json!({"prompt": prompt, "seed": seed, "pentimento": ours});
    painted(&server, &full("a small red house on the left in the snow at night", 7));
    // The same scene in other words, from its owner's states; what has nothing to do with it, from noise.
    let reworded = server.post(&full("a tiny red cottage on the left in the snow by night", 8));
    assert_eq!(outcome(&reworded), "state");
    assert!(reworded.json()["pentimento"]["skipped_steps"].as_u64().unwrap() >= 5, "{}", reworded.text);
    assert_eq!(outcome(&server.post(&full("three yellow boats on a stormy sea at noon", 8))), "miss");
}

#[test]
fn a_request_narrows_what_the_policy_allows() {
    let server = Server::ready(&[]);
    let cache = |mode: &str| with(body("a boat", 3), json!({"cache": mode}));
    let miss = server.post(&cache("only"));
    assert_eq!((miss.status, miss.json_code().as_str()), (404, "cache_miss"));
    assert_eq!(outcome(&server.post(&cache("off"))), "miss");
    assert_eq!(server.post(&cache("only")).status, 404, "off keeps nothing");
    let first = painted(&server, &cache("refresh"));
    let hit = server.post(&cache("only"));
    assert_eq!(outcome(&hit), "exact");
    let again = server.post(&cache("refresh"));
    assert_eq!((outcome(&again), picture(&again)), ("miss".to_owned(), picture(&first)));
    until("the result replaces what was stored", || {
        let source = |answer: &Answer| answer.json()["pentimento"]["source"].clone();
        let now = server.post(&cache("auto"));
        outcome(&now) == "exact" && source(&now) != source(&hit)
    });
    assert_eq!(entries(&server), 1);

    let off = Server::ready(&["--reuse-policy", "off"]);
    for mode in ["auto", "refresh"] {
        assert_eq!(outcome(&off.post(&cache(mode))), "miss");
    }
    assert_eq!(off.post(&cache("only")).status, 404);
    assert_eq!(entries(&off), 0);
}

#[test]
fn without_a_seed_no_picture_comes_twice() {
    let server = Server::ready(&NIRVANA);
    let unseeded = json!({"prompt": "a red house", "num_inference_steps": STEPS});
    let first = painted(&server, &unseeded);
    let mut all = vec![picture(&first)];
    for _ in 0..3 {
        let again = server.post(&unseeded);
        assert_eq!(outcome(&again), "state");
        all.push(picture(&again));
    }
    // A similar prompt, and several pictures of one seed, too.
    let several =
        json!({"prompt": "a red house in the snow", "seed": 5, "n": 4, "num_inference_steps": STEPS});
    let several = server.post(&several);
    assert_eq!(outcome(&several), "state");
    all.extend((0..4).map(|i| picture_of(&several, i)));
    for (i, a) in all.iter().enumerate() {
        for (j, b) in all.iter().enumerate().skip(i + 1) {
            assert!(difference(a, b) > 2.0, "pictures {i} and {j} are one: {}", difference(a, b));
        }
    }
    // What has a seed is the same picture again, as long as the cache holds the same.
    let seeded = body("a red house in the snow", 9);
    assert_eq!(difference(&picture(&server.post(&seeded)), &picture(&server.post(&seeded))), 0.0);
    let seed = first.json()["pentimento"]["seeds"][0].as_u64().unwrap();
    assert_eq!(outcome(&server.post(&body("a red house", seed))), "exact", "its seed brings it back");
}

#[test]
fn pictures_of_any_plan_are_kept_each_under_its_own_steps() {
    let server = Server::ready(&["--reuse-policy", "exact"]);
    let hasty = json!({"prompt": "a red house", "seed": 1, "num_inference_steps": 10});
    painted(&server, &hasty);
    painted(&server, &body("a red house", 1));
    for (again, steps) in [(&hasty, 10), (&body("a red house", 1), STEPS)] {
        let answer = server.post(again);
        assert_eq!(outcome(&answer), "exact");
        assert_eq!(answer.json()["pentimento"]["steps"], steps);
    }
    assert_eq!(entries(&server), 2);
}

#[test]
fn tenants_and_namespaces_see_only_their_own() {
    let folder = Folder::new("keys");
    let keys = folder.path().join("keys");
    // printf %s one | sha256sum, and of two
    let lines = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed studio\n\
        3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3 workshop\n";
    std::fs::write(&keys, lines).unwrap();
    let server =
        Server::ready(&["--api-keys-file", keys.to_str().unwrap(), "--shared-namespaces", "commons"]);
    let post = |key: &str, namespace: Option<&str>| {
        let body = with(body("a castle", 5), json!({"namespace": namespace}));
        let authorization = format!("Bearer {key}");
        let headers = [("content-type", "application/json"), ("authorization", &authorization)];
        server.post_with(&crate::common::small(&body), &headers)
    };
    let kept = |key, namespace, pictures: u64| {
        assert_eq!(outcome(&post(key, namespace)), "miss", "{key} {namespace:?}");
        until("it is kept", || entries(&server) == pictures);
        assert_eq!(outcome(&post(key, namespace)), "exact", "{key} {namespace:?}");
    };
    kept("one", None, 1);
    kept("two", None, 2);
    kept("one", Some("sketches"), 3);
    assert_eq!(outcome(&post("one", Some("default"))), "exact");
    kept("one", Some("commons"), 4);
    assert_eq!(outcome(&post("two", Some("commons"))), "exact");
    for odd in ["", "a/b", &"x".repeat(65)] {
        let answer = post("one", Some(odd));
        assert_eq!(
            (answer.status, answer.json()["error"]["param"].as_str()),
            (400, Some("pentimento.namespace"))
        );
    }
}

#[test]
fn a_cache_outlives_its_server_and_belongs_to_one_at_a_time() {
    let cache = Folder::new("lasting");
    let dir = cache.path().to_str().unwrap();
    let mut server = Server::ready(&["--cache-dir", dir]);
    let first = painted(&server, &body("a windmill", 2));

    let second = pentimento()
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cache-dir", dir])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("in use") && said.contains("--cache-dir"), "{said}");

    server.signal("TERM");
    assert!(server.end().success());
    let server = Server::ready(&["--cache-dir", dir]);
    let again = server.post(&body("a windmill", 2));
    assert_eq!((outcome(&again), picture(&again)), ("exact".to_owned(), picture(&first)));
    drop(server);

    let folder = Folder::new("cached");
    let arguments = [
        "generate",
        "a windmill",
        "--seed",
        "2",
        "--steps",
        "25",
        "--size",
        "64x64",
        "-o",
        "p.png",
        "--cache-dir",
        dir,
    ];
    let output = pentimento().current_dir(folder.path()).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("exact hit: 25 of 25 steps skipped"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(folder.read("p.png"), picture(&first));
}

/// Every file below a directory.
fn files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let all = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    all.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn whatever_happens_to_the_states_the_request_succeeds() {
    let cache = Folder::new("broken");
    let dir = cache.path().to_str().unwrap();
    let server = Server::ready(&[
        "--cache-dir",
        dir,
        "--cache-memory-bytes",
        "0",
        "--cache-picture-memory-bytes",
        "0",
        "--reuse-policy",
        "exact",
    ]);
    let first = painted(&server, &body("a tree", 4));
    let states = || files(&cache.path().join("states"));
    for state in states() {
        let mut bytes = std::fs::read(&state).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&state, bytes).unwrap();
    }
    let again = server.post(&body("a tree", 4));
    assert_eq!((outcome(&again), picture(&again)), ("miss".to_owned(), picture(&first)));
    until("the failure is counted", || server.metric("pentimento_cache_failures_total") >= 1.0);
    let only = |seed| with(body("a tree", seed), json!({"cache": "only"}));
    until("the picture is kept anew", || server.post(&only(4)).status == 200);

    std::fs::remove_dir_all(cache.path().join("states")).unwrap();
    assert_eq!(outcome(&server.post(&body("a tree", 4))), "miss");
    assert_eq!(server.post(&only(9)).status, 404);
    assert_eq!(server.metric("pentimento_failed_total"), 0.0);
}

#[test]
fn a_store_that_hangs_costs_no_request() {
    let cache = Folder::new("hanging");
    let dir = cache.path().to_str().unwrap();
    let mut server =
        Server::ready(&["--cache-dir", dir, "--cache-memory-bytes", "0", "--cache-timeout-ms", "300"]);
    painted(&server, &body("a tree", 4));
    for state in files(&cache.path().join("states")) {
        std::fs::remove_file(&state).unwrap();
        // Whoever opens a pipe that nobody writes to waits for ever.
        assert!(std::process::Command::new("mkfifo").arg(&state).status().unwrap().success());
    }
    let failed = || server.metric_with("pentimento_cache_loads_total{", "failed");
    let asked = || assert_eq!(outcome(&server.post(&body("a tree", 4))), "miss");
    asked();
    assert_eq!(failed(), 1.0, "it was waited for");
    asked();
    let paused = failed();
    assert!(paused > 1.0);
    // What is not read is not found to be missing: the pictures painted meanwhile are no better, and dropped.
    assert_eq!(entries(&server), 1);
    server.signal("TERM");
    assert!(server.end().success());
}

#[test]
fn prompts_that_may_not_be_stored_are_nowhere_at_rest() {
    let cache = Folder::new("discreet");
    let dir = cache.path().to_str().unwrap();
    let prompt = "a zebra-striped lighthouse";
    let holds = |text: &str| {
        let found = |bytes: Vec<u8>| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        files(cache.path()).into_iter().any(|file| found(std::fs::read(file).unwrap()))
    };
    for (round, stored) in [false, true, false].into_iter().enumerate() {
        let flag = format!("--store-prompt-text={stored}");
        let mut server = Server::ready(&["--cache-dir", dir, &flag, NIRVANA[0], NIRVANA[1]]);
        if round > 0 {
            assert_eq!(outcome(&server.post(&body(prompt, 1))), "exact", "hashes find it");
            let another = body(prompt, 20 + round as u64);
            assert_eq!(outcome(&server.post(&another)), "state", "and embeddings");
            until("what was stored before is seen to", || entries(&server) > 1);
        }
        let mut other = with(body(prompt, 3 + round as u64), json!({"cache": "refresh"}));
        other["negative_prompt"] = json!("a yellow submarine");
        painted(&server, &other);
        if round == 0 {
            painted(&server, &body(prompt, 1));
        }
        let listed = server.admin_get("cache/entries").text;
        assert_eq!(listed.contains("zebra"), stored, "{listed}");
        server.signal("TERM");
        assert!(server.end().success());
        // Once stored, a prompt may lie in pages of the database that are free but not yet used anew.
        assert!(round == 2 || holds("zebra") == stored);
        // Files say their negative prompt, too, where prompts may be stored; those of the round before stay.
        assert!(round > 0 || !holds("submarine"), "of a negative prompt only its hash is needed");
    }
}
