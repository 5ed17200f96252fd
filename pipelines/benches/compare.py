"""Our engine beside its peers, in one run: interleaved call by call, on the same processors, as ratios.

    python -m venv VENV && VENV/bin/pip install -r pipelines/benches/requirements.txt
    VENV/bin/python pipelines/benches/compare.py                  # storybook at 128x128, all peers, 1 and 2 threads
    VENV/bin/python pipelines/benches/compare.py --shape storybook-64   # the same at 64x64
    VENV/bin/python pipelines/benches/compare.py --shape sd15     # Stable Diffusion 1.5's shape at 256x256
    python3 pipelines/benches/compare.py --peers bf16,candle      # without any peer to install

Prints a table and writes it, and a plot, to docs/benchmarks/.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SHAPES = {"storybook": "128x128", "storybook-64": "64x64", "sd15": "256x256"}
LONGEST_S = 120  # no round of a part begins after as many seconds
GAINS = (
    "A network whose convolutions are candle's does without our helper threads, too. On two threads candle's pool and our helpers get in "
    "each other's way, so that the ratios there say more than the operator's own speed."
)
NAMES = {"ours": "ours", "bf16": "ours in bf16", "torch": "PyTorch diffusers", "ov-f32": "OpenVINO f32", "ov-bf16": "OpenVINO bf16", "candle": "candle"}


def pinned(command, threads):
    """What starts the command on the first `threads` processors, with as many threads."""
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    # The first two slow NumPy and PyTorch down where they are set.
    env = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    env |= {name: str(threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "CANDLE_NUM_THREADS")}
    return {"args": ["taskset", "-c", cpus, *map(str, [*command, threads])], "env": env, "stdout": subprocess.PIPE, "text": True}


class Runner:
    """A process that runs a part of a model when told to and answers with milliseconds."""

    def __init__(self, command, threads):
        self.process = subprocess.Popen(**pinned(command, threads), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while (line := self.process.stdout.readline()) and line.strip() != "ready":
            pass
        assert line, f"{command} did not start"

    def __call__(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"{self.process.args} died at {line!r}"
        return float(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def engine():
    """The path of the built bench."""
    build = ["cargo", "bench", "--workspace", "--bench", "engine", "--no-run", "--message-format=json"]
    lines = subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = [m["executable"] for m in map(json.loads, lines) if m.get("target", {}).get("name") == "engine" and m.get("executable")]
    return found[-1]


def model_folder(shape, work):
    """The model in diffusers' layout: storybook as it is shipped; the shape of Stable Diffusion 1.5 with random weights (speed does not depend on them)."""
    if shape.startswith("storybook"):
        return ROOT / "weights-manifest/storybook/model"
    folder = work / shape
    if not (folder / "model_index.json").exists():
        # In a process of its own, which gives its memory back.
        subprocess.run([sys.executable, HERE / "sd15.py", folder], check=True)
    return folder


def commands(shape, folder, peers):
    """{name: what runs it}, ours first."""
    size, ours = SHAPES[shape], engine()
    found = {"ours": [ours, folder, size], "bf16": [ours, "--bf16", folder, size], "candle": [ours, "--candle", folder, size]}
    found |= {p: [sys.executable, HERE / "peers.py", p, folder, size] for p in ("torch", "ov-f32", "ov-bf16")}
    return {name: found[name] for name in ("ours", *peers)}


def measure(shape, folder, peers, threads, rounds, rows, steps):
    """{(part, peer): [milliseconds]}, call by call in turn."""
    runners = {name: Runner(command, threads) for name, command in commands(shape, folder, peers).items()}
    names, times = list(runners), {}
    parts = [f"unet {n}" for n in rows] + ["vae", "text", f"picture {steps}"]
    for part in parts:
        measured = min(3, rounds) if part.startswith("picture") else rounds
        started = time.monotonic()
        for round_ in range(measured + 1):  # the first warms up
            if time.monotonic() - started > LONGEST_S and all((part, name) in times for name in names):
                break
            turn = round_ % len(names)
            for name in names[turn:] + names[:turn]:
                run = runners[name]
                taken = run(part)
                long = taken > 5000
                if not long:  # its weights and code are back in the caches that the neighbours used
                    taken = run(part)
                time.sleep(0.02)  # until its idle threads no longer spin
                if round_ >= 1 or long:
                    times.setdefault((part, name), []).append(taken)
        print(f"  {threads} threads, {part}: " + ", ".join(f"{n} {statistics.median(times[part, n]):.2f} ms" for n in runners), flush=True)
    for run in runners.values():
        run.close()
    return times


def memory(shape, folder, peers):
    """The largest resident size of a process that paints one picture, as a sentence."""
    sizes = []
    for name, command in commands(shape, folder, peers).items():
        run = Runner(command, 1)
        run("picture 1")
        sizes.append(f"{NAMES[name]} {run('memory'):.0f} MiB")
        run.close()
    return "Largest resident size after one picture: " + ", ".join(sizes) + ".\n"


def gains(folder, size, threads, steps):
    """What a whole picture takes with candle's operators of one kind, over what it takes with ours, as a Markdown table."""
    kinds = ("Convolution", "Linear", "GroupNorm", "LayerNorm", "Attention", "Geglu")
    ours = Runner([engine(), folder, size], threads)
    lines = [GAINS, "", "| operator | a picture with candle's ÷ with ours |", "|---|---|"]
    for kind in kinds:
        candles = Runner([engine(), f"--candle={kind}", folder, size], threads)
        pairs = [(candles(f"picture {steps}"), ours(f"picture {steps}")) for _ in range(6)][1:]
        candles.close()
        lines.append("| {} | {:.2f} ({:.2f}–{:.2f}) |".format(kind, *ratio(*zip(*pairs))))
    ours.close()
    return "\n".join(lines) + "\n"


