"""A `pentimento serve` of one run: started on free ports with a cache of its own, stopped at the end."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

READY_SECONDS = 120
STOP_SECONDS = 60


def call(method, url, body=None, timeout=60):
    """JSON from JSON. An answer that is none of success raises with the server's own words."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{method} {url}: {error.code} {error.read().decode(errors='replace')[:500]}") from None
    return json.loads(text) if text.strip().startswith((b"{", b"[")) else None


class Server:
    """Serves while the `with` block lasts."""

    def __init__(self, binary, plan, reuse, extra=(), history=None):
        """`history`: the cache of a server that painted before; it is copied."""
        self.cache = tempfile.mkdtemp(prefix="pentimento-load-")
        if history:
            shutil.copytree(history, self.cache, dirs_exist_ok=True)
        # Where the cache is kept at the end, if anywhere.
        self.keep = None
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PENTIMENTO_")}
        addresses = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        command = [binary, "serve", *addresses, "--cache-dir", self.cache, "--reuse-policy", reuse, "--log", "warn"]
        self.process = subprocess.Popen([*command, *extra], env=environment, stdout=subprocess.PIPE, text=True)
        try:
            self.url = self.said("listening on ")
            self.admin = self.said("admin on ")
            self.wait()
            call("PUT", f"{self.admin}/admin/v1/plan", {"plan": plan})
        except BaseException:
            self.stop()
            raise

    def said(self, prefix):
        line = self.process.stdout.readline().strip()
        if not line.startswith(prefix):
            raise SystemExit(f"the server said {line!r} where {prefix!r} was expected")
        return line.removeprefix(prefix)

    def wait(self):
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=5):
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the server does not become ready") from None
                time.sleep(0.1)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.keep:
            shutil.copytree(self.cache, self.keep, dirs_exist_ok=True)
        shutil.rmtree(self.cache, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def rss_bytes(self):
        """Resident memory now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise SystemExit("the server has ended")


class Memory(threading.Thread):
    """Samples a server's resident memory every second, while the `with` block lasts."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.samples, self.end = server, [], threading.Event()

    def run(self):
        begun = time.monotonic()
        while True:
            self.samples.append((round(time.monotonic() - begun, 2), self.server.rss_bytes()))
            if self.end.wait(1):
                return

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        self.join()
