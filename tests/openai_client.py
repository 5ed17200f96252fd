"""Drives a running server with OpenAI's own client, unmodified. Run by openai_client.rs.

Usage: openai_client.py BASE_URL --usual|--slow|--late|--stopping, the server having the API keys "secret" and "other"
(or none).
"""

import base64
import io
import sys
import time
import urllib.request

import openai
from openai import OpenAI
from PIL import Image

client = OpenAI(base_url=sys.argv[1], api_key="secret", max_retries=0)
quick = {"num_inference_steps": 4, "seed": 7, "size": "64x64"}


def picture(b64, format="PNG", size=(64, 64)):
    image = Image.open(io.BytesIO(base64.b64decode(b64)))
    image.load()
    assert image.format == format and image.size == size, (image.format, image.size)
    return image


def plain():
    # As a program written for OpenAI would ask, nothing of ours in it.
    answer = client.images.generate(model="gpt-image-1", prompt="a red house in the snow", quality="low")
    assert len(answer.data) == 1 and answer.created > 1_700_000_000
    assert (answer.size, answer.quality, answer.background, answer.output_format) == ("128x128", "low", "opaque", "png")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    steps = answer.pentimento["steps"]
    # The tier `low` is content with less than the best plan.
    assert answer.pentimento["outcome"] == "miss" and 1 <= steps < 50, steps
    assert f"Steps: {steps}" in picture(answer.data[0].b64_json, size=(128, 128)).info["parameters"]
    assert answer._request_id
    answer = client.images.generate(model="gpt-image-1", prompt="a blue house in the snow", size="auto")
    assert answer.quality == "high" and "Steps: 50" in picture(answer.data[0].b64_json, size=(128, 128)).info["parameters"]

    answer = client.images.generate(
        model="dall-e-3", prompt="a boat", n=2, size="64x64", quality="hd", style="vivid", user="me",
        response_format="url", extra_body=quick,
    )
    assert answer.pentimento["seeds"] == [7, 8] and answer.safety_identifier == "me"
    for data in answer.data:
        with urllib.request.urlopen(data.url) as file:
            assert file.headers["Content-Type"] == "image/png"
            assert file.read().startswith(b"\x89PNG")

    answer = client.images.generate(
        prompt="a boat", output_format="jpeg", output_compression=80, moderation="low", background="auto",
        extra_body=quick,
    )
    assert answer.output_format == "jpeg"
    picture(answer.data[0].b64_json, "JPEG")


def cached():
    body = {"num_inference_steps": 25, "seed": 11, "size": "64x64", "pentimento": {"namespace": "client"}}
    first = client.images.generate(prompt="a lighthouse", extra_body=body)
    assert first.pentimento["outcome"] == "miss"
    for _ in range(100):  # it is written behind the answer
        raw = client.images.with_raw_response.generate(prompt="a lighthouse", extra_body=body)
        answer = raw.parse()
        if answer.pentimento["outcome"] == "exact":
            break
        time.sleep(0.05)
    assert raw.headers["pentimento-outcome"] == "exact" and raw.headers["pentimento-skipped-steps"] == "25"
    assert answer.data[0].b64_json == first.data[0].b64_json
    assert answer.data[0].pentimento["source"] == answer.pentimento["source"]


