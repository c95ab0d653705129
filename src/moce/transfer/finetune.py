"""Fine-tuning for classification: the whole encoder and a linear head, trained on a task's labelled pictures.

The recipe is that of the official MAE code (He et al. 2022, appendix A.1; BEiT's layer-wise decay): AdamW, linear
warm-up and half-cosine, a learning rate that shrinks by `layer_decay` from block to block downwards, label smoothing,
random crops and flips. What differs: the head reads the mean of the patch tokens after the final norm, as the probes
do; neither mixup, dropout nor drop path, so that nothing random is left but crops and flips, and those are functions
of the seed: the same call gives the same weights, bit by bit on a CPU.

The learning rate is chosen on val, then the encoder starts again on train + val and predicts test once. A grid of one
learning rate needs no choice and skips the runs on train alone; without validation pictures (few shots) it is the
middle one of the grid.

    FOLDER/            the run of the final training: its metrics, classifier.safetensors, result.json
    FOLDER/lr-0.001/   that of a learning rate which was tried: its metrics, and its score on val

Where pictures show several classes the loss is the binary cross-entropy of every class that can be judged, without
smoothing. Several processes take their part of every batch and of the pictures to predict.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from moce.config import Training
from moce.engine.processes import group
from moce.engine.progress import clock, say
from moce.engine.randomness import normal
from moce.engine.runs import RESULT, Run, open_run
from moce.engine.trainer import Objective, Plan, train, without_decay
from moce.errors import NotFinite, UserError, counted
from moce.images.loader import Batch
from moce.transfer.encoder import Encoder, Trainable
from moce.transfer.learning import CHECKPOINTS, forward_flops, learned
from moce.transfer.metrics import Score
from moce.transfer.norm import synchronise
from moce.transfer.probe import Outcome

MEASURED = 4  # steps that say how long all of it will take
LONG = 10.0  # seconds from which on that is worth a line
HEAD_STD = 2e-5  # the official code's: the first prediction is uniform, whatever the features' scale
WEIGHTS = "classifier.safetensors"
LR_OPTION = "--lrs"


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

    def num_steps(self, num_images: int) -> int:
        """Steps of a run on so many pictures."""
        return max(1, math.ceil(self.epochs * num_images / self.batch_size))


@runtime_checkable
class Feed(Protocol):
    """A task's pictures by row, ready for one encoder, with their classes in `labels`."""

    labels: Int64[Tensor, "images *classes"]

    def training(
        self, rows: Int64[Tensor, "rows"], recipe: Recipe, steps: range, rank: int, world: int
    ) -> Iterable[Batch]:
        """The part of process `rank` of `world` of these batches of augmented pictures of these rows."""

    def prepared(
        self, batch: Batch, recipe: Recipe
    ) -> tuple[Float[Tensor, "batch channels h w"], Int64[Tensor, "batch *classes"]]:
        """Normalised pictures of a batch of training and their classes, on the device."""

    def centred(
        self, rows: Int64[Tensor, "rows"]
    ) -> Iterable[tuple[Float[Tensor, "batch channels h w"], Int64[Tensor, "batch"]]]:
        """Every one of these rows once, not augmented: (pictures, rows)."""

    def were_read(self, rows: Int64[Tensor, "rows"]) -> None:
        """Note rows that some process has read."""


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
    What has one dimension goes without decay, whatever it is called (biases, norms, scales, of other people's networks
    too), and so do the encoder's class token and positions, by name; heads are named as they like (torchvision's
    `cls_logits`).
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
        bare = parameter.ndim < 2 or (not head and without_decay(inner))
        empty = {
            "params": [],
            "scale": layer_decay ** (encoder.num_layers - layer),
            "weight_decay": 0.0 if bare else weight_decay,
        }
        groups.setdefault((layer, bare), empty)["params"].append(parameter)  # type: ignore[attr-defined]
    return list(groups.values())


