//! The admin API, as an operator meets it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use crate::common::{
    Answer, Folder, STEPS, Server, body, cache, complaint, outcome, painted, pentimento, printed, until,
};
use serde_json::{Value, json};

const TOKEN: &str = "correct-horse-battery-staple";

/// The files of states and pictures under a folder.
fn states(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { states(&path) } else { 1 }).sum()
}

#[track_caller]
fn is_error(answer: &Answer, status: u16, param: Value, code: &str) {
    assert_eq!((answer.status, answer.json_code().as_str()), (status, code), "{}", answer.text);
    assert_eq!(answer.json()["error"]["param"], param, "{}", answer.text);
    assert!(!answer.header("x-request-id").is_empty());
}

#[test]
fn once_there_is_a_token_everything_needs_it() {
    let server = Server::start_in(&[("PENTIMENTO_ADMIN_TOKEN", TOKEN)], &[]);
    let ask =
        |path: &str, authorization: &str| server.admin("GET", path, &[("authorization", authorization)], b"");
    let missing = server.admin_get("cache/stats");
    is_error(&missing, 401, json!(null), "invalid_admin_token");
    assert_eq!(missing.header("www-authenticate"), "Bearer");
    for wrong in ["Bearer correct-horse", "Bearer", "Basic abc", &format!("Bearer {TOKEN}x")] {
        is_error(&ask("cache/stats", wrong), 401, json!(null), "invalid_admin_token");
    }
    let right = format!("Bearer {TOKEN}");
    assert_eq!(ask("cache/stats", &right).status, 200);
    assert_eq!(server.admin_get("no/such/path").status, 401, "who may not ask learns nothing");
    is_error(&ask("no/such/path", &right), 404, json!(null), "unknown_url");
    assert_eq!(server.get("/admin/v1/cache/stats").status, 404, "the Images API does not have it");

    let description = ask("openapi.json", &right).json();
    let paths: Vec<_> = description["paths"].as_object().unwrap().keys().collect();
    assert_eq!(paths.len(), 10, "{paths:?}");
    assert!(paths.iter().all(|path| path.starts_with("/admin/v1/")), "{paths:?}");
    assert!(!server.get("/openapi.json").text.contains("/admin/"));

    let refused = complaint(&cache(&server, &["stats"]), 2);
    assert!(refused.contains("PENTIMENTO_ADMIN_TOKEN"), "{refused}");
    let url = format!("http://{}", server.admin);
    let mut with_variable = pentimento();
    with_variable.env("PENTIMENTO_ADMIN_TOKEN", TOKEN).env("PENTIMENTO_ADMIN_URL", &url);
    assert!(printed(&with_variable.args(["cache", "stats"]).output().unwrap()).contains("entries"));
    with_variable.env("PENTIMENTO_ADMIN_TOKEN", format!("{TOKEN}x"));
    let refused = complaint(&with_variable.output().unwrap(), 2);
    assert!(refused.contains("wrong") && !refused.contains(TOKEN), "{refused}");
    let folder = Folder::new("token");
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let file = file.to_str().unwrap();
    assert!(printed(&cache(&server, &["stats", "--admin-token-file", file])).contains("entries"));

    let by_file = Server::start(&["--admin-token-file", file]);
    assert_eq!(by_file.admin_get("cache/stats").status, 401);
    assert_eq!(by_file.admin("GET", "cache/stats", &[("authorization", &right)], b"").status, 200);
}

/// `serve` with an environment that it cannot start in.
fn cannot_start(environment: &[(&str, &str)], arguments: &[&str], code: i32) -> String {
    let folder = Folder::new("cannot-start");
    let mut command = pentimento();
    command.env("PENTIMENTO_LISTEN", "127.0.0.1:0").env("PENTIMENTO_CACHE_DIR", folder.path());
    let output = command.envs(environment.iter().copied()).arg("serve").args(arguments).output().unwrap();
    assert!(output.stdout.is_empty());
    complaint(&output, code)
}

