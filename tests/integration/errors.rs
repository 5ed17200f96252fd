//! What `pentimento serve` answers when something is wrong: OpenAI's shape, and the field's name.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::common::{Answer, Folder, Server, until};
use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");

#[track_caller]
fn is_error(answer: &Answer, status: u16, param: Value, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text);
    let error = &answer.json()["error"];
    assert_eq!((&error["param"], error["code"].as_str()), (&param, Some(code)), "{}", answer.text);
    let message = error["message"].as_str().unwrap();
    assert!((1..2000).contains(&message.len()), "{message}");
    assert!(!message.contains("panicked") && !message.contains(".rs"), "{message}");
    assert!(error["type"].as_str().is_some_and(|kind| kind.ends_with("_error")), "{}", answer.text);
    assert!(!answer.header("x-request-id").is_empty());
}

#[test]
fn a_wrong_value_names_its_field() {
    let server = Server::ready(&[]);
    let long = "a".repeat(100_000);
    let cases = [
        ("prompt", json!("")),
        ("prompt", json!(" \n")),
        ("prompt", json!(long)),
        ("prompt", json!(5)),
        ("prompt", json!(["a"])),
        ("prompt", json!("a\u{0}b")),
        ("negative_prompt", json!(long)),
        ("size", json!("65x64")),
        ("size", json!("640000x64")),
        ("size", json!("1024x1024")),
        ("size", json!("0x0")),
        ("size", json!("large")),
        ("size", json!("")),
        ("size", json!(64)),
        ("n", json!(0)),
        ("n", json!(-1)),
        ("n", json!(11)),
        ("n", json!(1000)),
        ("n", json!(1.5)),
        ("n", json!("x")),
        ("seed", json!(-1)),
        ("seed", json!(9_007_199_254_740_992u64)),
        ("seed", json!(u64::MAX)),
        ("seed", json!(1e300)),
        ("seed", json!(1.5)),
        ("num_inference_steps", json!(0)),
        ("num_inference_steps", json!(100_000)),
        ("num_inference_steps", json!(2.5)),
        ("guidance_scale", json!(-0.5)),
        ("guidance_scale", json!(1e30)),
        ("guidance_scale", json!("strong")),
        ("quality", json!("ultra")),
        ("response_format", json!("base64")),
        ("output_format", json!("gif")),
        ("output_compression", json!(101)),
        ("output_compression", json!(50)), // PNG
        ("stream", json!("yes")),
        ("partial_images", json!(4)),
        ("background", json!("transparent")),
        ("background", json!("blue")),
        ("moderation", json!("high")),
        ("style", json!("cubist")),
        ("pentimento", json!("off")),
        ("pentimento", json!(["auto", null, null, null])),
        ("quality", json!({"low": null})),
        ("quality", json!(5)),
        ("quality", json!(long)),
        ("size", json!(long)),
        ("user", json!(long)),
        ("safety_identifier", json!(long)),
    ];
    for (field, value) in cases {
        let mut body = json!({"prompt": "a", "num_inference_steps": 1, "stream": field == "partial_images"});
        body[field] = value;
        is_error(&server.post(&body), 400, json!(field), "invalid_value");
    }
    let nested = |ours: Value| server.post(&json!({"prompt": "a", "pentimento": ours}));
    is_error(&nested(json!({"cache": "never"})), 400, json!("pentimento.cache"), "invalid_value");
    is_error(&nested(json!({"cache": "only"})), 404, json!("pentimento.cache"), "cache_miss");
    is_error(&nested(json!({"namespace": "a b"})), 400, json!("pentimento.namespace"), "invalid_value");
    let out_of_bounds = [
        ("max_latency_ms", json!(0)),
        ("max_latency_ms", json!(-1)),
        ("max_latency_ms", json!(1e300)),
        ("max_latency_ms", json!(0.001)), // no machine paints in a microsecond
        ("min_quality", json!(1.01)),
        ("min_quality", json!(-0.1)),
    ];
    for (field, value) in out_of_bounds {
        let param = json!(format!("pentimento.{field}"));
        is_error(&nested(json!({ field: value })), 400, param, "invalid_value");
    }
    is_error(&nested(json!({"cash": 1})), 400, json!("pentimento.cash"), "unknown_parameter");
    is_error(&server.post(&json!({"prompt": "a", "steps": 1})), 400, json!("steps"), "unknown_parameter");
    let unknown = json!({"prompt": "a", long.as_str(): 1});
    assert_eq!(server.post(&unknown).json_code(), "unknown_parameter");
    assert!(server.post(&unknown).text.len() < 2000);
    let model = server.post(&json!({"prompt": "a", "model": long}));
    is_error(&model, 404, json!("model"), "model_not_found");
    assert!(model.text.contains("does not exist"), "{}", model.text);
    is_error(&server.post(&json!({"n": 1})), 400, json!("prompt"), "missing_required_parameter");
    is_error(
        &server.post(&json!({"prompt": "a", "partial_images": 1})),
        400,
        json!("partial_images"),
        "invalid_value",
    );
    let streamed_url = json!({"prompt": "a", "stream": true, "response_format": "url"});
    is_error(&server.post(&streamed_url), 400, json!("response_format"), "invalid_value");
    is_error(&server.post(&json!({"prompt": "a", "model": "nope"})), 404, json!("model"), "model_not_found");
    assert_eq!(server.metric("pentimento_steps_total"), 0.0, "nothing of this reached the painter");
}

