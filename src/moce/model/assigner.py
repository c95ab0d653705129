"""The assigner: which cluster a picture belongs to. One function for training pictures, tasks and routing.

    z = W (f - mean) / |W (f - mean)|,    cluster = argmax_k (z . c_k / eps + v_k)

f is the frozen dense model's feature of the picture, W scales its principal axes (or is nothing, by default), c_k are
the centroids and v_k the column potentials of the balanced plan (stages/balance.py). With n pictures of training this
is the argmax of the plan's rows, since a row's own potential does not change its argmax.

Embedding and scores are computed in float64 on the CPU, whatever the encoder runs on: they are a few products of small
matrices, and so a label depends neither on the batch nor on the device, given the feature.

The file is self-contained: a safetensors file with the tensors below, the encoder under timm's names with the prefix
`encoder.`, and in its header the encoder's shape, eps and preprocessing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from torch import Tensor

from moce.errors import UserError
from moce.images.augment import finish
from moce.model.autoencoder import MaskedAutoencoder
from moce.model.weights import (
    build_model,
    load_strictly,
    model_header,
    read_header,
    read_tensors,
    write_tensors,
)

KIND = "assigner"
KIND_SCALED = "assigner of scaled features"  # so that whoever does not know of scaling refuses the file
TENSORS = ("centroids", "potentials", "mean", "cosine_quantiles", "sizes")
SCALING = "scaling"  # only in files of clusters of scaled features
ENCODER = "encoder."
NUM_QUANTILES = 1001


def embed(
    features: Float[Tensor, "images width"],
    mean: Float[Tensor, "width"],
    scaling: Float[Tensor, "width width"] | None = None,
) -> Float32[Tensor, "images width"]:
    """Centred features, multiplied by the symmetric `scaling` if any, of length 1; one that equals the mean stays 0."""
    centred = features.cpu().double() - mean.double()
    if scaling is not None:
        centred = centred @ scaling.double()
    return (centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)).float()


def adjusted_scores(
    embedded: Float[Tensor, "images width"],
    centroids: Float[Tensor, "clusters width"],
    potentials: Float[Tensor, "clusters"],
    eps: float,
) -> Float64[Tensor, "images clusters"]:
    """z . c_k / eps + v_k: the logarithm of the plan's row, up to a constant per picture."""
    return torch.addmm(potentials.double(), embedded.cpu().double(), centroids.double().T, alpha=1 / eps)


def cosines(
    embedded: Float[Tensor, "images width"],
    centroids: Float[Tensor, "clusters width"],
    labels: Int64[Tensor, "images"],
) -> Float32[Tensor, "images"]:
    """Cosine of every embedded feature to the centroid of its label, a chunk at a time."""
    parts = zip(embedded.split(8192), labels.cpu().split(8192))
    return torch.cat([(chunk.cpu().float() * centroids[own]).sum(dim=1) for chunk, own in parts])


def quantiles(values: Float32[Tensor, "images"]) -> Float32[Tensor, "quantiles"]:
    """The 0, 0.1, ..., 100 % quantiles."""
    return torch.from_numpy(np.quantile(values.numpy(), np.linspace(0, 1, NUM_QUANTILES)).astype(np.float32))


