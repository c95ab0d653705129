"""Stage 0: train a dense masked autoencoder (He et al., arXiv 2111.06377)."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moce.config import PretrainConfig, Training
from moce.engine.devices import pick_device
from moce.engine.processes import group
from moce.engine.progress import say
from moce.engine.runs import open_run, read_run
from moce.engine.shards import require_shards_possible
from moce.engine.trainer import Objective, parameter_groups, train
from moce.errors import UserError
from moce.images.loader import Batch, survey
from moce.images.normalise import IMAGENET, Normalisation, normalisation
from moce.images.sources import open_images, require_apart
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder, encoder_architecture, shape_json
from moce.model.foreign import is_foreign, load_foreign, read_foreign, shape_of
from moce.model.resize import resize
from moce.model.weights import fingerprint, load_model, load_strictly, save_model
from moce.options import pair, spelled_size
from moce.stages.feed import list_unreadable, mask_noise, open_feed, prepared
from moce.stages.pictures import with_bytes
from moce.verbs import verb


class DenseObjective(Objective):
    """Reconstruction of masked patches."""

    trained: MaskedAutoencoder

    def __init__(
        self, model: MaskedAutoencoder, config: PretrainConfig, pixels: Normalisation = IMAGENET
    ) -> None:
        super().__init__()
        self.trained, self.config, self.pixels = model, config, pixels
        if config.compile:
            model.compile()

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of uint8 pictures."""
        device = self.trained.mask_token.device
        images = prepared(batch, self.config, device, self.pixels)
        noise = mask_noise(batch, self.config.seed, self.trained.shape.num_patches, device)
        part = group().part_of_mean(len(images), self.config.batch_size)
        return self.trained(images, noise).loss * part, {}

    def parameter_groups(self, config: Training) -> list[dict[str, Any]]:
        """AdamW's groups at the peak of base_lr * batch / 256."""
        return parameter_groups(
            self.trained.named_parameters(), config.base_lr * config.batch_size / 256, config.weight_decay
        )

    def parts(self) -> list[nn.Module]:
        """Attention and MLPs."""
        return self.trained.parts()

    def flops_per_image(self) -> int:
        """Forward, and twice that for the backward pass."""
        return 3 * self.trained.flops_per_image()


def new_model(config: PretrainConfig) -> MaskedAutoencoder:
    """The untrained model of a config, the same for a seed."""
    shape = AutoencoderShape(
        architecture=encoder_architecture(config.model),
        image_size=pair(config.image_size),
        patch_size=pair(config.patch_size),
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


class Start(NamedTuple):
    """What a run takes over from an earlier one: the same pixels must look the same to the same weights."""

    fingerprint: str
    pixels: Normalisation | None  # None: nobody says


def starting_weights(model: MaskedAutoencoder, init: str, quiet: bool) -> Start:
    """Load an earlier run's weights into `model`, positions resampled where its pictures had another size.

    UserError where there is no such run, or its model differs in more than what may differ: the size of the pictures,
    the mask ratio and the target.
    """
    if is_foreign(init) or Path(init).is_file():
        return foreign_start(model, init, quiet)
    info = read_run(init, ("pretrain", "train-experts"))
    info.result()  # says so when the run is not finished
    earlier, header = load_model(info.path)
    weights, size = fingerprint(earlier), model.shape.image_size
    refuse_other_shape(init, shape_json(earlier.shape), model)
    if earlier.shape.image_size != size:
        sizes = (spelled_size(*earlier.shape.image_size), spelled_size(*size))
        say(f"--init {init}: positions resampled from {sizes[0]} to {sizes[1]} pixels", quiet)
        resize(earlier, size)
    say(f"--init {init}: {load_strictly(model, earlier.state_dict(), init)}", quiet)
    about = header["about"]
    return Start(weights, Normalisation(tuple(about["mean"]), tuple(about["std"])))


def refuse_other_shape(init: str, before: dict[str, Any], model: MaskedAutoencoder) -> None:
    """UserError, with the options to give, where weights are of another model in more than the size of its pictures."""
    now, differences = shape_json(model.shape), []
    for name in ("architecture", "patch_size", "channels", "decoder_depth", "decoder_width", "decoder_heads"):
        if before[name] != now[name]:
            spelled = "--" + {"architecture": "model"}.get(name, name).replace("_", "-")
            old, new = (
                spelled_size(*shape[name]) if name == "patch_size" else shape[name] for shape in (before, now)
            )
            differences.append(f"{spelled} {old}, not {new}")
    if differences:
        raise UserError(f"--init {init} has {'; '.join(differences)}; give the same options.")


def foreign_start(model: MaskedAutoencoder, init: str, quiet: bool) -> Start:
    """Load what another program trained; UserError as for `starting_weights`."""
    found = read_foreign(init)
    refuse_other_shape(init, shape_of(found, model), model)
    say(f"--init {init}: {load_foreign(model, found, init)}", quiet)
    target = found.known.get("norm_target", model.shape.norm_target)
    if target != model.shape.norm_target:
        pixels = "normalised within each patch" if target else "as they are"
        say(
            f"--init {init}: it predicted pixels {pixels}, unlike this run (--norm-target, --no-norm-target)",
            quiet,
        )
    return Start(found.fingerprint(), found.pixels)


@verb(PretrainConfig)
def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train a dense masked autoencoder from pictures without labels; the run folder holds `model.safetensors`.

    Returns the run's result: loss, steps, images, seconds, images_per_second, parameters, flops_per_image, ...
    """
    pick_device(config.device)  # says so before anything is written
    require_shards_possible(config)
    if config.epochs == config.steps == 0 and config.init is None:
        raise UserError("--epochs 0 trains nothing: give --init with weights to take as they are.")
    here = None if config.init is None or is_foreign(config.init) else Path(config.init).resolve()
    if here is not None and Path(config.out).resolve() in (here, *here.parents):
        raise UserError(f"--init {config.init} lies in --out {config.out}: choose another --out.")
    model = new_model(config)
    start = starting_weights(model, config.init, config.quiet) if config.init else None
    inputs = {"weights of --init": start.fingerprint} if start else {}
    source = open_images(config.images, config.channels)
    require_apart(source, config.out, below=False)
    inputs["images"] = source.fingerprint()
    inputs = with_bytes(inputs, source, "pretrain", config, config.out)
    checked = survey(source, config.quiet, config.cache_gib)
    with open_run(config.out, "pretrain", config, inputs) as run:
        if run.finished:
            say(f"{run.path} is finished; --overwrite trains it again", config.quiet)
            return run.result()
        feed = open_feed(source, checked, model.shape.image_size, config, folder=run.path)
        pixels = (
            start.pixels
            if start and start.pixels
            else run.once(lambda: normalisation(source, config.channels, checked.unreadable, config.quiet))
        )
        objective = DenseObjective(model, config, pixels)
        result = train(run, objective, feed.batches, feed.plan, config, "pretrain")
        about = {"method": "MAE", **pixels._asdict(), "images": inputs["images"], "seed": config.seed}
        unreadable = group().union(feed.unreadable)
        run.once(lambda: save_model(run.path / "model.safetensors", model, about))
        run.once(lambda: list_unreadable(run.path, source, unreadable, config.quiet))
        return run.finish(
            {
                "verb": "pretrain",
                "method": "MAE",
                "out": str(run.path),
                "num_images": len(source),
                "unreadable": len(unreadable),
                "parameters": sum(p.numel() for p in model.parameters()),
                "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
                "flops_per_image": model.flops_per_image(),
                "fingerprint": fingerprint(model),
                "seed": config.seed,
                **result,
            }
        )
