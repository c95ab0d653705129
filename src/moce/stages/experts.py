"""Stage 2: train experts chosen by the cluster of a picture (MoCE), or one of the controls.

    gate cluster   MoCE       loss = L_MAE + a * balance + b * imbalance + d * distillation
    gate token     TokenMoE   loss = L_MAE + a / 2 * (importance + load) + d * distillation
    gate none      MAE*       loss = L_MAE + d * distillation
    gate sdr       SDR        loss = L_MAE + d * distillation, the whole net for a third of the updates, then sub-nets

All start from the dense model and see the same pictures, crops and masks in the same order; but for `--only-clusters`,
which trains on the pictures of some clusters alone, and as long as on all. With `--only-mlps` nothing but the MLPs that
would become experts is trained.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from moce.config import ExpertsConfig, Training
from moce.engine.devices import moved, num_workers_of, pick_device
from moce.engine.files import write_whole
from moce.engine.processes import group
from moce.engine.progress import say
from moce.engine.randomness import normal
from moce.engine.runs import Run, open_run, read_run
from moce.engine.shards import require_shards_possible
from moce.engine.trainer import Objective, parameter_groups, train
from moce.errors import UserError
from moce.images.loader import Batch, survey
from moce.images.normalise import IMAGENET, Normalisation
from moce.images.sources import open_images, require_apart
from moce.methods import experts_method
from moce.model.autoencoder import MaskedAutoencoder
from moce.model.dispatch import ExpertMLPs
from moce.model.experts import (
    ClusterRouter,
    ExpertAutoencoder,
    TokenRouter,
    batch_sums,
    imbalance_loss,
    importance_loss,
    squared_variation,
)
from moce.model.subnets import GroupRouter
from moce.model.weights import fingerprint, load_model, save_model
from moce.stages.feed import Feed, list_unreadable, mask_noise, open_feed, prepared
from moce.stages.membership import CLUSTERS_FILE, Clusters, read_clusters
from moce.stages.patches import PATCHES_FILE, write_patches
from moce.stages.pictures import require_same_bytes, with_bytes
from moce.stages.starts import new_experts
from moce.verbs import verb

WHOLE = 1 / 3  # of SDR's updates train the whole net
FADE = 0.1  # of training, over which distillation is faded out
SURE = 0.9  # the mean largest gate that training must have passed ...
SURE_BY = 0.2  # ... after this share of its steps; else the choice of experts is noise (M)


class LabelledBatch(NamedTuple):
    """A batch, the clusters of its pictures, how the global batch spreads over all clusters, and when it comes."""

    pictures: Batch
    labels_B: Int64[Tensor, " images"]
    histogram_K: Float[Tensor, " clusters"]
    progress: float = 0.0  # the share of training that is done before it


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
            yield LabelledBatch(batch, self.labels[batch.indices], histogram, step / self.feed.plan.num_steps)


class ExpertsObjective(Objective):
    """Reconstruction, balance, imbalance and distillation."""

    trained: MaskedAutoencoder

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
        shape = model.expert_shape if isinstance(model, ExpertAutoencoder) else None
        self.layers = shape.layers if shape and shape.gate != "sdr" else ()  # those with gates
        self._warned = False

    def forward(self, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and what the gates did."""
        device = self.trained.mask_token.device
        images = prepared(batch.pictures, self.config, device, self.pixels)
        noise = mask_noise(batch.pictures, self.config.seed, self.trained.shape.num_patches, device)
        router = self._router(batch, device)
        output = self.trained(images, noise, router)
        # Means over pictures count by the share of the batch that is here; a gate's losses are of the whole batch.
        part = group().part_of_mean(len(images), self.config.batch_size)
        logs = {"reconstruction": output.loss * part}
        loss = logs["reconstruction"]
        fading = distill_share(batch.progress, self.config.distill_until)
        if self.teacher is not None and fading > 0:
            logs["distill"] = self._distance(images, output.visible, output.latent) * part
            loss = loss + self.config.distill * fading * logs["distill"]
        elif self.teacher is not None:
            logs["distill"] = torch.zeros_like(logs["reconstruction"])  # not looked at any more
        if isinstance(router, ClusterRouter):
            added, of_batch, of_images = self._cluster_gate(router, moved(batch.histogram_K, device))
        elif isinstance(router, TokenRouter):
            added, of_batch, of_images = self._token_gate(router)
        else:
            return loss, logs
        return loss + added, {**logs, **of_batch, **{n: value * part for n, value in of_images.items()}}

    def _router(
        self, batch: LabelledBatch, device: torch.device
    ) -> ClusterRouter | TokenRouter | GroupRouter | None:
        if not isinstance(self.trained, ExpertAutoencoder):
            return None
        shape, pictures = self.trained.expert_shape, batch.pictures
        if shape.gate == "sdr":
            return self.trained.router(None if batch.progress < WHOLE else moved(batch.labels_B, device))
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
            seen |= self._watch(layer, router.choices[layer].expert_NC, clean_B)
            logs |= {f"{layer}.balance": balances[-1], f"{layer}.imbalance": imbalances[-1]}
        balance, imbalance = torch.stack(balances).mean(), torch.stack(imbalances).mean()
        added = self.config.balance * balance + self.config.imbalance * imbalance
        return GateLosses(added, {"balance": balance, "imbalance": imbalance, **logs}, seen)

    def _token_gate(self, router: TokenRouter) -> GateLosses:
        """Importance and load of the whole batch, half the weight each; statistics per layer."""
        shape = router.gate.shape
        sums: list[Tensor] = []
        seen: dict[str, Tensor] = {}
        for layer in self.layers:
            gates_NE = router.logits[layer].softmax(dim=1)
            sums.append(batch_sums(router.logits[layer], router.noisy[layer], shape))
            seen |= self._watch(layer, router.choices[layer].expert_NC, gates_NE)
            seen[f"{layer}.imbalance"] = imbalance_loss(gates_NE)
        balances = squared_variation(group().total(torch.stack(sums))).mean(dim=1)
        logs = {f"{layer}.balance": own for layer, own in zip(self.layers, balances, strict=True)}
        return GateLosses(self.config.balance * balances.mean(), {"balance": balances.mean(), **logs}, seen)

    @staticmethod
    def _watch(layer: int, expert_NC: Tensor, gates_NE: Tensor) -> dict[str, Tensor]:
        return {
            f"{layer}.load": F.one_hot(expert_NC, gates_NE.shape[1]).float().mean(dim=(0, 1)),
            f"{layer}.max_gate": gates_NE.detach().amax(dim=1).mean(),
            f"{layer}.agreement": (expert_NC[:, 0] == gates_NE.argmax(dim=1)).float().mean(),
        }

    def parameter_groups(self, config: Training) -> list[dict[str, Any]]:
        """The model's two groups; the experts and the gates at learning rates of their own."""
        peak = config.base_lr * config.batch_size / 256
        if not isinstance(self.trained, ExpertAutoencoder):
            return parameter_groups(self.trained.named_parameters(), peak, config.weight_decay)
        gates = list(self.trained.gate.parameters())
        experts = {id(p) for m in self.trained.modules() if isinstance(m, ExpertMLPs) for p in m.parameters()}
        apart = experts | {id(p) for p in gates}
        named = list(self.trained.named_parameters())
        groups = [
            *parameter_groups((n for n in named if id(n[1]) not in apart), peak, config.weight_decay),
            *parameter_groups(
                (n for n in named if id(n[1]) in experts), peak * self.config.expert_lr, config.weight_decay
            ),
            {"params": gates, "weight_decay": 0.0, "peak_lr": self.config.gate_lr},
        ]
        return [group for group in groups if group["params"]]

    def parts(self) -> list[nn.Module]:
        """Attention and MLPs of the model, and of the one that it is distilled from."""
        return [*self.trained.parts(), *(self.teacher.parts() if self.teacher is not None else [])]

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


