import torch
from torch import Tensor

from moce.transfer.segment.recipe import RECIPES
from moce.transfer.segment.sliding import covered, most_likely, slid, starts

WINDOW = (8, 12)


def by_pixel(windows: Tensor) -> Tensor:
    """A network that looks at single pixels, so that it does not matter in which window one lies."""
    return torch.cat([windows, windows.square().sum(dim=1, keepdim=True)], dim=1)


def test_one_window_that_covers_the_picture_is_the_whole_picture() -> None:
    image = torch.randn(3, *WINDOW, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[int, ...]] = []

    def whole(windows: Tensor) -> Tensor:
        seen.append(tuple(windows.shape))
        return windows.flip(-1) + windows.mean(dim=(2, 3), keepdim=True)  # every pixel depends on all of them

    assert torch.equal(slid(whole, image, WINDOW, 1 / 3, 4), whole(image[None])[0])
    assert seen == [(1, 3, *WINDOW)] * 2


def test_windows_cover_every_pixel_and_their_mean_is_that_of_the_whole() -> None:
    for rows, columns in [(8, 12), (9, 12), (8, 31), (23, 40), (16, 24)]:
        image = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(rows))
        found = slid(by_pixel, image, WINDOW, 1 / 3, 4)
        assert found.isfinite().all()  # a pixel that no window covers would be 0 / 0
        torch.testing.assert_close(found, by_pixel(image[None])[0])


def test_windows_start_evenly_and_end_with_the_side() -> None:
    assert starts(683, 512, 1 / 3) == [0, 171]
    assert starts(1200, 512, 1 / 3) == [0, 341, 682, 688]
    assert starts(512, 512, 1 / 3) == [0]
    assert starts(1200, 512, RECIPES["ade20k"].overlap) == [0, 256, 512, 688]  # as mmsegmentation does


def test_a_picture_is_resized_to_just_cover_a_window() -> None:
    assert covered(torch.zeros(3, 4, 12, dtype=torch.uint8), WINDOW).shape == (3, 8, 24)
    assert covered(torch.zeros(3, 80, 60, dtype=torch.uint8), WINDOW).shape == (3, 16, 12)
    exact = torch.randint(0, 256, (3, 8, 30), dtype=torch.uint8)
    assert covered(exact, WINDOW) is exact


def test_the_likeliest_class_is_the_same_however_many_are_resized_at_a_time() -> None:
    logits = torch.randn(41, 5, 7, generator=torch.Generator().manual_seed(0))
    at_once = torch.nn.functional.interpolate(logits[None], (11, 9), mode="bilinear")[0].argmax(dim=0)
    assert torch.equal(most_likely(logits, (11, 9)), at_once)
