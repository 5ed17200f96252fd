"""Load on a server: what its plan policies deliver. Stops and goes on run by run: what lies in WORK is not run again.
A cache begins each run with what was painted in the users' history.

    cargo build --release
    python benches/load/run.py capacity WORK --steps 20     # first: what `fixed` steps carry
    python benches/load/run.py policies WORK --steps 20     # every policy at 1 to 2 times that, then tables and a plot
    python benches/load/run.py tables WORK --steps 20       # of the policies that were run so far
    python benches/load/run.py overload WORK --steps 20     # ten times that for a minute
    python benches/load/run.py overhead WORK --steps 20     # what the server takes beside the worker

--steps is N*, the fewest steps that keep 99 % of the 50-step quality. Drawing the trace needs numpy,
as benches/trace/draw.py does, and the plot matplotlib; the rest is the standard library. docs/load.md says what the runs are.
"""

import argparse
import http.client
import itertools
import json
import math
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import tables
from server import Memory, Server, call

ROOT = Path(__file__).resolve().parents[2]
IMAGES = "/v1/images/generations"
# 1.3: more than N* steps allow, and less than the floor does, where a plan policy has a choice.
LOADS = [(1, "poisson"), (1, "bursty"), (1.3, "poisson"), (2, "poisson"), (2, "bursty")]
# What a policy's pictures are worth when little presses: the full plan would take most of the machine even here.
UNLOADED = (0.1, "poisson")
CONCURRENCY = (1, 2, 4, 8, 16)
# The first one with which runs of 45 s and of 60 s offer what was asked for, bursts included, to within 5 %.
SEED = 5
# A drawn trace may hold more requests than expected; a trace that began again would hit its own pictures.
SPARE = 1.6
# What the users painted before the runs, without load: a cache begins the runs with it.
HISTORY = 400
HITS = 20
WORKER = ("queue", "load", "encode", "wait", "denoise", "decode")


def settings(steps):
    """Name: plan policy, reuse policy."""
    return {
        f"fixed-{steps}": ({"policy": "fixed", "steps": steps}, "off"),
        "fixed-50": ({"policy": "fixed", "steps": 50}, "off"),
        "per-model": ({"policy": "per-model"}, "off"),
        "adaptive-no-replan": ({"policy": "adaptive", "replan": False}, "off"),
        "adaptive": ({"policy": "adaptive", "replan": True}, "off"),
        "per-model-cache": ({"policy": "per-model"}, "auto"),
        "adaptive-cache": ({"policy": "adaptive", "replan": True}, "auto"),
    }


def name(load, arrivals, setting):
    return f"{load}x {arrivals} {setting}"


def wanted(steps):
    for load, arrivals in LOADS:
        for setting in settings(steps):
            # What the full plan does under more load than it carries is seen at the least of it.
            if setting != "fixed-50" or load == 1:
                yield load, arrivals, setting
    for setting in ("adaptive", "adaptive-cache"):
        yield *UNLOADED, setting


def pairs(steps):
    for load, arrivals in LOADS:
        for ours, theirs in (
            ("adaptive", "per-model"),
            ("adaptive-cache", "per-model-cache"),
            ("adaptive", "adaptive-no-replan"),
            ("adaptive", f"fixed-{steps}"),
            ("adaptive-cache", "adaptive"),
            ("per-model-cache", "per-model"),
        ):
            yield name(load, arrivals, ours), name(load, arrivals, theirs)


