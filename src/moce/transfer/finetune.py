"""Fine-tuning for classification: the whole encoder and a linear head, trained on a task's labelled pictures.

The recipe is that of the official MAE code (He et al. 2022, appendix A.1; BEiT's layer-wise decay): AdamW, linear
warm-up and half-cosine, a learning rate that shrinks by `layer_decay` from block to block downwards, label smoothing,
random crops and flips. What differs: the head reads the mean of the patch tokens after the final norm, as the probes
do; neither dropout nor drop path, so that nothing random is left but crops, flips and mixup, and those are functions
of the seed: the same call gives the same weights, bit by bit on a CPU.

The learning rate is chosen on val, then the encoder starts again on train + val and predicts test once. A grid of one
learning rate needs no choice and skips the runs on train alone; without validation pictures (few shots) it is the
middle one of the grid.

Where pictures show several classes the loss is the binary cross-entropy of every class that can be judged, without
smoothing.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from moce.engine.devices import autocast
from moce.engine.progress import clock, say, track
from moce.engine.randomness import normal
from moce.engine.trainer import without_decay
from moce.errors import UserError, counted
from moce.transfer.encoder import Encoder, Trainable
from moce.transfer.metrics import Score
from moce.transfer.probe import Outcome

MEASURED = 4  # steps that say how long all of it will take
LONG = 10.0  # seconds from which on that is worth a line
HEAD_STD = 2e-5  # the official code's: the first prediction is uniform, whatever the features' scale


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune; learning rates are absolute peaks of the last layer, not per 256 images."""

    epochs: int
    batch_size: int
    layer_decay: float
    seed: int
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the steps
    smoothing: float = 0.1
    min_crop: float = 0.3  # smallest area of a random crop; small pictures are filled by their object
    flip: bool = True
    mixup: float = 0.0  # alpha of the Beta distribution; 0: off

    def num_steps(self, num_images: int) -> int:
        """Steps of a run on so many pictures."""
        return max(1, math.ceil(self.epochs * num_images / self.batch_size))


@runtime_checkable
class Feed(Protocol):
    """A task's pictures by row, ready for one encoder, with their classes in `labels`."""

    labels: Int64[Tensor, "images *classes"]

    def training(
        self, rows: Int64[Tensor, "rows"], recipe: Recipe, num_steps: int
    ) -> Iterable[tuple[Float[Tensor, "batch channels h w"], Int64[Tensor, "batch *classes"]]]:
        """`num_steps` batches of augmented, normalised pictures of these rows, with their classes."""

    def centred(
        self, rows: Int64[Tensor, "rows"]
    ) -> Iterable[tuple[Float[Tensor, "batch channels h w"], Int64[Tensor, "batch"]]]:
        """Every one of these rows once, not augmented: (pictures, rows)."""


class Headed(nn.Module):
    """An encoder, and whatever is trained on top of it."""

    encoder: Trainable


class Classifier(Headed):
    """An encoder and a linear head on its features."""

    def __init__(self, encoder: Trainable, width: int, num_classes: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, num_classes)
        with torch.no_grad():
            self.head.weight.copy_(normal(seed, "head", 0, torch.arange(num_classes), width) * HEAD_STD)
            self.head.bias.zero_()

    def forward(self, images: Float[Tensor, "images channels h w"]) -> Float[Tensor, "images classes"]:
        return self.head(self.encoder(images).float())


def parameter_groups(classifier: Headed, layer_decay: float, weight_decay: float) -> list[dict[str, object]]:
    """One group per layer and kind of decay; "scale" is what the learning rate of that layer is multiplied by.

    Layer 0 is everything before the first block, the last layer is the final norm with all heads, whose scale is 1.
    Heads are other people's and named as they like (torchvision has `cls_logits`): of theirs, biases and norms go
    without decay, which are those of one dimension; the encoder's go by name.
    """
    encoder = classifier.encoder
    groups: dict[tuple[int, bool], dict[str, object]] = {}
    for name, parameter in classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.removeprefix("encoder.")
        head = inner == name
        layer = encoder.num_layers if head else encoder.layer_of(inner)
        assert 0 <= layer <= encoder.num_layers, f"{name} is in layer {layer} of {encoder.num_layers}"
        bare = parameter.ndim < 2 if head else without_decay(inner)
        empty = {
            "params": [],
            "scale": layer_decay ** (encoder.num_layers - layer),
            "weight_decay": 0.0 if bare else weight_decay,
        }
        groups.setdefault((layer, bare), empty)["params"].append(parameter)  # type: ignore[attr-defined]
    return list(groups.values())


def factor(step: int, num_steps: int, warmup: float) -> float:
    """The learning rate of a step over its peak: linear warm-up, then half a cosine down to 0."""
    rising = warmup * num_steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, num_steps - rising)))


def mixed(
    images: Float[Tensor, "batch channels h w"],
    targets: Float[Tensor, "batch classes"],
    alpha: float,
    seed: int,
    step: int,
) -> tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch classes"]]:
    """Mixup (Zhang et al. 2018) of a batch with itself backwards, one Beta(alpha, alpha) share for each step."""
    share = float(np.random.default_rng([seed, step]).beta(alpha, alpha))
    return torch.lerp(images.flip(0), images, share), torch.lerp(targets.flip(0), targets, share)