def distill_share(progress: float, until: float) -> float:
    """What the weight of distillation is multiplied by: 1 up to the share `until` of training, 0 a tenth later."""
    return 1.0 if until >= 1 else min(max(1 - (progress - until) / FADE, 0.0), 1.0)


def routing_table(model: ExpertAutoencoder) -> dict[str, dict[str, list[Any]]]:
    """Per expert layer: the expert that each cluster's clean gate picks, and the gate."""
    return {
        str(layer): {"expert": gates.argmax(1).tolist(), "gate": gates.tolist()}
        for layer, gates in zip(model.expert_shape.layers, model.gates(), strict=True)
    }


def require_sense(config: ExpertsConfig) -> None:
    """UserError for options that exclude each other; says which of those given are not used."""
    if config.shuffle_clusters and config.gate != "cluster":
        raise UserError(
            f"--shuffle-clusters is for --gate cluster, not {config.gate}: it shows what gates do without clusters."
        )
    for name in ("only_clusters", "only_mlps"):
        if getattr(config, name) and config.gate != "none":
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} trains the dense model: give --gate none, not {config.gate}.")
    because = {
        "none": "trains no experts",
        "token": "has no imbalance loss and reads no cluster",
        "sdr": "has no gate",
    }
    if config.compile:
        say("--compile is for `moce pretrain`: the step of experts is not compiled", config.quiet)
    if config.idle() and not (config.gate == "none" and not config.imbalance):
        spelled = ["--" + name.replace("_", "-") for name in config.idle()]
        unused = f"{', '.join(spelled[:-1])} and {spelled[-1]} are not used"
        say(f"gate {config.gate} {because[config.gate]}: {unused}", config.quiet)


