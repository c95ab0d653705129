"""The sub-models of a run with experts (or sub-nets of SDR) as encoders, and the ways to choose one for a task.

    vote, per-layer, average, nearest     from the task's training pictures without their labels
    cluster:K, random                     from nothing
    knn                                   by labels: the best nearest neighbours on validation pictures
    oracle                                by labels: the best on validation by the very protocol that is then reported

The last two try every sub-model that some cluster leads to. The oracle and the random one are references for a choice,
no methods, and bound nothing: the best on validation need not be the best on test.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from moce.config import EvaluateConfig
from moce.engine.devices import num_workers_of
from moce.engine.files import sha256_of
from moce.engine.processes import group
from moce.engine.progress import say, track
from moce.errors import UserError
from moce.images.sources import Source
from moce.images.tasks import split
from moce.model.assigner import Assigner
from moce.model.autoencoder import require_whole_patches
from moce.model.experts import ExpertAutoencoder
from moce.model.resize import resize_encoder
from moce.model.weights import fingerprint, load_model
from moce.stages.customize import (
    BLIND,
    STRATEGIES,
    Selection,
    Votes,
    choice_of,
    count_votes,
    default_strategy,
    distinct,
    require_strategy,
    select,
    slice_encoder,
)
from moce.stages.membership import CLUSTERS_FILE
from moce.transfer.encoder import (
    Encoder,
    Frozen,
    PlainViT,
    chosen,
    facts_of,
    finished_run,
    model_folder,
    sizes,
)
from moce.transfer.learning import BY_LABELS
from moce.transfer.metrics import scorer
from moce.transfer.pictures import Pictures, forget_features, labelled
from moce.transfer.probe import knn


class SubModels:
    """A run's sub-models for pictures of `image_size`, by default of the run's own size.

    `facts` are what `Frozen` has to be told: name, method, mean, std, device.
    """

    def __init__(
        self,
        model: ExpertAutoencoder,
        assigner: Assigner,
        image_size: tuple[int, int] | None = None,
        **facts: Any,
    ) -> None:
        self.model, self.assigner, self.facts = model, assigner, facts
        self.image_size = image_size or model.shape.image_size
        self.default = default_strategy(model.expert_shape.gate)
        require_whole_patches(self.image_size, model.shape.patch_size)  # before any vote, which takes longer

    def encoder(self, selection: Selection, votes: Votes | None = None) -> Encoder:
        """One sub-model; beside its results stands how it was chosen."""
        choice = choice_of(selection, votes, self.model)
        facts = dict(self.facts)
        if selection.strategy != self.default:
            facts["method"] = f"{facts['method']} ({selection.strategy})"
        vit = slice_encoder(self.model, selection)
        return frozen(vit, self.model, self.image_size, {"choice": chosen(choice)}, **facts)

    def by_votes(
        self, strategy: str, task_train: Source, seed: int, task: str, num_workers: int, quiet: bool
    ) -> Encoder:
        """The sub-model that a strategy without labels chooses; UserError for one that does not exist."""
        require_strategy(strategy, self.assigner.num_clusters, (*STRATEGIES, "oracle"))
        assert strategy not in BY_LABELS, f"{strategy} reads labels"
        votes = None
        if not strategy.startswith(BLIND):
            votes = votes_of(self.assigner, task_train, num_workers, quiet)
        selection = select(strategy, self.model, self.assigner, votes, seed, task)
        if votes and votes.warning:
            say(f"warning: {votes.warning}", quiet)
        return self.encoder(selection, votes)

    def by_score(self, strategy: str, score: Callable[[Encoder], float], quiet: bool) -> Encoder:
        """The sub-model with the highest score, the first of equals."""
        there = distinct(self.model, strategy)
        return self.encoder(best(there, map(self.encoder, there), score, quiet))


def open_submodels(path: str, device: torch.device, image_size: tuple[int, int] | None = None) -> SubModels:
    """The sub-models of a run folder; UserError when it holds no finished run."""
    folder = model_folder(path)
    finished_run(folder)
    model, header = load_model(folder)
    assert isinstance(model, ExpertAutoencoder) and model.expert_shape.gate != "token"
    assigner = Assigner.load(folder / CLUSTERS_FILE, device)
    return SubModels(model, assigner, image_size, **facts_of(path, header["about"], device))


def frozen(
    vit: VisionTransformer,
    model: ExpertAutoencoder,
    image_size: tuple[int, int],
    about: dict[str, Any],
    **facts: Any,
) -> Encoder:
    """A slice of a model as an encoder of pictures of `image_size`."""
    resize_encoder(vit, image_size)
    own = {**sizes(model), "image_size": image_size}
    return Frozen(PlainViT(vit), fingerprint=fingerprint(vit), **own, about=about, **facts)


def best(
    there: list[Selection], encoders: Iterable[Encoder], score: Callable[[Encoder], float], quiet: bool
) -> Selection:
    """The selection whose encoder scores highest, the first of equals, with the scores of all."""
    scores: list[float] = []
    with track(len(there), "trying sub-models", "sub-models", quiet=quiet) as bar:
        for encoder in encoders:  # one at a time
            scores.append(score(encoder))
            bar.advance(1)
    # One process decides: on another machine equals may differ in their last digit.
    first = group().once(lambda: max(range(len(there)), key=scores.__getitem__))
    tried = {f"cluster:{own.cluster}": value for own, value in zip(there, scores, strict=True)}
    winner = there[first]
    return Selection(winner.strategy, winner.cluster, winner.weights_LE, tried=tried)


def votes_of(assigner: Assigner, task_train: Source, num_workers: int, quiet: bool) -> Votes:
    """How a task's training pictures vote; counted once in a process, whatever is then made of it."""
    clusters = sha256_of(assigner.centroids.numpy().tobytes(), assigner.potentials.numpy().tobytes())
    key = (assigner.encoder_fingerprint, clusters, task_train.uri, task_train.fingerprint())
    if key not in _votes:
        _votes[key] = count_votes(assigner, task_train, num_workers=num_workers_of(num_workers), quiet=quiet)
    return _votes[key]


