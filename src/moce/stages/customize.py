"""Stage 3: slice the experts that fit a task out of a model with experts.

The task's pictures (never their labels) are assigned to clusters by the assigner that made the labels of pre-training;
a strategy turns the votes into one expert per layer; those are kept, the gates and all other experts dropped. What is
left is a plain ViT of the dense size. A slice is exact: its `forward_features` is that of the routed model for pictures
of the chosen cluster.

    vote        the cluster with most votes; its clean gate picks the expert of every layer (the paper's, as recalled)
    per-layer   in every layer the expert with most votes, over all clusters
    average     in every layer the mean of the experts, weighted by votes: one model, no bet on a cluster
    nearest     the cluster whose centroid is nearest to the mean of the task's features
    cluster:K   cluster K; needs no pictures
    knn         the sub-model whose nearest neighbours name the pictures best: 80 % of each class against the rest. The
                only one that reads labels; how SDR, whose sub-nets are customised here as well, chooses
    random      any of the sub-models, as the seed says; needs no pictures

For sub-nets of SDR, "expert" means sub-net, and a cluster's expert is the sub-net of its group, in every layer.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from moce.config import CustomizeConfig
from moce.engine.devices import num_workers_of, pick_device
from moce.engine.files import write_whole
from moce.engine.processes import group
from moce.engine.progress import say, track
from moce.engine.randomness import uniform
from moce.engine.runs import earlier_run, open_run, read_run
from moce.errors import UserError, did_you_mean
from moce.images.loader import centred_batches, survey
from moce.images.sources import Source, open_images, require_apart
from moce.images.tasks import split_uri
from moce.model.assigner import Assigner
from moce.model.autoencoder import build_encoder, require_whole_patches
from moce.model.experts import ExpertAutoencoder
from moce.model.resize import resize_encoder
from moce.model.weights import fingerprint, load_model
from moce.options import pair
from moce.stages.feed import list_unreadable
from moce.stages.membership import CLUSTERS_FILE
from moce.stages.nearest import SHEET, nearest_pictures, write_sheet
from moce.stages.pictures import with_bytes
from moce.verbs import verb

STRATEGIES = ("vote", "per-layer", "average", "nearest", "cluster:K", "knn", "random")
BLIND = ("cluster:", "random")  # strategies that begin so choose without pictures
THUMBS_FILE = "thumbs/thumbs.safetensors"
LEAST_PERCENTILE = 5.0  # of random pre-training subsets of the task's size; below it no cluster fits
MOST_ENTROPY = 0.9  # of the vote, as a share of log K; above it no cluster fits
NUM_SUBSETS = 1000


@dataclass(frozen=True)
class Votes:
    """How a task's pictures spread over the clusters, and how well they fit."""

    histogram_K: Int64[Tensor, " clusters"]
    mean_embedding: Float[Tensor, " width"]
    mean_cosine: float
    percentile: float  # of mean_cosine among those of random pre-training subsets
    subsets: tuple[float, float, float] = (0.0, 0.0, 0.0)  # the 5, 50 and 95 % quantiles of these

    @property
    def num_images(self) -> int:
        """Pictures that voted."""
        return int(self.histogram_K.sum())

    @property
    def winner_share(self) -> float:
        """Votes of the first cluster, as a share of all."""
        return float(self.histogram_K.max()) / self.num_images

    @property
    def margin(self) -> float:
        """Votes of the first cluster beyond the second, as a share of all."""
        first, second = self.histogram_K.sort(descending=True).values[:2].tolist()
        return (first - second) / self.num_images

    @property
    def entropy(self) -> float:
        """Entropy of the vote, in nats."""
        share = self.histogram_K[self.histogram_K > 0].double() / self.num_images
        return float(-(share * share.log()).sum())

    @property
    def warning(self) -> str | None:
        """A sentence where no cluster fits the task, else None."""
        limit = MOST_ENTROPY * math.log(len(self.histogram_K))
        if self.entropy > limit:
            return (
                f"No cluster fits: the votes spread over the clusters (entropy {self.entropy:.2f}, more than "
                f"{limit:.2f}), so the task is as broad as the pre-training pictures."
            )
        if self.percentile < LEAST_PERCENTILE:
            return (
                f"No cluster fits: the pictures are further from their clusters (mean cosine {self.mean_cosine:.3f}) "
                f"than {100 - self.percentile:.0f} % of random sets of pre-training pictures."
            )
        return None