#[test]
fn it_does_not_start_unguarded() {
    let public = ["--admin-listen", "0.0.0.0:0"];
    let told = cannot_start(&[], &public, 2);
    assert!(told.contains("PENTIMENTO_ADMIN_TOKEN") && told.contains("--admin-token-file"), "{told}");
    let told = cannot_start(&[("PENTIMENTO_ADMIN_TOKEN", "")], &[], 2);
    assert!(told.contains("PENTIMENTO_ADMIN_TOKEN: holds no token"), "{told}");
    let told = cannot_start(&[("PENTIMENTO_ADMIN_TOKEN", "secret words")], &public, 2);
    assert!(told.contains("PENTIMENTO_ADMIN_TOKEN") && !told.contains("words"), "{told}");
    let folder = Folder::new("empty-token");
    let file = folder.path().join("token");
    std::fs::write(&file, "\n").unwrap();
    let file = file.to_str().unwrap();
    assert!(cannot_start(&[], &["--admin-token-file", file], 2).contains(file));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let told = cannot_start(&[], &["--admin-listen", &address], 1);
    assert!(told.contains("--admin-listen") && told.contains(&address), "{told}");

    let server = Server::start_in(&[("PENTIMENTO_ADMIN_TOKEN", TOKEN)], &public);
    assert!(server.admin.starts_with("0.0.0.0:"), "with a token it may");
}