def train(
    classifier: Classifier,
    batches: Iterable[tuple[Float[Tensor, "batch channels h w"], Int64[Tensor, "batch *classes"]]],
    recipe: Recipe,
    lr: float,
    num_steps: int,
    advance: Callable[[int], None] = lambda count: None,
) -> bool:
    """Train in place; False, and an early end, where the loss is no longer finite."""
    classifier.train()
    device = classifier.head.weight.device
    groups = parameter_groups(classifier, recipe.layer_decay, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), fused=True)
    total = torch.zeros((), device=device)
    for step, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"] * factor(step, num_steps, recipe.warmup)
        several = labels.ndim == 2
        targets = labels if several else F.one_hot(labels, classifier.head.out_features).float()
        if recipe.mixup > 0:
            assert not several, "what cannot be judged cannot be mixed"
            images, targets = mixed(images, targets, recipe.mixup, recipe.seed, step)
        with autocast(device, "auto"):
            logits = classifier(images)
        if several:
            loss = binary_loss(logits.float(), labels)
        else:
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.smoothing)
        auxiliary = classifier.encoder.auxiliary_loss()
        if auxiliary is not None:
            loss = loss + auxiliary
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        advance(len(labels))
        if (step + 1) % 50 == 0 and not total.isfinite():  # one sync in 50 steps
            return False
    return bool(total.isfinite())


def binary_loss(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Mean binary cross-entropy of what can be judged: labels 1 and 0, not -1."""
    judged = (labels >= 0).float()
    sums = F.binary_cross_entropy_with_logits(logits, labels.clamp_min(0).float(), judged, reduction="sum")
    return sums / judged.sum().clamp_min(1)


@torch.no_grad()
def predict(
    classifier: Classifier, feed: Feed, rows: Int64[Tensor, "rows"]
) -> tuple[Shaped[Tensor, "readable *classes"], Int64[Tensor, "readable *classes"]]:
    """(predicted, true) of those of the rows whose picture can be read: classes, or probabilities of several."""
    classifier.eval()
    found, seen = [], []
    several = feed.labels.ndim == 2
    for images, batch in feed.centred(rows):
        logits = classifier(images)
        # In float64, where large logits do not all become 1.
        found.append((logits.double().sigmoid() if several else logits.argmax(dim=1)).cpu())
        seen.append(batch.cpu())
    return torch.cat(found), feed.labels[torch.cat(seen)]


def finetune(
    encoder: Encoder,
    pool: Feed,
    train_rows: Int64[Tensor, "train"],
    val_rows: Int64[Tensor, "val"],
    test: Feed,
    num_classes: int,
    score: Score,
    recipe: Recipe,
    lrs: Sequence[float],
    device: torch.device,
    what: str = "fine-tuning",
    quiet: bool = False,
) -> Outcome:
    """Choose the learning rate on `val_rows` of `pool`, train on all of it, predict `test` once.

    Without `val_rows` the middle one is taken. UserError where no learning rate keeps the loss finite.
    """
    lrs = sorted(set(lrs))
    if not len(val_rows):
        lrs = lrs[len(lrs) // 2 :][:1]
    all_rows = torch.cat([train_rows, val_rows])
    choices = len(lrs) if len(lrs) > 1 else 0
    runs = choices * [train_rows] + [all_rows]
    num_images = sum(recipe.num_steps(len(rows)) * recipe.batch_size for rows in runs)
    text = (
        f"{choices} learning rates on {counted(len(train_rows), 'picture')} and the best one"
        if choices
        else "one run"
    )
    say(
        f"{what}: {text} on {len(all_rows):,}, {counted(recipe.epochs, 'epoch')} each: "
        f"{counted(num_images, 'image')} to process",
        quiet,
    )

    def trained(rows: Tensor, lr: float) -> Classifier | None:
        num_steps = recipe.num_steps(len(rows))
        classifier = Classifier(encoder.trainable(), encoder.width, num_classes, recipe.seed).to(device)
        batches = pool.training(rows, recipe, num_steps)
        return classifier if train(classifier, batches, recipe, lr, num_steps, advance) else None

    first: list[float] = []  # when the first steps ended

    def advance(count: int) -> None:
        bar.advance(count)
        if len(first) <= MEASURED:
            first.append(time.monotonic())
            if len(first) > MEASURED:  # the very first step is slower
                seconds = (first[-1] - first[0]) / MEASURED / recipe.batch_size * num_images
                say(f"{what}: about {clock(seconds)} in all, by its first steps", quiet or seconds < LONG)

    with track(num_images, what, quiet=quiet) as bar:
        scores: list[float | None] = []
        for lr in lrs[:choices]:
            candidate = trained(train_rows, lr)
            scores.append(None if candidate is None else score(*predict(candidate, pool, val_rows)))
            del candidate  # one model at a time
        finite = [i for i, value in enumerate(scores) if value is not None]
        if choices and not finite:
            raise UserError(f"{what}: the loss is not finite at any of --lrs {lrs}; give smaller ones.")
        best = max(finite, key=lambda i: scores[i]) if choices else 0  # type: ignore[arg-type, return-value]
        final = trained(all_rows, lrs[best])
    if final is None:
        raise UserError(
            f"{what}: the loss is not finite at a learning rate of {lrs[best]}; give a smaller --lrs."
        )
    settings = {
        "lr": lrs[best],
        "grid": {"lr": lrs},
        "val_score": scores[best] if choices else None,
        "val_scores": scores,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "layer_decay": recipe.layer_decay,
        "weight_decay": recipe.weight_decay,
        "warmup": recipe.warmup,
        "smoothing": 0.0 if pool.labels.ndim == 2 else recipe.smoothing,
        "min_crop": recipe.min_crop,
        "flip": recipe.flip,
        "mixup": recipe.mixup,
        "images_processed": num_images,
    }
    return Outcome(*predict(final, test, torch.arange(len(test.labels))), settings)
