"""Puts the committed results where the dashboard and the README read them: ``python -m tests.benchmarks.publish``.

Reads the JSON files of ``tests/benchmarks/results``, and writes ``data/measured_speed.json`` and the picture
``docs/images/speed.png``. A result that does not say its day is stamped with today's, in its own file.
"""

import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvtuner_core.domain.speed import CacheStep, LargestBatch, MeasuredSpeed, SpeedOrigin, SpeedRow, SpeedTable
from kvtuner_core.figures.speed import PAIR_COLOURS
from kvtuner_core.services.measured import MEASURED_FILE
from kvtuner_core.store import to_json

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "speed.png"
COMMANDS = {
    "decode_attention": "python -m tests.benchmarks.decode_attention --json",
    "decode_step": "python -m tests.benchmarks.decode_step --json --only steps",
    "decode_step_largest": "python -m tests.benchmarks.decode_step --json --only largest",
    "other_caches": "python -m tests.benchmarks.other_caches --json",
}
SHAPES = ("1 x 4k", "8 x 4k", "8 x 32k", "64 x 4k")
"""Shapes in the picture."""

INK, GREY = "#1b2430", "#5b6470"


def main() -> None:
    """Write the data file and the picture."""
    for name in COMMANDS:
        stamp(RESULTS / f"{name}.json")
    found = measured()
    MEASURED_FILE.write_text(to_json(found) + "\n", encoding="utf-8")
    draw(found, PICTURE)
    sys.stdout.write(f"{MEASURED_FILE.name} and {PICTURE.name} say what the results say.\n")


def stamp(path: Path) -> None:
    """Write today's date into a result that has none."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if "date" not in result:
        result = {"device": result.pop("device"), "date": f"{datetime.now(UTC):%Y-%m-%d}", **result}
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measured() -> MeasuredSpeed:
    """The committed results as the value that ships."""
    attention, step, largest, caches = (load(name) for name in COMMANDS)
    return MeasuredSpeed(
        attention=SpeedTable(
            origin=origin(attention, "decode_attention"),
            # A perfect bf16 reads its bytes at copy bandwidth: bytes of bf16 over ours.
            rows=tuple(row(one, one["perfect_speedup"] / one["bandwidth_fraction"]) for one in attention["rows"]),
        ),
        step=SpeedTable(
            origin=origin(step, "decode_step"), rows=tuple(row(one, one["ceiling"]) for one in step["rows"])
        ),
        largest=tuple(
            LargestBatch(**{name: one[name] for name in ("pair", "length", "batch", "tokens_per_second")})
            for one in largest["largest"]
        ),
        largest_origin=origin(largest, "decode_step_largest"),
        caches=tuple(cache_step(one) for one in caches["others"] if "ms" in one),
        caches_origin=origin(caches, "other_caches"),
    )


def load(name: str) -> dict[str, Any]:
    """One committed result."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def origin(result: dict[str, Any], name: str) -> SpeedOrigin:
    """Where a result comes from."""
    return SpeedOrigin(
        device=result["device"],
        versions=tuple((library, version) for library, version in result["versions"].items()),
        date=result["date"],
        command=COMMANDS[name],
        copy_gb_per_s=result["copy_gb_per_s"],
        note=result.get("note", ""),
    )


def row(one: dict[str, Any], ceiling: float) -> SpeedRow:
    """One row, in as many digits as are measured."""
    return SpeedRow(
        pair=one["pair"],
        scheme=one["scheme"],
        batch=one["batch"],
        length=one["length"],
        ms=float(f"{one['ms']:.5g}"),
        full_ms=float(f"{one['bf16_ms']:.5g}"),
        speedup=round(one["speedup"], 3),
        ceiling=round(ceiling, 3),
    )


def cache_step(one: dict[str, Any]) -> CacheStep:
    """One cache at one length."""
    return CacheStep(
        cache=one["cache"],
        length=one["length"],
        ms=one["ms"],
        first_ms=one["first_ms"],
        requantise_ms=one.get("requantise_ms", 0.0),
        eager_faster=one.get("ours_eager_faster"),
        graph_faster=one.get("ours_graph_faster"),
    )


def digest(found: MeasuredSpeed) -> str:
    """What a picture of these numbers is marked with."""
    return hashlib.sha256(to_json(found).encode()).hexdigest()


def draw(found: MeasuredSpeed, path: Path) -> None:
    """Speed-up per pair of attention alone and of a whole step, with what the bytes would allow."""
    figure = Figure(figsize=(11.4, 4.6), dpi=110, facecolor="white")
    left, right = figure.subplots(1, 2)
    panel(left, found.attention, "Attention of a layer alone")
    panel(right, found.step, "A whole decode step, weights and all")
    left.set_ylabel("times faster than bf16", color=GREY)
    figure.suptitle(
        f"Decoding from the packed cache on an {found.step.origin.device}: Llama-3.1-8B's geometry, "
        "one scale a token and head",
        fontsize=12,
        x=0.014,
        ha="left",
        color=INK,
    )
    figure.tight_layout(rect=(0, 0.07, 1, 1), w_pad=3)
    handles, labels = left.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: labels[index] not in PAIR_COLOURS)
    figure.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        fontsize=9,
        frameon=False,
        ncols=len(labels),
        loc="lower center",
        labelcolor=INK,
    )
    figure.savefig(path, metadata={"Description": digest(found), "Software": None})


def panel(axes: Axes, table: SpeedTable, title: str) -> None:
    """Bars of the drawn shapes, pair by pair, and a tick where the bytes' limit is."""
    rows = {(row.pair, row.shape): row for row in table.of_scheme("per-token")}
    pairs = list(dict.fromkeys(pair for pair, _ in rows))
    width = 0.86 / len(pairs)
    for place, pair in enumerate(pairs):
        mine = [rows[pair, shape] for shape in SHAPES]
        at = [index + (place - (len(pairs) - 1) / 2) * width for index in range(len(SHAPES))]
        axes.bar(at, [row.speedup for row in mine], 0.92 * width, color=PAIR_COLOURS[pair], label=pair)
        for x, row in zip(at, mine, strict=True):
            ink = INK if pair in ("K4V4", "K4V2", "K8V4") else "white"
            axes.annotate(
                f"{row.speedup:.1f}",
                (x, 0),
                xytext=(0, 4),
                textcoords="offset points",
                fontsize=8.5,
                color=ink,
                ha="center",
            )
        limits = axes.hlines(
            [row.ceiling for row in mine],
            [x - 0.44 * width for x in at],
            [x + 0.44 * width for x in at],
            color=GREY,
            linewidth=1.4,
        )
    limits.set_label("allowed by the bytes")
    axes.axhline(1, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="bf16, the fastest attention")
    axes.set_xticks(range(len(SHAPES)), SHAPES)
    axes.set_xlabel("batch x tokens", color=GREY, fontsize=9)
    axes.set_title(title, fontsize=10.5, loc="left", color=INK)
    axes.set_xlim(-0.5, len(SHAPES) - 0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=9, colors=GREY)
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)


if __name__ == "__main__":
    main()
