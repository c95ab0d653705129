"""`--hash-content`: pictures are known again by their bytes, too, when a run is continued or clusters are used."""

from collections.abc import Mapping
from pathlib import Path

from moce.config import ClusterConfig, CustomizeConfig, ExpertsConfig, PrepareConfig, PretrainConfig
from moce.engine.processes import group
from moce.engine.progress import say
from moce.engine.runs import BYTES, earlier_run, read_run
from moce.errors import UserError
from moce.images.content import content_fingerprint
from moce.images.reading import forget
from moce.images.sources import Source


def with_bytes(
    inputs: Mapping[str, str],
    source: Source,
    verb: str,
    config: PretrainConfig | ClusterConfig | ExpertsConfig | CustomizeConfig | PrepareConfig,
) -> dict[str, str]:
    """The inputs of a run, where it is asked for with the bytes of the images.

    UserError for an --out that can be refused before all of them are read.
    """
    if not config.hash_content:
        return dict(inputs)
    group().once(lambda: earlier_run(Path(config.out), verb, config, inputs) and None)
    forget()  # what this process has decoded may have been other pictures
    return {**inputs, BYTES: content_fingerprint(source, config.quiet)}


def require_same_bytes(clusters: str, inputs: Mapping[str, str], quiet: bool) -> None:
    """UserError where clusters are of pictures with other bytes; a line where nobody knows of which."""
    before, now = read_run(clusters, "cluster").inputs.get(BYTES), inputs.get(BYTES)
    if now is not None and before is None:
        say(
            f"{clusters} was made without --hash-content: whether its pictures had these bytes is not known",
            quiet,
        )
    elif now is not None and now != before:
        raise UserError(
            f"The clusters in {clusters} are of other pictures: names and sizes are the same, but not all bytes "
            "(--hash-content); run `moce cluster` on these."
        )
