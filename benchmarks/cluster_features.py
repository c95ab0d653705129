"""Which features of a dense model give clusters that agree best with the pictures' classes.

    python benchmarks/cluster_features.py runs/mae --images DATA --num-clusters 32 64 --out FILE

The NMI of balanced clusters of these, on the same pictures: what `moce cluster` takes (the mean of the patch tokens
after the last norm, centred); that with every channel scaled to a standard deviation of 1; with every principal axis
scaled to one of 1 (whitened), or of its square root (half whitened); the mean of the patch tokens after each block but
the last; and the pixels at 8 x 8.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from moce.config import ClusterConfig
from moce.engine.devices import pick_device
from moce.engine.files import write_json
from moce.engine.runs import read_run, source_commit
from moce.errors import UserError, run_script
from moce.images.sources import Source, open_images
from moce.model.autoencoder import MaskedAutoencoder
from moce.model.weights import load_model
from moce.stages.agreement import normalised_mutual_information
from moce.stages.cluster import find_clusters
from moce.stages.features import embed_in_place, look_at_all
from moce.verbs import resolve


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mae", help="run folder of the dense model")
    parser.add_argument("--images", required=True)
    parser.add_argument("--num-clusters", type=int, nargs="+", default=[32])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    device = pick_device(given.device)
    model, header = load_model(read_run(given.mae, "pretrain").path, device)
    source = open_images(given.images, model.shape.channels)
    if source.labels is None:
        raise UserError(f"'{given.images}' has no classes to compare clusters with.")
    places = {"enc": "-", "images": given.images, "out": "-", "seed": given.seed}
    configs = [resolve(ClusterConfig, {**places, "num_clusters": k}) for k in given.num_clusters]
    pixels = tuple(header["about"]["mean"]), tuple(header["about"]["std"])
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, (indices, features) in all_features(source, model, pixels, configs[0], Path(scratch)):
            classes = source.labels[indices.numpy()]
            embedded = features.float().clone()
            embed_in_place(embedded)
            for config in configs:
                found = find_clusters(embedded, config, device)
                nmi = normalised_mutual_information(found.labels.numpy(), classes)
                rows.append({"features": name, "num_clusters": config.num_clusters, "nmi": round(nmi, 4)})
                print(rows[-1], flush=True)
    about = {"model": given.mae, "images": Path(given.images).name, "seed": given.seed}
    write_json(given.out, {**about, "commit": source_commit(), "rows": rows})


Found = tuple[str, tuple[Tensor, Tensor]]  # (name, (indices, features))


def all_features(
    source: Source,
    model: MaskedAutoencoder,
    pixels: tuple[tuple[float, ...], tuple[float, ...]],
    config: ClusterConfig,
    folder: Path,
) -> Iterator[Found]:
    """Each kind of features of all pictures, in one pass over them."""
    between: list[list[Tensor]] = [[] for _ in model.encoder.blocks[1:]]

    def keep(parts: list[Tensor], norm: nn.Module) -> None:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            parts.append(inputs[0][:, 1:].float().mean(dim=1).cpu())

        norm.register_forward_pre_hook(hook)

    for parts, block in zip(between, model.encoder.blocks[1:], strict=True):
        keep(parts, block.norm1)
    looked = look_at_all(source, model, *pixels, config, folder)
    assert looked.raw is not None
    yield "raw pixels", (looked.indices, looked.raw)
    centred = looked.features.double() - looked.features.double().mean(dim=0)
    yield "as they are", (looked.indices, centred)
    yield "standardised", (looked.indices, centred / centred.std(dim=0).clamp_min(1e-12))
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    deviations = variances.clamp_min(1e-12).sqrt()
    yield "whitened", (looked.indices, centred @ axes / deviations)
    yield "half whitened", (looked.indices, centred @ axes / deviations.sqrt())
    for number, parts in enumerate(between):
        yield f"after block {number}", (looked.indices, torch.cat(parts))


if __name__ == "__main__":
    run_script(main)
