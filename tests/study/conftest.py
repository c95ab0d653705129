"""One small demonstration for all tests here: every kind of run, customised models and evaluations."""

from pathlib import Path
from typing import Any

import pytest
from comparisons import settings


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `moce demo --preset debug` leaves; leave it as it is."""
    import moce

    out = tmp_path_factory.mktemp("demonstration") / "demo"
    moce.demo(out=out, preset="debug", quiet=True, device="cpu")
    return out


@pytest.fixture(scope="session")
def parts(demonstration: Path) -> list[str]:
    """Everything that a page can be made of, in an order that helps nobody."""
    folders = [
        demonstration / name for name in ("moce", "custom/letters", "mae-star", "clusters", "mae", "tokenmoe")
    ]
    return [str(p) for p in [*sorted((demonstration / "evaluations").glob("*.json")), *folders]]


@pytest.fixture(scope="session")
def study(small_runs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study; copy it before changing it."""
    import moce

    folder = tmp_path_factory.mktemp("compare")
    file = settings(small_runs, folder)
    moce.study("compare", out=folder / "study", config=file, quiet=True, device="cpu")
    return folder
