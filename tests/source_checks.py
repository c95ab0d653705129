"""What every source of pictures has to do, and pictures to try it on."""

import io
import multiprocessing
import pickle

import pytest
import torch
from PIL import Image

from moce.errors import UserError
from moce.images.sources import Source, open_images


def picture(value: int, kind: str = "PNG", size: tuple[int, int] = (5, 4)) -> bytes:
    """An encoded picture of one colour; `size` is (width, height)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def values(source: Source) -> list[int]:
    """The colour of each picture."""
    return [int(source.get(index)[0][0, 0, 0]) for index in range(len(source))]


def check_protocol(source: Source) -> None:
    assert isinstance(source, Source)
    covered = [index for shard in source.shards() for index in shard]
    assert covered == list(range(len(source)))
    assert len({source.name(index) for index in range(len(source))}) == len(source)
    assert len(source.fingerprint()) == 16 and int(source.fingerprint(), 16) >= 0
    sent = pickle.loads(pickle.dumps(source))
    assert len(sent) == len(source) and sent.fingerprint() == source.fingerprint()
    for index in {0, len(source) - 1}:
        image, label = source.get(index)
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        assert torch.equal(sent.get(index)[0], image)
        assert label == (None if source.labels is None else source.labels[index])


def check_fork(source: Source) -> None:
    """A process forked after the source was read from reads the same."""
    here = values(source)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(values, (source,)).get(60) == here


def refusal(uri: object) -> str:
    """The one sentence that refuses it."""
    with pytest.raises(UserError) as caught:
        open_images(str(uri))
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", "?")), text
    return text
