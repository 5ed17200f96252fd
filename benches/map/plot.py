"""Plots the map: loss over K by what changed, plain and steered, from `pentimento calibrate`'s measured.jsonl files.

    python benches/map/plot.py docs/benchmarks/reuse-map.png DIR/measured.jsonl...
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

out, *files = sys.argv[1:]
rows, steps = [], None
for file in files:
    settings, *lines = Path(file).read_text().splitlines()
    steps = json.loads(settings)["steps"]
    rows += map(json.loads, lines)
mean = np.mean([r["scratch"] for r in rows])
losses = defaultdict(lambda: defaultdict(list))  # (resume, class) -> k -> losses
for row in rows:
    for resumed in row["resumed"]:
        losses[resumed["resume"], row["class"]][resumed["k"]].append((row["scratch"] - resumed["score"]) / mean)
classes = sorted({c for _, c in losses})
fig, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True, constrained_layout=True)
for axis, resume in zip(axes, ["plain", "steered"]):
    for i, name in enumerate(classes):
        by_k = losses[resume, name]
        ks = sorted(by_k)
        middle = [np.mean(by_k[k]) for k in ks]
        error = [1.96 * np.std(by_k[k]) / len(by_k[k]) ** 0.5 for k in ks]
        style = {"linestyle": "-" if i < 10 else "--", "color": f"C{i % 10}"}
        axis.plot([k / steps for k in ks], middle, marker="o", ms=3, label=name, **style)
        axis.fill_between([k / steps for k in ks], np.subtract(middle, error), np.add(middle, error), alpha=0.08, color=f"C{i % 10}")
    axis.set_title(f"{resume} resume")
    axis.set_xlabel("share of the plan skipped")
    axis.grid(alpha=0.3)
axes[0].set_ylabel("fidelity lost, relative to painting from scratch")
axes[0].legend(title="what changed", ncol=2, fontsize=8)
fig.savefig(out, dpi=110)
