"""Do experts specialise? The reconstruction loss of every group of pictures under every sub-model, and of the controls.

    python benchmarks/specialisation.py runs/moce --clusters runs/clusters --images DATA --others runs/mae-star \
        --out results/specialisation.json

A sub-model is one choice of experts in all expert layers; its group are the pictures whose clusters the clean
gates send to it (of a run with --shuffle-clusters, the shuffled clusters that it was trained on). Row g, column s
of `loss`: the mean squared error on masked patches (same masks for all) of pictures of group g when sub-model s
reconstructs them. A specialised expert is better on its own group than the other sub-models are, and than the
dense model of equal updates (`others`). `gain_own` is, in per cent of the loss, how much better a picture's own
sub-model is than the mean of the other ones, null where there is only one; `gain_over` how much better it is than
each of the others.

Others with experts choose them as they do on a task, without noise: by token, or by the cluster of the picture.
"""

import argparse
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from moce.engine.devices import pick_device
from moce.engine.files import sha256_of, write_json
from moce.engine.runs import read_run, source_commit
from moce.errors import UserError, run_script
from moce.images.augment import finish
from moce.images.loader import centred_batches
from moce.images.sources import open_images
from moce.methods import experts_method
from moce.model.autoencoder import MaskedAutoencoder, rows_of
from moce.model.dispatch import Choice
from moce.model.experts import ClusterGate, ExpertAutoencoder
from moce.model.weights import load_model
from moce.stages.membership import Clusters, read_clusters


class Forced:
    """A router that sends every picture to the same expert of each layer."""

    def __init__(self, experts: dict[int, int]) -> None:
        self.experts = experts

    def choose(self, layer: int, tokens: Tensor) -> Choice:
        """The expert of this layer, at scale 1."""
        images, device = len(tokens), tokens.device
        expert_NC = torch.full((images, 1), self.experts[layer], device=device)
        return Choice(expert_NC, torch.ones(images, 1, device=device))


class Rival(NamedTuple):
    """Another model, and the cluster of every picture where it chooses experts by them."""

    model: MaskedAutoencoder
    labels: Tensor | None

    def router(self, indices: Tensor) -> Any:
        """Who chooses the experts of these pictures; None where there are none."""
        if not isinstance(self.model, ExpertAutoencoder):
            return None
        device = self.model.mask_token.device
        return self.model.router(None if self.labels is None else self.labels[indices].to(device))


def trained_labels(path: str, clusters: Clusters) -> Int64[Tensor, " pictures"]:
    """The cluster of every picture as the run in `path` was trained on it; UserError when it was on other clusters."""
    info = read_run(path, "train-experts")
    if info.inputs.get("clusters") != sha256_of(clusters.labels.numpy().tobytes()):
        raise UserError(
            f"{path} was trained on other clusters than {clusters.folder}: give those as --clusters."
        )
    return clusters.as_trained(info.config).labels


def compared(model: MaskedAutoencoder, header: dict[str, Any]) -> dict[str, Any]:
    """What two models must have in common for their losses on the same pixels and masks to be compared."""
    names = ("image_size", "patch_size", "channels", "mask_ratio", "norm_target")
    pixels = {name: tuple(header["about"][name]) for name in ("mean", "std")}
    return {**{name: getattr(model.shape, name) for name in names}, **pixels}


def open_rival(path: str, wanted: dict[str, Any], clusters: Clusters, device: torch.device) -> Rival:
    """The model in `path`; UserError when it takes other pictures than `wanted` says."""
    model, header = load_model(path, device)
    for name, own in compared(model, header).items():
        if own != wanted[name]:
            raise UserError(
                f"--others {path} has {name} {own} where the run has {wanted[name]}: their losses cannot be compared; "
                "leave it out."
            )
    by_cluster = isinstance(model, ExpertAutoencoder) and model.expert_shape.gate != "token"
    return Rival(model, trained_labels(path, clusters) if by_cluster else None)


def losses(model: MaskedAutoencoder, images: Tensor, noise: Tensor, router: Any = None) -> Tensor:
    """The mean squared error of each picture, on the CPU."""
    output = model(images, noise, router)
    wanted = model.target(rows_of(model.patchify(images), output.masked))
    return F.mse_loss(output.prediction, wanted, reduction="none").mean(dim=(1, 2)).cpu()