def ratio(ours, theirs):
    """Median and quartiles of the ratios of neighbouring calls."""
    ratios = [a / b for a, b in zip(ours, theirs)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    return middle, low, high


def compared(peers):
    """What is divided by what."""
    pairs = [("ours", peer) for peer in peers]
    return pairs + ([("bf16", "ov-bf16")] if {"bf16", "ov-bf16"} <= {*peers} else [])


def label(pair):
    return f"{'bf16 ' if pair[0] == 'bf16' else ''}÷ {NAMES[pair[1]]}"


def report(shape, results, peers):
    """A Markdown table: ours in milliseconds, and ours divided by each peer's."""
    pairs = compared(peers)
    lines = [f"Shape {shape}, {SHAPES[shape]}. Time of ours in f32, and ours divided by the peer's; *bf16 ÷* is ours in bf16: median (quartiles) over interleaved calls.", ""]
    lines += ["| threads | part | ours, ms | " + " | ".join(map(label, pairs)) + " |", "|---" * (3 + len(pairs)) + "|"]
    for threads, times in results.items():
        for part in dict.fromkeys(part for part, _ in times):
            ours = times[part, "ours"]
            cells = ["{:.2f} ({:.2f}–{:.2f})".format(*ratio(times[part, a], times[part, b])) for a, b in pairs]
            lines.append(f"| {threads} | {part} | {statistics.median(ours):.2f} | " + " | ".join(cells) + " |")
    if 1 in results and 2 in results:
        speedup = {n: statistics.median(results[1][f"unet {n}", "ours"]) / statistics.median(results[2][f"unet {n}", "ours"]) for n in (1, 8)}
        lines += ["", "From 1 to 2 threads: " + ", ".join(f"{s:.2f} times as fast at {n} rows" for n, s in speedup.items()) + "."]
    for threads, times in results.items():
        per_row = statistics.median(times["unet 8", "ours"]) / 8 / statistics.median(times["unet 1", "ours"])
        lines.append(f"{threads} threads: time per row at 8 rows ÷ at 1 row {per_row:.2f}; a VAE decode costs {statistics.median(times['vae', 'ours']) / statistics.median(times['unet 1', 'ours']):.2f} steps.")
    return "\n".join(lines) + "\n"


def plot(shape, results, peers, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(results), figsize=(6 * len(results), 4.2), sharey=True, squeeze=False)
    for ax, (threads, times) in zip(axes[0], results.items()):
        parts = list(dict.fromkeys(part for part, _ in times))
        pairs = compared(peers)
        for i, (a, b) in enumerate(pairs):
            stats = [ratio(times[part, a], times[part, b]) for part in parts]
            at = [k + (i - (len(pairs) - 1) / 2) * 0.8 / len(pairs) for k in range(len(parts))]
            spread = [[m - low for m, low, _ in stats], [high - m for m, _, high in stats]]
            ax.bar(at, [m for m, _, _ in stats], 0.8 / len(pairs), yerr=spread, label=label((a, b)))
        ax.axhline(1, color="black", linewidth=1)
        ax.set_xticks(range(len(parts)), parts, rotation=30, ha="right")
        ax.set_title(f"{shape}, {threads} thread{'s' if threads > 1 else ''}")
    axes[0][0].set_ylabel("our time ÷ the peer's (below 1: we are faster)")
    axes[0][0].legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=110)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, default="storybook")
    p.add_argument("--peers", default="bf16,torch,ov-f32,ov-bf16,candle", help="comma-separated (default: %(default)s); bf16 is ours")
    p.add_argument("--threads", default="1,2")
    p.add_argument("--rows", default="1,2,8,16", help="UNet rows; 1 and 8 are always measured")
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--steps", type=int, default=50, help="of the whole picture")
    p.add_argument("--work", type=Path, default=ROOT / "target/peers", help="where models are made")
    args = p.parse_args()
    peers = args.peers.split(",")
    rows = sorted({1, 8} | {int(n) for n in args.rows.split(",")})
    folder = model_folder(args.shape, args.work)
    results = {t: measure(args.shape, folder, peers, t, args.rounds, rows, args.steps) for t in map(int, args.threads.split(","))}
    out = ROOT / "docs/benchmarks"
    out.mkdir(parents=True, exist_ok=True)
    table = report(args.shape, results, peers) + memory(args.shape, folder, peers)
    for threads in results:
        for flags, precision in (([], "f32"), (["--bf16"], "bf16")):
            if precision == "bf16" and precision not in peers:
                continue
            table += f"\n## Where a step's time goes, {precision}, {threads} thread{'s' if threads > 1 else ''}\n\n"
            table += subprocess.run(**pinned([engine(), *flags, "--profile", folder, SHAPES[args.shape]], threads), check=True).stdout
        if args.shape.startswith("storybook") and "candle" in peers:
            table += f"\n## What each operator gains, {threads} thread{'s' if threads > 1 else ''}\n\n"
            table += gains(folder, SHAPES[args.shape], threads, args.steps)
    print(table)
    (out / f"engine-{args.shape}.md").write_text(table)
    try:
        plot(args.shape, results, peers, out / f"engine-{args.shape}.png")
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
