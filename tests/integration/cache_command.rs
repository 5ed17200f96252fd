//! `pentimento cache`, as an operator meets it.

use std::net::TcpListener;

use crate::common::{Folder, Server, body, cache, complaint, outcome, painted, pentimento, printed};
use serde_json::{Value, json};

#[test]
fn the_command_shows_and_changes_the_cache() {
    let server = Server::ready(&[]);
    painted(&server, &body("a red house\u{1b}[31m", 7));
    painted(&server, &body("a boat", 8));

    let list = printed(&cache(&server, &["ls"]));
    let lines: Vec<_> = list.lines().collect();
    assert!(lines[0].starts_with("ID") && lines[0].ends_with("PROMPT") && lines.len() == 3, "{list}");
    let column = lines[0].find("PROMPT").unwrap();
    assert!(lines[1..].iter().all(|line| line[column..].starts_with("a ")), "columns are aligned:\n{list}");
    assert!(!list.contains('\u{1b}'), "a prompt does not command the terminal");
    let json: Value =
        serde_json::from_str(&printed(&cache(&server, &["ls", "--json", "--prompt", "boat"]))).unwrap();
    assert_eq!((&json["data"][0]["seed"], json["data"].as_array().unwrap().len()), (&json!(8), 1));
    let one: Value =
        serde_json::from_str(&printed(&cache(&server, &["--json", "ls", "--limit", "1"]))).unwrap();
    assert!(one["data"].as_array().unwrap().len() == 1 && one["next"].is_string());

    assert!(printed(&cache(&server, &["stats"])).contains("2 of 100,000"));
    let stats: Value = serde_json::from_str(&printed(&cache(&server, &["stats", "--json"]))).unwrap();
    assert_eq!(stats["entries"], 2);
    let found =
        printed(&cache(&server, &["lookup", "a boat", "--steps", "25", "--seed", "8", "--size", "64x64"]));
    assert!(found.contains("exact") && found.contains("25 of 25"), "{found}");
    let set =
        printed(&cache(&server, &["policy", r#"{"policy":"nirvana","offset":0.5}"#, "--eviction", "fifo"]));
    assert!(set.contains("0.5") && set.contains("fifo"), "{set}");
    assert!(complaint(&cache(&server, &["policy", "telepathy"]), 2).contains("reuse.policy"));
    assert!(printed(&cache(&server, &["policy", "exact", "--json"])).contains("\"exact\""));

    let folder = Folder::new("command");
    let file = folder.path().join("cache.tar");
    let file = file.to_str().unwrap();
    printed(&cache(&server, &["export", file]));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing unfinished stays");
    assert!(complaint(&cache(&server, &["purge"]), 2).contains("--all"));
    assert!(complaint(&cache(&server, &["purge", "--all"]), 2).contains("--yes"));
    assert!(complaint(&cache(&server, &["purge", "--older-than", "5"]), 2).contains("12h"));
    assert!(complaint(&cache(&server, &["purge", "--all", "--tenant", "x"]), 2).contains("--tenant"));
    assert!(
        printed(&cache(&server, &["purge", "--prompt", "a boat", "--yes"])).contains("1 picture removed")
    );
    assert!(printed(&cache(&server, &["purge", "--all", "--yes"])).contains("1 picture removed"));
    assert!(printed(&cache(&server, &["import", file])).starts_with("2 pictures with "));
    assert_eq!(outcome(&server.post(&body("a boat", 8))), "exact");
    std::fs::write(file, "no archive").unwrap();
    assert!(complaint(&cache(&server, &["import", file]), 2).contains("not an archive"));
    assert!(complaint(&cache(&server, &["import", "/no/such/file"]), 2).contains("/no/such/file"));

    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody =
        pentimento().args(["cache", "stats", "--admin", &format!("http://{unused}")]).output().unwrap();
    let told = complaint(&nobody, 1);
    assert!(told.contains("pentimento serve") && told.contains("--admin"), "{told}");
    let wrong = format!("http://{}", server.address);
    let told = complaint(&pentimento().args(["cache", "stats", "--admin", &wrong]).output().unwrap(), 2);
    assert!(told.contains("Unknown URL"), "{told}");
    assert!(
        complaint(&pentimento().args(["cache", "ls", "--admin", "https://x"]).output().unwrap(), 2)
            .contains("http://")
    );
}