def count_votes(
    assigner: Assigner,
    source: Source,
    batch_size: int = 256,
    num_workers: int = 0,
    quiet: bool = True,
    seed: int = 0,
) -> Votes:
    """Assign all pictures of a task; each process looks at its part."""
    processes = group()
    own = torch.tensor(processes.batches(len(source), batch_size), dtype=torch.int64)
    votes = torch.zeros(assigner.num_clusters, dtype=torch.int64)
    total = torch.zeros(assigner.centroids.shape[1], dtype=torch.float64)
    cosines = [torch.empty(0)]
    with track(len(source), "looking at the task", quiet=quiet) as bar:
        for _, images in centred_batches(
            source, assigner.image_size, batch_size, num_workers, assigner.crop_pct, quiet, own
        ):
            features = assigner.features(images)
            labels, embedded = assigner.assign(features), assigner.embed(features)
            votes += labels.bincount(minlength=assigner.num_clusters)
            total += embedded.double().sum(dim=0)
            cosines.append(assigner.cosines(embedded, labels))
            bar.advance(len(images) * processes.world)  # the others are as far, more or less
    votes, total = processes.sum(votes), processes.sum(total)
    num_images = int(votes.sum())
    if not num_images:
        raise UserError(f"No picture of {source.uri} can be read.")
    mean_cosine = float(processes.gather(torch.cat(cosines)).double().mean())
    means = subset_means(num_images, assigner.cosine_quantiles.double().numpy(), seed)
    low, middle, high = np.quantile(means, (LEAST_PERCENTILE / 100, 0.5, 1 - LEAST_PERCENTILE / 100)).tolist()
    percentile = float((means <= mean_cosine).mean() * 100)
    return Votes(votes, (total / num_images).float(), mean_cosine, percentile, (low, middle, high))


def subset_means(num_images: int, quantiles: np.ndarray, seed: int) -> Float[np.ndarray, "subsets"]:
    """Mean cosines of random pre-training subsets of `num_images`, from the quantiles of single pictures' cosines."""
    draw = np.random.default_rng(seed)
    places = np.linspace(0, 1, len(quantiles))
    if num_images <= 1000:
        return np.interp(draw.random((NUM_SUBSETS, num_images)), places, quantiles).mean(axis=1)
    values = np.interp(draw.random(100_000), places, quantiles)
    return draw.normal(values.mean(), values.std() / math.sqrt(num_images), NUM_SUBSETS)  # of so many: normal


@dataclass(frozen=True)
class Selection:
    """What a strategy decided: a cluster, where there is one, and the weight of every expert of every layer."""

    strategy: str
    cluster: int | None
    weights_LE: Float[Tensor, "layers experts"]
    shares_LE: Float[Tensor, "layers experts"] | None = (
        None  # of the task's pictures that would go to each expert
    )
    tried: dict[str, float] | None = (
        None  # where labels chose: the score of each sub-model, by its first cluster
    )

    def experts(self, layers: tuple[int, ...]) -> dict[str, Any]:
        """{layer: index of its expert}, or all weights where experts are averaged."""
        one_hot = bool(((self.weights_LE > 0).sum(dim=1) == 1).all())
        rows = zip(layers, self.weights_LE, strict=True)
        return {str(layer): int(row.argmax()) if one_hot else row.tolist() for layer, row in rows}


def routes(model: ExpertAutoencoder) -> Int64[Tensor, "layers clusters"]:
    """The expert that each cluster's pictures go to in every layer."""
    return model.gates().cpu().argmax(dim=-1)


def default_strategy(gate: str) -> str:
    """How the method itself chooses a sub-model."""
    return "knn" if gate == "sdr" else "vote"


def distinct(model: ExpertAutoencoder, strategy: str = "cluster:K") -> list[Selection]:
    """Every sub-model that some cluster leads to, once, in the order of the first cluster that does."""
    chosen_LK = routes(model)
    first: dict[tuple[int, ...], int] = {}
    for cluster, experts in enumerate(chosen_LK.T.tolist()):
        first.setdefault(tuple(experts), cluster)
    return [Selection(strategy, k, weights_of(model, chosen_LK[:, k])) for k in first.values()]


def weights_of(
    model: ExpertAutoencoder, chosen_L: Int64[Tensor, " layers"]
) -> Float[Tensor, "layers experts"]:
    """One expert in every layer, as weights."""
    return torch.nn.functional.one_hot(chosen_L, model.expert_shape.num_experts).float()


