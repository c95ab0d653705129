"""The rows of the study `efficiency` as tables, for a file and for the page: one for each part and model."""

from dataclasses import dataclass
from typing import Any

TITLES = {
    "training": "One step of training",
    "inference": "Features of a batch",
    "search": "The search for a task's sub-model",
}


@dataclass(frozen=True)
class CostTable:
    """A table of texts; the first column is of names, the others of numbers."""

    title: str
    about: str
    columns: list[str]
    lines: list[list[str]]


def cost_tables(rows: list[dict[str, Any]]) -> list[CostTable]:
    """Rows in the order of the parts."""
    found = []
    for part, title in TITLES.items():
        for model in dict.fromkeys(row["setting"]["model"] for row in rows if row["part"] == part):
            own = [row for row in rows if row["part"] == part and row["setting"]["model"] == model]
            found.append(CostTable(title, described(own[0]), columns(part), [cells(row) for row in own]))
    return found


def markdown(tables: list[CostTable]) -> str:
    """The tables for a file."""
    blocks = []
    for table in tables:
        lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.lines]
        drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        blocks.append(f"### {table.title}: {table.about}\n\n{drawn}\n")
    return "\n".join(blocks)


def described(row: dict[str, Any]) -> str:
    """'vit-ti/8, 64 pixels, 128 pictures, fp32, cpu'."""
    setting = row["setting"]
    size = setting["image_size"]
    pixels = f"{size} pixels" if isinstance(size, int) else f"{size[0]}x{size[1]} pixels"
    parts = [setting["model"], pixels, f"{row['images']} pictures", setting["precision"], setting["device"]]
    if row["part"] == "search":
        layers = ", ".join(map(str, setting["layers"]))
        parts.append(
            f"{setting['num_clusters']} clusters, {setting['num_experts']} experts in blocks {layers}"
        )
    return ", ".join(parts)


def columns(part: str) -> list[str]:
    """The heads of a table."""
    if part == "search":
        return ["strategy", "sub-models tried", "seconds", "times the vote", "MiB"]
    dense = "MAE" if part == "training" else "the dense model"
    return [
        "method", "parameters (M)", "active (M)", "GFLOPs, all experts", "GFLOPs, active", "pictures/s",
        f"of {dense}", "MiB",
    ]  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    """A line of a table."""
    memory = f"{row['peak_bytes'] / 2**20:,.0f}"
    if row["part"] == "search":
        times = 1 / row["ratio"]
        return [row["method"], str(row["tried"]), f"{row['seconds_median']:.2f}", f"{times:.1f}", memory]
    millions = [f"{row[name] / 1e6:.2f}" for name in ("parameters", "active_parameters")]
    flops = [f"{row[name] / 1e9:.3f}" for name in ("flops", "active_flops")]
    return [
        row["method"],
        *millions,
        *flops,
        f"{row['images_per_second']:,.0f}",
        f"{row['ratio']:.2f}",
        memory,
    ]