@dataclass
class Assigner:
    """Centroids, potentials, what they were made of, and the frozen encoder.

    After `load` the encoder has no decoder any more: it embeds pictures and cannot reconstruct them.
    """

    encoder: MaskedAutoencoder
    centroids: Float32[Tensor, "clusters width"]
    potentials: Float32[Tensor, "clusters"]
    mean: Float32[Tensor, "width"]
    eps: float
    crop_pct: float
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    images_fingerprint: str
    encoder_fingerprint: str  # of the whole dense model, as `weights.fingerprint` gives it
    # 1001 quantiles (0 to 1) of the training pictures' cosine to the centroid that `assign` gives them
    cosine_quantiles: Float32[Tensor, "quantiles"]
    sizes: Int64[Tensor, "clusters"]  # training pictures per cluster, by their hard labels
    # W of `moce cluster --whiten`, symmetric; None: features as they are
    scaling: Float32[Tensor, "width width"] | None = None

    def __post_init__(self) -> None:
        self.encoder.eval().requires_grad_(False)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures that the encoder sees."""
        return self.encoder.shape.image_size

    @property
    def num_clusters(self) -> int:
        """Clusters (K)."""
        return len(self.centroids)

    @torch.no_grad()
    def features(
        self, images: UInt8[Tensor, "images channels rows columns"]
    ) -> Float32[Tensor, "images width"]:
        """The frozen encoder's features of central crops of `image_size`, fp32, on the CPU."""
        assert tuple(images.shape[-2:]) == self.image_size, f"{tuple(images.shape)} is not {self.image_size}"
        return encoder_features(self.encoder, images, self.pixel_mean, self.pixel_std)

    def embed(self, features: Float[Tensor, "images width"]) -> Float32[Tensor, "images width"]:
        """Features centred by the mean of the training pictures, scaled, of length 1, on the CPU."""
        return embed(features, self.mean, self.scaling)

    def scores(self, embedded: Float[Tensor, "images width"]) -> Float64[Tensor, "images clusters"]:
        """z . c_k / eps + v_k of embedded features, on the CPU."""
        return adjusted_scores(embedded, self.centroids, self.potentials, self.eps)

    def assign(self, features: Float[Tensor, "images width"]) -> Int64[Tensor, "images"]:
        """The cluster of each picture, from the encoder's features."""
        return self.scores(self.embed(features)).argmax(dim=1)

    def cosines(
        self, embedded: Float[Tensor, "images width"], labels: Int64[Tensor, "images"]
    ) -> Float32[Tensor, "images"]:
        """Cosine of embedded features to the centroids of `labels`: how well the clusters fit."""
        return cosines(embedded, self.centroids, labels)

    def save(self, path: str | Path) -> None:
        """Write the file that is all one needs to assign pictures."""
        header = {
            **model_header(self.encoder),
            "kind": KIND if self.scaling is None else KIND_SCALED,
            "eps": self.eps,
            "crop_pct": self.crop_pct,
            "pixel_mean": list(self.pixel_mean),
            "pixel_std": list(self.pixel_std),
            "images": self.images_fingerprint,
            "encoder": self.encoder_fingerprint,
        }
        tensors = {name: getattr(self, name) for name in TENSORS}
        if self.scaling is not None:
            tensors[SCALING] = self.scaling
        tensors |= {ENCODER + name: tensor for name, tensor in self.encoder.encoder.state_dict().items()}
        write_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "Assigner":
        """The assigner in a file, its encoder on `device`; UserError when the file is broken or something else."""
        try:
            header = read_header(path)
            kind = header.get("kind")
        except (ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} has a broken header ({error}); make the clusters again.") from None
        if kind not in (KIND, KIND_SCALED):
            raise UserError(f"{path} holds '{kind}', not the clusters of `moce cluster`.")
        content = read_tensors(path)
        try:
            encoder = build_model(header)
            load_strictly(encoder.encoder, read_tensors(path, prefix=ENCODER), str(path))
            return cls(
                encoder=_without_decoder(encoder).to(device),
                eps=float(header["eps"]),
                crop_pct=float(header["crop_pct"]),
                pixel_mean=tuple(header["pixel_mean"]),
                pixel_std=tuple(header["pixel_std"]),
                images_fingerprint=header["images"],
                encoder_fingerprint=header["encoder"],
                **_checked(content, encoder.encoder.embed_dim, path),
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path} is incomplete ({error}); make the clusters again with `moce cluster`."
            ) from None


def _checked(tensors: dict[str, Tensor], width: int, path: str | Path) -> dict[str, Any]:
    """The assigner's tensors, when their shapes belong together; KeyError for one that is not there."""
    clusters = tensors["centroids"].shape[0]
    wanted = {
        "centroids": (clusters, width),
        "potentials": (clusters,),
        "mean": (width,),
        "cosine_quantiles": (NUM_QUANTILES,),
        "sizes": (clusters,),
    }
    if SCALING in tensors:
        wanted[SCALING] = (width, width)
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise UserError(f"{path} is broken: {name} has shape {tuple(tensors[name].shape)}, not {shape}.")
    return {name: tensors[name] for name in wanted}


def _without_decoder(model: MaskedAutoencoder) -> MaskedAutoencoder:
    """Take away what the file does not hold, so that nothing can use it untrained."""
    for name in ["mask_token", *(name for name in vars(model)["_modules"] if name != "encoder")]:
        delattr(model, name)
    return model


@torch.no_grad()
def encoder_features(
    encoder: MaskedAutoencoder,
    images: UInt8[Tensor, "images channels rows columns"],
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
) -> Float32[Tensor, "images width"]:
    """Features of uint8 central crops: nothing masked, fp32 whatever the device, on the CPU."""
    device = encoder.encoder.pos_embed.device
    return encoder.features(finish(images.to(device), None, pixel_mean, pixel_std)).float().cpu()