def vote_shares(model: ExpertAutoencoder, votes: Votes) -> Float[Tensor, "layers experts"]:
    """The share of the task's pictures that would go to each expert."""
    one_hot_LKE = torch.nn.functional.one_hot(routes(model), model.expert_shape.num_experts).double()
    return torch.einsum("k,lke->le", votes.histogram_K.double() / votes.num_images, one_hot_LKE).float()


def require_strategy(strategy: str, num_clusters: int | None, known: tuple[str, ...] = STRATEGIES) -> None:
    """UserError for a strategy that does not exist, or a cluster that does not; any number passes for None clusters."""
    if strategy.startswith("cluster:"):
        number = strategy.removeprefix("cluster:")
        plain = number.isascii() and number.isdigit()
        if not plain or (num_clusters is not None and int(number) >= num_clusters):
            which = "by its number" if num_clusters is None else f"from 0 to {num_clusters - 1}"
            raise UserError(f"--strategy {strategy}: name a cluster {which}, such as cluster:0.")
    elif strategy not in known or strategy == "cluster:K":
        raise UserError(
            f"There is no strategy '{strategy}': choose one of {', '.join(known)}.{did_you_mean(strategy, known)}"
        )


def select(
    strategy: str,
    model: ExpertAutoencoder,
    assigner: Assigner,
    votes: Votes | None,
    seed: int = 0,
    task: str = "",
) -> Selection:
    """Turn votes into experts. UserError for an unknown strategy, or one that needs pictures and has none.

    Where labels choose (knn), `moce.transfer.submodels` does. `seed` and `task` say which sub-model is a random one, so
    that of several tasks each has its own.
    """
    require_strategy(strategy, assigner.num_clusters)
    shares_LE = None if votes is None else vote_shares(model, votes)
    if strategy.startswith("cluster:"):
        cluster = int(strategy.removeprefix("cluster:"))
        return Selection(strategy, cluster, weights_of(model, routes(model)[:, cluster]), shares_LE)
    if strategy == "random":
        there = distinct(model, strategy)
        draw = uniform(seed, f"random sub-model {task}", 0, torch.zeros(1, dtype=torch.int64), 1)
        return dataclasses.replace(there[int(draw * len(there))], shares_LE=shares_LE)
    if votes is None or shares_LE is None:
        raise UserError(f"--strategy {strategy} looks at the task's pictures: give --images.")
    if strategy == "average":
        return Selection(strategy, None, shares_LE, shares_LE)
    if strategy == "per-layer":
        return Selection(strategy, None, weights_of(model, shares_LE.argmax(dim=1)), shares_LE)
    if strategy == "nearest":
        cluster = int((assigner.centroids @ votes.mean_embedding).argmax())
    else:
        assert strategy == "vote", f"{strategy} does not choose by votes"
        cluster = int(votes.histogram_K.argmax())
    return Selection(strategy, cluster, weights_of(model, routes(model)[:, cluster]), shares_LE)


@torch.no_grad()
def slice_encoder(model: ExpertAutoencoder, selection: Selection) -> VisionTransformer:
    """The plain timm ViT that is left when only the selected experts stay; output scales are folded in."""
    if model.expert_shape.top_k != 1:
        raise UserError(
            f"This model sends a picture through {model.expert_shape.top_k} experts, so no slice of the dense size "
            "equals it; train with --top-k 1 to customise."
        )
    vit = build_encoder(model.shape)
    places = vit.state_dict()
    state = {n: t for n, t in model.encoder.state_dict().items() if n in places}
    for i, layer in enumerate(model.expert_shape.layers):
        experts, weights_E = model.encoder.blocks[layer].mlp, selection.weights_LE[i]
        scales_E = output_scales(model, i, selection)
        kept = [e for e in range(len(weights_E)) if weights_E[e] > 0]
        parts = [experts.expert(e, scales_E[e]) for e in kept]
        for name in parts[0]:
            weighted = [float(weights_E[e]) * part[name] for e, part in zip(kept, parts, strict=True)]
            state[f"blocks.{layer}.mlp.{name}"] = (
                parts[0][name] if len(kept) == 1 else torch.stack(weighted).sum(dim=0)
            )
    vit.load_state_dict(state, strict=True)
    return vit.eval().requires_grad_(False)


def output_scales(model: ExpertAutoencoder, index: int, selection: Selection) -> list[float]:
    """What multiplies each expert's output at inference: 1, or with raw gates the clean p of the cluster's choice.

    Where the strategy names no cluster, p is the mean over the clusters that choose the expert.
    """
    num_experts = model.expert_shape.num_experts
    if model.expert_shape.output_scale == "straight-through":
        return [1.0] * num_experts
    best_K, choice_K = model.gates()[index].cpu().max(dim=1)
    if selection.cluster is not None:
        return [float(best_K[selection.cluster])] * num_experts
    return [float(best_K[choice_K == e].mean()) if (choice_K == e).any() else 1.0 for e in range(num_experts)]


