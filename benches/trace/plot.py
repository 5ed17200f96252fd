"""Plots savings against fidelity from the tables that the trace bench printed.

    python benches/trace/plot.py trace-tables.md docs/benchmarks/trace.png
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

INTERVAL = r"([-\d.]+) \(([-\d.]+)–([-\d.]+)\)"
# Of all requests: setting, saved, hits, fidelity. By class: setting, class, requests, saved, fidelity.
ALL = re.compile(rf"\| (\S+) \| {INTERVAL} \| [\d.]+ / [\d.]+ \| {INTERVAL} \|")
CLASS = re.compile(rf"\| (\S+) \| edit \| \d+ \| {INTERVAL} \| {INTERVAL} \|")

text = Path(sys.argv[1]).read_text()
fig, axes = plt.subplots(1, 2, figsize=(12, 5), constrained_layout=True)
for axis, pattern, title in zip(axes, [ALL, CLASS], ["the whole trace", "edits"]):
    families = defaultdict(list)
    for name, *numbers in pattern.findall(text):
        family = re.sub(r"=[-\d.]+", "", name)
        families[family].append([float(n) for n in numbers])
    for family, points in families.items():
        points.sort()
        saved, low, high, fidelity, f_low, f_high = zip(*points)
        yerr = [[max(0, f - a) for f, a in zip(fidelity, f_low)], [max(0, b - f) for f, b in zip(fidelity, f_high)]]
        axis.errorbar(saved, fidelity, yerr=yerr, marker="o", ms=4, lw=1, elinewidth=0.5, capsize=2, label=family)
    axis.axhline(0.97, color="grey", lw=0.8, ls=":")
    axis.set_title(title)
    axis.set_xlabel("share of rows·steps saved")
    axis.set_ylabel("fidelity ÷ without a cache")
    axis.grid(alpha=0.3)
axes[0].legend(fontsize=8)
fig.savefig(sys.argv[2], dpi=110)
