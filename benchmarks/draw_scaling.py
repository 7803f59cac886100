"""``scaling.csv`` to a picture; runs in the peers' environment, see ``scaling``."""

import csv
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"float32": "tab:blue", "bfloat16": "tab:orange", "int8": "tab:green"}
AXES = {"texts": "texts in the batch, 32 tokens each", "tokens": "tokens in a text, 8 texts"}


def main() -> None:
    """One panel an axis; a dotted line is the roof of the dtype in its colour."""
    source, target = map(Path, sys.argv[1:3])
    with source.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    most = max(int(line["threads"]) for line in lines)
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
        for dtype, colour in COLOURS.items():
            for threads in sorted({int(line["threads"]) for line in lines}):
                own = [
                    line
                    for line in lines
                    if line["dtype"] == dtype and int(line["threads"]) == threads
                ]
                drawn = [line for line in own if line["axis"] == axis]
                style = "-o" if threads == most else "--o"
                panel.plot(
                    [int(line[axis]) for line in drawn],
                    [float(line["tokens_per_s"]) / 1e3 for line in drawn],
                    style,
                    color=colour,
                    markersize=3,
                    label=f"{dtype}, {threads} thread{'s' * (threads > 1)}",
                )
                for line in own:
                    if line["axis"] == "roof" and threads == most:
                        roof = float(line["tokens_per_s"]) / 1e3
                        panel.axhline(roof, color=colour, linestyle=":", linewidth=1)
        panel.set(xscale="log", xlabel=label, ylim=(0, None))
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("thousand tokens/s")
    panels[0].legend(fontsize=8)
    figure.suptitle(f"all-MiniLM-L6-v2; dotted: best large matrix product, {most} threads")
    figure.tight_layout()
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main()
