"""Do experts specialise? The reconstruction loss of every group of pictures under every sub-model, and of the controls.

    python benchmarks/specialisation.py runs/moce --clusters runs/clusters --images DATA --others runs/mae-star \
        --out results/specialisation.json

A sub-model is one choice of experts in all expert layers; its group are the pictures whose clusters the clean
gates send to it. Row g, column s of `loss`: the mean squared error on masked patches (same masks for all) of
pictures of group g when sub-model s reconstructs them. A specialised expert is better on its own group than
the other sub-models are, and than the dense model of equal updates (`others`). `gain_own` is, in per cent of
the loss, how much better a picture's own sub-model is than the mean of the other ones; `gain_over` how much
better it is than each of the others.
"""

import argparse
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from moce.config import experts_method
from moce.engine.devices import pick_device
from moce.engine.files import write_json
from moce.engine.runs import read_run, source_commit
from moce.images.augment import finish
from moce.images.loader import centred_batches
from moce.images.sources import open_images
from moce.model.autoencoder import MaskedAutoencoder, rows_of
from moce.model.experts import Choice, ClusterGate, ExpertAutoencoder
from moce.model.weights import load_model
from moce.stages.membership import read_clusters


class Forced:
    """A router that sends every picture to the same expert of each layer."""

    def __init__(self, experts: dict[int, int]) -> None:
        self.experts = experts

    def choose(self, layer: int, tokens: Tensor) -> Choice:
        """The expert of this layer, at scale 1."""
        images = len(tokens)
        return Choice(torch.full((images, 1), self.experts[layer]), torch.ones(images, 1))


def losses(model: MaskedAutoencoder, images: Tensor, noise: Tensor, router: Any = None) -> Tensor:
    """The mean squared error of each picture."""
    output = model(images, noise, router)
    wanted = model.target(rows_of(model.patchify(images), output.masked))
    return F.mse_loss(output.prediction, wanted, reduction="none").mean(dim=(1, 2))


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
    model, header = load_model(read_run(given.run, "train-experts").path, device)
    assert isinstance(model, ExpertAutoencoder) and isinstance(model.gate, ClusterGate)
    chosen_KL: Int64[Tensor, "clusters layers"] = model.gate.logits().argmax(dim=-1).T.cpu()
    sub_models, group_K = chosen_KL.unique(dim=0, return_inverse=True)
    rivals = {path: load_model(path, device)[0] for path in given.others}
    sample = np.random.default_rng(0).permutation(len(source))[: given.pictures]
    groups, found, beside = [], [], []
    for indices, pictures in centred_batches(source, model.shape.image_size, 256, 0, indices=sample):
        images = finish(pictures.to(device), None, header["about"]["mean"], header["about"]["std"])
        noise = torch.rand(
            len(images), model.shape.num_patches, generator=torch.Generator().manual_seed(len(found))
        )
        each = [
            losses(
                model, images, noise, Forced(dict(zip(model.expert_shape.layers, s.tolist(), strict=True)))
            )
            for s in sub_models
        ]
        found.append(torch.stack(each))
        beside.append(torch.stack([losses(rival, images, noise) for rival in rivals.values()] or [each[0]]))
        groups.append(group_K[clusters.labels[indices]])
    group_N, loss_SN, beside_RN = torch.cat(groups), torch.cat(found, 1), torch.cat(beside, 1)
    own_N = loss_SN.gather(0, group_N[None])[0]
    others_N = (loss_SN.sum(dim=0) - own_N) / max(len(loss_SN) - 1, 1)
    present = [g for g in range(len(sub_models)) if (group_N == g).any()]
    result = {
        "run": given.run,
        "method": experts_method(read_run(given.run, "train-experts").config),
        "pictures": len(group_N),
        "sub_models": sub_models.tolist(),
        "pictures_of_group": group_N.bincount(minlength=len(sub_models)).tolist(),
        "loss": [[round(float(row[group_N == g].mean()), 5) for row in loss_SN] for g in present],
        "loss_own": round(float(own_N.mean()), 5),
        "loss_of_other_sub_models": round(float(others_N.mean()), 5),
        "gain_own": round(100 * float(1 - own_N.mean() / others_N.mean()), 3),
        "loss_of_others": {p: round(float(x.mean()), 5) for p, x in zip(rivals, beside_RN, strict=False)},
        "gain_over": {
            p: round(100 * float(1 - own_N.mean() / x.mean()), 3)
            for p, x in zip(rivals, beside_RN, strict=False)
        },
        "best_is_own": round(float((loss_SN.argmin(dim=0) == group_N).float().mean()), 4),
        "by_chance": round(1 / len(sub_models), 4),
        "commit": source_commit(),
    }
    print({name: value for name, value in result.items() if name not in ("loss", "sub_models")})
    if given.out:
        write_json(given.out, result)


if __name__ == "__main__":
    main()
