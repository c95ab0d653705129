"""The script that lays the loss of one training beside another's, on the small runs."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from moce.errors import UserError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "losses.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("losses", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parts_are_compared_by_the_steps_that_were_logged(script: ModuleType) -> None:
    own, other = {1: 2.0, 2: 4.0, 3: 3.0}, {1: 1.0, 2: 3.0, 3: 3.0}
    assert script.larger(own, other, 2) == [100.0, pytest.approx(16.667)]
    with pytest.raises(UserError, match="logged 3 steps, fewer than --parts 4"):
        script.larger(own, other, 4)
    with pytest.raises(UserError, match="logged other steps: give runs of the same --log-steps"):
        script.larger(own, {2: 1.0, 4: 3.0}, 1)  # each a mean over the steps since the one before
    with pytest.raises(UserError, match="--parts must be at least 1, not 0"):
        script.larger(own, other, 0)


def test_runs_that_saw_other_pictures_are_refused(script: ModuleType, small_runs, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(small_runs.mae_star, other)
    config = json.loads((other / "config.json").read_text())
    config["options"]["seed"] = 1
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"differ in the option 'seed' \(0 and 1\)"):
        script.losses(str(small_runs.moce), str(other))
    config["options"]["seed"], config["inputs"]["images"] = 0, "others"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"differ in the input 'images' \(.* and others\)"):
        script.losses(str(small_runs.moce), str(other))


def test_it_reads_runs_and_writes_down_what_it_found(
    script: ModuleType, small_runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other, out = str(small_runs.moce), str(small_runs.mae_star), tmp_path / "losses.json"
    words = ["losses.py", own, other, "--against", other, "--parts", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    script.main()
    found = json.loads(out.read_text())
    first, second = (row["larger_by_percent"] for row in found["rows"])
    assert [row["against"] for row in found["rows"]] == [other, other] and second == [0.0, 0.0] and any(first)
    monkeypatch.setattr("sys.argv", ["losses.py", own, "--against", own, other])
    with pytest.raises(UserError, match="--against names 2 runs for 1"):
        script.main()
