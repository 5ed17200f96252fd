"""Draws the steering bench's results: share of changed attributes taken up, and fidelity, over K.

`plot.py RESULTS.jsonl OUT.png [SETTING...]`: the reference, painted from scratch, and the given settings (or all
that have at least three K).
"""

import json
import sys
from collections import defaultdict

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

results, out, *wanted = sys.argv[1:]
cells = defaultdict(lambda: defaultdict(list))
for line in map(json.loads, open(results)):
    cells[line["setting"]][line["k"]].append(line)

fig, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
panels = [("changed attributes taken up", "taken", "changed"), ("fidelity", "found", "named")]
for axis, (title, part, whole) in zip(axes, panels):
    share = lambda lines: sum(l[part] for l in lines) / max(1, sum(l[whole] for l in lines))
    for setting, by_k in sorted(cells.items()):
        if setting == "scratch":
            axis.axhline(share(by_k[0]), color="grey", linestyle="--", label="from scratch")
        elif setting in wanted or (not wanted and len(by_k) > 2):
            ks = sorted(by_k)
            axis.plot(ks, [share(by_k[k]) for k in ks], marker="o", label=setting)
    axis.set_title(title)
    axis.set_xlabel("resumed after K of 50 steps")
    axis.grid(alpha=0.3)
axes[0].legend()
fig.savefig(out, dpi=120)
