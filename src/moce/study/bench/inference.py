"""Rows of inference: features of a batch that is there, by every method and by the sub-models that are sliced out.

A run with a cluster gate, or of SDR, is measured twice: whole, each picture going where its known cluster says, and as
the plain ViT that a task gets. The latter is of the dense model's shape; its row says what that means here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from moce.config import ExpertsConfig
from moce.engine.devices import moved
from moce.images.augment import finish
from moce.images.normalise import IMAGENET
from moce.model.experts import ExpertAutoencoder
from moce.stages.customize import distinct, slice_encoder
from moce.study.bench.steps import Steps
from moce.study.bench.timing import Call, Variant
from moce.transfer.encoder import Frozen, PlainViT, RoutedViT

AGAINST = "infer-dense"
GATES = {"infer-token": "token", "infer-experts": "cluster", "infer-sdr": "sdr"}
SLICES = {"infer-sub-model": "cluster", "infer-sub-net": "sdr"}


@dataclass
class Network:
    """What computes features: the weights that have to be there, and how a batch of uint8 pictures passes them."""

    module: torch.nn.Module
    features: Callable[[Tensor], Tensor]

    @property
    def num_bytes(self) -> int:
        """Of the weights."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class Inference:
    """The networks of one setting, all from the same weights, and the batch that they look at."""

    steps: Steps

    def dense(self) -> Network:
        """The encoder of MAE, and of MAE*, which differs in its weights alone."""
        return self._frozen(PlainViT(self.steps.teacher.encoder))

    def routed(self, gate: str) -> Network:
        """A run with experts as it is, gates and all experts included."""
        config = self._config(gate)
        model = self._model(config)
        if gate == "token":
            return self._frozen(RoutedViT(model, config.balance))
        device, labels = self.steps.setting.device, self.steps.labelled.labels_B

        @torch.no_grad()
        def features(images: Tensor) -> Tensor:
            pictures = finish(images.to(device), None, *IMAGENET)
            return model.features(pictures, model.router(moved(labels, device))).cpu()

        return Network(without_decoder(model), features)

    def sliced(self, gate: str) -> Network:
        """The plain ViT that a task gets out of it."""
        model = self._model(self._config(gate)).cpu()
        return self._frozen(PlainViT(slice_encoder(model, distinct(model)[0])))

    def _config(self, gate: str) -> ExpertsConfig:
        return self.steps.setting.experts(gate)

    def _model(self, config: ExpertsConfig) -> ExpertAutoencoder:
        model = self.steps.experts(config)
        assert isinstance(model, ExpertAutoencoder)
        return model.to(self.steps.setting.device).eval().requires_grad_(False)

    def _frozen(self, network: PlainViT | RoutedViT) -> Network:
        shape = self.steps.teacher.shape
        encoder = Frozen(
            network,
            name="-",
            method="-",
            fingerprint="-",
            width=self.steps.teacher.encoder.embed_dim,
            image_size=shape.image_size,
            mean=IMAGENET.mean,
            std=IMAGENET.std,
            crop_pct=1.0,
            device=self.steps.setting.device,
        )
        own = without_decoder(network.model) if isinstance(network, RoutedViT) else network
        return Network(own, encoder.features)

    def job(self, network: Network) -> Call:
        """One batch through a network."""
        setting, shape = self.steps.setting, self.steps.teacher.shape
        flops = self.steps.teacher.encoder_flops(shape.num_patches)
        images = self.steps.pictures.images
        return Call(lambda: network.features(images), flops, setting.device, setting.amounts.step_calls)

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The network of each row."""
        return {
            AGAINST: self.dense(),
            **{name: self.routed(gate) for name, gate in GATES.items()},
            **{name: self.sliced(gate) for name, gate in SLICES.items()},
        }


def without_decoder(model: ExpertAutoencoder) -> torch.nn.Module:
    """Encoder and gates, which are all that inference needs."""
    return torch.nn.ModuleList([model.encoder, model.gate])


def inference_variants(inference: Inference) -> list[Variant]:
    """The rows of inference, which take turns. Features are computed in fp32, as everywhere.

    The networks are there before any row is measured, since what makes a sub-model, the whole model, is no part of it:
    `peak_bytes` is what a pass adds to its weights.
    """
    setting = inference.steps.setting
    about, batch = setting.about("fp32"), setting.amounts.batch_size
    return [
        Variant(name, about, batch, partial(inference.job, network), AGAINST)
        for name, network in inference.networks.items()
    ]