#[test]
fn without_a_token_web_pages_are_refused() {
    let server = Server::start(&[]);
    let status = |head: &str| {
        let mut stream = TcpStream::connect(&server.admin).unwrap();
        write!(stream, "GET /admin/v1/cache/stats HTTP/1.1\r\n{head}connection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    assert_eq!(status("host: localhost:8081\r\n"), 200);
    assert_eq!(status("host: 127.0.0.1\r\n"), 200);
    assert_eq!(status("host: rebound.example:8081\r\n"), 403);
    assert_eq!(status("host: localhost\r\norigin: https://evil.example\r\n"), 403);
    assert_eq!(status("host: localhost\r\norigin: null\r\n"), 403);
    assert_eq!(status("host: localhost\r\nsec-fetch-site: cross-site\r\n"), 403);
    assert_eq!(status("host: localhost\r\nsec-fetch-site: none\r\n"), 200);
}

#[test]
fn what_the_cache_holds_can_be_seen_and_removed() {
    let server = Server::ready(&["--reuse-policy", "exact"]);
    let empty = server.admin_get("cache/stats").json();
    assert_eq!((&empty["entries"], &empty["bytes"]), (&json!(0), &json!(0)));
    assert_eq!((&empty["reuse"]["policy"], &empty["eviction"]), (&json!("exact"), &json!("lcbfu")));
    painted(&server, &body("a red house", 1));
    painted(&server, &body("a blue house", 2));
    let mut elsewhere = body("a boat", 3);
    elsewhere["pentimento"] = json!({"namespace": "harbour"});
    painted(&server, &elsewhere);

    let stats = server.admin_get("cache/stats").json();
    assert_eq!(stats["entries"], 3);
    assert!(stats["bytes"].as_u64().unwrap() > 0 && stats["failures"] == 0, "{stats}");
    assert_eq!(server.admin_get("cache/entries").json()["data"].as_array().unwrap().len(), 3);
    let mut seen = Vec::new();
    let mut path = "cache/entries?limit=1".to_owned();
    loop {
        let page = server.admin_get(&path).json();
        seen.extend(page["data"].as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("cache/entries?limit=1&after={next}");
    }
    assert_eq!(seen.len(), 3);
    assert!(seen.is_sorted_by(|a, b| a < b), "every entry once, in order: {seen:?}");
    let found = |query: &str| {
        let page = server.admin_get(&format!("cache/entries?{query}")).json();
        page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["prompt"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(found("prompt=red%20house"), ["a red house"]);
    assert_eq!(found("namespace=harbour"), ["a boat"]);
    assert_eq!(found("tenant=anonymous&namespace=default").len(), 2);
    assert_eq!(found("tenant=nobody").len() + found("model=other").len(), 0);
    for (query, param, code) in [
        ("limit=0", "limit", "invalid_value"),
        ("limit=1001", "limit", "invalid_value"),
        ("limit=many", "limit", "invalid_value"),
        ("after=x", "after", "invalid_value"),
        ("prumpt=x", "prumpt", "unknown_parameter"),
    ] {
        is_error(&server.admin_get(&format!("cache/entries?{query}")), 400, json!(param), code);
    }

    let boat = server.admin_get("cache/entries?prompt=boat").json()["data"][0].clone();
    let path = format!("cache/entries/{}", boat["id"].as_str().unwrap());
    let one = server.admin_get(&path).json();
    assert_eq!(one, boat);
    assert_eq!(
        (&one["size"], &one["seed"], &one["namespace"]),
        (&json!("64x64"), &json!(3), &json!("harbour"))
    );
    let kept = one["states"].as_array().unwrap();
    assert!(!kept.is_empty() && kept.iter().all(|state| state["timestep"].is_f64()), "{one}");
    assert!(one["picture"]["bytes"].as_u64().unwrap() > 0 && one["resumed_from"].is_null(), "{one}");
    assert_eq!(one["plan"]["steps"], STEPS);
    assert!(one["expected_quality"].as_f64().unwrap() > 0.9, "{one}");
    let inner = ["embedding", "content", "exact", "prompt_hash"];
    assert!(inner.iter().all(|field| one.get(field).is_none()), "{one}");

    let folder = server.cache_dir().join("states");
    let before = states(&folder);
    assert_eq!(server.admin("DELETE", &path, &[], b"").json()["deleted"], true);
    assert_eq!(states(&folder), before - kept.len() - 1, "its states and its file");
    assert_eq!(outcome(&server.post(&elsewhere)), "miss", "it is gone");
    is_error(&server.admin_get(&path), 404, json!(null), "entry_not_found");
    is_error(&server.admin("DELETE", &path, &[], b""), 404, json!(null), "entry_not_found");
    is_error(&server.admin_get("cache/entries/..%2Fsecret"), 404, json!(null), "entry_not_found");
    is_error(&server.admin("PATCH", &path, &[], b""), 405, json!(null), "method_not_supported");
}

#[test]
fn a_look_up_explains_itself_and_policies_change_live() {
    let server = Server::ready(&["--reuse-policy", "exact"]);
    painted(&server, &body("a large red house in the snow at night", 7));
    let look_up = |body: &Value| {
        let answer = server.admin_json("POST", "cache/lookup", body);
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    };
    let same = body("a large red house in the snow at night", 7);
    let edited = body("a large blue house in the snow at night", 8);
    let before = server.metric("pentimento_cache_lookups_total");

    let exact = look_up(&same);
    assert_eq!(
        (&exact["decision"]["outcome"], &exact["decision"]["skipped_steps"]),
        (&json!("exact"), &json!(STEPS))
    );
    assert_eq!(exact["neighbours"][0]["entry"]["id"], exact["decision"]["entry"]);
    let miss = look_up(&edited);
    assert_eq!((&miss["decision"]["outcome"], &miss["decision"]["entry"]), (&json!("miss"), &json!(null)));
    assert!(miss["decision"]["why"].as_str().unwrap().contains("only the same prompt"), "{miss}");

    let put = |change: &Value| server.admin_json("PUT", "cache/policy", change);
    let nirvana =
        json!({"policy": "nirvana", "thresholds": [{"similarity": 0.5, "share": 0.4}], "offset": 0.0});
    let set = put(&json!({"reuse": nirvana, "eviction": "lru"}));
    assert_eq!(set.json(), json!({"reuse": nirvana, "eviction": "lru"}));
    let state = look_up(&edited);
    assert_eq!(
        (&state["decision"]["outcome"], &state["decision"]["skipped_steps"]),
        (&json!("state"), &json!(10))
    );
    let similarity = state["neighbours"][0]["similarity"].as_f64().unwrap();
    assert!((0.5..0.9999).contains(&similarity), "{state}");
    assert_eq!(state["neighbours"][0]["entry"]["prompt"], same["prompt"]);
    for (field, value) in [("namespace", "elsewhere"), ("tenant", "other")] {
        let mut elsewhere = edited.clone();
        elsewhere[field] = json!(value);
        assert_eq!(look_up(&elsewhere)["neighbours"], json!([]), "{field}");
    }
    assert_eq!(server.metric("pentimento_cache_lookups_total"), before, "looking counts as no use");
    let uses = server.admin_get("cache/entries").json()["data"][0]["states"][0]["uses"].clone();
    assert_eq!(uses, 0);
    assert_eq!(outcome(&server.post(&edited)), "state", "requests are decided by the new policy");

    for (change, param) in [
        (json!({"reuse": {"policy": "telepathy"}}), "reuse.policy"),
        (json!({"reuse": {"policy": "nirvana", "offset": 3}}), "reuse.offset"),
        (json!({"reuse": {"policy": "semantic", "treshold": 0.9}}), "reuse.treshold"),
        (json!({"reuse": {"policy": "calibrated", "variety": 2}}), "reuse.variety"),
        (json!({"reuse": {"policy": "off"}, "eviction": "random"}), "eviction"),
        (json!({"reuse": "off"}), "reuse"),
        (json!({}), "reuse"),
        (json!({"evict": "lru"}), "evict"),
    ] {
        let answer = put(&change);
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (400, &json!(param)),
            "{}",
            answer.text
        );
    }
    assert_eq!(server.admin_get("cache/policy").json(), set.json(), "a wrong change changes nothing");
    assert_eq!(outcome(&server.post(&same)), "exact");
    put(&json!({"reuse": {"policy": "off"}}));
    assert_eq!(outcome(&server.post(&same)), "miss");

    is_error(
        &server.admin_json("POST", "cache/lookup", &json!({})),
        400,
        json!("prompt"),
        "missing_required_parameter",
    );
    let wrong = [
        ("size", json!("65x64"), 400),
        ("seed", json!(-1), 400),
        ("namespace", json!("a b"), 400),
        ("model", json!("x"), 404),
    ];
    for (field, value, status) in wrong {
        let mut asked = edited.clone();
        asked[field] = value;
        let answer = server.admin_json("POST", "cache/lookup", &asked);
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (status, &json!(field)),
            "{}",
            answer.text
        );
    }
}

#[test]
fn what_is_purged_is_gone() {
    let server = Server::ready(&["--store-prompt-text=false"]);
    painted(&server, &body("a red house", 1));
    painted(&server, &body("a red house", 2));
    painted(&server, &body("a boat", 3));
    assert_eq!(server.admin_get("cache/entries").json()["data"][0]["prompt"], json!(null));
    let purge = |body: &Value| server.admin_json("POST", "cache/purge", body);
    is_error(&purge(&json!({})), 400, json!("all"), "invalid_value");
    is_error(&purge(&json!({"all": false, "prompt": null})), 400, json!("all"), "invalid_value");
    is_error(&purge(&json!({"all": true, "tenant": "x"})), 400, json!("all"), "invalid_value");
    is_error(&purge(&json!({"promt": "a"})), 400, json!("promt"), "unknown_parameter");
    let removed = |body: &Value| purge(body).json()["entries"].as_u64().unwrap();
    assert_eq!(removed(&json!({"prompt": "a red house", "dry_run": true})), 2);
    assert_eq!(removed(&json!({"prompt": "a red house", "namespace": "elsewhere"})), 0);
    assert_eq!(removed(&json!({"older_than_seconds": 3600})), 0);
    assert_eq!(outcome(&server.post(&body("a red house", 1))), "exact");
    assert_eq!(removed(&json!({"prompt": "a red house"})), 2);
    assert_eq!(outcome(&server.post(&body("a red house", 1))), "miss");
    until("it is kept once more", || server.admin_get("cache/stats").json()["entries"] == 2);
    assert_eq!(removed(&json!({"all": true})), 2);
    assert_eq!(states(&server.cache_dir().join("states")), 0);
}

/// An archive whose member behind the head has another name and claims another size.
fn forged(archive: &[u8], name: &str, size: Option<u64>) -> Vec<u8> {
    let mut header = tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(&archive[1024..1536]);
    header.as_mut_bytes()[..100].fill(0);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    if let Some(size) = size {
        header.set_size(size);
    }
    header.set_cksum();
    [&archive[..1024], header.as_bytes(), &archive[1536..]].concat()
}

#[test]
fn an_archive_moves_a_cache_and_nothing_else() {
    let server = Server::ready(&[]);
    painted(&server, &body("a red house", 7));
    painted(&server, &body("a boat", 8));
    let exported = server.admin_get("cache/export");
    assert_eq!((exported.status, exported.header("content-type")), (200, "application/x-tar"));
    let archive = exported.bytes;
    let names: Vec<_> = tar::Archive::new(&archive[..])
        .entries()
        .unwrap()
        .map(|file| file.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names[0], "pentimento.json");
    assert_eq!(names.iter().filter(|name| name.ends_with("/entry.json")).count(), 2);
    let part = server.admin_get("cache/export?prompt=boat").bytes;
    assert!(part.len() < archive.len());

    let import = |server: &Server, archive: &[u8]| server.admin("POST", "cache/import", &[], archive);
    let foreign = Server::ready(&[]);
    let refused = import(&foreign, &archive);
    is_error(&refused, 400, json!(null), "invalid_archive");
    assert!(refused.text.contains("secret"), "{}", refused.text);

    let folder = Folder::new("moved");
    std::fs::copy(server.cache_dir().join("secret"), folder.path().join("secret")).unwrap();
    let target = Server::ready(&["--cache-dir", folder.path().to_str().unwrap()]);
    let inside = |name: &str| forged(&archive, name, None);
    let huge = forged(&archive, names[1].as_str(), Some(5 << 30));
    let cut = archive[..archive.len() / 3].to_vec();
    let garbage: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut noise_inside = archive.clone();
    noise_inside[1024..6000].copy_from_slice(&garbage[..4976]);
    for bad in
        [inside("../../evil/entry.json"), inside("/etc/evil"), huge, cut, garbage, noise_inside, Vec::new()]
    {
        let answer = import(&target, &bad);
        is_error(&answer, 400, json!(null), "invalid_archive");
    }
    assert!(!folder.path().join("../evil").exists() && !Path::new("/etc/evil").exists());
    server.admin_json("POST", "cache/purge", &json!({"all": true}));
    target.admin_json("POST", "cache/purge", &json!({"all": true}));

    let moved = import(&target, &archive);
    assert_eq!((moved.status, &moved.json()["entries"]), (200, &json!(2)), "{}", moved.text);
    assert_eq!(outcome(&target.post(&body("a red house", 7))), "exact");
    assert_eq!(import(&target, &archive).status, 200, "once more in place of itself");
    assert_eq!(target.admin_get("cache/stats").json()["entries"], 2);
    assert_eq!(target.admin_json("POST", "cache/purge", &json!({"prompt": "a boat"})).json()["entries"], 1);
}

#[test]
fn an_archive_beyond_the_bound_is_refused() {
    let server = Server::ready(&["--cache-max-bytes", "65536"]);
    let head = server.admin_get("cache/export").bytes[..1024].to_vec();
    let mut header = tar::Header::new_ustar();
    header.set_path("00000000000000000000000000000000/entry.json").unwrap();
    header.set_size(1 << 20);
    header.set_cksum();
    let archive = [&head, &header.as_bytes()[..], &vec![b' '; 1 << 20]].concat();
    let answer = server.admin("POST", "cache/import", &[], &archive);
    is_error(&answer, 413, json!(null), "request_too_large");
}

#[test]
fn whoever_stalls_does_not_keep_the_server() {
    let mut server = Server::ready(&[]);
    let head = server.admin_get("cache/export").bytes[..1024].to_vec();
    let mut stalled = TcpStream::connect(&server.admin).unwrap();
    write!(
        stalled,
        "POST /admin/v1/cache/import HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n"
    )
    .unwrap();
    stalled.write_all(&head).unwrap();
    assert_eq!(server.admin_get("cache/stats").status, 200, "others are answered meanwhile");
    server.signal("TERM");
    assert!(server.end().success());
}

#[test]
fn the_plan_policy_is_seen_and_set() {
    let server = Server::ready(&[]);
    let now = server.admin_get("plan");
    assert_eq!(now.status, 200, "{}", now.text);
    let now = now.json();
    assert_eq!(now["plan"], json!({"policy": "adaptive", "replan": true}));
    assert_eq!((&now["workers"], &now["sets"][0]["price"]), (&json!(1), &json!(0.0)), "{now}");
    let times = now["sets"][0]["step_times"].as_array().unwrap();
    assert!(times.len() >= 2 && times.iter().all(|time| time["ms"].as_f64().unwrap() > 0.0), "{now}");
    let options = now["menus"][0]["options"].as_array().unwrap();
    let put = |change: &Value| server.admin_json("PUT", "plan", change);
    let fixed = json!({"policy": "fixed", "option": options[0]["id"]});
    assert_eq!(put(&json!({"plan": fixed})).json()["plan"], fixed);
    let answer = server.post(&json!({"prompt": "a boat", "quality": "high"})).json();
    let tiers = server.get("/v1/tiers").json();
    let high = tiers["data"].as_array().unwrap().iter().find(|tier| tier["quality"] == "high").unwrap();
    assert_eq!(answer["pentimento"]["option"], high["min_option"], "no policy goes below a tier's floor");
    for (change, param) in [
        (json!({"plan": {"policy": "telepathy"}}), "plan.policy"),
        (json!({"plan": {"policy": "fixed", "steps": 7}}), "plan.steps"),
        (json!({"plan": {"policy": "fixed", "option": "none"}}), "plan.option"),
        (json!({"plan": {"policy": "fixed", "option": 7}}), "plan.option"),
        (json!({"plan": {"policy": "adaptive", "replan": 1}}), "plan.replan"),
        (json!({"plan": {"policy": "per-model", "level": 3}}), "plan.level"),
        (json!({"plan": 5}), "plan"),
        (json!({}), "plan"),
        (json!({"steps": 5}), "steps"),
    ] {
        let answer = put(&change);
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(param)), "{}", answer.text);
    }
    assert_eq!(server.admin_get("plan").json()["plan"], fixed, "a wrong change changes nothing");
}