class Classification(Objective):
    """The loss of a batch of crops."""

    trained: Classifier

    def __init__(
        self, classifier: Classifier, encoder: Encoder, feed: Feed, recipe: Recipe, lr: float
    ) -> None:
        super().__init__()
        self.trained, self.feed, self.recipe, self.lr = classifier.train(), feed, recipe, lr
        self.encoder = encoder

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """(loss, nothing more to log)."""
        images, labels = self.feed.prepared(batch, self.recipe)
        if labels.ndim == 2:
            loss = binary_loss(self.trained(images), labels)
        else:
            smoothing = self.recipe.smoothing
            loss = F.cross_entropy(self.trained(images).float(), labels, label_smoothing=smoothing)
            loss = loss * group().part_of_mean(len(labels), self.recipe.batch_size)
        auxiliary = self.trained.encoder.auxiliary_loss()
        return (loss if auxiliary is None else loss + auxiliary), {}

    def parameter_groups(self, config: Training) -> list[dict[str, Any]]:
        """Smaller learning rates further down, no decay of norms and biases."""
        groups = parameter_groups(self.trained, self.recipe.layer_decay, config.weight_decay)
        return [{**group, "peak_lr": self.lr * float(str(group.pop("scale")))} for group in groups]

    def flops_per_image(self) -> int:
        """Of a step: three times those of a forward pass."""
        return 3 * forward_flops(self.trained, self.encoder, self.trained.head.weight.device)


