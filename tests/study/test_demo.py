"""The demonstration: everything is there, started again it does nothing twice, and it is the same by command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moce
from moce.errors import UserError

METHODS = ["MAE", "MAE*", "TokenMoE", "MoCE"]


def everything(folder: Path) -> dict[str, int]:
    """Time of the last change of every file that says that something is done."""
    names = ("result.json", "model.safetensors")
    found = [p for p in folder.rglob("*") if p.name in names or p.parent.name == "evaluations"]
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in found}


def test_every_part_is_there(demonstration: Path) -> None:
    for name in ("mae", "clusters", "moce", "tokenmoe", "mae-star", "custom/creatures", "custom/letters"):
        assert (demonstration / name / "result.json").is_file()
    results = [json.loads(p.read_text()) for p in (demonstration / "evaluations").iterdir()]
    measured = {(r["task"], r["method"], r["protocol"]) for r in results}
    assert measured == {
        (t, m, p) for t in ("creatures", "letters") for m in METHODS for p in ("knn", "linear")
    }
    assert (demonstration / "report.html").stat().st_size > 50_000


def test_started_again_it_leaves_alone_what_is_finished(
    demonstration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(demonstration)
    (demonstration / "report.html").unlink()
    found = moce.demo(out=demonstration, preset="debug", device="cpu")
    assert everything(demonstration) == before
    assert (demonstration / "report.html").is_file()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["linear", *METHODS]
    assert [row[0] for row in rows[1:4]] == ["creatures", "letters", "mean"]
    values = [float(value.rstrip("*")) for value in rows[3][-4:]]
    assert values == pytest.approx([100 * found["means"][method] for method in METHODS], abs=0.051)


def test_evaluations_of_an_earlier_model_are_made_anew(demonstration: Path) -> None:
    from moce.study.demo import newer

    file, result = (
        demonstration / "evaluations" / "letters-MAE-knn.json",
        demonstration / "mae" / "result.json",
    )
    assert newer(file, result)
    assert not newer(result, file)
    assert not newer(demonstration / "nothing", result)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    with pytest.raises(UserError, match="is a file; name a folder"):
        moce.demo(out=tmp_path / "demo", preset="debug", quiet=True)


def test_the_command_continues_it(demonstration: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    before = everything(demonstration)
    done = cli(
        "demo", "--preset", "debug", "--device", "cpu", "--out", demonstration, "--json", tmp_path / "demo.json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["linear", *METHODS]
    assert "report.html" in done.stderr
    assert everything(demonstration) == before
    assert json.loads((tmp_path / "demo.json").read_text())["verb"] == "demo"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_from_nothing(cli: Callable[..., Any], tmp_path: Path) -> None:
    done = cli("demo", "--preset", "debug", "--out", tmp_path / "new", timeout=850)
    assert done.code == 0, done.stderr
    assert (tmp_path / "new" / "report.html").is_file()
    again = cli("inspect", tmp_path / "new" / "moce")
    assert "(MoCE), finished" in again.stdout
