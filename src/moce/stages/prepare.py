"""Before stage 0: any pictures as few files of small ones, which decode faster and are read front to back.

Worker processes shrink pictures (images/shrink.py), this process packs them (images/packing.py). After each file
prepared.json says how far the work is; a later process starts behind the last whole file and writes the same bytes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from moce.config import PrepareConfig
from moce.engine.devices import num_workers_of
from moce.engine.files import LOCK, require_space, sha256_of, write_whole
from moce.engine.progress import Track, say, track
from moce.engine.runs import CONFIG, Run, open_run
from moce.errors import UserError
from moce.images.decode import UnreadableImage, decode
from moce.images.loader import in_workers
from moce.images.packing import (
    append_names,
    append_rows,
    finish_array,
    stored_bytes,
    write_parquet,
    write_tar,
)
from moce.images.prepared import LABELS, MARKER, NAMES, PIXELS, Prepared, is_prepared, read_prepared
from moce.images.reading import refuse_if_many
from moce.images.shrink import Small, original_name, small_jpeg, small_square
from moce.images.sources import Source, open_images, require_apart
from moce.stages.feed import list_unreadable
from moce.stages.pictures import with_bytes
from moce.verbs import verb

CHUNK = 16  # pictures that a worker hands over at a time
LARGEST_CHUNK = 256  # of what is stored in row groups: that many small pictures wait in memory
SAMPLE = 48  # pictures that rates and sizes are estimated from
UNFINISHED = "images.unfinished"  # the array, until it is whole


@verb(PrepareConfig)
def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Shrink pictures and pack them into few files, in a folder that every verb takes as its --images.

    Returns {verb, out, seed, format, short_side, num_images, unreadable, copied, files, bytes_before, bytes_after,
    decoded_per_second_before, decoded_per_second_after, seconds}; None where it is not known.
    """
    if config.channels not in (1, 3):
        raise UserError(f"--channels must be 1 or 3, not {config.channels}.")
    source = open_images(config.images, config.channels if config.format == "array" else 3)
    require_apart(source, config.out)
    if config.format == "array" and config.quality != PrepareConfig.quality:
        say("--quality is not used: an array holds pixels", config.quiet)
    if config.format != "array" and config.channels != PrepareConfig.channels:
        say(f"--channels is not used: {config.format} files keep grey and colour as they are", config.quiet)
    inputs = with_bytes({"images": source.fingerprint()}, source, "prepare", config, config.out)
    with open_run(config.out, "prepare", config, inputs) as run:
        if run.finished:
            say(f"{run.path} is finished; --overwrite prepares the pictures again", config.quiet)
            return run.result()
        started = time.monotonic()
        about = begun(run, source, config)
        rates = look_ahead(run, source, about, config)
        pack_all(run, source, about, config)
        finish(run, source, about, config)
        result = {
            "verb": "prepare",
            "out": str(run.path),
            "seed": config.seed,
            "format": config.format,
            "short_side": config.short_side,
            "num_images": about.num_images,
            "unreadable": len(about.unreadable),
            "copied": about.copied,
            "files": len(about.shards),
            "bytes_before": about.bytes_before,
            "bytes_after": about.bytes_after,
            **rates,
            "seconds": round(time.monotonic() - started, 3),
        }
        tell(result, config)
        return run.finish(result)


def begun(run: Run, source: Source, config: PrepareConfig) -> Prepared:
    """How far the work in this folder is."""
    if is_prepared(run.path):
        about = read_prepared(run.path)
        if about.seen:
            say(f"{run.path} continues after {about.seen:,} of {about.num_source:,} pictures", config.quiet)
        return about
    channels = config.channels if config.format == "array" else 3
    about = Prepared(
        config.format, config.short_side, config.quality, channels, config.images, len(source), source.classes
    )
    about.write(run.path)
    return about