def gain(own: float, other: float) -> float:
    """How much smaller a loss is than another, in per cent of that."""
    return round(100 * (1 - own / other), 3)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--clusters", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--others", nargs="*", default=[])
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out")
    given = parser.parse_args()
    device, source = pick_device(given.device), open_images(given.images)
    dense, _ = load_model(read_run(read_run(given.clusters, "cluster").config["enc"], "pretrain").path)
    clusters = read_clusters(given.clusters, dense, source.fingerprint())
    info = read_run(given.run, "train-experts")
    model, header = load_model(info.path, device)
    if not isinstance(model, ExpertAutoencoder) or not isinstance(model.gate, ClusterGate):
        raise UserError(f"{given.run} has no gate that reads clusters: give a run of --gate cluster.")
    if model.expert_shape.top_k != 1 or model.expert_shape.output_scale != "straight-through":
        raise UserError(
            f"{given.run} adds up several experts or scales what they give, so a sub-model has not one network for all "
            "its pictures; give a run of --top-k 1 and --output-scale straight-through."
        )
    labels, mine = trained_labels(given.run, clusters), compared(model, header)
    rivals = {path: open_rival(path, mine, clusters, device) for path in given.others}
    chosen_KL: Int64[Tensor, "clusters layers"] = model.gate.logits().argmax(dim=-1).T.cpu()
    sub_models, group_K = chosen_KL.unique(dim=0, return_inverse=True)
    layers = model.expert_shape.layers
    routers = [Forced(dict(zip(layers, chosen, strict=True))) for chosen in sub_models.tolist()]
    sample = np.random.default_rng(0).permutation(len(source))[: given.pictures]
    groups: list[Tensor] = []
    found: list[Tensor] = []
    beside: dict[str, list[Tensor]] = {path: [] for path in rivals}
    for indices, pictures in centred_batches(source, model.shape.image_size, 256, 0, indices=sample):
        images = finish(pictures.to(device), None, mine["mean"], mine["std"])
        generator = torch.Generator().manual_seed(len(found))
        noise = torch.rand(len(images), model.shape.num_patches, generator=generator).to(device)
        found.append(torch.stack([losses(model, images, noise, router) for router in routers]))
        for path, rival in rivals.items():
            beside[path].append(losses(rival.model, images, noise, rival.router(indices)))
        groups.append(group_K[labels[indices]])
    group_N, loss_SN = torch.cat(groups), torch.cat(found, 1)
    own_N = loss_SN.gather(0, group_N[None])[0]
    other_N = {path: torch.cat(x) for path, x in beside.items()}
    own, of_others = float(own_N.mean()), {path: float(loss_N.mean()) for path, loss_N in other_N.items()}
    elsewhere = None  # the mean loss under the other sub-models
    if len(loss_SN) > 1:
        elsewhere = float((loss_SN.sum(dim=0) - own_N).mean()) / (len(loss_SN) - 1)
    present = [g for g in range(len(sub_models)) if (group_N == g).any()]
    result = {
        "run": given.run,
        "method": experts_method(info.config),
        "pictures": len(group_N),
        "sub_models": sub_models.tolist(),
        "pictures_of_group": group_N.bincount(minlength=len(sub_models)).tolist(),
        "loss": [[round(float(row[group_N == g].mean()), 5) for row in loss_SN] for g in present],
        "loss_of_others_by_group": {
            path: [round(float(loss_N[group_N == g].mean()), 5) for g in present]
            for path, loss_N in other_N.items()
        },
        "loss_own": round(own, 5),
        "loss_of_other_sub_models": None if elsewhere is None else round(elsewhere, 5),
        "gain_own": None if elsewhere is None else gain(own, elsewhere),
        "loss_of_others": {path: round(loss, 5) for path, loss in of_others.items()},
        "gain_over": {path: gain(own, loss) for path, loss in of_others.items()},
        "best_is_own": round(float((loss_SN.argmin(dim=0) == group_N).float().mean()), 4),
        "by_chance": round(1 / len(sub_models), 4),
        "commit": source_commit(),
    }
    print({name: value for name, value in result.items() if name not in ("loss", "sub_models")})
    if given.out:
        write_json(given.out, result)


if __name__ == "__main__":
    run_script(main)
