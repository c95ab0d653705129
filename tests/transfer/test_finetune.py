import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from moce.errors import UserError
from moce.transfer.encoder import Trainable
from moce.transfer.finetune import (
    Classifier,
    Recipe,
    binary_loss,
    factor,
    finetune,
    mixed,
    parameter_groups,
    train,
)
from moce.transfer.metrics import scorer
from moce.transfer.probe import Outcome

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=8, batch_size=16, layer_decay=0.5, seed=3)


class Layers(Trainable):
    """A two-block network; with `auxiliary` it also has a loss of its own, on a parameter that nothing else reads."""

    def __init__(self, auxiliary: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * 8 * 8, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.num_layers = 3
        self.free = nn.Parameter(torch.ones(1)) if auxiliary else None

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.flatten(1))
        for block in self.blocks:
            tokens = tokens + block(tokens).relu()
        return self.norm(tokens)

    def layer_of(self, name: str) -> int:
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith("embed") else 3

    def auxiliary_loss(self) -> Tensor | None:
        return None if self.free is None else self.free.square().sum()


class FakeEncoder:
    name, method, fingerprint, width = "fake", "MAE", "0" * 16, 16
    image_size, mean, std, crop_pct = (8, 8), (0.5,) * 3, (0.2,) * 3, 1.0
    interpolation = "bicubic"
    about: dict = {}

    def __init__(self, auxiliary: bool = False) -> None:
        torch.manual_seed(0)
        self.network = Layers(auxiliary)
        self.copies: list[Layers] = []

    def features(self, images: Tensor) -> Tensor:
        raise AssertionError("fine-tuning has no business with frozen features")

    def trainable(self) -> Trainable:
        copy = Layers(self.network.free is not None)
        copy.load_state_dict(self.network.state_dict())
        self.copies.append(copy)
        return copy


class ToyFeed:
    """Which quarter of the picture is bright? Labels 0 to 3; keeps count of the rows that training was given."""

    def __init__(self, num_images: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(num_images) % 4
        self.images = torch.randn(num_images, 3, 8, 8, generator=generator)
        for image, label in zip(self.images, self.labels.tolist()):
            row, column = divmod(label, 2)
            image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1.0
        self.trained_on: list[set[int]] = []

    def training(self, rows: Tensor, recipe: Recipe, num_steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(recipe.seed)
        self.trained_on.append(set())
        for _ in range(num_steps):
            batch = rows[torch.randint(len(rows), (recipe.batch_size,), generator=generator)]
            self.trained_on[-1].update(batch.tolist())
            yield self.images[batch], self.labels[batch]

    def centred(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for part in rows.split(50):
            yield self.images[part], part


def run(
    encoder: FakeEncoder, lrs: list[float], pool: ToyFeed | None = None, recipe: Recipe = RECIPE
) -> Outcome:
    rows = torch.arange(160)
    return finetune(
        encoder,
        pool or ToyFeed(160, 1),
        rows[:128],
        rows[128:],
        ToyFeed(100, 2),
        4,
        scorer("top1", 4),
        recipe,
        lrs,
        CPU,
    )


def test_learns_a_toy_problem_and_chooses_the_rate_that_does() -> None:
    outcome = run(FakeEncoder(), [1e-7, 1e-2])
    assert outcome.settings["lr"] == 1e-2
    assert (
        outcome.settings["val_scores"][1] == outcome.settings["val_score"] > outcome.settings["val_scores"][0]
    )
    assert scorer("top1", 4)(outcome.predictions, outcome.labels) > 0.9


def test_the_same_call_gives_the_same_weights() -> None:
    first, second = FakeEncoder(), FakeEncoder()
    torch.manual_seed(1)
    outcome = run(
        first, [1e-3, 1e-2], recipe=Recipe(epochs=8, batch_size=16, layer_decay=0.5, seed=3, mixup=0.8)
    )
    torch.manual_seed(2)  # the global generator is nobody's business
    again = run(
        second, [1e-3, 1e-2], recipe=Recipe(epochs=8, batch_size=16, layer_decay=0.5, seed=3, mixup=0.8)
    )
    assert outcome.settings == again.settings
    assert outcome.predictions.equal(again.predictions)
    for one, two in zip(first.copies, second.copies):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_every_run_starts_from_the_encoder_itself() -> None:
    encoder = FakeEncoder()
    before = [p.clone() for p in encoder.network.parameters()]
    run(encoder, [1e-3, 1e-2])
    assert len(encoder.copies) == 3  # two choices and the final one
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.network.parameters()))


def test_validation_pictures_are_trained_on_only_after_the_choice() -> None:
    pool = ToyFeed(160, 1)
    run(FakeEncoder(), [1e-3, 1e-2], pool)
    train_rows, val_rows = set(range(128)), set(range(128, 160))
    assert pool.trained_on[0] <= train_rows
    assert pool.trained_on[1] <= train_rows
    assert pool.trained_on[2] & val_rows


def test_one_learning_rate_needs_no_choice() -> None:
    pool = ToyFeed(160, 1)
    outcome = run(FakeEncoder(), [1e-2], pool)
    assert len(pool.trained_on) == 1
    assert outcome.settings["lr"] == 1e-2
    assert outcome.settings["val_score"] is None


def test_without_validation_pictures_the_middle_rate_is_taken() -> None:
    pool, rows = ToyFeed(20, 1), torch.arange(20)
    outcome = finetune(
        FakeEncoder(),
        pool,
        rows,
        rows[:0],
        ToyFeed(20, 2),
        4,
        scorer("top1", 4),
        RECIPE,
        [1e-2, 1e-4, 1e-3],
        CPU,
    )
    assert (outcome.settings["lr"], outcome.settings["val_score"]) == (1e-3, None)
    assert len(pool.trained_on) == 1


def test_several_classes_a_picture() -> None:
    """Which quarters are bright: that of the label and, where it is even, the last one as well."""
    feeds = [ToyFeed(160, 1), ToyFeed(100, 2)]
    for feed in feeds:
        labels = torch.nn.functional.one_hot(feed.labels, 4)
        feed.images[feed.labels % 2 == 0, :, 4:, 4:] += 1.0
        labels[feed.labels % 2 == 0, 3] = 1
        labels[::7, 1] = -1
        feed.labels = labels
    rows, score = torch.arange(160), scorer("mAP11", 4)
    outcome = finetune(
        FakeEncoder(), feeds[0], rows[:128], rows[128:], feeds[1], 4, score, RECIPE, [1e-6, 1e-2], CPU
    )
    assert outcome.settings["lr"] == 1e-2
    assert outcome.predictions.shape == outcome.labels.shape == (100, 4)
    assert 0 <= outcome.predictions.min() and outcome.predictions.max() <= 1
    assert score(outcome.predictions, outcome.labels) > 0.9


def test_what_cannot_be_judged_is_not_in_the_loss() -> None:
    logits = torch.tensor([[0.5, -1.0], [2.0, 7.0]], requires_grad=True)
    loss = binary_loss(logits, torch.tensor([[1, 0], [0, -1]]))
    expected = [math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(2.0))]
    assert loss.item() == pytest.approx(sum(expected) / 3, rel=1e-6)
    loss.backward()
    assert logits.grad is not None and logits.grad[1, 1] == 0


