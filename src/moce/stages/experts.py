"""Stage 2: train experts chosen by the cluster of a picture (MoCE), or one of the controls.

    gate cluster   MoCE       loss = L_MAE + a * balance + b * imbalance + d * distillation
    gate token     TokenMoE   loss = L_MAE + a / 2 * (importance + load) + d * distillation
    gate none      MAE*       loss = L_MAE + d * distillation

All three start from the dense model and see the same pictures, crops and masks in the same order.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from moce.config import ExpertsConfig, Training, verb
from moce.engine.devices import moved, num_workers_of, pick_device
from moce.engine.files import sha256_of, write_whole
from moce.engine.processes import group
from moce.engine.progress import say
from moce.engine.randomness import normal
from moce.engine.runs import Run, open_run, read_run
from moce.engine.trainer import parameter_groups, train
from moce.errors import UserError
from moce.images.loader import Batch, readable_substitute, survey
from moce.images.normalise import IMAGENET, Normalisation
from moce.images.sources import open_images, require_apart
from moce.model.assigner import Assigner
from moce.model.autoencoder import MaskedAutoencoder
from moce.model.experts import (
    ClusterGate,
    ClusterRouter,
    ExpertAutoencoder,
    ExpertShape,
    TokenRouter,
    expected_choices,
    imbalance_loss,
    importance_loss,
    squared_variation,
)
from moce.model.weights import fingerprint, load_model, save_model
from moce.stages.feed import Feed, list_unreadable, mask_noise, open_feed, prepared, share
from moce.stages.patches import PATCHES_FILE, write_patches

METHODS = {"cluster": "MoCE", "token": "TokenMoE", "none": "MAE*"}
CLUSTERS_FILE = "clusters.safetensors"
SURE = 0.9  # the mean largest gate that training must have passed ...
SURE_BY = 0.2  # ... after this share of its steps; else the choice of experts is noise (M)


class LabelledBatch(NamedTuple):
    """A batch, the clusters of its pictures, and how the global batch spreads over all clusters."""

    pictures: Batch
    labels_B: Int64[Tensor, " images"]
    histogram_K: Float[Tensor, " clusters"]


class GateLosses(NamedTuple):
    """What the gates add to the loss; what is logged, of the whole batch and as means over the pictures here."""

    added: Float[Tensor, ""]
    of_batch: dict[str, Tensor]
    of_images: dict[str, Tensor]


@dataclass(frozen=True)
class LabelledFeed:
    """A feed with the cluster of every picture. Every process knows the global batch from the order alone."""

    feed: Feed
    labels: Int64[Tensor, " pictures"]
    num_clusters: int

    def batches(self, first_step: int, rank: int, processes: int) -> Iterator[LabelledBatch]:
        """This process's share of each global batch, with labels."""
        for step, batch in enumerate(self.feed.batches(first_step, rank, processes), first_step):
            everywhere = self.labels[self.feed.order.batch(step)[0]]
            histogram = torch.bincount(everywhere, minlength=self.num_clusters).float()
            yield LabelledBatch(batch, self.labels[batch.indices], histogram)