def streaming():
    fresh = {**quick, "seed": 12}  # a stored picture has no previews
    stream = client.images.generate(
        model="gpt-image-1", prompt="a boat", stream=True, partial_images=2, extra_body=fresh
    )
    events = list(stream)
    assert [e.type for e in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    for index, event in enumerate(events[:2]):
        assert isinstance(event, openai.types.ImageGenPartialImageEvent)
        assert event.partial_image_index == index
        assert event.output_format == "jpeg" and base64.b64decode(event.b64_json).startswith(b"\xff\xd8")
    last = events[-1]
    assert isinstance(last, openai.types.ImageGenCompletedEvent)
    assert last.usage.total_tokens == 0 and last.output_format == "png"
    picture(last.b64_json)
    for event in events:
        assert (event.size, event.quality, event.background) == ("64x64", "high", "opaque")
        assert event.created_at > 1_700_000_000
    whole = client.images.generate(prompt="a boat", extra_body=fresh)
    assert whole.data[0].b64_json == last.b64_json

    # Leaving half-way is allowed.
    with client.images.generate(
        prompt="a boat", stream=True, partial_images=3, extra_body={"num_inference_steps": 100}
    ) as stream:
        assert next(iter(stream)).type == "image_generation.partial_image"


def models():
    listed = [model.id for model in client.models.list()]
    assert listed[0] == "storybook" and "gpt-image-1" in listed
    assert client.models.retrieve("storybook").object == "model"


def fails(error, status, param, code, client=client, **request):
    for stream in [False, True]:
        try:
            client.images.generate(**{"prompt": "a boat", "stream": stream, **request})
        except openai.APIStatusError as e:
            assert type(e) is error, (request, type(e), e)
            assert (e.status_code, e.param, e.code) == (status, param, code), (request, e)
            assert param is None or param in e.message, e.message
        else:
            raise AssertionError(f"{request} must fail")


def errors():
    bad = openai.BadRequestError
    for field, value in [
        ("prompt", ""), ("prompt", "a" * 100_000), ("size", "65x64"), ("size", "1024x1024"), ("n", 0), ("n", 1000),
        ("n", 1.5), ("quality", "ultra"), ("output_format", "gif"), ("background", "transparent"),
        ("output_compression", 101), ("moderation", "high"), ("style", "cubist"),
    ]:
        fails(bad, 400, field, "invalid_value", **{field: value})
    for field, value in [("seed", -1), ("num_inference_steps", 0), ("guidance_scale", -1)]:
        fails(bad, 400, field, "invalid_value", extra_body={field: value})
    fails(bad, 400, "strength", "unknown_parameter", extra_body={"strength": 1})
    fails(openai.NotFoundError, 404, "model", "model_not_found", model="no-such-model")
    fails(openai.NotFoundError, 404, "pentimento.cache", "cache_miss", extra_body={"pentimento": {"cache": "only"}})
    # What the client's own methods cannot be made to send.
    cases = [
        (bad, 400, "prompt", "missing_required_parameter", dict(body={})),
        (bad, 400, "min_quality", "invalid_value", dict(body={"prompt": "a", "pentimento": {"min_quality": 1.5}})),
        (openai.APIStatusError, 413, None, "request_too_large", dict(body={"prompt": "a" * 300_000})),
        (openai.APIStatusError, 415, None, "unsupported_content_type",
         dict(body={"prompt": "a"}, options={"headers": {"Content-Type": "text/plain"}})),
    ]
    for error, status, param, code, request in cases:
        try:
            client.post("/images/generations", cast_to=object, **request)
        except openai.APIStatusError as e:
            assert type(e) is error, (code, type(e), e)
            assert (e.status_code, e.code) == (status, code), (code, e)
            assert param is None or param in e.param, (code, e.param)
        else:
            raise AssertionError(f"{code} must be raised")
    try:
        client.get("/images/generations", cast_to=object)
    except openai.APIStatusError as e:
        assert (e.status_code, e.code) == (405, "method_not_supported"), e
    else:
        raise AssertionError("GET must be refused")
    stranger = OpenAI(base_url=sys.argv[1], api_key="wrong", max_retries=0)
    fails(openai.AuthenticationError, 401, None, "invalid_api_key", client=stranger)
    # openai_client.rs lets a client have 10 pictures waiting; here are 9.
    with client.images.generate(
        prompt="a boat", n=10, stream=True, partial_images=3, extra_body={"num_inference_steps": 1000}
    ) as stream:
        next(iter(stream))
        fails(openai.RateLimitError, 429, None, "rate_limit_exceeded", n=10)
        # and 12 in all
        other = OpenAI(base_url=sys.argv[1], api_key="other", max_retries=0)
        fails(openai.RateLimitError, 429, None, "queue_full", client=other, n=5)
    try:
        client.models.retrieve("no-such-model")
    except openai.NotFoundError as e:
        assert e.code == "model_not_found"
    else:
        raise AssertionError("an unknown model must not be found")


def slow():
    """Against a server that allows one second: an error in the stream, and one instead of an answer."""
    # A busy machine that is slower than when it was profiled must not refuse it.
    slow = {"num_inference_steps": 1000, "pentimento": {"max_latency_ms": 3_600_000}}
    try:
        client.images.generate(prompt="a boat", extra_body=slow)
    except openai.InternalServerError as e:
        assert (e.status_code, e.code) == (504, "timeout")
    else:
        raise AssertionError("1000 steps must not fit into a second")
    try:
        list(client.images.generate(prompt="a boat", stream=True, extra_body=slow))
    except openai.APIError as e:
        assert e.code == "timeout" and "in time" in e.message
    else:
        raise AssertionError("an error event must be raised")


def stopping():
    """Against a server that has been told to stop while it paints."""
    fails(openai.InternalServerError, 503, None, "shutting_down")


def late():
    """A body that does not arrive."""
    def half():
        yield b'{"prompt": '
        time.sleep(10)

    try:
        client.post("/images/generations", cast_to=object, content=half(), options={"headers": {"Content-Type": "application/json"}})
    except openai.APIStatusError as e:
        assert (e.status_code, e.code) == (408, "incomplete_body"), e
    else:
        raise AssertionError("half a body must not be enough")


checks = {"--usual": [plain, cached, streaming, models, errors], "--slow": [slow], "--late": [late], "--stopping": [stopping]}
for check in checks[sys.argv[2]]:
    check()
    print(check.__name__, "ok")