def shrinker(source: Source, config: PrepareConfig) -> Callable[[int], Small]:
    """What makes one small picture; where there is none, it says why."""

    def small(index: int) -> Small:
        try:
            if config.format == "array":
                return small_square(source, index, config.short_side, config.channels)
            return small_jpeg(source, index, config.short_side, config.quality)
        except UnreadableImage as error:
            return Small(index, original_name(source, index), reason=str(error))

    return small


def look_ahead(run: Run, source: Source, about: Prepared, config: PrepareConfig) -> dict[str, float | None]:
    """Prepare a few pictures to see what comes of it: refuse what will not fit on the disk, measure decoding.

    Returns {decoded_per_second_before, decoded_per_second_after}: pictures a second to tensors, by one core; after is
    None for an array, which needs no decoding, and both where the sample holds no readable picture.
    """
    indices = np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).round().astype(int).tolist()
    small = shrinker(source, config)
    found = [picture for picture in map(small, indices) if not picture.reason]
    if not found:
        return {"decoded_per_second_before": None, "decoded_per_second_after": None}
    labelled = source.labels is not None
    mean = sum(stored_bytes(picture, config.format, labelled) for picture in found) / len(found)
    left = (len(source) - about.seen) * mean
    say(
        f"preparing {len(source):,} pictures as {config.format}: about {len(source) * mean / 2**20:,.0f} MiB "
        f"({mean / 1024:,.1f} KiB each)",
        config.quiet,
    )
    # A tenth more, for the sample may have met the smaller ones, and for headers.
    require_space(run.path, int(1.1 * left) + 2**20)
    before = rate([partial(source.get, picture.number) for picture in found])
    after = None
    if config.format != "array":
        after = rate([partial(decode, picture.data) for picture in found])
    return {"decoded_per_second_before": before, "decoded_per_second_after": after}


def rate(calls: list[Callable[[], Any]]) -> float:
    """Calls a second: the better of two rounds."""
    rounds = []
    for _ in range(2):
        start = time.perf_counter()
        for call in calls:
            call()
        rounds.append(time.perf_counter() - start)
    return round(len(calls) / min(rounds), 1)


class Shrinking(Dataset):
    """Item i is chunk i of the pictures from index `start` on, made small in a worker process."""

    def __init__(self, source: Source, config: PrepareConfig, start: int) -> None:
        self.source, self.config = source, config
        self.chunks = list(chunks(source, start))

    def __getitem__(self, item: int) -> list[Small]:
        return list(map(shrinker(self.source, self.config), self.chunks[item]))


def chunks(source: Source, start: int) -> Iterator[range]:
    """All indices from `start` on in short runs, none across shards; a shard that is read as a whole is one run.

    So it is read by one worker, unless it has more pictures than should wait in memory.
    """
    size = LARGEST_CHUNK if getattr(source, "whole_shards", False) else CHUNK
    for shard in source.shards():
        for first in range(max(shard.start, start), shard.stop, size):
            yield range(first, min(first + size, shard.stop))


def pack_all(run: Run, source: Source, about: Prepared, config: PrepareConfig) -> None:
    """Everything that is not packed yet, file by file."""
    shrinking = Shrinking(source, config, about.seen)
    workers = num_workers_of(config.num_workers)
    pictures = chain.from_iterable(in_workers(shrinking, range(len(shrinking.chunks)), workers))
    with track(len(source), "preparing", quiet=config.quiet, done=about.seen) as progress, begun_or_gone(run):
        while about.seen < len(source):
            num_before = about.num_images
            of_file = pictures_of_file(pictures, run, source, about, config, progress)
            first = next(of_file, None)
            if first is not None:
                name = write_file(run.path, chain([first], of_file), num_before, source, about, config)
                if config.format != "array":
                    about.add_file(run.path / name, about.num_images - num_before)
            about.write(run.path)