def choice_of(selection: Selection, votes: Votes | None, model: ExpertAutoencoder) -> dict[str, Any]:
    """The content of choice.json, but for its pictures."""
    layers, shares_LE = model.expert_shape.layers, selection.shares_LE
    return {
        "strategy": selection.strategy,
        "cluster": selection.cluster,
        "votes": votes.histogram_K.tolist() if votes else [],
        "num_images": votes.num_images if votes else 0,
        "winner_share": votes.winner_share if votes else None,
        "margin": votes.margin if votes else None,
        "entropy": votes.entropy if votes else None,
        "experts": selection.experts(layers),
        **({} if selection.tried is None else {"tried": len(selection.tried), "scores": selection.tried}),
        "num_experts": model.expert_shape.num_experts,
        "shares": {} if shares_LE is None else dict(zip(map(str, layers), shares_LE.tolist(), strict=True)),
        "fit": {
            "mean_cosine": votes.mean_cosine,
            "percentile": votes.percentile,
            "subsets": list(votes.subsets),
        }
        if votes
        else None,
        "warning": votes.warning if votes else None,
    }


def customised(
    model: ExpertAutoencoder,
    header: dict[str, Any],
    assigner: Assigner,
    source: Source | None,
    strategy: str = "vote",
    **looking: Any,
) -> tuple[VisionTransformer, dict[str, Any], Votes | None]:
    """(the customised ViT, the content of choice.json, the votes), all in memory.

    `looking` goes to `count_votes`: batch_size, num_workers, quiet, seed.
    """
    require_strategy(strategy, assigner.num_clusters)
    votes = None if source is None else count_votes(assigner, source, **looking)
    if strategy == "knn" and source is not None:
        from moce.transfer.submodels import knn_choice  # what measures models stands above

        own = {n: looking[n] for n in ("num_workers", "quiet") if n in looking}
        chosen = knn_choice(model, header["about"], source, **own)
        shares_LE = None if votes is None else vote_shares(model, votes)
        selection = dataclasses.replace(chosen, shares_LE=shares_LE)
    else:
        selection = select(strategy, model, assigner, votes, looking.get("seed", 0))
    return slice_encoder(model, selection), choice_of(selection, votes, model), votes


