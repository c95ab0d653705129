import pytest
import torch
from sklearn.metrics import jaccard_score

from moce.transfer.segment.iou import Confusion

TRUTH = torch.tensor([[0, 0, 1], [1, 2, -1]], dtype=torch.int16)
PREDICTED = torch.tensor([[0, 1, 1], [1, 0, 2]])


def test_the_mean_iou_of_six_pixels_worked_out_by_hand() -> None:
    """Class 0: 1 of 3 pixels that are or were it; class 1: 2 of 3; class 2: none of 1. The last pixel is not scored."""
    found = Confusion(3)
    found.add(TRUTH, PREDICTED)
    assert found.counts.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert found.iou() == pytest.approx([1 / 3, 2 / 3, 0])
    assert found.mean_iou() == pytest.approx(1 / 3)
    assert found.accuracy() == pytest.approx([1 / 2, 1, 0])
    assert found.pixel_accuracy() == pytest.approx(3 / 5)


def test_pixels_of_all_pictures_count_together() -> None:
    """Not the mean of the pictures' own values: 3 of 4 pixels here, though the two pictures have 1/1 and 2/3."""
    found = Confusion(1 + 1)
    found.add(torch.tensor([0]), torch.tensor([0]))
    found.add(torch.tensor([0, 0, 0]), torch.tensor([0, 0, 1]))
    assert found.iou() == pytest.approx([3 / 4, 0])


def test_a_class_that_is_neither_there_nor_predicted_is_left_out() -> None:
    found = Confusion(4)
    found.add(TRUTH, PREDICTED)
    assert found.iou()[3] is None and found.accuracy()[3] is None
    assert found.mean_iou() == pytest.approx(1 / 3)
    assert Confusion(2).mean_iou() == 0


def test_agrees_with_scikit_learn() -> None:
    draw = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(0, 5, (3, 20, 30), generator=draw) for _ in range(2))
    truth[torch.rand(truth.shape, generator=draw) < 0.2] = -1
    found = Confusion(5)
    for one, other in zip(truth, predicted, strict=True):
        found.add(one, other)
    scored = truth >= 0
    theirs = jaccard_score(truth[scored].numpy(), predicted[scored].numpy(), average=None)
    assert found.iou() == pytest.approx(theirs.tolist())
