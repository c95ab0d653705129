"""What was timed as rows of JSON, as a table, and as sentences."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from moce import __version__
from moce.engine.devices import peak_flops
from moce.study.bench.settings import KEYS
from moce.study.bench.timing import Timed

TITLES = ("row", "", "images/s", "seconds (min to max)", "MiB", "of peak", "ratio")


def rows_of(found: Sequence[Timed], device: torch.device) -> list[dict[str, Any]]:
    """A row for everything that was timed, each compared with the fastest row that it is to be compared with.

    `ratio` is images_per_second over that of row number `against_row`, whose name is `against`. A row whose counterpart
    was not measured in the same setting, or that has none, stands against itself.
    """
    rows: list[dict[str, Any]] = []
    for timed in found:
        speed = timed.variant.images / timed.median
        peak = peak_flops(device.type, timed.variant.setting["precision"] == "bf16")
        rows.append(
            {
                "name": timed.variant.name,
                "setting": timed.variant.setting,
                "images": timed.variant.images,
                "images_per_second": speed,
                "seconds_median": timed.median,
                "seconds_min": min(timed.seconds),
                "seconds_max": max(timed.seconds),
                "peak_bytes": timed.peak_bytes,
                "utilisation": timed.flops_per_image * speed / peak,
            }
        )
    for number, (row, timed) in enumerate(zip(rows, found, strict=True)):
        rivals = [
            i
            for i, other in enumerate(rows)
            if i != number and other["name"] == timed.variant.against and same_setting(row, other)
        ]
        best = max(rivals, key=lambda i: rows[i]["images_per_second"], default=number)
        row["ratio"] = row["images_per_second"] / rows[best]["images_per_second"]
        row["against"], row["against_row"] = rows[best]["name"], best
    return rows


def same_setting(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows are about the same model, size, batch, precision and device."""
    return all(row["setting"][key] == other["setting"][key] for key in KEYS)


def machine(device: torch.device) -> dict[str, Any]:
    """What the rows were measured on; peaks of matrix products in 10^9 FLOP/s."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "moce": __version__,
        "matmul_gflops": {
            "fp32": peak_flops(device.type, False) / 1e9,
            "bf16": peak_flops(device.type, True) / 1e9,
        },
        "load_average": os.getloadavg()[0],  # of the minute before: what else the machine was doing
    }


def details(row: dict[str, Any]) -> str:
    """What sets a row apart from others of its name."""
    setting = row["setting"]
    parts = [setting["model"], setting["precision"], f"batch {setting['batch_size']}"]
    parts += [setting["recipe"]] if "recipe" in setting else []
    if "attention" in setting:
        compiled = ", compiled" if setting["compiled"] else ""
        parts.append(f"attention {setting['attention']}{compiled}, {setting['optimizer']}")
    return ", ".join(parts)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a terminal."""
    lines = [TITLES]
    for row in rows:
        spread = f"{row['seconds_median']:.4g} ({row['seconds_min']:.4g} to {row['seconds_max']:.4g})"
        used = f"{row['utilisation']:.1%}" if row["utilisation"] else "-"
        alone = row["ratio"] == 1 and row["against"] == row["name"]
        ratio = "-" if alone else f"{row['ratio']:.3f}"
        speed, memory = f"{row['images_per_second']:,.1f}", f"{row['peak_bytes'] / 2**20:,.0f}"
        lines.append((row["name"], details(row), speed, spread, memory, used, ratio))
    widths = [max(len(line[i]) for line in lines) for i in range(len(TITLES))]
    left = (0, 1)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def sentences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One for each comparison."""
    found = []
    for number, row in enumerate(rows):
        if row["against_row"] != number:
            other = rows[row["against_row"]]
            found.append(
                f"{row['name']} ({details(row)}): {row['ratio']:.3f} times the images per second of {other['name']}"
                f"{'' if details(other) == details(row) else f' ({details(other)})'}."
            )
    return found