@verb(ExpertsConfig)
def train_experts(config: ExpertsConfig) -> dict[str, Any]:
    """Train experts from a dense model and its clusters; the run folder is all that `moce customize` needs.

    Returns the run's result: method, loss terms, gates, seconds, images_per_second, parameters, active_parameters, ...
    """
    device = pick_device(config.device)  # says so before anything is written
    require_shards_possible(config)
    require_sense(config)
    dense_run = read_run(config.mae, "pretrain")
    dense_run.result()
    dense, header = load_model(dense_run.path)
    source = open_images(config.images, dense.shape.channels)
    require_apart(source, config.out, below=False)
    clusters = read_clusters(config.clusters, dense, source.fingerprint())
    trained_on = clusters.as_trained(dataclasses.asdict(config))
    selected = clusters.members(config.only_clusters) if config.only_clusters else None
    model = new_experts(dense, clusters.assigner, config)
    inputs = {
        "images": source.fingerprint(),
        "dense model": fingerprint(dense),
        "clusters": clusters.fingerprint(),
    }
    inputs = with_bytes(inputs, source, "train-experts", config, config.out)
    require_same_bytes(config.clusters, inputs, config.quiet)
    checked = survey(source, config.quiet, config.cache_gib)
    with open_run(config.out, "train-experts", config, inputs) as run:
        if run.finished:
            say(f"{run.path} is finished; --overwrite trains it again", config.quiet)
            return run.result()
        feed = open_feed(source, checked, model.shape.image_size, config, selected, run.path)
        labels = trained_on.labels
        labelled = LabelledFeed(feed, labels, clusters.assigner.num_clusters)
        pixels = Normalisation(tuple(header["about"]["mean"]), tuple(header["about"]["std"]))
        objective = ExpertsObjective(model, dense, config, pixels)
        method = experts_method(dataclasses.asdict(config))
        result = train(run, objective, labelled.batches, feed.plan, config, f"train-experts ({method})")
        about = {
            **header["about"],
            "method": method,
            "images": inputs["images"],
            "dense": inputs["dense model"],
        }
        run.once(lambda: leave_clusters(run, clusters))
        if isinstance(model, ExpertAutoencoder) and config.gate != "token":
            run.write_json("routing.json", routing_table(model))
        if isinstance(model, ExpertAutoencoder):
            say("looking at what the gates follow", config.quiet)
            look = (labels, about, clusters.assigner.crop_pct, config.seed)
            patches, workers = run.path / PATCHES_FILE, num_workers_of(config.num_workers)
            # What was spread comes back on the CPU. A token's gate is only known by a pass through the model, for which
            # the other processes wait; a cluster's is not worth the way.
            there = device if config.gate == "token" else model.mask_token.device
            run.once(lambda: write_patches(patches, model.to(there), source, *look, num_workers=workers))
        unreadable = group().union(feed.unreadable)
        run.once(lambda: save_model(run.path / "model.safetensors", model, {**about, "seed": config.seed}))
        run.once(lambda: list_unreadable(run.path, source, unreadable, config.quiet))
        return run.finish(
            {
                "verb": "train-experts",
                "method": method,
                "out": str(run.path),
                "num_images": len(feed.order),
                "unreadable": len(unreadable),
                "parameters": sum(p.numel() for p in model.parameters()),
                "active_parameters": active_parameters(model, dense),
                "flops_per_image": model.flops_per_image(),
                "fingerprint": fingerprint(model),
                "seed": config.seed,
                **result,
            }
        )


def active_parameters(model: MaskedAutoencoder, dense: MaskedAutoencoder) -> int:
    """Those that a token passes, gates not counted: as many as the dense model has, and the MLPs of a second expert."""
    own = sum(p.numel() for p in dense.parameters())
    if not isinstance(model, ExpertAutoencoder):
        return own
    shape, blocks = model.expert_shape, dense.encoder.blocks
    mlps = sum(p.numel() for layer in shape.layers for p in blocks[layer].mlp.parameters())
    return own + (shape.top_k - 1) * mlps


def leave_clusters(run: Run, clusters: Clusters) -> None:
    """Copy the assigner and the small pictures of the clusters, so that the run needs no earlier folder."""
    for name in (CLUSTERS_FILE, "clusters.json", "thumbs/thumbs.safetensors"):
        if (clusters.folder / name).is_file():
            with write_whole(run.path / name) as temporary:
                shutil.copyfile(clusters.folder / name, temporary)