_votes: dict[tuple, Votes] = {}


def forget_tasks() -> None:
    """Drop the votes and features of earlier tasks that this process keeps, so that a search is the first again."""
    _votes.clear()
    forget_features()


def knn_choice(
    model: ExpertAutoencoder, about: dict[str, Any], source: Source, num_workers: int = 0, quiet: bool = True
) -> Selection:
    """The sub-model whose neighbours name a fifth of the pictures best, from the others of `source`, as SDR chooses.

    `about` is that of the model's header. UserError where the pictures have no labels.
    """
    if source.labels is None or source.labels.min() < 0:
        raise UserError(
            f"--strategy knn compares pictures by class, and those of '{source.uri}' have no labels; put the pictures "
            "of each class into a folder of their own, or take another strategy."
        )
    device = model.mask_token.device
    facts = facts_of("a sub-model", about, device)
    train_rows, val_rows = (torch.as_tensor(rows) for rows in split(source))
    num_classes = int(source.labels.max()) + 1
    grid: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(EvaluateConfig)}

    def score(encoder: Encoder) -> float:
        pictures = Pictures(source, encoder, device, num_workers, quiet=True)
        train, val = labelled(pictures, train_rows), labelled(pictures, val_rows)
        by = scorer("top1", num_classes)
        # The validation pictures stand for test ones too: no others are there, and only the choice counts.
        outcome = knn(train, val, val, num_classes, by, grid["k"], grid["temperature"])
        return outcome.settings["val_score"]

    there = distinct(model, "knn")
    size = model.shape.image_size
    encoders = (frozen(slice_encoder(model, own), model, size, {}, **facts) for own in there)
    return best(there, encoders, score, quiet)
