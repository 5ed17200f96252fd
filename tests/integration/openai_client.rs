//! OpenAI's own Python client, unmodified, against the real server.

use std::process::Command;

use crate::common::{Server, until};
use serde_json::json;

// The keys "secret" and "other".
const KEYS: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b=studio,\
    d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa=other";

fn drive(server: &Server, checks: &str) {
    let python = std::env::var_os("PENTIMENTO_TEST_PYTHON").expect(
        "PENTIMENTO_TEST_PYTHON must name a Python that has the openai package: run ./test, which installs it",
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai_client.py");
    let output = Command::new(python).arg(script).arg(server.url("/v1")).arg(checks).output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_official_client_works_unmodified() {
    let bounds = ["--queue-length-per-client", "10", "--queue-length", "12", "--max-batch-rows", "2"];
    let server = Server::ready(&[&["--api-keys", KEYS], &bounds[..]].concat());
    drive(&server, "--usual");
    // One picture of the first stream that was left, ten of the second.
    until("the streams that were left are cancelled", || server.metric("pentimento_cancelled_total") == 11.0);
}

#[test]
fn the_official_client_understands_late_errors() {
    let server = Server::ready(&["--api-keys", KEYS, "--request-timeout-seconds", "1"]);
    drive(&server, "--slow");
    let server = Server::ready(&["--api-keys", KEYS, "--read-timeout-seconds", "1"]);
    drive(&server, "--late");
}

#[test]
fn the_official_client_hears_that_the_server_stops() {
    let server = Server::ready(&["--drain-seconds", "120"]);
    let _painting = server.open(&json!({"prompt": "a", "n": 10, "num_inference_steps": 1000}));
    until("it paints", || server.metric("pentimento_steps_total") > 0.0);
    server.signal("TERM");
    until("it drains", || server.get("/readyz").status == 503);
    drive(&server, "--stopping");
}
