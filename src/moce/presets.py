"""Named recipes. Each says what it costs and what to expect; an option given beside a preset wins over it.

A recipe holds, per verb, the options that differ from the defaults in config.py, which are those of `DEFAULT`.
"""

from dataclasses import dataclass, field
from typing import Any

from moce.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """What a preset is for, and the options of each stage."""

    about: str
    pretrain: dict[str, Any] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)
    experts: dict[str, Any] = field(default_factory=dict)


DEFAULT = "tiny-imagenet"

PRESETS: dict[str, Recipe] = {
    "debug": Recipe(
        about="Seconds. A model too small to learn anything, to see that everything runs.",
        pretrain=dict(
            model="test_vit",
            image_size=32,
            patch_size=8,
            decoder_depth=1,
            decoder_width=32,
            decoder_heads=2,
            epochs=2,
            batch_size=32,
            base_lr=4e-3,
            log_steps=1,
        ),
        cluster=dict(num_clusters=8, rounds=5),
        experts=dict(layers=(1, 3), num_experts=4, epochs=2, batch_size=32, base_lr=2e-3, log_steps=1),
    ),
    "demo": Recipe(
        about="Minutes on two cores, on the built-in pictures of 32 pixels (`moce demo`).",
        pretrain=dict(
            model="test_vit",
            image_size=32,
            patch_size=4,
            decoder_depth=2,
            decoder_width=64,
            decoder_heads=2,
            epochs=12,
            batch_size=128,
            base_lr=4e-3,
            min_crop=0.4,
            log_steps=10,
        ),
        cluster=dict(num_clusters=24, rounds=10),
        experts=dict(
            layers=(3, 5), num_experts=8, epochs=4, batch_size=128, base_lr=2e-3, min_crop=0.4, log_steps=10
        ),
    ),
    DEFAULT: Recipe(about="About an hour on two cores for 50,000 pictures of 64 pixels: ViT-Ti/8."),
    "tiny-imagenet-gpu": Recipe(
        about="The same model on one GPU: 300 + 100 passes instead of 20 + 5.",
        pretrain=dict(epochs=300, batch_size=512, base_lr=1e-3),
        experts=dict(epochs=100, batch_size=512, base_lr=5e-4),
    ),
    "paper-vit-b": Recipe(
        about="The paper's setting, as far as it is known: ViT-B/16 on ImageNet, many GPUs for days.",
        pretrain=dict(
            model="vit_base",
            image_size=224,
            patch_size=16,
            decoder_depth=8,
            decoder_width=512,
            decoder_heads=16,
            epochs=800,
            batch_size=4096,
            base_lr=1.5e-4,
        ),
        cluster=dict(num_clusters=256),
        experts=dict(epochs=100, batch_size=1024, base_lr=7.5e-5, gate_start="random"),
    ),
}

EVALUATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "detect": {
        # Minutes on two cores for a hundred pictures.
        "small": dict(image_size=224, epochs=24, batch_size=4, lrs=(1e-3,), layer_decay=0.75, window=14),
        # ViTDet's ViT-B on COCO (R), for many GPUs.
        "coco": dict(image_size=1024, epochs=100, batch_size=64, lrs=(1e-4,), layer_decay=0.7, window=14),
    },
    "segment": {
        # With ViT-Ti/8 a step takes 0.8 s of one core that multiplies in bf16 (M): eleven minutes, tests included.
        "small": dict(image_size=128, steps=800, batch_size=8, lrs=(1e-3,), layer_decay=0.75),
        # The recipe by which masked autoencoders are compared on ADE20K (C), for a GPU.
        "ade20k": dict(image_size=512, steps=160_000, batch_size=16, lrs=(1e-4,), layer_decay=0.65),
    },
}  # protocol: preset: options; the first preset is taken where none is named

_STAGE = {"PretrainConfig": "pretrain", "ClusterConfig": "cluster", "ExpertsConfig": "experts"}


def preset_options(config_class: type, preset: str) -> dict[str, Any]:
    """The options that `preset` sets for a verb; UserError when there is no such preset."""
    if preset not in PRESETS:
        raise UserError(
            f"There is no preset '{preset}': choose one of {', '.join(PRESETS)}.{did_you_mean(preset, PRESETS)}"
        )
    stage = _STAGE.get(config_class.__name__)
    return dict(getattr(PRESETS[preset], stage)) if stage else {}


def evaluation_options(protocol: str, preset: str | None) -> dict[str, Any]:
    """The options that a preset sets for a protocol; UserError when it has no such preset."""
    there = EVALUATIONS.get(protocol)
    if there is None:
        if preset is not None:
            raise UserError(
                f"--preset {preset}: of evaluations only those by {' and '.join(EVALUATIONS)} have presets, not "
                f"{protocol}."
            )
        return {}
    preset = preset or next(iter(there))
    if preset not in there:
        raise UserError(
            f"--protocol {protocol} has no preset '{preset}': choose one of {', '.join(there)}."
            f"{did_you_mean(preset, there)}"
        )
    return {"preset": preset, **there[preset]}
