"""Pictures that evaluations left behind: what was to be found, and what a model found."""

from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from moce.study.figures import data_uri, scale_for


def prediction_rows(results: list[dict[str, Any]], budget: float) -> list[dict[str, Any]]:
    """Each evaluation whose pictures are still there, with them; all of them have `budget` pixels at most."""
    found = [(result, [image for path in paths_of(result) if (image := opened(path))]) for result in results]
    number = sum(len(images) for _, images in found)
    rows = []
    for result, images in found:
        scaled = [shrunk(image, scale_for(number, image.height, image.width, budget)) for image in images]
        if scaled:
            names = {name: result[name] for name in ("method", "task", "protocol", "model")}
            rows.append({**names, "pictures": [data_uri(image) for image in scaled]})
    return rows


def paths_of(result: dict[str, Any]) -> list[Path]:
    """Where the pictures of a result lie: beside its file, or in the folder that it names."""
    pictures = result.get("pictures")
    names = [name for name in pictures if isinstance(name, str)] if isinstance(pictures, list) else []
    beside = Path(result["file"]).parent
    folders = [beside, beside / Path(result["file"]).stem, Path(str(result.get("folder", beside)))]
    # A name with a path in it is none that was written here.
    plain = [name for name in names if Path(name).name == name]
    return [next((f / name for f in folders if (f / name).is_file()), beside / name) for name in plain]


def opened(path: Path) -> Image.Image | None:
    """A picture; None where it is gone or broken, for the numbers are worth showing without it."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        return None


def shrunk(image: Image.Image, scale: float) -> Image.Image:
    """A picture at this scale."""
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
