"""The same batches come from memory, from worker processes, after an interruption and in slices."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from moce.errors import UserError
from moce.images import reading
from moce.images.augment import centre_crop, crop_and_resize, crop_boxes
from moce.images.decode import UnreadableImage
from moce.images.loader import (
    Batch,
    centred_batches,
    read_all,
    readable_substitute,
    survey,
    training_batches,
)
from moce.images.sampler import Order
from moce.images.sources import open_images


class Memory:
    """Noise pictures; index i is broken when it stands in `broken`, and has another size when in `odd`."""

    classes = None
    labels = None

    def __init__(
        self, num: int, broken: tuple[int, ...] = (), odd: tuple[int, ...] = (), name: str = "m"
    ) -> None:
        self.uri, self.num, self.broken, self.odd = f"memory {name}", num, broken, odd
        self.decoded = 0

    def __len__(self) -> int:
        return self.num

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        if index in self.broken:
            raise UnreadableImage("cut off")
        self.decoded += 1
        width = 31 if index in self.odd else 24
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 20, width), generator=generator, dtype=torch.uint8), None

    def shards(self) -> list[range]:
        return [range(self.num)]

    def name(self, index: int) -> str:
        return f"picture-{index}"

    def fingerprint(self) -> str:
        return f"{hash((self.uri, self.num, self.broken, self.odd)) % 2**64:016x}"


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    reading.forget()


def train(source: Memory, start: int = 0, stop: int = 7, **options: object) -> list[Batch]:
    order = options.pop("order", None) or Order(len(source), 8, seed=1)
    settings: dict = {"num_workers": 0, "cache_gib": 1.0, "quiet": True} | options
    return list(training_batches(source, order, 16, 0.2, 5, start, stop, **settings))


def same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Training batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [(), (3, 4)])
def test_a_batch_holds_the_crops_of_its_images(odd: tuple[int, ...]) -> None:
    source, order = Memory(21, odd=odd), Order(21, 8, seed=1)
    for step, batch in enumerate(train(source)):
        assert batch.images.shape == (8, 3, 16, 16) and batch.images.dtype == torch.uint8
        indices, epochs = order.batch(step)
        assert torch.equal(batch.indices, indices) and torch.equal(batch.epochs, epochs)
        for place in range(8):
            image = source.get(int(indices[place]))[0]
            sides = torch.tensor([image.shape[1]]), torch.tensor([image.shape[2]])
            box = crop_boxes(5, epochs[place : place + 1], indices[place : place + 1], *sides, 0.2)[
                0
            ].tolist()
            assert torch.equal(batch.images[place], crop_and_resize(image, box, (16, 16)))


@pytest.mark.parametrize("broken", [(), (2, 3, 20)])
def test_memory_and_workers_give_the_same_batches(broken: tuple[int, ...]) -> None:
    """Without room the same pictures go the other way: decoded and cropped one by one, here or in processes."""
    source = Memory(80, broken)
    from_memory = train(source, stop=15)
    for workers in (0, 2):
        reading.forget()
        same(train(source, stop=15, num_workers=workers, cache_gib=0.0), from_memory)


def test_what_is_kept_is_not_more_than_is_asked_for() -> None:
    """A survey, which decodes all pictures anyway, keeps them for whoever has room."""
    reading.forget()
    source = Memory(30)
    survey(source, quiet=True)
    assert read_all(source, quiet=True, cache_gib=0.0) is None
    assert read_all(source, quiet=True) is not None


def test_real_files_through_workers(tiny_folder: Path) -> None:
    source = open_images(str(tiny_folder))
    order = Order(len(source), 10, seed=0)
    here, there = (
        list(training_batches(source, order, (16, 12), 0.2, 0, 0, 6, num_workers=workers))
        for workers in (0, 2)
    )
    same(here, there)
    assert here[0].images.shape == (10, 3, 16, 12)


@pytest.mark.parametrize("odd", [(), (3,)])
def test_going_on_from_a_later_step(odd: tuple[int, ...]) -> None:
    source = Memory(21, odd=odd)
    same(train(source, 4, 7), train(source, 0, 7)[4:])
    assert train(source, 7, 7) == []


@pytest.mark.parametrize("odd", [(), (3,)])
def test_two_processes_share_a_batch(odd: tuple[int, ...]) -> None:
    source = Memory(21, odd=odd)
    parts = [train(source, rank=rank, world=2) for rank in (0, 1)]
    joined = [
        Batch(*(torch.cat(pair) for pair in zip(*both, strict=True))) for both in zip(*parts, strict=True)
    ]
    same(joined, train(source))


def test_the_crops_of_an_image_differ_from_epoch_to_epoch() -> None:
    batches = train(Memory(8), stop=2)
    by_index = [batch.images[batch.indices.argsort()] for batch in batches]
    assert (by_index[0] != by_index[1]).flatten(1).any(1).all()


def test_the_global_generator_is_left_alone(tiny_folder: Path) -> None:
    source = open_images(str(tiny_folder))
    before = torch.random.get_rng_state()
    list(training_batches(source, Order(24, 8, 0), 16, 0.2, 0, 0, 2))
    list(centred_batches(source, 16, 8))
    assert torch.equal(torch.random.get_rng_state(), before)


# Broken pictures ---------------------------------------------------------------------------------------------------


def test_the_next_readable_picture_stands_in() -> None:
    assert readable_substitute([2, 3, 9], 10).tolist() == [0, 1, 4, 4, 4, 5, 6, 7, 8, 0]
    assert readable_substitute([], 3).tolist() == [0, 1, 2]
    allowed = torch.tensor([0, 3, 5, 8])
    assert readable_substitute([5], 10, allowed)[allowed].tolist() == [0, 3, 8, 8]


@pytest.mark.parametrize("cache_gib", [0.0, 1.0])
def test_no_broken_picture_reaches_a_batch(cache_gib: float) -> None:
    source = Memory(100, broken=(7, 8, 99))
    found = survey(source, quiet=True)
    assert found.unreadable == [7, 8, 99] and found.checked == 100 and found.size == (20, 24)
    substitute = readable_substitute(found.unreadable, 100)
    order = Order(100, 8, seed=1)
    for step, batch in enumerate(train(source, stop=26, unreadable=found.unreadable, cache_gib=cache_gib)):
        assert torch.equal(batch.indices, substitute[order.batch(step)[0]])
        assert not set(batch.indices.tolist()) & {7, 8, 99}


@pytest.mark.parametrize("cache_gib", [0.0, 1.0])
def test_broken_pictures_that_nobody_knew_of(cache_gib: float) -> None:
    source = Memory(100, broken=(7, 8, 99))
    told = train(source, stop=26, unreadable=[7, 8, 99], cache_gib=cache_gib)
    reading.forget()
    same(train(source, stop=26, cache_gib=cache_gib), told)


@pytest.mark.parametrize("cache_gib", [0.0, 1.0])
def test_a_stand_in_is_allowed_too(cache_gib: float) -> None:
    source, allowed = Memory(60, broken=(10, 59)), np.arange(0, 60, 1)[np.arange(60) % 7 != 4]
    order = Order(60, 8, seed=1, allowed=allowed)
    for batch in train(source, stop=15, order=order, cache_gib=cache_gib):
        assert set(batch.indices.tolist()) <= set(allowed.tolist()) - {10, 59}


def test_too_many_broken_pictures_are_refused() -> None:
    assert survey(Memory(40, broken=(1, 2)), quiet=True).unreadable == [1, 2]  # 5 %
    with pytest.raises(
        UserError, match=r"3 of 40 pictures in 'memory m' .* \(first: picture-1: cut off\); at most 5%"
    ):
        survey(Memory(40, broken=(1, 2, 3)), quiet=True)
    with pytest.raises(UserError, match="All 4 pictures in 'memory m' cannot be read"):
        survey(Memory(4, broken=(0, 1, 2, 3)), quiet=True)


def test_a_user_error_in_a_worker_arrives_as_it_was() -> None:
    class Faulty(Memory):
        def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
            if index == 5 and self.decoded > 60:
                raise UserError("The file is damaged.")
            return super().get(index)

    source = Faulty(30, odd=(1,))
    with pytest.raises(UserError) as caught:
        train(source, stop=30, num_workers=1)
    assert str(caught.value) == "The file is damaged."


# Looking at everything ---------------------------------------------------------------------------------------------


def test_survey_of_a_large_set_looks_at_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LOOK_AT_ALL", 50)
    monkeypatch.setattr(reading, "SAMPLE", 20)
    source = Memory(100, odd=(99,))
    found = survey(source, quiet=True)
    assert found.checked == 20 and found.size is None  # the last one is among the sample
    assert survey(Memory(100, odd=(1,), name="other"), quiet=True).size == (20, 24)


def test_the_sample_may_have_missed_an_odd_or_a_broken_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LOOK_AT_ALL", 50)
    monkeypatch.setattr(reading, "SAMPLE", 10)
    odd = Memory(100, odd=(1,))
    assert read_all(odd, quiet=True) is None and survey(odd).size is None
    assert train(odd)[0].images.shape == (8, 3, 16, 16)
    broken = Memory(100, broken=(1,))
    decoded = read_all(broken, quiet=True)
    assert decoded is not None and decoded.unreadable == [1] and survey(broken).unreadable == [1]


def test_pictures_are_decoded_once_in_a_process() -> None:
    source = Memory(50, broken=(3,))
    survey(source, quiet=True)
    train(source)
    list(centred_batches(source, 16, 10))
    list(centred_batches(Memory(50, broken=(3,)), 16, 10))  # another object, the same pictures
    assert source.decoded <= 51  # all, and once more the first


def test_pictures_with_one_fingerprint_are_told_apart(tmp_path: Path) -> None:
    """Two folders with files of the same names and sizes, and the same folder in grey."""
    for folder, value in (("one", 10), ("two", 20)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8), (value, value, value)).save(tmp_path / folder / "0.bmp")
    one, two = open_images(str(tmp_path / "one")), open_images(str(tmp_path / "two"))
    assert one.fingerprint() == two.fingerprint()
    grey = open_images(str(tmp_path / "two"), channels=1)
    found = [read_all(source, quiet=True) for source in (one, two, grey)]
    assert [d.images.flatten().unique().tolist() for d in found if d] == [[10], [20], [20]]
    assert [d.images.shape[1] for d in found if d] == [3, 3, 1]


def test_read_all_gives_every_picture_or_nothing() -> None:
    source = Memory(30, broken=(4,))
    decoded = read_all(source, quiet=True)
    assert decoded is not None and decoded.images.shape == (30, 3, 20, 24)
    assert torch.equal(decoded.images[29], source.get(29)[0]) and (decoded.images[4] == 0).all()
    assert read_all(Memory(30, odd=(2,)), quiet=True) is None
    assert read_all(Memory(30, name="large"), quiet=True, cache_gib=1e-6) is None


def test_old_arrays_make_room() -> None:
    one_set = 30 * 3 * 20 * 24 / 2**30
    for name in "abc":
        assert read_all(Memory(30, name=name), quiet=True, cache_gib=2.5 * one_set) is not None
    assert len(reading._decoded) == 2


def test_a_source_that_makes_its_pictures_is_asked_for_all_at_once() -> None:
    source = open_images("toyworld://all?split=train&size=16&num=40")
    decoded = read_all(source, quiet=True)
    assert decoded is not None and decoded.images.shape == (40, 3, 16, 16)
    assert survey(source, quiet=True) == ((16, 16), [], 40)
    batch = next(training_batches(source, Order(40, 8, 0), 16, 0.2, 0, 0, 1))
    assert batch.images.shape == (8, 3, 16, 16)


# Central crops -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [(), (3, 4)])
@pytest.mark.parametrize("decode_before", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_centred_batches_are_the_central_crops(
    odd: tuple[int, ...], decode_before: bool, workers: int
) -> None:
    source = Memory(43, broken=(0, 9), odd=odd)
    if decode_before:
        survey(source, quiet=True)
    batches = list(centred_batches(source, (12, 16), 10, workers, 0.9))
    indices = torch.cat([i for i, _ in batches])
    images = torch.cat([i for _, i in batches])
    assert indices.tolist() == [i for i in range(43) if i not in (0, 9)]
    assert [len(i) for i, _ in batches] == [8, 10, 10, 10, 3]
    for index, image in zip(indices.tolist(), images, strict=True):
        assert torch.equal(image, centre_crop(source.get(index)[0], (12, 16), 0.9))


@pytest.mark.parametrize("decode_before", [False, True])
def test_centred_batches_of_chosen_pictures(decode_before: bool) -> None:
    source = Memory(43, broken=(0, 9))
    if decode_before:
        survey(source, quiet=True)
    chosen = np.array([9, 0, 40, 2, 9, 3, 3])
    batches = list(centred_batches(source, 16, 2, indices=chosen))
    assert [i.tolist() for i, _ in batches] == [[40, 2], [3], [3]]
    assert list(centred_batches(source, 16, 2, indices=np.array([], np.int64))) == []


# Speed, loosely ----------------------------------------------------------------------------------------------------


def test_crops_from_memory_keep_a_training_step_busy() -> None:
    """5000 images/s are wanted of a free core; a tenth, of a slow one, shows that the fast way is taken."""

    class Whole(Memory):
        def array(self) -> UInt8[Tensor, "all channels rows columns"]:
            return torch.zeros(self.num, 3, 64, 64, dtype=torch.uint8)

    batches = training_batches(Whole(2000), Order(2000, 128, seed=0), 64, 0.2, 0, 0, 12)
    next(batches)
    start = time.process_time()  # others may use the core meanwhile
    count = sum(len(batch.indices) for batch in batches)
    assert count / (time.process_time() - start) > 500


def test_webp_and_jpeg_go_through_a_survey(tmp_path: Path) -> None:
    for number in range(6):
        buffer = io.BytesIO()
        Image.new("RGB", (20 + number, 20), (40 * number, 0, 0)).save(
            buffer, "WEBP" if number % 2 else "JPEG"
        )
        (tmp_path / f"{number}.{'webp' if number % 2 else 'jpg'}").write_bytes(buffer.getvalue())
    assert survey(open_images(str(tmp_path)), quiet=True) == (None, [], 6)