def test_an_auxiliary_loss_is_part_of_the_loss() -> None:
    encoder = FakeEncoder(auxiliary=True)
    run(encoder, [1e-2])
    assert encoder.copies[0].free is not None
    assert encoder.copies[0].free.item() < 0.9


def test_the_cost_is_said_beforehand(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(FakeEncoder(), [1e-3, 1e-2])
    # 128 pictures, 8 epochs = 64 steps of 16, twice; then 160 pictures = 80 steps.
    assert outcome.settings["images_processed"] == 2 * 1024 + 1280
    assert "3,328 images to process" in capsys.readouterr().err


def test_the_time_is_said_after_the_first_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moce.transfer.finetune.LONG", 0.0)
    run(FakeEncoder(), [1e-3, 1e-2])
    assert capsys.readouterr().err.count("in all, by its first steps") == 1


def test_a_rate_that_diverges_is_passed_over_or_reported() -> None:
    assert run(FakeEncoder(), [1e-2, 1e38]).settings["val_scores"][1] is None
    with pytest.raises(UserError, match="not finite"):
        run(FakeEncoder(), [1e38])


def test_layers_get_their_own_rates() -> None:
    classifier = Classifier(Layers(), 16, 4, seed=0)
    names = {id(p): n for n, p in classifier.named_parameters()}
    scales = {names[id(p)]: g for g in parameter_groups(classifier, 0.5, 0.05) for p in g["params"]}  # type: ignore[attr-defined]
    assert len(scales) == len(names)
    assert scales["head.weight"]["scale"] == 1
    assert scales["encoder.norm.weight"]["scale"] == 1
    assert scales["encoder.blocks.1.weight"]["scale"] == 0.5
    assert scales["encoder.blocks.0.bias"]["scale"] == 0.25
    assert scales["encoder.embed.weight"]["scale"] == 0.125
    assert scales["encoder.embed.weight"]["weight_decay"] == 0.05
    assert scales["encoder.embed.bias"]["weight_decay"] == 0
    assert scales["encoder.norm.weight"]["weight_decay"] == 0


def test_warm_up_then_cosine() -> None:
    factors = [factor(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[-1] < 1e-3
    assert factor(0, 1, 0.1) <= 1


def test_mixup_mixes_pictures_and_targets_alike() -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2)
    targets = torch.eye(4)
    mixed_images, mixed_targets = mixed(images, targets, 0.8, seed=0, step=5)
    share = mixed_targets[0, 0].item()
    assert 0 < share < 1
    assert mixed_images[0, 0, 0, 0].item() == pytest.approx((1 - share) * 3)
    assert torch.allclose(mixed_targets.sum(dim=1), torch.ones(4))
    assert not mixed(images, targets, 0.8, seed=0, step=6)[1].equal(mixed_targets)


def test_the_first_prediction_is_nearly_uniform() -> None:
    classifier = Classifier(Layers(), 16, 4, seed=0)
    feed = ToyFeed(64, 1)
    loss = nn.functional.cross_entropy(classifier(feed.images), feed.labels)
    assert loss.item() == pytest.approx(math.log(4), abs=1e-3)


def test_training_ends_early_when_the_loss_is_lost() -> None:
    classifier = Classifier(Layers(), 16, 4, seed=0)
    seen = []
    feed = ToyFeed(64, 1)
    assert not train(classifier, feed.training(torch.arange(64), RECIPE, 400), RECIPE, 1e38, 400, seen.append)
    assert len(seen) < 400
