"""`--hash-content`: pictures are known again by their bytes, too, when a run is continued or clusters are used."""

from collections.abc import Mapping
from pathlib import Path

from moce.config import Pictures
from moce.engine.processes import group
from moce.engine.progress import say
from moce.engine.runs import BYTES, earlier_run, read_run
from moce.errors import UserError
from moce.images.content import content_fingerprint
from moce.images.reading import CACHE_GIB, forget, survey
from moce.images.sources import Source


def with_bytes(
    inputs: Mapping[str, str], source: Source, verb: str, config: Pictures, out: str
) -> dict[str, str]:
    """The inputs of a run, where it is asked for with the bytes of the images.

    UserError for an `out` or pictures that can be refused before all of them are read. A run that was begun without the
    option stays without: of which pictures it has seen so far nobody knows the bytes.
    """
    if not config.hash_content:
        return dict(inputs)

    def begun_without() -> bool:
        earlier = earlier_run(Path(out), verb, config, inputs)
        return earlier is not None and not config.overwrite and BYTES not in earlier.inputs

    if group().once(begun_without):
        say(f"{out} was begun without --hash-content: of its pictures no bytes are compared", config.quiet)
        return dict(inputs)
    forget(source)  # what this process has decoded before may have been other pictures
    survey(source, config.quiet, getattr(config, "cache_gib", CACHE_GIB))
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
