"""Stage 0: train a dense masked autoencoder (He et al., arXiv 2111.06377)."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from moce.config import PretrainConfig, Training, verb
from moce.engine.devices import pick_device
from moce.engine.progress import say
from moce.engine.runs import open_run, read_run
from moce.engine.trainer import parameter_groups, train
from moce.errors import UserError
from moce.images.loader import Batch, survey
from moce.images.sources import open_images
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder, encoder_architecture
from moce.model.weights import fingerprint, load_model, load_strictly, save_model
from moce.stages.feed import list_unreadable, mask_noise, normalisation, open_feed, prepared


class DenseObjective(nn.Module):
    """Reconstruction of masked patches."""

    def __init__(self, model: MaskedAutoencoder, config: PretrainConfig) -> None:
        super().__init__()
        self.trained = model
        self.config = config
        if config.compile:
            model.compile()

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of uint8 pictures."""
        device = self.trained.mask_token.device
        images = prepared(batch, self.config, device)
        noise = mask_noise(batch, self.config.seed, self.trained.shape.num_patches, device)
        return self.trained(images, noise).loss, {}

    def parameter_groups(self, config: Training) -> list[dict[str, Any]]:
        """AdamW's groups at the peak of base_lr * batch / 256."""
        return parameter_groups(self.trained, config.base_lr * config.batch_size / 256, config.weight_decay)

    def flops_per_image(self) -> int:
        """Forward, and twice that for the backward pass."""
        return 3 * self.trained.flops_per_image()

    def describe(self, logged: dict[str, Any]) -> dict[str, Any]:
        """Nothing beyond the loss."""
        return logged

    def watch(self, line: dict[str, Any], share_done: float) -> str | None:
        """There is nothing to warn of."""
        return None


def new_model(config: PretrainConfig) -> MaskedAutoencoder:
    """The untrained model of a config, the same for a seed."""
    shape = AutoencoderShape(
        architecture=encoder_architecture(config.model),
        image_size=(config.image_size, config.image_size),
        patch_size=(config.patch_size, config.patch_size),
        channels=config.channels,
        decoder_depth=config.decoder_depth,
        decoder_width=config.decoder_width,
        decoder_heads=config.decoder_heads,
        mask_ratio=config.mask_ratio,
        norm_target=config.norm_target,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MaskedAutoencoder(shape)


def starting_weights(model: MaskedAutoencoder, init: str, quiet: bool) -> str:
    """Load an earlier run's weights into `model`; returns their fingerprint."""
    if init.startswith(("timm:", "hf:")):
        raise UserError(f"--init {init} is not supported yet: name a run folder of `moce pretrain`.")
    earlier, _ = load_model(read_run(init, ("pretrain", "train-experts")).path)
    if dataclasses.replace(earlier.shape, mask_ratio=0, norm_target=True) != dataclasses.replace(
        model.shape, mask_ratio=0, norm_target=True
    ):
        raise UserError(
            f"--init {init} holds a model of another shape: {earlier.shape}; give the same options."
        )
    say(f"--init {init}: {load_strictly(model, earlier.state_dict(), init)}", quiet)
    return fingerprint(earlier)


@verb(PretrainConfig)
def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train a dense masked autoencoder from pictures without labels; the run folder holds `model.safetensors`.

    Returns the run's result: loss, steps, images, seconds, images_per_second, parameters, flops_per_image, ...
    """
    if config.channels not in (1, 3):
        raise UserError(f"--channels {config.channels} is not supported yet: pictures have 1 or 3 channels.")
    pick_device(config.device)  # says so before anything is written
    model = new_model(config)
    inputs = {}
    if config.init:
        inputs["weights of --init"] = starting_weights(model, config.init, config.quiet)
    source = open_images(config.images, config.channels)
    inputs["images"] = source.fingerprint()
    checked = survey(source, config.quiet)
    with open_run(config.out, "pretrain", config, inputs) as run:
        if run.finished:
            say(f"{run.path} is finished; --overwrite trains it again", config.quiet)
            return run.result()
        feed = open_feed(source, checked, model.shape.image_size, config)
        objective = DenseObjective(model, config)
        result = train(run, objective, feed.batches, feed.plan, config, "pretrain")
        mean, std = normalisation(config.channels)
        about = {"method": "MAE", "mean": mean, "std": std, "images": inputs["images"], "seed": config.seed}
        save_model(run.path / "model.safetensors", model, about)
        list_unreadable(run.path, source, feed.unreadable, config.quiet)
        return run.finish(
            {
                "verb": "pretrain",
                "method": "MAE",
                "out": str(run.path),
                "num_images": len(source),
                "unreadable": len(feed.unreadable),
                "parameters": sum(p.numel() for p in model.parameters()),
                "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
                "flops_per_image": model.flops_per_image(),
                "fingerprint": fingerprint(model),
                "seed": config.seed,
                **result,
            }
        )
