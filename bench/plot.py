"""Draws results.json as docs/performance.png: tokens per second and peak memory by length."""

import json

import matplotlib.pyplot as plt
from step import HERE, RESULT

NAMES = {"ours": "SeekTune", "theirs": "transformers 5.23"}


def main() -> None:
    """Two panels."""
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["steps"]["rows"]
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for key, label in NAMES.items():
        found = [(row["length"], row[key]) for row in rows if key in row]
        lengths = [length for length, _ in found]
        speed.plot(lengths, [x["tokens_per_s"] for _, x in found], "o-", label=label)
        memory.plot(lengths, [x["peak_gb"] for _, x in found], "o-", label=label)
    speed.set(ylabel="tokens per second", title="Training step, 16.8 M model, fp32")
    memory.set(ylabel="peak memory, GB", title="Process")
    for panel in (speed, memory):
        panel.set(xscale="log", yscale="log", xlabel="tokens")
        panel.set_xticks([row["length"] for row in rows], [str(row["length"]) for row in rows], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    speed.legend(frameon=False)
    figure.savefig(HERE.parent / "docs" / "performance.png", dpi=110)


if __name__ == "__main__":
    main()
