"""The order of images is a pure function of the step."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moce.images.sampler import Order

SHARDS = [range(0, 10), range(10, 37), range(37, 50)]


def orders(**options: object) -> list[Order]:
    return [
        Order(50, 8, seed=3, **options),
        Order(50, 8, seed=3, kind="shards", shards=SHARDS, window=12, **options),
    ]


def stream(order: Order, steps: range) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [order.batch(step) for step in steps]
    return torch.cat([i for i, _ in parts]), torch.cat([e for _, e in parts])


@pytest.mark.parametrize("order", orders())
def test_each_epoch_is_a_permutation(order: Order) -> None:
    indices, epochs = stream(order, range(25))
    assert epochs.tolist() == [p // 50 for p in range(200)]
    shuffles = [indices[epochs == epoch] for epoch in range(4)]
    for shuffle in shuffles:
        assert sorted(shuffle.tolist()) == list(range(50))
    assert not torch.equal(shuffles[0], shuffles[1])


@pytest.mark.parametrize("order", orders(allowed=np.array([40, 3, 5, 17, 18, 39, 2])))
def test_only_allowed_images_come(order: Order) -> None:
    indices, epochs = stream(order, range(5))
    for epoch in range(5):
        assert sorted(indices[epochs == epoch].tolist()) == [2, 3, 5, 17, 18, 39, 40]


@pytest.mark.parametrize("kind", [0, 1])
def test_a_later_step_can_be_asked_for_at_once(kind: int) -> None:
    whole = stream(orders()[kind], range(40))
    later = stream(orders()[kind], range(29, 40))
    assert torch.equal(later[0], whole[0][29 * 8 :]) and torch.equal(later[1], whole[1][29 * 8 :])
    backwards = orders()[kind]
    for step in reversed(range(40)):
        assert torch.equal(backwards.batch(step)[0], whole[0][step * 8 : step * 8 + 8])


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("order", orders())
def test_the_slices_of_all_processes_make_up_the_batch(order: Order, world: int) -> None:
    for step in (0, 6, 11):
        indices, epochs = order.batch(step)
        slices = [order.batch(step, rank, world) for rank in range(world)]
        assert torch.equal(torch.cat([i for i, _ in slices]), indices)
        assert torch.equal(torch.cat([e for _, e in slices]), epochs)


def test_fewer_images_than_a_batch() -> None:
    order = Order(3, 8, seed=0)
    indices, epochs = order.batch(1)
    assert len(indices) == 8 and epochs.tolist() == [2, 3, 3, 3, 4, 4, 4, 5]
    assert sorted(indices[1:4].tolist()) == [0, 1, 2]
    one = Order(1, 4, seed=0).batch(2)
    assert one[0].tolist() == [0, 0, 0, 0] and one[1].tolist() == [8, 9, 10, 11]


def test_steps_for_epochs_rounds_up() -> None:
    assert Order(50, 8, seed=0).steps_for(1) == 7
    assert Order(64, 8, seed=0).steps_for(2) == 16
    assert Order(3, 8, seed=0).steps_for(1) == 1
    assert Order(50, 10, seed=0).steps_for(0.5) == 3


def test_seeds_make_different_orders() -> None:
    assert not torch.equal(Order(50, 50, seed=0).batch(0)[0], Order(50, 50, seed=1).batch(0)[0])


def test_the_order_is_frozen() -> None:
    """Recorded once: a run that continues under another order sees some images twice and others never."""
    assert Order(10, 10, seed=0).batch(0)[0].tolist() == [7, 6, 4, 1, 9, 2, 5, 3, 0, 8]
    shards = Order(10, 10, seed=0, kind="shards", shards=[range(0, 4), range(4, 7), range(7, 10)], window=5)
    assert shards.batch(0)[0].tolist() == [6, 4, 1, 5, 0, 7, 9, 2, 3, 8]


def test_shards_stay_together_up_to_the_window() -> None:
    shards = [range(i * 100, i * 100 + 100) for i in range(20)]
    order = Order(2000, 100, seed=0, kind="shards", shards=shards, window=200)
    line = order.permutation(0)
    for window in line.split(200):
        assert len({index // 100 for index in window.tolist()}) == 2
    assert [w[0].item() // 100 for w in line.split(200)] != sorted(
        w[0].item() // 100 for w in line.split(200)
    )
    global_window = Order(2000, 100, seed=0).permutation(0)[:200]
    assert len({index // 100 for index in global_window.tolist()}) > 10


def test_places_are_uniform() -> None:
    """Every image comes first about equally often."""
    order = Order(10, 10, seed=0)
    firsts = torch.bincount(
        torch.tensor([order.permutation(epoch)[0].item() for epoch in range(1000)]), minlength=10
    )
    assert ((firsts - 100).double() ** 2 / 100).sum() < 28  # chi2, 9 degrees of freedom, p about 0.001


@given(
    num=st.integers(1, 40), batch=st.integers(1, 50), step=st.integers(0, 30), kind=st.sampled_from([0, 1])
)
def test_a_batch_is_the_stream_read_at_its_places(num: int, batch: int, step: int, kind: int) -> None:
    shards = [range(i, min(i + 7, num)) for i in range(0, num, 7)]
    order = Order(num, batch, 5, kind="shards", shards=shards, window=9) if kind else Order(num, batch, 5)
    indices, epochs = order.batch(step)
    for offset, place in enumerate(range(step * batch, step * batch + batch)):
        assert epochs[offset] == place // num
        assert indices[offset] == order.permutation(place // num)[place % num]