#[test]
fn a_request_that_cannot_be_read_is_told_why() {
    let server = Server::ready(&["--read-timeout-seconds", "1"]);
    let bodies: [&[u8]; 6] = [
        b"{",
        b"",
        b"[]",
        b"{\"prompt\": \"a\", \"guidance_scale\": NaN}",
        b"{\"prompt\": \"\xff\"}",
        b"prompt=a",
    ];
    for body in bodies {
        is_error(&server.post_with(body, &[JSON]), 400, Value::Null, "invalid_json");
    }
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"] {
        let answer = server.post_with(b"{\"prompt\": \"a\"}", &[("content-type", kind)]);
        is_error(&answer, 415, Value::Null, "unsupported_content_type");
    }
    let large = json!({"prompt": "a".repeat(1_000_000)});
    is_error(&server.post(&large), 413, Value::Null, "request_too_large");
    is_error(&server.get("/v1/nope"), 404, Value::Null, "unknown_url");
    is_error(&server.get("/v1/models/%FF"), 404, json!("model"), "model_not_found");
    is_error(&server.get("/v1/images/files/%FF"), 404, Value::Null, "file_not_found");
    is_error(&server.get("/v1/images/generations"), 405, Value::Null, "method_not_supported");
    is_error(&server.get("/v1/models/nope"), 404, json!("model"), "model_not_found");

    let mut slow = TcpStream::connect(&server.address).unwrap();
    let head = "POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
    slow.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    let mut silent = TcpStream::connect(&server.address).unwrap();
    silent.write_all(b"POST /v1/im").unwrap();
    assert_eq!(silent.read(&mut answer).unwrap_or(0), 0, "half a head and silence end the connection");
}

#[test]
fn without_its_key_nobody_paints() {
    let secret = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b=studio";
    let server = Server::ready(&["--api-keys", secret]);
    let body = json!({"prompt": "a", "num_inference_steps": 1}).to_string();
    let ask = |key: &str| server.post_with(body.as_bytes(), &[JSON, ("authorization", key)]);
    assert_eq!(ask("Bearer secret").status, 200);
    for wrong in ["Bearer Secret", "Bearer ", "Basic secret", secret] {
        is_error(&ask(wrong), 401, Value::Null, "invalid_api_key");
    }
    is_error(&server.post_with(body.as_bytes(), &[JSON]), 401, Value::Null, "invalid_api_key");
    is_error(&server.get("/v1/models"), 401, Value::Null, "invalid_api_key");
    for open in ["/healthz", "/readyz", "/metrics", "/openapi.json"] {
        assert_eq!(server.get(open).status, 200, "{open}");
    }
}

#[test]
fn too_much_is_refused_with_a_time_to_come_back() {
    let folder = Folder::new("busy");
    let keys = folder.path().join("keys");
    std::fs::write(
        &keys,
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb anna\n\
         3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d bert\n",
    )
    .unwrap();
    let bounds =
        ["--max-batch-rows", "2", "--max-n", "1", "--queue-length", "1", "--queue-length-per-client", "1"];
    let server = Server::ready(&[&bounds[..], &["--api-keys-file", keys.to_str().unwrap()]].concat());
    let endless = json!({"prompt": "a", "num_inference_steps": 1000}).to_string();
    let stream = json!({"prompt": "a", "num_inference_steps": 1000, "stream": true}).to_string();
    let post = |key: &str, body: &str| {
        let key = format!("Bearer {key}");
        server.post_with(body.as_bytes(), &[JSON, ("authorization", &key)])
    };
    let open = |body: &str| {
        let mut connection = TcpStream::connect(&server.address).unwrap();
        write!(
            connection,
            "POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             authorization: Bearer a\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        connection
    };
    let _painting = open(&stream);
    until("the first is being painted", || server.metric("pentimento_steps_total") > 0.0);
    for (key, code) in [("a", "rate_limit_exceeded"), ("b", "queue_full")] {
        let answer = post(key, &endless);
        is_error(&answer, 429, Value::Null, code);
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
}

#[test]
fn too_slow_is_an_error_and_costs_nothing_more() {
    let server = Server::ready(&["--request-timeout-seconds", "1"]);
    let mut endless = json!({"prompt": "a", "num_inference_steps": 1000});
    is_error(&server.post(&endless), 504, Value::Null, "timeout");
    until("it is cancelled", || server.metric("pentimento_cancelled_total") == 1.0);
    endless["stream"] = json!(true);
    let events = server.post(&endless).events();
    assert_eq!((events.len(), events[0].0.as_str()), (1, "error"));
    assert_eq!(events[0].1["error"]["code"], "timeout");
    until("it is cancelled", || server.metric("pentimento_cancelled_total") == 2.0);
}