def binary_loss(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Mean binary cross-entropy of what can be judged in the batch of all processes: labels 1 and 0, not -1.

    It is this process's part, so that the mean over processes is that mean.
    """
    judged, world = (labels >= 0).float(), group().world
    own = F.binary_cross_entropy_with_logits(
        logits.float(), labels.clamp_min(0).float(), judged, reduction="sum"
    )
    return own * world / group().sum(judged.sum()).clamp_min(1)


@torch.no_grad()
def predict(
    classifier: Classifier, feed: Feed, rows: Int64[Tensor, "rows"]
) -> tuple[Shaped[Tensor, "readable *classes"], Int64[Tensor, "readable *classes"]]:
    """(predicted, true) of those of the rows whose picture can be read: classes, or probabilities of several."""
    classifier.eval()
    own = group().share(len(rows))
    several = feed.labels.ndim == 2
    width = classifier.head.out_features
    found = [torch.empty(0, width, dtype=torch.float64) if several else torch.empty(0, dtype=torch.int64)]
    seen = [torch.empty(0, dtype=torch.int64)]
    for images, batch in feed.centred(rows[own.start : own.stop]):
        logits = classifier(images)
        # In float64, where large logits do not all become 1.
        found.append((logits.double().sigmoid() if several else logits.argmax(dim=1)).cpu())
        seen.append(batch.cpu())
    readable = group().gather(torch.cat(seen))
    feed.were_read(readable)
    return group().gather(torch.cat(found)), feed.labels[readable]


@dataclass(frozen=True)
class Tuning:
    """One fine-tuning of an encoder on a task, and how it is told of."""

    encoder: Encoder
    pool: Feed
    num_classes: int
    recipe: Recipe
    options: Training
    what: str
    kept: bool = True  # whether what was trained is, to be continued

    def classifier(self, device: torch.device) -> Classifier:
        """An encoder that starts again, with a new head. UserError for one that several processes cannot train."""
        encoder = self.encoder.trainable()
        synchronise(encoder, self.encoder.name)
        return Classifier(encoder, self.encoder.width, self.num_classes, self.recipe.seed).to(device)

    def fit(
        self,
        run: Run,
        classifier: Classifier,
        rows: Int64[Tensor, "rows"],
        lr: float,
        told: Callable[[Iterator[Batch]], Iterator[Batch]],
    ) -> dict[str, Any]:
        """Train in place, from the newest checkpoint on; what it took. NotFinite where the loss is lost."""
        recipe, num_steps = self.recipe, self.recipe.num_steps(len(rows))

        def batches(first: int, rank: int, world: int) -> Iterator[Batch]:
            steps = range(first, num_steps)
            return told(iter(self.pool.training(rows, recipe, steps, rank, world)))

        return learned(
            run,
            classifier,
            WEIGHTS,
            lambda: train(
                run,
                Classification(classifier, self.encoder, self.pool, recipe, lr),
                batches,
                Plan(num_steps, len(rows), recipe.batch_size, recipe.warmup),
                self.options,
                f"{self.what}, learning rate {lr:g}",
                LR_OPTION,
                unused=not classifier.encoder.all_used,
            ),
            self.kept,
        )

    def tried(
        self,
        run: Run,
        lr: float,
        train_rows: Int64[Tensor, "train"],
        val_rows: Int64[Tensor, "val"],
        score: Score,
        device: torch.device,
        told: Callable[[Iterator[Batch]], Iterator[Batch]],
    ) -> dict[str, Any]:
        """{lr, val_score (None where the loss was lost), training}; a rate that was tried is not tried again."""
        with open_run(run.path / folder_of(lr), run.verb, run.config, run.inputs) as own:
            found: dict[str, Any] = {"lr": lr, "val_score": None}
            if own.finished:
                found = own.result()
            else:
                classifier = self.classifier(device)
                with suppress(NotFinite):
                    found["training"] = self.fit(own, classifier, train_rows, lr, told)
                    outcome = predict(classifier, self.pool, val_rows)
                    found["val_score"] = own.once(lambda: score(*outcome))
                own.finish(found)
            for name in (WEIGHTS, CHECKPOINTS):
                own.drop(name)
            return found

    def settings(self) -> dict[str, Any]:
        """The recipe, for the JSON of a result."""
        recipe = self.recipe
        names = ("epochs", "batch_size", "layer_decay", "weight_decay", "warmup", "min_crop", "flip")
        smoothing = 0.0 if self.pool.labels.ndim == 2 else recipe.smoothing
        return {**{name: getattr(recipe, name) for name in names}, "smoothing": smoothing}


def finetune(
    run: Run,
    tuning: Tuning,
    train_rows: Int64[Tensor, "train"],
    val_rows: Int64[Tensor, "val"],
    test: Feed,
    score: Score,
    lrs: Sequence[float],
    device: torch.device,
) -> tuple[Outcome, list[dict[str, Any]]]:
    """Choose the learning rate on `val_rows` of the pool, train on all of it, predict `test` once.

    Returns the outcome and what each training took, the final one last. Without `val_rows` the middle rate is taken.
    UserError where no learning rate keeps the loss finite. An interrupted call continues in the folder of its `run`.
    """
    recipe, what, quiet = tuning.recipe, tuning.what, tuning.options.quiet
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
    left = sum(
        recipe.num_steps(len(rows))
        for rows, name in zip(runs, [*map(folder_of, lrs[:choices]), ""], strict=True)
        if not name or not run.once((run.path / name / RESULT).is_file)
    )
    told = cost_teller(left, what, quiet)

    results = [tuning.tried(run, lr, train_rows, val_rows, score, device, told) for lr in lrs[:choices]]
    scores = [result["val_score"] for result in results]
    finite = [i for i, value in enumerate(scores) if value is not None]
    if choices and not finite:
        raise UserError(f"{what}: the loss is not finite at any of {LR_OPTION} {lrs}; give smaller ones.")
    best = max(finite, key=lambda i: scores[i]) if choices else 0
    if choices and best in (0, choices - 1):
        where, others = ("smallest", "smaller") if best == 0 else ("largest", "larger")
        say(f"{what}: the {where} of {LR_OPTION}, {lrs[best]}, does best; {others} ones may do better", quiet)
    final = tuning.classifier(device)
    try:
        training = tuning.fit(run, final, all_rows, lrs[best], told)
    except NotFinite:
        run.drop(CHECKPOINTS)
        raise UserError(
            f"{what}: the loss is not finite at a learning rate of {lrs[best]}; give a smaller {LR_OPTION}."
        ) from None
    settings = {
        "lr": lrs[best],
        "grid": {"lr": lrs},
        "val_score": scores[best] if choices else None,
        "val_scores": scores,
        **tuning.settings(),
        "images_processed": num_images,
    }
    outcome = Outcome(*predict(final, test, torch.arange(len(test.labels))), settings)
    return outcome, [*(r["training"] for r in results if "training" in r), training]


def folder_of(lr: float) -> str:
    """Where a learning rate is tried, in the folder of the run."""
    return f"lr-{lr!r}"


def cost_teller(num_steps: int, what: str, quiet: bool) -> Callable[[Iterator[Batch]], Iterator[Batch]]:
    """What passes batches on and once says, by the first of them, how long all steps will take."""
    ends: list[float] = []

    def told(steps: Iterator[Batch]) -> Iterator[Batch]:
        for step in steps:
            yield step
            if len(ends) > MEASURED:
                continue
            ends.append(time.monotonic())
            if len(ends) > MEASURED:  # the very first step is slower
                seconds = (ends[-1] - ends[0]) / MEASURED * num_steps
                say(f"{what}: about {clock(seconds)} in all, by its first steps", quiet or seconds < LONG)

    return told
