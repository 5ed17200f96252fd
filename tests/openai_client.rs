//! OpenAI's own Python client, unmodified, against the real server.

#![allow(clippy::unwrap_used)] // helpers of tests, too, fail by panicking

mod common;

use std::process::Command;

use common::{Server, until};

const KEY: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b=studio"; // secret

fn drive(server: &Server, arguments: &[&str]) {
    let python = std::env::var_os("PENTIMENTO_TEST_PYTHON").expect(
        "PENTIMENTO_TEST_PYTHON must name a Python that has the openai package: run ./test, which installs it",
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai_client.py");
    let output = Command::new(python).arg(script).arg(server.url("/v1")).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_official_client_works_unmodified() {
    let server = Server::ready(&["--api-keys", KEY, "--queue-length-per-client", "10"]);
    drive(&server, &[]);
    // One picture of the first stream that was left, ten of the second.
    until("the streams that were left are cancelled", || server.metric("pentimento_cancelled_total") == 11.0);
}

#[test]
fn the_official_client_understands_late_errors() {
    let server = Server::ready(&["--api-keys", KEY, "--request-timeout-seconds", "1"]);
    drive(&server, &["--slow"]);
}