class ExpertsObjective(nn.Module):
    """Reconstruction, balance, imbalance and distillation."""

    def __init__(
        self,
        model: MaskedAutoencoder,
        dense: MaskedAutoencoder,
        config: ExpertsConfig,
        pixels: Normalisation = IMAGENET,
    ) -> None:
        super().__init__()
        self.trained, self.config, self.pixels = model, config, pixels
        self.teacher = dense.requires_grad_(False) if config.distill else None
        self.layers = model.expert_shape.layers if isinstance(model, ExpertAutoencoder) else ()
        self._warned = False

    def forward(self, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and what the gates did."""
        device = self.trained.mask_token.device
        images = prepared(batch.pictures, self.config, device, self.pixels)
        noise = mask_noise(batch.pictures, self.config.seed, self.trained.shape.num_patches, device)
        router = self._router(batch, device)
        output = self.trained(images, noise, router)
        # Means over pictures count by the share of the batch that is here; a gate's losses are of the whole batch.
        part = share(len(images), self.config)
        logs = {"reconstruction": output.loss * part}
        loss = logs["reconstruction"]
        if self.teacher is not None:
            logs["distill"] = self._distance(images, output.visible, output.latent) * part
            loss = loss + self.config.distill * logs["distill"]
        if isinstance(router, ClusterRouter):
            added, of_batch, of_images = self._cluster_gate(router, moved(batch.histogram_K, device))
        elif isinstance(router, TokenRouter):
            added, of_batch, of_images = self._token_gate(router)
        else:
            return loss, logs
        return loss + added, {**logs, **of_batch, **{n: value * part for n, value in of_images.items()}}

    def _router(self, batch: LabelledBatch, device: torch.device) -> ClusterRouter | TokenRouter | None:
        if not isinstance(self.trained, ExpertAutoencoder):
            return None
        shape, pictures = self.trained.expert_shape, batch.pictures
        layers, experts, images = len(shape.layers), shape.num_experts, len(pictures.indices)
        tokens = 1 if shape.gate == "cluster" else self.trained.shape.num_visible + 1
        draw = normal(self.config.seed, "gate", pictures.epochs, pictures.indices, layers * tokens * experts)
        draw = moved(draw, device)
        if shape.gate == "cluster":
            return self.trained.router(
                moved(batch.labels_B, device), draw.reshape(images, layers, experts).transpose(0, 1)
            )
        return self.trained.router(noise=draw.reshape(images, layers, tokens, experts).transpose(0, 1))

    def _distance(self, images: Tensor, visible: Tensor, latent: Tensor) -> Float[Tensor, ""]:
        """Mean squared error to the dense model's patch tokens under the same mask, both standardised per token."""
        assert self.teacher is not None
        with torch.no_grad():
            wanted = self.teacher.encode_visible(self.teacher.patchify(images), visible)
        width = (latent.shape[-1],)
        return F.mse_loss(
            F.layer_norm(latent[:, 1:].float(), width), F.layer_norm(wanted[:, 1:].float(), width)
        )

    def _cluster_gate(self, router: ClusterRouter, histogram_K: Tensor) -> GateLosses:
        """Balance and imbalance from K rows and the global histogram; statistics per layer."""
        balances, imbalances = [], []
        logs: dict[str, Tensor] = {}
        seen: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            gates_KE = router.logits_LKE[i].softmax(dim=1)
            balances.append(importance_loss(gates_KE, histogram_K))
            imbalances.append(imbalance_loss(gates_KE, histogram_K))
            clean_B = gates_KE[router.labels_B]
            seen |= self._watch(layer, router.choices[layer].expert_NC[:, 0], clean_B, clean_B.shape[1])
            logs |= {f"{layer}.balance": balances[-1], f"{layer}.imbalance": imbalances[-1]}
        balance, imbalance = torch.stack(balances).mean(), torch.stack(imbalances).mean()
        added = self.config.balance * balance + self.config.imbalance * imbalance
        return GateLosses(added, {"balance": balance, "imbalance": imbalance, **logs}, seen)

    def _token_gate(self, router: TokenRouter) -> GateLosses:
        """Importance and load of the whole batch, half the weight each; statistics per layer."""
        shape = router.gate.shape
        std = max(shape.noise / shape.num_experts, 1e-6)
        sums: list[Tensor] = []
        seen: dict[str, Tensor] = {}
        for layer in self.layers:
            gates_NE = router.logits[layer].softmax(dim=1)
            expected_NE = expected_choices(router.logits[layer], router.noisy[layer], shape.top_k, std)
            sums += [gates_NE.sum(dim=0), expected_NE.sum(dim=0)]
            seen |= self._watch(layer, router.choices[layer].expert_NC[:, 0], gates_NE, shape.num_experts)
            seen[f"{layer}.imbalance"] = imbalance_loss(gates_NE)
        variation = squared_variation(group().total(torch.stack(sums)))
        balances = variation.view(len(self.layers), 2).mean(dim=1)
        logs = {f"{layer}.balance": own for layer, own in zip(self.layers, balances, strict=True)}
        return GateLosses(self.config.balance * balances.mean(), {"balance": balances.mean(), **logs}, seen)

    @staticmethod
    def _watch(layer: int, expert_N: Tensor, gates_NE: Tensor, num_experts: int) -> dict[str, Tensor]:
        return {
            f"{layer}.load": F.one_hot(expert_N, num_experts).float().mean(dim=0),
            f"{layer}.max_gate": gates_NE.detach().amax(dim=1).mean(),
            f"{layer}.agreement": (expert_N == gates_NE.argmax(dim=1)).float().mean(),
        }

    def parameter_groups(self, config: Training) -> list[dict[str, Any]]:
        """The model's two groups, and the gates at a learning rate of their own."""
        peak = config.base_lr * config.batch_size / 256
        if not isinstance(self.trained, ExpertAutoencoder):
            return parameter_groups(self.trained, peak, config.weight_decay)
        gates = list(self.trained.gate.parameters())
        for gate in gates:
            gate.requires_grad = False
        groups = parameter_groups(self.trained, peak, config.weight_decay)
        for gate in gates:
            gate.requires_grad = True
        return [*groups, {"params": gates, "weight_decay": 0.0, "peak_lr": self.config.gate_lr}]

    def flops_per_image(self) -> int:
        """Active FLOPs of a step: one expert per row costs what the dense MLP costs; the teacher is not counted."""
        return 3 * self.trained.flops_per_image()

    def describe(self, logged: dict[str, Any]) -> dict[str, Any]:
        """Scalars as they are; what the gates did in `layers`, by block, and over all of them at the top."""
        line = {"distill": 0.0, **{n: v for n, v in logged.items() if "." not in n}}
        layers: dict[str, dict[str, Any]] = {}
        for layer in self.layers:
            own = {n.split(".")[1]: v for n, v in logged.items() if n.startswith(f"{layer}.")}
            own["dead"] = sum(share < 1 / (4 * len(own["load"])) for share in own["load"])
            layers[str(layer)] = {**own, "distill": line["distill"]}
        if layers:
            for name in ("max_gate", "agreement", "balance", "imbalance"):
                line[name] = float(np.mean([own[name] for own in layers.values()]))
            line["dead"] = sum(own["dead"] for own in layers.values())
            line["load"] = [own["load"] for own in layers.values()]
            line["layers"] = layers
        return line

    def watch(self, line: dict[str, Any], share_done: float) -> str | None:
        """A warning where the gates are not sure of their choice although `SURE_BY` of training is over."""
        if self._warned or share_done < SURE_BY or self.config.gate != "cluster":
            return None
        self._warned = True  # looked at once
        if line["max_gate"] >= SURE:
            return None
        return (
            f"warning: after {share_done:.0%} of training the mean largest gate is {line['max_gate']:.2f}, below "
            f"{SURE}: which expert a cluster gets is partly noise; raise --gate-lr or --imbalance, or take "
            "--gate-start fitted"
        )


def fit_gates(
    gate: ClusterGate,
    sizes_K: Int64[Tensor, " clusters"],
    balance: float,
    imbalance: float,
    num_steps: int = 1000,
    lr: float = 0.02,
) -> list[dict[str, float]]:
    """Fit the gates on the centroids with balance + imbalance, before any expert moves (ours; M).

    Without this a gate needs thousands of steps to become sure, during which the experts all see everything. Returns
    per layer the mean largest gate and the largest load over the even one, both weighted by the clusters' sizes.

    The weight of imbalance rises from 0 over the first half: clusters spread over the experts before they settle. At
    full weight from the start 0 to 3 of 8 experts were left without a cluster, with the rise none (M).
    """
    optimizer = torch.optim.Adam([gate.weight_LED], lr=lr)
    weight_K = sizes_K.float().to(gate.weight_LED.device)
    for step in range(num_steps):
        gates_LKE = gate.logits().softmax(dim=-1)
        sharp = imbalance * min(2 * step / num_steps, 1)
        losses = [
            balance * importance_loss(g, weight_K) + sharp * imbalance_loss(g, weight_K) for g in gates_LKE
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = lr * (1 - 0.9 * step / num_steps)
    gate.weight_LED.grad = None
    fitted = []
    for gates_KE in gate.logits().detach().softmax(dim=-1):
        share_K = weight_K / weight_K.sum()
        load_E = torch.zeros(gates_KE.shape[1], device=share_K.device).index_add_(
            0, gates_KE.argmax(1), share_K
        )
        fitted.append(
            {
                "max_gate": float((gates_KE.amax(1) * share_K).sum()),
                "largest_load": float(load_E.max() * len(load_E)),
            }
        )
    return fitted


def routing_table(model: ExpertAutoencoder) -> dict[str, dict[str, list[Any]]]:
    """Per expert layer: the expert that each cluster's clean gate picks, and the gate."""
    assert isinstance(model.gate, ClusterGate)
    gates_LKE = model.gate.logits().detach().softmax(dim=-1)
    return {
        str(layer): {"expert": gates.argmax(1).tolist(), "gate": gates.tolist()}
        for layer, gates in zip(model.expert_shape.layers, gates_LKE, strict=True)
    }


@dataclass(frozen=True)
class Clusters:
    """What stage 1 left: the assigner and the label of every picture."""

    assigner: Assigner
    labels: Int64[Tensor, " pictures"]
    folder: Path


def read_clusters(folder: str, dense: MaskedAutoencoder, images_fingerprint: str) -> Clusters:
    """The clusters of a run folder; UserError when they are of another encoder or of other pictures."""
    info = read_run(folder, "cluster")
    info.result()
    assigner = Assigner.load(info.path / CLUSTERS_FILE)
    if assigner.encoder_fingerprint != fingerprint(dense):
        raise UserError(
            f"The clusters in {folder} are of another encoder; run `moce cluster` on this dense model."
        )
    if assigner.images_fingerprint != images_fingerprint:
        raise UserError(
            f"The clusters in {folder} are of other pictures; give --images as they were for `moce cluster`."
        )
    try:
        labels = torch.from_numpy(np.load(info.path / "labels.npy"))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{info.path / 'labels.npy'} cannot be read ({error}); run `moce cluster` again."
        ) from None
    unreadable = (labels < 0).nonzero().flatten().tolist()
    return Clusters(assigner, labels[readable_substitute(unreadable, len(labels))], info.path)


def new_experts(dense: MaskedAutoencoder, assigner: Assigner, config: ExpertsConfig) -> MaskedAutoencoder:
    """The model that training starts from; for gate `none` a copy of the dense one."""
    if config.gate == "none":
        model = MaskedAutoencoder(dense.shape)
        model.load_state_dict(dense.state_dict())
        return model
    shape = ExpertShape(
        layers=tuple(sorted(config.layers)),
        num_experts=config.num_experts,
        gate=config.gate,
        num_clusters=len(assigner.centroids),
        cluster_width=assigner.centroids.shape[1],
        top_k=config.top_k,
        noise=config.gate_noise,
        output_scale=config.output_scale,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = ExpertAutoencoder.from_dense(dense, shape)
    if isinstance(model.gate, ClusterGate):
        model.gate.centroids_KD.copy_(assigner.centroids)
        if config.gate_start == "fitted":
            fitted = fit_gates(model.gate, assigner.sizes, config.balance, config.imbalance)
            for layer, seen in zip(shape.layers, fitted, strict=True):
                say(
                    f"gate of block {layer} fitted on {shape.num_clusters} clusters: mean largest gate "
                    f"{seen['max_gate']:.3f}, largest load {seen['largest_load']:.2f} times the even one",
                    config.quiet,
                )
    model.set_dispatch(config.dispatch)
    return model


@verb(ExpertsConfig)
def train_experts(config: ExpertsConfig) -> dict[str, Any]:
    """Train experts from a dense model and its clusters; the run folder is all that `moce customize` needs.

    Returns the run's result: method, loss terms, gates, seconds, images_per_second, parameters, active_parameters, ...
    """
    pick_device(config.device)  # says so before anything is written
    dense_run = read_run(config.mae, "pretrain")
    dense_run.result()
    dense, header = load_model(dense_run.path)
    source = open_images(config.images, dense.shape.channels)
    require_apart(source, config.out, below=False)
    clusters = read_clusters(config.clusters, dense, source.fingerprint())
    model = new_experts(dense, clusters.assigner, config)
    checked = survey(source, config.quiet)
    inputs = {
        "images": source.fingerprint(),
        "dense model": fingerprint(dense),
        "clusters": sha256_of(clusters.labels.numpy().tobytes()),
    }
    if config.gate == "none" and config.imbalance:
        say(
            "gate none trains no experts: --layers, --num-experts, --balance and --imbalance are not used",
            config.quiet,
        )
    elif config.gate == "token":
        say("a token gate has no imbalance loss: --imbalance and --gate-start are not used", config.quiet)
    with open_run(config.out, "train-experts", config, inputs) as run:
        if run.finished:
            say(f"{run.path} is finished; --overwrite trains it again", config.quiet)
            return run.result()
        feed = open_feed(source, checked, model.shape.image_size, config)
        labelled = LabelledFeed(feed, clusters.labels, len(clusters.assigner.centroids))
        pixels = Normalisation(tuple(header["about"]["mean"]), tuple(header["about"]["std"]))
        objective = ExpertsObjective(model, dense, config, pixels)
        method = METHODS[config.gate]
        result = train(run, objective, labelled.batches, feed.plan, config, f"train-experts ({method})")
        about = {
            **header["about"],
            "method": method,
            "images": inputs["images"],
            "dense": inputs["dense model"],
        }
        run.once(lambda: leave_clusters(run, clusters))
        if isinstance(model, ExpertAutoencoder) and config.gate == "cluster":
            run.write_json("routing.json", routing_table(model))
        if isinstance(model, ExpertAutoencoder):
            say("looking at what the gates follow", config.quiet)
            look = (clusters.labels, about, clusters.assigner.crop_pct, config.seed)
            patches, workers = run.path / PATCHES_FILE, num_workers_of(config.num_workers)
            run.once(lambda: write_patches(patches, model, source, *look, num_workers=workers))
        unreadable = group().union(feed.unreadable)
        run.once(lambda: save_model(run.path / "model.safetensors", model, {**about, "seed": config.seed}))
        run.once(lambda: list_unreadable(run.path, source, unreadable, config.quiet))
        return run.finish(
            {
                "verb": "train-experts",
                "method": method,
                "out": str(run.path),
                "num_images": len(source),
                "unreadable": len(unreadable),
                "parameters": sum(p.numel() for p in model.parameters()),
                "active_parameters": sum(p.numel() for p in dense.parameters()),
                "flops_per_image": model.flops_per_image(),
                "fingerprint": fingerprint(model),
                "seed": config.seed,
                **result,
            }
        )


def leave_clusters(run: Run, clusters: Clusters) -> None:
    """Copy the assigner and the small pictures of the clusters, so that the run needs no earlier folder."""
    for name in (CLUSTERS_FILE, "clusters.json", "thumbs/thumbs.safetensors"):
        if (clusters.folder / name).is_file():
            with write_whole(run.path / name) as temporary:
                shutil.copyfile(clusters.folder / name, temporary)
