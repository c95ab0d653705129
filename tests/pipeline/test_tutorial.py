"""docs/tutorial.md does what it says: its blocks run as they stand, in their order, in an empty folder."""

import json
import re
import shlex
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"


def blocks() -> list[tuple[str, str]]:
    return re.findall(
        r"^```(bash|python|toml)\n(.*?)^```$", TUTORIAL.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )


def test_every_block_of_the_tutorial_runs(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOCE_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    kinds = []
    for kind, text in blocks():
        kinds.append(kind)
        if kind == "toml":
            (tmp_path / "study.toml").write_text(text)
            continue
        if kind == "python":
            exec(compile(text, f"tutorial block {len(kinds)}", "exec"), names)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            assert program == "moce"
            done = command(*arguments)
            assert done.code == 0, f"{line}\n{done.stderr}"
    assert kinds == ["python", "bash", "python", "bash", "toml", "bash"]

    page = (tmp_path / "rehearsal/report.html").read_text("utf-8")
    assert "MoCE" in page and len(page) > 50_000
    scores = {
        n: json.loads((tmp_path / f"rehearsal/{n}.json").read_text()) for n in ("mae", "mae-star", "experts")
    }
    assert [scores[n]["method"] for n in scores] == ["MAE", "MAE*", "MoCE"]
    assert all(score["num_test"] == 60 and 0 <= score["value"] <= 1 for score in scores.values())
    assert torch_loss(names) > 0
    study = json.loads((tmp_path / "rehearsal/study/result.json").read_text())
    assert study["finished"] and study["primary"]["tasks"] == 1 and study["seeds"] == [0, 1, 2]


def torch_loss(names: dict[str, object]) -> float:
    return float(names["loss"].detach())  # type: ignore[attr-defined]


def test_the_losses_it_calls_normal_are_those_of_the_measured_run() -> None:
    curve = json.loads((TUTORIAL.parents[1] / "results" / "main-job.json").read_text())["curves"]["mae"]
    rows = re.findall(
        r"^\| (?:`pretrain`, passes over the pictures|loss) \|(.*)\|$", TUTORIAL.read_text("utf-8"), re.M
    )
    passes, told = ([float(cell) for cell in row.split("|")] for row in rows)
    assert passes == [round(point["epoch"], 1) for point in curve]
    assert told == [round(point["loss"], 2) for point in curve]
