"""Rows of training: one optimiser step of each method, the same step of transformers, and a whole run with loading."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from moce.config import ExpertsConfig, Training
from moce.images.loader import Batch
from moce.images.normalise import IMAGENET
from moce.model.assigner import NUM_QUANTILES, Assigner
from moce.model.autoencoder import MaskedAutoencoder
from moce.stages.experts import ExpertsObjective, LabelledBatch
from moce.stages.feed import prepared
from moce.stages.pretrain import DenseObjective, new_model, pretrain
from moce.stages.starts import new_experts
from moce.study.bench.peers import Peer, require_same_loss, twin
from moce.study.bench.settings import Setting
from moce.study.bench.timing import Call, LeftOut, Variant

GATES = {"step-mae-star": "none", "step-experts": "cluster", "step-token": "token"}


@dataclass
class Steps:
    """The models of one setting, all from the same weights and fed the same batch."""

    setting: Setting

    @cached_property
    def pictures(self) -> Batch:
        """A batch of noise: what is in a picture does not change the time of a step."""
        size, shape = self.setting.amounts.batch_size, self.teacher.shape
        generator = torch.Generator().manual_seed(self.setting.options.seed)
        images = torch.randint(
            0, 256, (size, shape.channels, *shape.image_size), dtype=torch.uint8, generator=generator
        )
        return Batch(images, torch.arange(size), torch.zeros(size, dtype=torch.int64))

    @cached_property
    def labelled(self) -> LabelledBatch:
        """The same, with clusters."""
        number = self.setting.num_clusters
        generator = torch.Generator().manual_seed(self.setting.options.seed)
        labels = torch.randint(0, number, (len(self.pictures.indices),), generator=generator)
        return LabelledBatch(self.pictures, labels, torch.bincount(labels, minlength=number).float())

    @cached_property
    def teacher(self) -> MaskedAutoencoder:
        """The weights that all start from, and what distillation compares with; shared, since it does not change."""
        return new_model(self.setting.dense).to(self.setting.device)

    def dense(self) -> Call:
        """The step of `moce pretrain`."""
        return self._job(self.dense_objective(), self.setting.dense, self.pictures)

    def method(self, gate: str, progress: float = 0.0) -> Call:
        """The step of `moce train-experts` after this share of training."""
        return self._job(self.objective(gate), self.setting.experts(gate), self.at(progress))

    def dense_objective(self) -> DenseObjective:
        """What `moce pretrain` minimises."""
        return DenseObjective(new_model(self.setting.dense), self.setting.dense)

    def objective(self, gate: str) -> ExpertsObjective:
        """What `moce train-experts` minimises."""
        config = self.setting.experts(gate)
        return ExpertsObjective(self.experts(config), self.teacher, config)

    def at(self, progress: float) -> LabelledBatch:
        """The batch with clusters, after this share of training."""
        return self.labelled._replace(progress=progress)

    def experts(self, config: ExpertsConfig) -> MaskedAutoencoder:
        """The model that `moce train-experts` starts from, with clusters of one size."""
        return new_experts(self.teacher, evenly_spread(self.teacher, self.setting.num_clusters), config)

    def _job(self, objective: Any, config: Training, batch: Any) -> Call:
        objective.to(self.setting.device)
        groups = objective.parameter_groups(config)
        optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, config.beta2), fused=True)
        return self._stepping(lambda: objective(batch)[0], optimizer, objective.flops_per_image())

    def peer(self, peer: Peer) -> Call:
        """The step of transformers' model: the same pictures, mirrored and normalised by us."""
        setting, config = self.setting, self.setting.dense
        model = twin(self.teacher, peer.attention)[0].to(setting.device)
        require_same_loss(self.teacher, model, prepared(self.pictures, config, setting.device, IMAGENET)[:8])
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=1e-4,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
            fused=peer.fused or None,
        )
        model.train()

        def loss() -> Tensor:
            pictures = prepared(self.pictures, config, setting.device, IMAGENET)
            return model(pixel_values=pictures).loss

        job = self._stepping(loss, optimizer, 3 * self.teacher.flops_per_image(), peer.precision == "bf16")
        if peer.compiled:
            from torch._dynamo.exc import TorchDynamoException  # slow to import

            model.compile()
            try:
                job.function()
            except TorchDynamoException as error:  # no C++ compiler, for one
                reason = str(error).strip().splitlines()[0]
                raise LeftOut(f"step-hf-vitmae was not compiled: {reason}") from error
        return job

    def _stepping(
        self,
        loss: Callable[[], Tensor],
        optimizer: torch.optim.Optimizer,
        flops: float,
        bf16: bool | None = None,
    ) -> Call:
        """One optimiser step, as the trainer takes it."""
        device = self.setting.device
        enabled = self.setting.bf16 if bf16 is None else bf16

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()

        return Call(step, flops, device, self.setting.amounts.step_calls)


def evenly_spread(encoder: MaskedAutoencoder, num_clusters: int) -> Assigner:
    """An assigner of random clusters of one size: all that a step sees of them is their centroids."""
    width = encoder.encoder.embed_dim
    centroids = torch.randn(num_clusters, width, generator=torch.Generator().manual_seed(0))
    return Assigner(
        encoder=encoder,
        centroids=centroids / centroids.norm(dim=1, keepdim=True),
        potentials=torch.zeros(num_clusters),
        mean=torch.zeros(width),
        eps=0.05,
        crop_pct=1.0,
        pixel_mean=IMAGENET.mean,
        pixel_std=IMAGENET.std,
        images_fingerprint="",
        encoder_fingerprint="",
        cosine_quantiles=torch.zeros(NUM_QUANTILES),
        sizes=torch.ones(num_clusters, dtype=torch.int64),
    )


@dataclass
class TrainingRun:
    """`moce pretrain` as it is, on the files; what is timed are the lines of its metrics but for the first."""

    setting: Setting
    flops_per_image: float = 0.0

    def seconds(self) -> float:
        """Of a step, loading and bookkeeping included."""
        amounts, out = self.setting.amounts, self.setting.folder / "trained"
        epochs = -(-amounts.train_steps * amounts.batch_size // amounts.num_files)
        every = max(amounts.train_steps // 4, 1)
        options = {**self.setting.recipe, "epochs": epochs, "log_steps": every, "overwrite": True}
        result = pretrain(images=str(self.setting.files), out=str(out), **options)
        self.flops_per_image = 3 * result["flops_per_image"]
        lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
        num_steps, spent = 0, 0.0
        for before, line in itertools.pairwise(lines):
            num_steps += line["step"] - before["step"]
            spent += (line["step"] - before["step"]) * amounts.batch_size / line["images_per_second"]
        return spent / num_steps


def step_variants(setting: Setting, peers: list[Peer]) -> list[Variant]:
    """The rows of training, which take turns."""
    steps, batch = Steps(setting), setting.amounts.batch_size
    found = [Variant("step-dense", setting.about(), batch, steps.dense, "step-hf-vitmae")]
    against = {"step-mae-star": "step-dense"}
    for name, gate in GATES.items():
        against_name = against.get(name, "step-mae-star")
        found.append(Variant(name, setting.about(), batch, partial(steps.method, gate), against_name))
    for peer in peers:
        about = setting.about(peer.precision, **peer.about())
        found.append(Variant("step-hf-vitmae", about, batch, partial(steps.peer, peer)))
    about = setting.about(pictures=setting.about_files(), num_workers=setting.num_workers)
    found.append(
        Variant(
            "train-with-loader",
            about,
            batch,
            partial(TrainingRun, setting),
            "step-dense",
            lambda: setting.files,
        )
    )
    return found
