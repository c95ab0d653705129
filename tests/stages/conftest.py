"""What the tests of `moce prepare` share."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pictures(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny folder and, at index 9, a picture that is cut off."""
    folder = tmp_path_factory.mktemp("pictures") / "in"
    shutil.copytree(tiny_folder, folder)
    data = (folder / "rings" / "1.jpg").read_bytes()
    (folder / "rings" / "1.jpg").write_bytes(data[: len(data) // 2])
    return folder


@pytest.fixture(scope="session")
def prepared(pictures: Path) -> Path:
    """All formats, in files of a few pictures."""
    import moce

    for kind in ("parquet", "tar", "array"):
        out = pictures.parent / kind
        moce.prepare(
            images=pictures, out=out, short_side=20, format=kind, shard_mib=0.004, num_workers=0, quiet=True
        )
    return pictures.parent