def pictures_of_file(
    pictures: Iterator[Small],
    run: Run,
    source: Source,
    about: Prepared,
    config: PrepareConfig,
    progress: Track,
) -> Iterator[Small]:
    """The next pictures until they fill a file; counts them in `about`, which is written when the file is."""
    size = 0
    for picture in pictures:
        about.seen = picture.number + 1
        progress.advance()
        if picture.reason:
            about.unreadable.append((picture.number, picture.reason))
            refuse_if_many(source, about.unreadable, len(source), about.seen)
            continue
        about.num_images += 1
        about.copied += picture.copied
        if picture.bytes_before is None or about.bytes_before is None:
            about.bytes_before = None
        else:
            about.bytes_before += picture.bytes_before
        label = "" if source.labels is None else str(source.labels[picture.number])
        about.digest = sha256_of(about.digest, label, picture.data)
        size += stored_bytes(picture, config.format, source.labels is not None)
        yield picture
        if size >= config.shard_mib * 2**20:
            return


@contextmanager
def begun_or_gone(run: Run) -> Iterator[None]:
    """Where the block is refused before a file of pictures is whole, what it wrote goes; otherwise everything stays."""
    try:
        yield
    except UserError:
        if not read_prepared(run.path).seen:
            for name in (UNFINISHED, NAMES, MARKER, CONFIG, LOCK):
                (run.path / name).unlink(missing_ok=True)
            with suppress(OSError):  # somebody put something beside them
                run.path.rmdir()
        raise


def write_file(
    folder: Path,
    pictures: Iterator[Small],
    num_before: int,
    source: Source,
    about: Prepared,
    config: PrepareConfig,
) -> str:
    """One more file of pictures, or so many more rows of the array; its name."""
    if config.format == "array":
        names: list[str] = []
        append_rows(folder / UNFINISHED, noting_names(pictures, names), array_shape(config), num_before)
        append_names(folder / NAMES, names, num_before)
        return PIXELS
    name = f"pictures-{len(about.shards):05d}.{config.format}"
    if config.format == "parquet":
        write_parquet(folder / name, pictures, source.labels, source.classes)
    else:
        write_tar(folder / name, pictures, source.labels)
    return name


def array_shape(config: PrepareConfig) -> tuple[int, int, int]:
    """(channels, rows, columns) of a picture of the array."""
    return config.channels, config.short_side, config.short_side


def noting_names(pictures: Iterator[Small], names: list[str]) -> Iterator[Small]:
    """The pictures as they are; their names are added to `names`."""
    for picture in pictures:
        names.append(picture.name)
        yield picture


def finish(run: Run, source: Source, about: Prepared, config: PrepareConfig) -> None:
    """What is known only at the end. Repeated where a process died on the way."""
    if config.format == "array":
        if (run.path / UNFINISHED).is_file():
            finish_array(run.path / UNFINISHED, about.num_images, array_shape(config))
            (run.path / UNFINISHED).rename(run.path / PIXELS)
        if source.labels is not None:
            labels = np.delete(source.labels, [index for index, _ in about.unreadable])
            with write_whole(run.path / LABELS) as path, open(path, "wb") as file:
                np.save(file, labels)
        about.shards, about.bytes_after = [], 0
        about.add_file(run.path / PIXELS, about.num_images)
    list_unreadable(run.path, source, [index for index, _ in about.unreadable], config.quiet)
    about.finished = True
    about.write(run.path)


def tell(result: dict[str, Any], config: PrepareConfig) -> None:
    """What it saves, on stderr."""
    mib = [None if size is None else size / 2**20 for size in (result["bytes_before"], result["bytes_after"])]
    sizes = f"{mib[1]:,.1f} MiB" if mib[0] is None else f"{mib[0]:,.1f} MiB became {mib[1]:,.1f} MiB"
    copied = f", {result['copied']:,} of them copied as they were" if result["copied"] else ""
    files = f"{result['files']} file{'s' * (result['files'] > 1)}"
    say(f"{result['num_images']:,} pictures in {files}{copied}: {sizes}", config.quiet)
    before, after = result["decoded_per_second_before"], result["decoded_per_second_after"]
    if before is not None:
        now = "no decoding any more" if after is None else f"{after:,.0f} a second"
        say(f"one core decoded {before:,.0f} pictures a second and now {now} (a sample)", config.quiet)
