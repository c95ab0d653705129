"""What every test can ask for: pictures, packs, the command line as a real process; and which tests run where.

Nothing here imports moce or torch: the shapes in moce's signatures are checked by an import hook (see `addopts` in
pyproject.toml), which must be in place before the first `import moce`, and a test of the command line needs no torch.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Protocol

import hypothesis
import numpy as np
import pytest
from PIL import Image
from shared import PATIENCE, made_once

REPOSITORY = Path(__file__).resolve().parent.parent

# One thread each: the suite runs in as many processes as there are cores, small products are faster so, and the sums
# of a test come out the same alone and beside others. Set before torch and numpy load; child processes inherit it.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
# No test may depend on a hub; one that tries fails at once instead of waiting for the network.
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"
os.environ["MPLBACKEND"] = "Agg"

# The same examples on every run; however long they take, since the first call of an operator is slow, and machines are.
hypothesis.settings.register_profile(
    "moce",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=True,
    database=None,
    max_examples=50,
)
hypothesis.settings.load_profile("moce")


# Which tests run where ---------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow (minutes each)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {
        "slow": "" if config.getoption("--slow") else "slow: runs with --slow",
        "packs": "" if packs_folder() else NO_PACKS,
        "browser": "" if chromium() else "browser: no chromium on PATH",
    }
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        reasons["gpu"] = "" if torch.cuda.is_available() else "gpu: no CUDA device here"
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


NO_PACKS = "packs: no folder ../shared/packs beside the checkout and MOCE_PACKS is not set"


def packs_folder() -> Path | None:
    """The folder with the small real data sets (a parquet pair each): MOCE_PACKS, else ../shared/packs."""
    folder = Path(os.environ.get("MOCE_PACKS") or REPOSITORY.parent / "shared" / "packs")
    return folder if folder.is_dir() else None


def chromium() -> str | None:
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


# Fixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def packs() -> Path:
    """The folder with the real data packs; the test is skipped where there is none."""
    folder = packs_folder()
    if folder is None:
        pytest.skip(NO_PACKS)
    return folder


@pytest.fixture(scope="session")
def browser() -> str:
    """The path of a Chromium; the test is skipped where there is none."""
    path = chromium()
    if path is None:
        pytest.skip("browser: no chromium on PATH")
    return path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of 3 classes in sub-folders, PNG and JPEG, sizes from 24 to 40 pixels; copy it before changing it.

    Index order is by name: blobs (0 to 7), rings (8 to 15), stripes (16 to 23).
    """
    folder = tmp_path_factory.mktemp("tiny-folder")
    for label, name in enumerate(["blobs", "rings", "stripes"]):
        (folder / name).mkdir()
        for number in range(8):
            picture = Image.fromarray(draw(name, np.random.default_rng([label, number])))
            if number % 2:
                picture.save(folder / name / f"{number}.jpg", quality=92)
            else:
                picture.save(folder / name / f"{number}.png")
    return folder


def draw(kind: str, rng: np.random.Generator) -> np.ndarray:
    """One picture, uint8[height, width, 3]: two colours, mixed by a pattern that the class fixes."""
    height, width = rng.integers(24, 41, size=2)
    y, x = np.mgrid[0:height, 0:width]
    distance = np.hypot(y - height * rng.uniform(0.3, 0.7), x - width * rng.uniform(0.3, 0.7))
    period = rng.uniform(5, 8)
    pattern = {
        "blobs": np.exp(-((distance / period) ** 2)),
        "rings": 0.5 + 0.5 * np.cos(2 * np.pi * distance / period),
        "stripes": (x // (period / 2) % 2).astype(float),
    }[kind]
    dark, light = rng.integers(0, 100, 3), rng.integers(150, 256, 3)
    return (dark + pattern[..., None] * (light - dark)).astype(np.uint8)


class Finished(NamedTuple):
    """A process that ended: exit code, and everything it printed."""

    code: int
    stdout: str
    stderr: str


class CommandLine(Protocol):
    def __call__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        timeout: float = PATIENCE,
    ) -> Finished: ...


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """The command `moce` as a real process: `cli("cluster", encoder, "--images", folder)` -> (code, stdout, stderr).

    It runs in an empty folder unless `cwd` says otherwise; `env` adds to the environment.
    """
    script = Path(sys.executable).parent / "moce"
    command = [str(script)] if script.exists() else [sys.executable, "-m", "moce"]
    home = tmp_path_factory.mktemp("cli")

    def run(
        *arguments: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        timeout: float = PATIENCE,
    ) -> Finished:
        done = subprocess.run(
            [*command, *map(str, arguments)],
            cwd=cwd or home,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "120", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


# Runs --------------------------------------------------------------------------------------------------------------

TOY = "toyworld://all?split=train&num=256&size=32"


class SmallRuns(NamedTuple):
    """Finished runs of the debug preset on 256 built-in pictures: all stages, all gates. Read only."""

    images: str
    mae: Path
    clusters: Path
    moce: Path
    token_moce: Path
    mae_star: Path


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    """Every stage once, shared by all processes of a test session."""

    def make(folder: Path) -> None:
        import moce

        mae, clusters = folder / "mae", folder / "clusters"
        moce.pretrain(images=TOY, out=mae, preset="debug", quiet=True)
        moce.cluster(mae, images=TOY, out=clusters, quiet=True)
        for name, gate in {"moce": "cluster", "tokenmoe": "token", "mae-star": "none"}.items():
            moce.train_experts(mae, clusters, images=TOY, gate=gate, out=folder / name, quiet=True)

    folder = made_once(tmp_path_factory, "small-runs", make)
    return SmallRuns(TOY, *(folder / name for name in ("mae", "clusters", "moce", "tokenmoe", "mae-star")))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line inside this process: what `cli` gives, without paying for the start of a process."""

    def run(*arguments: object, cwd: Path | None = None, **_: object) -> Finished:
        from moce.__main__ import main

        monkeypatch.setattr(sys, "argv", ["moce", *map(str, arguments)])
        if cwd is not None:
            monkeypatch.chdir(cwd)
        before = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            signal.signal(signal.SIGTERM, before)
        return Finished(code, *capsys.readouterr())

    return run