def timm_config(
    model: ExpertAutoencoder, about: dict[str, Any], crop_pct: float, image_size: tuple[int, int]
) -> dict[str, Any]:
    """timm's config.json of a model folder."""
    shape, width = model.shape, model.encoder.embed_dim
    square = lambda pair: pair[0] if pair[0] == pair[1] else list(pair)  # noqa: E731
    # Older versions of timm (seen in 1.0.20) take every first convolution for one of 3 channels: they try to adapt one
    # of 4 or 13, cannot, and leave it random. Without its name they load it as it is.
    first_conv = "patch_embed.proj" if shape.channels == 3 else None
    return {
        "architecture": shape.architecture,
        "num_classes": 0,
        "num_features": width,
        "global_pool": "avg",
        "model_args": {
            "img_size": square(image_size),
            "patch_size": square(shape.patch_size),
            "global_pool": "avg",
            "fc_norm": False,
            **({} if shape.channels == 3 else {"in_chans": shape.channels}),
        },
        "pretrained_cfg": {
            "tag": "moce",
            "custom_load": False,
            "input_size": [shape.channels, *image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": crop_pct,
            "crop_mode": "center",
            "mean": list(about["mean"]),
            "std": list(about["std"]),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": first_conv,
            "classifier": "head",
        },
    }


def read_moce(path: str | Path, device: torch.device) -> tuple[ExpertAutoencoder, dict[str, Any], Assigner]:
    """(model, header, assigner) of a run folder with sub-models to slice out; UserError for any other run."""
    info = read_run(path, "train-experts")
    if info.config.get("gate") not in ("cluster", "sdr"):
        raise UserError(
            f"{path} was trained with --gate {info.config.get('gate')}: only experts with a cluster gate, and sub-nets "
            "of SDR, can be sliced out."
        )
    info.result()
    model, header = load_model(info.path, device)
    assert isinstance(model, ExpertAutoencoder)
    return model, header, Assigner.load(info.path / CLUSTERS_FILE, device)


@verb(CustomizeConfig)
def customize(config: CustomizeConfig) -> dict[str, Any]:
    """Slice a plain ViT for a task out of a run of train-experts; `out` is a folder that timm loads.

    Returns the content of choice.json with verb, out, parameters and fingerprint.
    """
    device = pick_device(config.device)
    model, header, assigner = read_moce(config.moce, device)
    image_size = pair(config.image_size) if config.image_size else model.shape.image_size
    require_whole_patches(image_size, model.shape.patch_size)
    strategy = config.strategy or default_strategy(model.expert_shape.gate)
    require_strategy(strategy, assigner.num_clusters)
    config = dataclasses.replace(config, strategy=strategy)
    source = open_images(config.images, model.shape.channels) if config.images is not None else None
    if source is not None:
        require_apart(source, config.out, below=False)
    if source is not None and split_uri(Path(str(config.images)), "train"):
        say(
            f"warning: {config.images} holds the splits of a task, and all its pictures vote, those of the test split "
            f"too; name {split_uri(Path(str(config.images)), 'train')} to leave them out",
            config.quiet,
        )
    inputs = {"model": fingerprint(model), "images": source.fingerprint() if source else ""}
    if source is not None:
        inputs = with_bytes(inputs, source, "customize", config, config.out)
    elif config.hash_content:
        say("--hash-content is not used: there are no --images", config.quiet)
    unreadable = survey(source, config.quiet).unreadable if source else []
    earlier = earlier_run(Path(config.out), "customize", config, inputs)  # before the pictures vote
    if earlier is not None and earlier.finished and not config.overwrite:
        say(f"{earlier.path} is finished; --overwrite makes it again", config.quiet)
        return earlier.result()
    looking = {"batch_size": config.batch_size, "num_workers": num_workers_of(config.num_workers)}
    vit, choice, votes = customised(
        model, header, assigner, source, strategy, quiet=config.quiet, seed=config.seed, **looking
    )
    choice["method"] = header["about"]["method"]
    if choice["warning"]:
        if config.strict:
            raise UserError(f"{choice['warning']} Nothing was written (--strict).")
        say(f"warning: {choice['warning']}", config.quiet)
    resize_encoder(vit, image_size)
    timm_content = timm_config(model, header["about"], assigner.crop_pct, image_size)
    shown = nearest_pictures(
        Path(config.moce) / THUMBS_FILE,
        assigner,
        source,
        votes.histogram_K if votes else None,
        choice["cluster"],
    )
    with open_run(config.out, "customize", config, inputs, beside=timm_content) as run:
        if run.finished:  # by another process, meanwhile
            return run.result()
        if shown is not None:
            write_sheet(run.path / SHEET, shown[1])
        run.write_json("choice.json", choice if shown is None else {**choice, "pictures": shown[0]})
        if source:
            list_unreadable(run.path, source, unreadable, config.quiet)
        with write_whole(run.path / "model.safetensors") as temporary:
            save_file(
                {n: t.contiguous() for n, t in vit.state_dict().items()}, temporary, metadata={"format": "pt"}
            )
        tell(choice, votes, run.path, config.quiet)
        result = {"verb": "customize", "out": str(run.path), **choice}
        result["unreadable"] = len(unreadable)
        result["parameters"] = sum(p.numel() for p in vit.parameters())
        return run.finish({**result, "fingerprint": fingerprint(vit), "seed": config.seed})


def kept_experts(choice: dict[str, Any]) -> str:
    """'block 9: 6, block 11: a mean (3: 62 %, 0: 38 %)'."""
    parts = []
    for layer, kept in choice["experts"].items():
        if isinstance(kept, list):
            order = sorted((e for e, w in enumerate(kept) if w > 0), key=lambda e: -kept[e])
            kept = f"a mean ({', '.join(f'{e}: {kept[e]:.0%}'.replace('%', ' %') for e in order)})"
        parts.append(f"block {layer}: {kept}")
    return ", ".join(parts)


def tell(choice: dict[str, Any], votes: Votes | None, path: Path, quiet: bool) -> None:
    """What was chosen, for people."""
    if votes is not None and choice["cluster"] is not None:
        own = int(votes.histogram_K[choice["cluster"]])
        say(f"cluster {choice['cluster']} has {own} of {votes.num_images} votes", quiet)
    say(f"experts kept: {kept_experts(choice)}", quiet)
    say(f'timm.create_model("local-dir:{path}", pretrained=True, num_classes=N) loads it', quiet)
