//! What the tests share: the binary, folders that vanish, a server that stops, a client.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The binary, undisturbed by the environment.
pub fn pentimento() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pentimento"));
    let ours = std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("PENTIMENTO_"));
    ours.for_each(|name| {
        command.env_remove(name);
    });
    command
}

/// A folder that is gone after the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pentimento-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running `pentimento serve`; killed at the end of the test if it has not ended by itself.
pub struct Server {
    process: Child,
    pub address: String,
    /// Of the admin API.
    pub admin: String,
    /// Its cache's, where the test does not name one.
    cache: Folder,
}

impl Server {
    /// Starts on free ports, with an empty cache, and with time enough for every picture: what else the machine does is
    /// no reason for a shorter plan.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(&[], arguments)
    }

    /// The same with more environment.
    pub fn start_in(environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let cache = Folder::new("cache");
        let mut process = pentimento()
            .env("PENTIMENTO_LISTEN", "127.0.0.1:0")
            .env("PENTIMENTO_ADMIN_LISTEN", "127.0.0.1:0")
            .env("PENTIMENTO_CACHE_DIR", cache.path())
            .env("PENTIMENTO_LATENCY_OBJECTIVE_MS", "60000")
            .envs(environment.iter().copied())
            .args(["serve", "--log", "warn"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut said = |prefix: &str| {
            let line = lines.next().expect("the server says its addresses").unwrap();
            line.strip_prefix(prefix).unwrap_or_else(|| panic!("{line}")).to_owned()
        };
        let (address, admin) = (said("listening on http://"), said("admin on http://"));
        Self { address, admin, process, cache }
    }

    /// Where its cache lies, unless the arguments say otherwise.
    pub fn cache_dir(&self) -> &Path {
        self.cache.path()
    }

    /// Starts, and waits until it is ready.
    pub fn ready(arguments: &[&str]) -> Self {
        Self::ready_in(&[], arguments)
    }

    /// The same with more environment.
    pub fn ready_in(environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let server = Self::start_in(environment, arguments);
        until("the server is ready", || server.get("/readyz").status == 200);
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn get(&self, path: &str) -> Answer {
        Answer::of(agent().get(self.url(path)).call())
    }

    pub fn post(&self, body: &Value) -> Answer {
        self.post_with(&small(body), &[("content-type", "application/json")])
    }

    pub fn post_with(&self, body: &[u8], headers: &[(&str, &str)]) -> Answer {
        let request = agent().post(self.url("/v1/images/generations"));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Answer::of(request.send(body))
    }

    /// Any request to the API.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let request = ureq::http::Request::builder().method(method).uri(self.url(path));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Answer::of(agent().run(request.body(body).unwrap()))
    }

    /// A request to the admin API.
    pub fn admin(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let url = format!("http://{}/admin/v1/{path}", self.admin);
        let request = ureq::http::Request::builder().method(method).uri(url);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Answer::of(agent().run(request.body(body).unwrap()))
    }

    pub fn admin_get(&self, path: &str) -> Answer {
        self.admin("GET", path, &[], b"")
    }

    pub fn admin_json(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.admin(method, path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// Sends a request and leaves the answer to come.
    pub fn open(&self, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let body = small(body);
        write!(
            stream,
            "POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        )
        .unwrap();
        stream.write_all(&body).unwrap();
        stream
    }

    /// A metric's value, summed over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text;
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            (series.split('{').next()? == name).then(|| value.parse::<f64>().unwrap())
        });
        values.sum()
    }

    /// The values of a metric's series that have this label.
    pub fn metric_with(&self, name: &str, label: &str) -> f64 {
        let text = self.get("/metrics").text;
        let series = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        series.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for the process to end by itself.
    pub fn end(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        until("the server has stopped", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(120)))
        .build()
        .into()
}

/// An HTTP answer, read to its end.
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub bytes: Vec<u8>,
    pub text: String,
}

impl Answer {
    fn of(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Self {
        let mut response = response.unwrap();
        let bytes = response.body_mut().read_to_vec().unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Self { status: response.status().as_u16(), headers: response.headers().clone(), bytes, text }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The code of an error; empty for what is none.
    pub fn json_code(&self) -> String {
        let json: Value = serde_json::from_str(&self.text).unwrap_or_default();
        json["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The names and data of a stream's events.
    pub fn events(&self) -> Vec<(String, Value)> {
        let event = |block: &str| {
            let line = |name: &str| block.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
            Some((line("event:")?.to_owned(), serde_json::from_str(line("data:")?).unwrap()))
        };
        self.text.split("\n\n").filter_map(event).collect()
    }
}

/// Waits for something to become true, for as long as a crowded machine may take.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A request's body, which asks for 64x64 where it names no size: a quarter of the work of the default size. Tests of
/// sizes name one.
pub fn small(body: &Value) -> Vec<u8> {
    let mut body = body.clone();
    if let Some(fields) = body.as_object_mut().filter(|fields| fields.contains_key("prompt")) {
        fields.entry("size").or_insert_with(|| json!("64x64"));
    }
    body.to_string().into_bytes()
}

/// Enough steps for a picture to be kept by the cache, few enough to be quick.
pub const STEPS: u64 = 25;

/// A request for a picture that is kept.
pub fn body(prompt: &str, seed: u64) -> Value {
    json!({"prompt": prompt, "seed": seed, "num_inference_steps": STEPS, "size": "64x64"})
}

/// What of the cache an answer's pictures were made from.
pub fn outcome(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["pentimento"]["outcome"].as_str().unwrap().to_owned()
}

/// How many pictures the cache holds now.
pub fn entries(server: &Server) -> u64 {
    server.admin_get("cache/stats").json()["entries"].as_u64().unwrap()
}

/// Paints a picture and waits until the cache holds it.
pub fn painted(server: &Server, body: &Value) -> Answer {
    let before = entries(server);
    let answer = server.post(body);
    assert_eq!(outcome(&answer), "miss");
    until("the picture is kept", || entries(server) > before);
    answer
}

/// `pentimento cache …` of a server.
pub fn cache(server: &Server, arguments: &[&str]) -> Output {
    let url = format!("http://{}", server.admin);
    let mut command = pentimento();
    command.arg("cache").args(arguments).args(["--admin", &url]).output().unwrap()
}

/// What a command prints, if it succeeds.
#[track_caller]
pub fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command complains of, if it ends with this code.
#[track_caller]
pub fn complaint(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}
