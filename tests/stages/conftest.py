"""Pictures, and folders that `moce prepare` made of them: for its tests, which are in two files."""

import shutil
from pathlib import Path

import pytest
from prepared_formats import FORMATS


@pytest.fixture(scope="session")
def pictures_to_prepare(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny folder and, at index 9, a picture that is cut off."""
    folder = tmp_path_factory.mktemp("pictures") / "in"
    shutil.copytree(tiny_folder, folder)
    data = (folder / "rings" / "1.jpg").read_bytes()
    (folder / "rings" / "1.jpg").write_bytes(data[: len(data) // 2])
    return folder


@pytest.fixture(scope="session")
def prepared(pictures_to_prepare: Path) -> Path:
    """All formats, in files of a few pictures."""
    import moce

    for kind in FORMATS:
        out = pictures_to_prepare.parent / kind
        moce.prepare(
            images=pictures_to_prepare,
            out=out,
            short_side=20,
            format=kind,
            shard_mib=0.004,
            num_workers=0,
            quiet=True,
        )
    return pictures_to_prepare.parent
