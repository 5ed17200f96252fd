//! Webhooks, as the servers that receive them see them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::common::{Answer, Folder, Server, pentimento, until};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

const SECRET: &str = "correct horse battery staple";
const ENVIRONMENT: [(&str, &str); 1] = [("PENTIMENTO_WEBHOOK_SECRET", SECRET)];

/// What came in one request.
struct Heard {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Heard {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let mut headers = vec![];
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let Some((name, value)) = header.trim().split_once(": ") else { break };
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        let mut heard = Self { line: line.trim().to_owned(), headers, body: vec![] };
        heard.body = vec![0; heard.header("content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut heard.body).unwrap();
        Some(heard)
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Checks the signature as docs/api.md says.
    fn is_signed(&self) -> bool {
        let signature = self.header("pentimento-signature");
        let (time, mac) = signature.strip_prefix("t=").and_then(|s| s.split_once(",v1=")).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let mut hmac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        hmac.update(time.as_bytes());
        hmac.update(b".");
        hmac.update(&self.body);
        let expected: String =
            hmac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        mac == expected && now.abs_diff(time.parse().unwrap()) < 300
    }
}

/// A server that answers with the given heads, the last one again and again, and keeps what it heard.
struct Receiver {
    port: u16,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Receiver {
    fn start(heads: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(vec![]));
        let ours = heard.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = Heard::read(&stream) else { continue };
                let mut heard = ours.lock().unwrap();
                let head = &heads[heard.len().min(heads.len() - 1)];
                heard.push(request);
                let _ = write!(stream, "HTTP/1.1 {head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        });
        Self { port, heard }
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn url(&self) -> String {
        format!("http://{}/hook?x=1", self.host())
    }

    fn count(&self) -> usize {
        self.heard.lock().unwrap().len()
    }
}

fn body(url: &str, steps: u64) -> Value {
    json!({"prompt": "a boat", "seed": 7, "num_inference_steps": steps,
        "pentimento": {"cache": "off", "webhook": {"url": url}}})
}

fn create(server: &Server, url: &str, steps: u64) -> Answer {
    let body = crate::common::small(&body(url, steps));
    server.send("POST", "/v1/jobs", &[("content-type", "application/json")], &body)
}

fn outcome(server: &Server, outcome: &str) -> f64 {
    server.metric_with("pentimento_webhooks_total", &format!("\"{outcome}\""))
}

fn ready(arguments: &[&str]) -> Server {
    let server = Server::start_in(&ENVIRONMENT, arguments);
    until("the server is ready", || server.get("/readyz").status == 200);
    server
}

const PRIVATE: [&str; 3] = ["--webhook-allow-private", "--webhook-retry-seconds", "0"];

#[test]
fn a_notice_is_signed_and_comes_again_until_it_is_accepted() {
    let receiver = Receiver::start(vec!["500 No".to_owned(), "503 No".to_owned(), "204 Yes".to_owned()]);
    let public = ["--public-url", "https://paint.example.org/"];
    let server = ready(&[&PRIVATE[..], &public, &["--webhook-hosts", &receiver.host()]].concat());
    let created = create(&server, &receiver.url(), 2);
    assert_eq!(created.status, 202, "{}", created.text);
    until("the notice was accepted", || outcome(&server, "delivered") == 1.0);
    let heard = receiver.heard.lock().unwrap();
    assert_eq!(heard.len(), 3);
    let job = server.get(created.header("location")).json();
    for notice in heard.iter() {
        assert_eq!(notice.line, "POST /hook?x=1 HTTP/1.1");
        assert_eq!(notice.header("content-type"), "application/json");
        assert!(notice.is_signed());
        let url = format!("https://paint.example.org{}", created.header("location"));
        assert_eq!(
            notice.json(),
            json!({"id": job["id"], "object": "job", "status": "completed", "created": job["created"],
                "finished": job["finished"], "url": url})
        );
    }
    assert_eq!(outcome(&server, "failed"), 0.0);
}

#[test]
fn a_redirect_is_not_followed_and_tries_end() {
    let elsewhere = Receiver::start(vec!["200 Yes".to_owned()]);
    let redirect = format!("307 Temporary Redirect\r\nlocation: {}", elsewhere.url());
    let receiver = Receiver::start(vec![redirect]);
    let hosts = format!("{},{}", receiver.host(), elsewhere.host());
    let server = ready(&[&PRIVATE[..], &["--webhook-hosts", &hosts]].concat());
    assert_eq!(create(&server, &receiver.url(), 1).status, 202);
    until("it is given up", || outcome(&server, "failed") == 1.0);
    assert_eq!((receiver.count(), elsewhere.count()), (5, 0));
}

#[test]
fn a_cancelled_job_is_told_of_too() {
    let receiver = Receiver::start(vec!["200 Yes".to_owned()]);
    let server = ready(&[&PRIVATE[..], &["--webhook-hosts", &receiver.host()]].concat());
    let path = create(&server, &receiver.url(), 1000).header("location").to_owned();
    assert_eq!(server.send("DELETE", &path, &[], b"").status, 200);
    until("the notice was accepted", || outcome(&server, "delivered") == 1.0);
    assert_eq!(receiver.heard.lock().unwrap()[0].json()["status"], "cancelled");
}

#[test]
fn what_shutdown_ends_is_told_of_before_the_process_ends() {
    let receiver = Receiver::start(vec!["500 No".to_owned(), "200 Yes".to_owned()]);
    let hosts = receiver.host();
    let mut server = ready(&[&PRIVATE[..], &["--webhook-hosts", &hosts, "--drain-seconds", "2"]].concat());
    let mut ten = body(&receiver.url(), 1000);
    ten["n"] = json!(10);
    let json = [("content-type", "application/json")];
    let path =
        server.send("POST", "/v1/jobs", &json, &crate::common::small(&ten)).header("location").to_owned();
    until("it is being painted", || server.metric("pentimento_steps_total") > 0.0);
    let last = std::thread::scope(|scope| {
        let listener = scope.spawn(|| server.get(&format!("{path}/events")).events().pop().unwrap());
        until("it is listened to", || server.metric_with("pentimento_http_requests_total", "events") > 0.0);
        server.signal("TERM");
        listener.join().unwrap()
    });
    assert_eq!((&*last.0, &last.1["error"]["code"]), ("job.failed", &json!("shutting_down")));
    assert!(server.end().success());
    let heard = receiver.heard.lock().unwrap();
    assert_eq!(
        heard.iter().map(|notice| notice.json()["status"].clone()).collect::<Vec<_>>(),
        ["failed", "failed"]
    );
}

#[test]
fn private_addresses_are_refused_unless_allowed() {
    let receiver = Receiver::start(vec!["200 Yes".to_owned()]);
    let name = format!("localhost:{}", receiver.port);
    let server = ready(&["--webhook-hosts", &format!("{},{name},example.org", receiver.host())]);
    for (url, reason) in [
        (format!("https://{}/", receiver.host()), "private"),
        (format!("https://127.1:{}/", receiver.port), "private"),
        (receiver.url(), "https://"),
        ("https://example.com/".to_owned(), "webhook_hosts"),
        ("https://example.org:8443/".to_owned(), "webhook_hosts"),
        ("https://me@example.org/".to_owned(), "user"),
        ("nonsense".to_owned(), "not a URL"),
        (format!("https://example.org/{}", "a".repeat(2048)), "at most"),
    ] {
        let refused = create(&server, &url, 1);
        let error = &refused.json()["error"];
        assert_eq!(
            (refused.status, &error["param"]),
            (400, &json!("pentimento.webhook.url")),
            "{}",
            refused.text
        );
        assert!(error["message"].as_str().unwrap().contains(reason), "{}", refused.text);
    }
    // A name is looked up when the notice is sent.
    let created = create(&server, &format!("https://{name}/"), 1);
    assert_eq!(created.status, 202, "{}", created.text);
    until("the address is refused", || outcome(&server, "refused") == 1.0);
    assert_eq!(receiver.count(), 0);
    assert_eq!(server.get(created.header("location")).json()["status"], "completed");
}

#[test]
fn without_a_good_secret_there_are_no_webhooks() {
    let server = Server::ready(&["--webhook-hosts", "example.org"]);
    let refused = create(&server, "https://example.org/", 1);
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("pentimento.webhook.url")));
    assert!(refused.text.contains("no webhooks"), "{}", refused.text);

    let folder = Folder::new("secret");
    let file = folder.path().join("secret");
    std::fs::write(&file, "short\n").unwrap();
    let serve = |environment: &[(&str, &str)], arguments: &[&str]| {
        let mut command = pentimento();
        let output = command.envs(environment.iter().copied()).arg("serve").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let path = file.to_str().unwrap();
    let (code, stderr) = serve(&[], &["--webhook-secret-file", path]);
    assert!(code == Some(2) && stderr.contains(path) && !stderr.contains("short"), "{stderr}");
    let (code, stderr) = serve(&[("PENTIMENTO_WEBHOOK_SECRET", "guess")], &[]);
    assert!(code == Some(2) && stderr.contains("WEBHOOK_SECRET") && !stderr.contains("guess"), "{stderr}");
    let (code, stderr) = serve(&ENVIRONMENT, &["--webhook-hosts", "https://example.org"]);
    assert!(code == Some(2) && stderr.contains("webhook_hosts") && !stderr.contains(SECRET), "{stderr}");
}
