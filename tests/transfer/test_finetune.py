import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from moce.config import EvaluateConfig, Training
from moce.engine.runs import open_run
from moce.errors import UserError
from moce.images.loader import Batch
from moce.transfer import norm
from moce.transfer.encoder import Trainable
from moce.transfer.finetune import (
    Classifier,
    Recipe,
    Tuning,
    binary_loss,
    finetune,
    parameter_groups,
)
from moce.transfer.learning import BETA2
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

    def training(self, rows: Tensor, recipe: Recipe, steps: range, rank: int, world: int) -> Iterator[Batch]:
        self.trained_on.append(set())
        for step in steps:
            generator = torch.Generator().manual_seed(recipe.seed + step)
            batch = rows[torch.randint(len(rows), (recipe.batch_size,), generator=generator)]
            self.trained_on[-1].update(batch.tolist())
            yield Batch(batch, batch, batch)  # indices stand for the pictures, which are floats here

    def prepared(self, batch: Batch, recipe: Recipe) -> tuple[Tensor, Tensor]:
        return self.images[batch.indices], self.labels[batch.indices]

    def were_read(self, rows: Tensor) -> None:
        assert not rows.numel() or rows.max() < len(self.labels)

    def centred(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for part in rows.split(50):
            yield self.images[part], part


def run(
    encoder: FakeEncoder,
    lrs: list[float],
    pool: ToyFeed | None = None,
    recipe: Recipe = RECIPE,
    *,
    folder: Path | None = None,
    num_val: int = 32,
    test: ToyFeed | None = None,
    by: str = "top1",
    quiet: bool = True,
    checkpoint_steps: int = 0,
) -> Outcome:
    """Fine-tune on 160 pictures of which the last are for validation, in a `folder`, by default one that goes."""
    pool = pool or ToyFeed(160, 1)
    rows, num_train = torch.arange(len(pool.labels)), len(pool.labels) - num_val
    options = Training(
        batch_size=recipe.batch_size,
        weight_decay=recipe.weight_decay,
        beta2=BETA2,
        device="cpu",
        checkpoint_steps=checkpoint_steps,
        quiet=quiet,
    )
    tuning = Tuning(encoder, pool, 4, recipe, options, "fine-tuning on quarters")
    config = EvaluateConfig(model="fake", task="quarters", protocol="finetune", quiet=True)
    with tempfile.TemporaryDirectory() as temporary, open_run(folder or temporary, "evaluate", config) as own:
        made = (
            own,
            tuning,
            rows[:num_train],
            rows[num_train:],
            test or ToyFeed(100, 2),
            scorer(by, 4),
            lrs,
            CPU,
        )
        return finetune(*made)[0]


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
    outcome = run(first, [1e-3, 1e-2], recipe=Recipe(epochs=8, batch_size=16, layer_decay=0.5, seed=3))
    torch.manual_seed(2)  # the global generator is nobody's business
    again = run(second, [1e-3, 1e-2], recipe=Recipe(epochs=8, batch_size=16, layer_decay=0.5, seed=3))
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
    pool = ToyFeed(20, 1)
    outcome = run(FakeEncoder(), [1e-2, 1e-4, 1e-3], pool, num_val=0)
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
    outcome = run(FakeEncoder(), [1e-6, 1e-2], feeds[0], test=feeds[1], by="mAP11")
    assert outcome.settings["lr"] == 1e-2
    assert outcome.predictions.shape == outcome.labels.shape == (100, 4)
    assert 0 <= outcome.predictions.min() and outcome.predictions.max() <= 1
    assert scorer("mAP11", 4)(outcome.predictions, outcome.labels) > 0.9


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
    outcome = run(FakeEncoder(), [1e-3, 1e-2], quiet=False)
    # 128 pictures, 8 epochs = 64 steps of 16, twice; then 160 pictures = 80 steps.
    assert outcome.settings["images_processed"] == 2 * 1024 + 1280
    assert "3,328 images to process" in capsys.readouterr().err


def test_the_time_is_said_after_the_first_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moce.transfer.finetune.LONG", 0.0)
    run(FakeEncoder(), [1e-3, 1e-2], quiet=False)
    assert capsys.readouterr().err.count("in all, by its first steps") == 1


def test_a_rate_that_diverges_is_passed_over_or_reported() -> None:
    assert run(FakeEncoder(), [1e-2, 1e38]).settings["val_scores"][1] is None
    with pytest.raises(UserError, match="not finite"):
        run(FakeEncoder(), [1e38])


@pytest.mark.parametrize(
    "lrs, said",
    [
        ([1e-7, 1e-2], "the largest of --lrs, 0.01, does best; larger ones may do better"),
        ([1e-2, 1e38], "the smallest of --lrs, 0.01, does best; smaller ones may do better"),
        ([1e-7, 1e-2, 1e38], None),
        ([1e-2], None),
    ],
)
def test_a_rate_at_the_edge_of_those_given_is_said(
    lrs: list[float], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(FakeEncoder(), lrs, quiet=False).settings["lr"] == 1e-2
    told = capsys.readouterr().err
    assert said in told if said else "may do better" not in told


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


def test_norms_and_scales_of_any_network_have_no_decay() -> None:
    network = Layers()
    network.bn1, network.gamma = nn.BatchNorm2d(4), nn.Parameter(torch.ones(4))
    network.cls_token = nn.Parameter(torch.ones(1, 1, 16))
    network.layer_of = lambda name: 0  # type: ignore[method-assign]
    classifier = Classifier(network, 16, 4, seed=0)
    groups = parameter_groups(classifier, 0.5, 0.05)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}  # type: ignore[attr-defined]
    names = {n for n, p in classifier.named_parameters() if id(p) not in decayed}
    assert {"encoder.bn1.weight", "encoder.gamma", "encoder.cls_token", "head.bias"} <= names
    assert all(p.ndim > 1 for p in classifier.parameters() if id(p) in decayed)


def test_the_first_prediction_is_nearly_uniform() -> None:
    classifier = Classifier(Layers(), 16, 4, seed=0)
    feed = ToyFeed(64, 1)
    loss = nn.functional.cross_entropy(classifier(feed.images), feed.labels)
    assert loss.item() == pytest.approx(math.log(4), abs=1e-3)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_was_tried_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption in the final training: the rates keep their scores, and it goes on after its checkpoint."""
    wanted = run(FakeEncoder(), [1e-3, 1e-2], folder=tmp_path / "whole", checkpoint_steps=30)
    pool, prepared = ToyFeed(160, 1), ToyFeed.prepared

    def interrupted(self: ToyFeed, batch: Batch, recipe: Recipe) -> tuple[Tensor, Tensor]:
        steps.append(len(pool.trained_on))
        if steps.count(3) == 50:
            raise KeyboardInterrupt
        return prepared(self, batch, recipe)

    steps: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(ToyFeed, "prepared", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(FakeEncoder(), [1e-3, 1e-2], pool, folder=tmp_path / "cut", checkpoint_steps=30)
    assert "checkpoints/step-000000030.safetensors" in files(tmp_path / "cut")
    pool.trained_on.clear()
    outcome = run(FakeEncoder(), [1e-3, 1e-2], pool, folder=tmp_path / "cut", checkpoint_steps=30)
    assert len(pool.trained_on) == 1
    assert outcome.settings == wanted.settings
    assert outcome.predictions.equal(wanted.predictions)
    whole, cut = ((tmp_path / name / "classifier.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_batch_norms_of_others_see_the_whole_batch_or_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), BatchNormAct2d(4), nn.Linear(4, 4))
    norm.synchronise(network, "net")
    assert [type(part) for part in network] == [nn.BatchNorm2d, BatchNormAct2d, nn.Linear]  # in one process
    monkeypatch.setattr(norm, "group", lambda: SimpleNamespace(world=2))
    norm.synchronise(network, "net")
    assert [type(part) for part in network] == [norm.BatchNorm, norm.BatchNormAct, nn.Linear]
    with pytest.raises(UserError, match="net has BatchNorm1d, which knows the pictures of one process alone"):
        norm.synchronise(nn.Sequential(nn.BatchNorm1d(4)), "net")


def test_of_the_trainings_the_last_one_s_weights_stay(tmp_path: Path) -> None:
    run(FakeEncoder(), [1e-3, 1e38], folder=tmp_path, checkpoint_steps=30)
    kept = {name for name in files(tmp_path) if name.endswith(".safetensors")}
    assert kept == {"classifier.safetensors"}
    scores = [
        json.loads((tmp_path / f"lr-{lr!r}/result.json").read_text())["val_score"] for lr in (1e-3, 1e38)
    ]
    assert scores[0] > 0.2 and scores[1] is None