class Work:
    """The folder of results, all made with the same settings."""

    def __init__(self, arguments):
        self.folder, self.arguments = arguments.work, arguments
        self.folder.mkdir(parents=True, exist_ok=True)
        same = {key: getattr(arguments, key) for key in ("steps", "serve", "model")}
        for file, ours in (("settings", same), (f"{arguments.mode}-settings", {"seconds": arguments.seconds})):
            if self.read(file, ours) != ours:
                raise SystemExit(f"{self.folder} holds runs with {self.read(file)}, not {ours}; take another folder")
            self.write(file, ours)

    def path(self, name):
        return self.folder / (name.replace(" ", "-") + ".json")

    def read(self, name, default=None):
        path = self.path(name)
        return json.loads(path.read_text()) if path.exists() else default

    def write(self, name, value):
        """Whole or not at all."""
        unfinished = self.path(name).with_suffix(".part")
        unfinished.write_text(json.dumps(value) + "\n")
        unfinished.rename(self.path(name))

    def server(self, plan, reuse, history=None):
        options = ["--model", self.arguments.model, *shlex.split(self.arguments.serve)]
        # One objective for all runs: a server's own follows from how fast the machine was when it started.
        objective = self.read("capacity", {}).get("objective_ms")
        if objective and "--latency-objective-ms" not in options:
            options += ["--latency-objective-ms", str(round(objective))]
        return Server(self.arguments.binary, plan, reuse, options, history)

    def capacity(self):
        found = self.read("capacity")
        if found is None:
            raise SystemExit("the capacity is not known: run `capacity` first")
        return found["per_second"]

    def trace(self, requests):
        """The trace of editing users, with at least so many requests, from where their history ends."""
        path, history = self.folder / f"trace-{requests}.jsonl", self.folder / f"history-{requests}.jsonl"
        if not path.exists():
            draw = [sys.executable, ROOT / "benches/trace/draw.py", "--requests", str(HISTORY + requests)]
            lines = subprocess.run(draw, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines(True)
            history.write_text("".join(lines[:HISTORY]))
            path.write_text("".join(lines[HISTORY:]))
        return path

    def history(self, trace):
        """The cache of a server that painted the users' history, one request after the other."""
        cache = self.folder / "history"
        if not cache.exists():
            lines = trace.with_name(trace.name.replace("trace", "history")).read_text().splitlines()
            with self.server({"policy": "adaptive"}, "auto") as server:
                for line in map(json.loads, lines):
                    call("POST", server.url + IMAGES, {"prompt": line["prompt"], "seed": line["seed"]}, timeout=600)
                server.keep = cache
        return cache

    def replay(self, name, server, trace, *options):
        """A replay's report, from its file if it was run already."""
        unfinished = self.path(name).with_suffix(".part")
        command = [self.arguments.binary, "replay", trace, "--target", server.url, "--seed", str(SEED)]
        command += ["--json", unfinished, *options]
        unfinished.unlink(missing_ok=True)
        ended = subprocess.run(command, stdout=subprocess.DEVNULL)
        # 1 is also what a run ends with of which no request was completed: a result.
        if ended.returncode not in (0, 1) or not unfinished.exists():
            raise SystemExit(f"replay ended with {ended.returncode}")
        if server.process.poll() is not None:
            raise SystemExit(f"the server ended with {server.process.returncode}")
        unfinished.rename(self.path(name))
        return self.read(name)


def closed_loop(url, prompts, concurrency, seconds):
    """Pictures per second, each client asking again as soon as it has its answer. What is refused does not count."""
    done, waiting, begun = [], iter(prompts), time.monotonic()
    turn = threading.Lock()
    failures = []

    def ask(connection):
        with turn:
            request = next(waiting)
        body = json.dumps({"prompt": request["prompt"], "seed": request["seed"]})
        connection.request("POST", IMAGES, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status == 200:
            done.append(time.monotonic() - begun)
        elif answer.status == 429:
            time.sleep(0.1)
        else:
            failures.append(f"{answer.status} {text[:300]!r}")

    def client():
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
        try:
            while time.monotonic() < begun + seconds and not failures:
                ask(connection)
        except (OSError, http.client.HTTPException) as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=client) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures or not done:
        raise SystemExit(f"capacity: {failures[0] if failures else 'no picture was painted'}")
    # Whole pictures over the time they took: the last ones end after the time is up.
    return len(done) / max(done)


def capacity(work):
    found = work.read("capacity", {"steps": work.arguments.steps, "by_concurrency": {}})
    lines = [json.loads(line) for line in work.trace(1000).read_text().splitlines()]
    for concurrency in CONCURRENCY:
        if str(concurrency) in found["by_concurrency"]:
            continue
        with work.server({"policy": "fixed", "steps": work.arguments.steps}, "off") as server:
            tiers = call("GET", server.url + "/v1/tiers")["data"]
            found["objective_ms"] = next(tier["objective_ms"] for tier in tiers if tier["quality"] == "auto")
            endless = (lines[i % len(lines)] for i in range(10**9))
            rate = closed_loop(server.url, endless, concurrency, work.arguments.seconds)
        found["by_concurrency"][str(concurrency)] = rate
        found["per_second"] = max(found["by_concurrency"].values())
        work.write("capacity", found)
    print("| clients | pictures per second |\n|---|---|")
    for concurrency, rate in found["by_concurrency"].items():
        print(f"| {concurrency} | {rate:.3f} |")
    print(f"\nThe objective of all runs: {round(found['objective_ms'])} ms.")


def policies(work):
    rate, seconds = work.capacity(), work.arguments.seconds
    trace = work.trace(max(1000, math.ceil(2 * rate * seconds * SPARE)))
    for load, arrivals, setting in wanted(work.arguments.steps):
        run = name(load, arrivals, setting)
        if work.path(run).exists():
            continue
        plan, reuse = settings(work.arguments.steps)[setting]
        pictures = work.folder / "pictures"
        remove(pictures)
        options = ["--arrivals", arrivals, "--rate", str(load * rate), "--seconds", str(seconds)]
        options += ["--pictures", pictures, "--score", work.arguments.model]
        options += ["--svg", work.path(run).with_suffix(".svg")]
        print(f"{time.strftime('%H:%M:%S')} {run}", file=sys.stderr)
        history = work.history(trace) if reuse != "off" else None
        with work.server(plan, reuse, history) as server:
            work.replay(run, server, trace, *options)
        remove(pictures)
    compare(work)


def remove(pictures):
    if pictures.exists():
        for picture in pictures.iterdir():
            picture.unlink()
        pictures.rmdir()


def compare(work):
    runs = {}
    for load, arrivals, setting in wanted(work.arguments.steps):
        run = name(load, arrivals, setting)
        report = work.read(run)
        if report:
            runs[run] = report
    if not runs:
        raise SystemExit("there are no runs yet: run `policies` first")
    print(f"Capacity: {work.capacity():.3f} pictures per second at {work.arguments.steps} steps.\n")
    print(tables.overview(runs) + "\n\n" + tables.comparison(runs, pairs(work.arguments.steps)))
    quality = tables.measured(runs.values())
    for setting, (load, arrivals) in itertools.product(("adaptive", "adaptive-cache"), LOADS):
        run, idle = runs.get(name(load, arrivals, setting)), runs.get(name(*UNLOADED, setting))
        value, at_best = (r and r["summary"][quality]["completed"] for r in (run, idle))
        if value and at_best:
            print(f"\n{name(load, arrivals, setting)}: {value / at_best:.4f} of its unloaded {quality}.")
    cached = {run: report for run, report in runs.items() if run.endswith("cache")}
    if cached:
        print("\n" + tables.outcomes(cached) + "\n\n" + tables.shown(cached))
    try:
        tables.plot(runs, [f"{load}x {arrivals}" for load, arrivals in LOADS], work.folder / "load.png")
    except ImportError:
        print("\nNo plot: matplotlib is not there.", file=sys.stderr)


def overload(work):
    rate = 10 * work.capacity()
    if not work.path("overload").exists():
        with work.server({"policy": "adaptive", "replan": True}, "off") as server, Memory(server) as memory:
            time.sleep(10)
            # No request twice: who asks for what is being painted already is let in, whatever the load.
            trace = work.trace(math.ceil(1.1 * rate * 60))
            options = ["--arrivals", "poisson", "--rate", str(rate), "--seconds", "60", "--obey-retry-after"]
            report = work.replay("overload-replay", server, trace, *options)
            time.sleep(10)
        work.write("overload", {"memory": memory.samples, **report})
    report = work.read("overload")
    summary, memory = report["summary"], report["memory"]
    last = max(row["at"] for row in report["requests"])
    loaded = [rss for at, rss in memory if 10 <= at <= 10 + last]
    first, second = loaded[: len(loaded) // 2], loaded[len(loaded) // 2 :]
    refused = [row for row in report["requests"] if row["returned"] is not None or row["fate"] == "refused"]
    told = [row for row in refused if row["returned"] is not None]
    print(tables.overview({"overload": report}))
    print(f"\nResident memory: {memory[0][1] / 1e6:.1f} MB before, at most {max(first) / 1e6:.1f} MB in the first half ", end="")
    print(f"of the load and {max(second) / 1e6:.1f} MB in the second; {memory[-1][1] / 1e6:.1f} MB after the last answer, ", end="")
    print(f"{memory[-1][0]:.0f} s in, and never more than {max(rss for _, rss in memory) / 1e6:.1f} MB.")
    print(f"Of the completed requests {summary['good'] / max(1, summary['completed']):.4f} within their objective.")
    print(f"Refused at first: {len(refused)}; told when to come back: {len(told)}; ", end="")
    print(f"of these admitted then: {summary['returned']['admitted']:.4f}. ", end="")
    waits = [row["returned"] - row["at"] for row in told]
    print(f"They came back after {tables.quantile(waits, 0.5):.0f} s in the median and {max(waits, default=0):.0f} s at most.")


def overhead(work):
    if not work.path("overhead").exists():
        lines = work.trace(1000).read_text().splitlines()
        distinct = list({json.loads(line)["prompt"]: line for line in lines}.values())[:HITS]
        trace = work.folder / "hits.jsonl"
        trace.write_text("\n".join(distinct) + "\n")
        # Only pictures of the full plan are kept.
        with work.server({"policy": "fixed"}, "exact") as server:
            for line in map(json.loads, distinct):
                call("POST", server.url + IMAGES, {"prompt": line["prompt"], "seed": line["seed"]}, timeout=600)
            deadline = time.monotonic() + 60
            while call("GET", f"{server.admin}/admin/v1/cache/stats")["entries"] < len(distinct):
                if time.monotonic() > deadline:
                    raise SystemExit("overhead: the pictures are not kept")
                time.sleep(0.2)
            options = ["--arrivals", "poisson", "--rate", str(work.arguments.hits), "--seconds", str(work.arguments.seconds)]
            work.replay("overhead", server, trace, *options)
    report = work.read("overhead")
    rows = [row for row in report["requests"] if row["fate"] in ("good", "late")]
    hits = [row for row in rows if row["pentimento"]["outcome"] == "exact"]
    print(f"{len(hits)} exact hits of {len(report['requests'])} requests at {work.arguments.hits} per second.\n")
    print("| milliseconds | p50 | p99 |\n|---|---|---|")
    total = lambda row: row["pentimento"]["timings_ms"]["total"]  # noqa: E731
    worker = lambda row: sum(row["pentimento"]["timings_ms"].get(part, 0) for part in WORKER)  # noqa: E731
    for what, of in (
        ("the server's total, less the worker's parts and the wait for it", lambda row: total(row) - worker(row)),
        ("the client's latency, less the same", lambda row: row["latency_ms"] - worker(row)),
        ("the client's latency", lambda row: row["latency_ms"]),
    ):
        values = [of(row) for row in hits]
        print(f"| {what} | {tables.quantile(values, 0.5):.3f} | {tables.quantile(values, 0.99):.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = {"capacity": capacity, "policies": policies, "tables": compare, "overload": overload, "overhead": overhead}
    parser.add_argument("mode", choices=modes)
    parser.add_argument("work", type=Path, metavar="WORK", help="folder of the results")
    parser.add_argument("--steps", type=int, required=True, help="N*")
    parser.add_argument("--seconds", type=float, help="of a run; 30 of capacity and overhead, 300 of policies")
    parser.add_argument("--hits", type=int, default=200, help="exact hits a second of overhead; fewer where decoding takes longer")
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="more options of `pentimento serve`")
    parser.add_argument("--binary", default=str(ROOT / "target/release/pentimento"))
    arguments = parser.parse_args()
    if arguments.seconds is None:
        arguments.seconds = 300.0 if arguments.mode == "policies" else 30.0
    modes[arguments.mode](Work(arguments))
