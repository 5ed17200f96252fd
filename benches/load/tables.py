"""What the runs come to: tables, paired comparisons, a plot."""

import math
import random

SAMPLES = 2000
# Steps of plans that are told apart: at most so many.
BUCKETS = ((4, "to 4"), (6, "5, 6"), (9, "7 to 9"), (19, "10 to 19"), (39, "20 to 39"), (math.inf, "40 and more"))


def quantile(values, at):
    """By nearest rank."""
    values = sorted(values)
    return values[max(0, math.ceil(len(values) * at) - 1)] if values else float("nan")


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def violations(run):
    return sum(run["summary"]["violations"].values())


def delivered(row, quality):
    """A request's quality; a violation is worth nothing. None: not known."""
    if row["fate"] != "good":
        return 0.0
    return row["fidelity"] if quality == "fidelity" else row["pentimento"]["expected_quality"]


def measured(runs):
    """Fidelity where every run has it of every answer, otherwise what the server expects."""
    known = (run["summary"]["fidelity"]["known"] == run["summary"]["completed"] for run in runs)
    return "fidelity" if all(known) else "expected_quality"


def overview(runs):
    names = ["run", "per s", "offered", "goodput", "late", "429", "timeouts", "errors", "unsent", "p50 ms", "p95 ms"]
    names += ["p99 ms", "steps", "skipped", "expected quality", "fidelity", "fidelity/offered", "CLIP score", "generator CPU"]
    lines = [names, ["---"] * len(names)]
    number = lambda value, digits: "–" if value is None else f"{value:.{digits}f}"  # noqa: E731
    for name, run in runs.items():
        s = run["summary"]
        kinds = [str(s["violations"][kind]) for kind in ("late", "refused", "timed_out", "failed", "unsent")]
        latency = s["latency_ms"] or {}
        line = [name, number(s["rate"], 2), str(s["offered"]), number(s["goodput"], 4), *kinds]
        line += [number(latency.get(p), 0) for p in ("p50", "p95", "p99")]
        line += [number(s["mean_steps"], 1), number(s["mean_skipped_steps"], 1)]
        line += [number(s["expected_quality"]["completed"], 4), number(s["fidelity"]["completed"], 4)]
        line += [number(s["fidelity"]["offered"], 4), number(s["clip_score"]["completed"], 4)]
        # Of one core.
        line.append(number(100 * s["generator"]["cpu_seconds"] / s["generator"]["wall_seconds"], 1) + " %")
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def paired(ours, theirs):
    """Mean difference of the quality per offered request, its 95 % bootstrap interval, requests drawn in pairs, and how
    many pairs there are: a request whose quality is not known of both runs makes none."""
    if [(r["line"], r["at"]) for r in ours["requests"]] != [(r["line"], r["at"]) for r in theirs["requests"]]:
        raise SystemExit("two runs that are to be compared did not offer the same requests")
    quality = measured([ours, theirs])
    values = [[delivered(row, quality) for row in run["requests"]] for run in (ours, theirs)]
    differences = [a - b for a, b in zip(*values) if a is not None and b is not None]
    # Where a server says nothing of quality, violations would be all that is known.
    if any(run["summary"][quality]["known"] == 0 < run["summary"]["completed"] for run in (ours, theirs)):
        return None
    rng = random.Random(0)
    means = sorted(mean(rng.choices(differences, k=len(differences))) for _ in range(SAMPLES))
    low, high = means[round(0.025 * (SAMPLES - 1))], means[round(0.975 * (SAMPLES - 1))]
    return quality, mean(differences), low, high, len(differences)


def comparison(runs, pairs):
    lines = ["| ours | against | quality per offered: difference (95 %) | pairs | violations: ours / theirs | theirs ÷ ours |"]
    lines.append("|---|---|---|---|---|---|")
    for ours, theirs in pairs:
        if ours not in runs or theirs not in runs:
            continue
        found = paired(runs[ours], runs[theirs])
        cell, count = "not known", "–"
        if found:
            quality, difference, low, high, count = found
            cell = f"{quality} {difference:+.4f} ({low:+.4f} to {high:+.4f})"
        a, b = violations(runs[ours]), violations(runs[theirs])
        ratio = f"{b / a:.2f}" if a else ("∞" if b else "–")
        lines.append(f"| {ours} | {theirs} | {cell} | {count} | {a} / {b} | {ratio} |")
    return "\n".join(lines)


def outcomes(runs):
    """What pictures were made from, by the steps of their plans, and what they are worth."""
    lines = ["| run | made from | steps of the plan | pictures | share skipped | fidelity |", "|---|---|---|---|---|---|"]
    for name, run in runs.items():
        groups = {}
        for row in run["requests"]:
            ours = row["pentimento"]
            if row["fate"] == "good" and row["fidelity"] is not None and ours["outcome"] in ("miss", "state"):
                steps = next((label for most, label in BUCKETS if ours["steps"] <= most), BUCKETS[-1][1])
                share = ours["skipped_steps"] / max(1, ours["steps"])
                groups.setdefault((ours["outcome"], steps), []).append((share, row["fidelity"]))
        order = [(outcome, label) for outcome in ("miss", "state") for _, label in BUCKETS]
        for outcome, steps in (key for key in order if key in groups):
            shares, fidelities = zip(*groups[outcome, steps])
            origin = "noise" if outcome == "miss" else "a state"
            lines.append(f"| {name} | {origin} | {steps} | {len(shares)} | {mean(shares):.2f} | {mean(fidelities):.3f} |")
    return "\n".join(lines)


def shown(runs):
    """How soon whole stored pictures came."""
    lines = ["| run | stored pictures shown | p50 ms | p90 ms | most ms |", "|---|---|---|---|---|"]
    for name, run in runs.items():
        hits = [row for row in run["requests"] if (row["pentimento"] or {}).get("outcome") == "exact"]
        times = [row["latency_ms"] for row in hits if row["fate"] in ("good", "late")]
        if times:
            numbers = " | ".join(f"{time:.0f}" for time in (quantile(times, 0.5), quantile(times, 0.9), max(times)))
            lines.append(f"| {name} | {len(times)} | {numbers} |")
    return "\n".join(lines)


def plot(runs, groups, path):
    """Goodput against quality, a panel for each load; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = [g for g in groups if any(name.startswith(g) for name in runs)]
    quality = measured(runs.values())
    fig, axes = plt.subplots(2, -(-len(groups) // 2), figsize=(12, 9), squeeze=False, constrained_layout=True)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    names = sorted({name.split(" ", 2)[2] for name in runs})
    for axis, group in zip(axes.flat, groups):
        for i, setting in enumerate(names):
            run = runs.get(f"{group} {setting}")
            value = run and run["summary"][quality]["completed"]
            if value is not None:
                marker = "s" if setting.endswith("cache") else "o"
                axis.plot(run["summary"]["goodput"], value, marker, ms=9, color=f"C{i}", label=setting)
        axis.set_title(group)
        axis.set_xlabel("share answered within the objective")
        axis.set_ylabel(f"mean {quality.replace('_', ' ')} of the answers")
        axis.set_xlim(-0.03, 1.03)
        axis.grid(alpha=0.3)
    handles = {}
    for axis in axes.flat:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels())}
    axes.flat[0].legend(handles.values(), handles.keys(), fontsize=8)
    fig.savefig(path, dpi=110)
