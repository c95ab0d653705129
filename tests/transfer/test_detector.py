"""The parts of a detector: the pyramid, anchors, heads, and the recipes."""

import dataclasses
from typing import Any

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from moce.config import EvaluateConfig
from moce.errors import UserError
from moce.presets import EVALUATIONS
from moce.transfer.detect.detector import Detector, drawn_from, mask_rcnn
from moce.transfer.detect.pyramid import Pyramid, require_fitting
from moce.transfer.detect.recipe import RECIPES, Recipe
from moce.transfer.encoder import Trainable, load_encoder, require_map
from moce.transfer.finetune import parameter_groups
from moce.verbs import resolve

CPU = torch.device("cpu")


@pytest.mark.parametrize("patch", [4, 8, 16, 32])
def test_the_pyramid_has_strides_4_to_64_whatever_the_patch(patch: int) -> None:
    side = 128
    found = Pyramid(32, patch, 24, coarsest=True)(torch.randn(2, 32, side // patch, side // patch))
    assert [tuple(m.shape) for m in found.values()] == [
        (2, 24, side // s, side // s) for s in (4, 8, 16, 32, 64)
    ]


@pytest.mark.parametrize(
    ("patch", "size", "preset", "words"),
    [
        ((14, 14), (224, 224), "small", "this one has patches of 14"),
        ((16, 8), (224, 224), "small", "patches of 16x8"),
        ((8, 8), (100, 100), "small", "--protocol detect sees squares .* multiple of 32; give 96"),
        ((8, 8), (64, 96), "small", "--image-size 64x96"),
        (
            (8, 8),
            (224, 224),
            "coco",
            "--protocol detect --preset coco sees squares .* multiple of 64; give 256",
        ),
    ],
)
def test_patches_and_sizes_that_fit_no_pyramid(
    patch: tuple[int, int], size: tuple[int, int], preset: str, words: str
) -> None:
    network = Trainable()
    network.patch_size = patch
    with pytest.raises(UserError, match=words):
        require_fitting(network, size, RECIPES[preset].coarsest)


@pytest.mark.parametrize(("preset", "side"), [("small", 96), ("coco", 192)])
def test_anchors_are_centred_on_the_places_of_their_level(preset: str, side: int) -> None:
    """At the least multiple that is not one of twice the coarsest stride as well."""
    recipe = RECIPES[preset]
    network = Trainable()
    network.patch_size = (16, 16)
    pyramid = Pyramid(
        32, require_fitting(network, (side, side), recipe.coarsest), recipe.channels, recipe.coarsest
    )
    maps = list(pyramid(torch.zeros(1, 32, side // 16, side // 16)).values())
    anchors = mask_rcnn(pyramid, 2, recipe).rpn.anchor_generator(
        ImageList(torch.zeros(1, 3, side, side), [(side, side)]), maps
    )[0]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    ratios, strides = 3, (4, 8, 16, 32, 64)
    expected = [
        (column * stride, row * stride)
        for stride, level in zip(strides, maps)
        for row in range(level.shape[2])
        for column in range(level.shape[3])
        for _ in range(ratios)
    ]
    assert len(maps) == 4 + recipe.coarsest
    assert torch.equal(centres, torch.tensor(expected).float())


def made(small_runs, recipe: Recipe = RECIPES["small"], seed: int = 0) -> Detector:
    encoder = load_encoder(str(small_runs.mae), CPU, image_size=(64, 64))
    return Detector(require_map(encoder, "detect"), encoder.width, (64, 64), 2, recipe, 0, seed)


def test_heads_are_a_function_of_the_seed_and_learn_fastest(small_runs) -> None:
    torch.manual_seed(5)
    first = made(small_runs)
    torch.manual_seed(6)
    same, other = made(small_runs), made(small_runs, seed=1)
    weights = [d.roi_heads.mask_predictor.conv5_mask.weight for d in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    groups = parameter_groups(first, 0.5, 0.1)
    assert sum(len(g["params"]) for g in groups) == len(list(first.parameters()))  # type: ignore[arg-type]
    scales = {p: g["scale"] for g in groups for p in g["params"]}  # type: ignore[attr-defined]
    decays = {p: g["weight_decay"] for g in groups for p in g["params"]}  # type: ignore[attr-defined]
    named = dict(first.named_parameters())
    depth = first.encoder.num_layers
    assert scales[named["rpn.head.conv.0.0.weight"]] == scales[named["pyramid.levels.0.1.weight"]] == 1
    assert scales[named["encoder.vit.patch_embed.proj.weight"]] == 0.5**depth
    norm = next(p for n, p in named.items() if n.startswith("pyramid") and p.ndim == 1)
    assert decays[norm] == 0 and decays[named["encoder.vit.cls_token"]] == 0


def test_every_matrix_of_the_heads_has_the_decay_whatever_its_name(small_runs) -> None:
    for recipe in (
        RECIPES["small"],
        dataclasses.replace(RECIPES["coco"], box_width=64),
    ):  # with norms and without
        detector = made(small_runs, recipe)
        groups = parameter_groups(detector, 0.5, 0.1)
        decays = {p: g["weight_decay"] for g in groups for p in g["params"]}  # type: ignore[attr-defined]
        heads = {n: p for n, p in detector.named_parameters() if not n.startswith("encoder.")}
        assert {"rpn.head.cls_logits.weight", "roi_heads.box_predictor.cls_score.weight"} <= heads.keys()
        assert {n for n, p in heads.items() if decays[p]} == {n for n, p in heads.items() if p.ndim > 1}


def test_the_paper_s_heads_train_on_a_picture_with_padding(small_runs) -> None:
    fewer = dataclasses.replace(
        RECIPES["coco"], proposals=(50, 20), proposals_test=(50, 20), rois=16, box_width=64
    )
    detector = made(small_runs, fewer).train()
    masks_here = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks_here[0, 8:30, 4:40] = 1
    target = {"boxes": torch.tensor([[4.0, 8, 40, 30]]), "labels": torch.tensor([1]), "masks": masks_here}
    with drawn_from(0, CPU):
        _, losses = detector(torch.randn(1, 3, 64, 64), [(48, 64)], [target])
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        found, _ = detector.eval()(torch.randn(1, 3, 64, 64), [(48, 64)])
    assert len(found[0]["boxes"])
    assert (found[0]["boxes"][:, 3] <= 48).all()  # nothing is found in the padding


def test_presets_and_options_given_beside_them() -> None:
    def options(**given: Any) -> EvaluateConfig:
        return resolve(EvaluateConfig, {"model": "m", "task": "t", **given})

    small = options(protocol="detect")
    assert (small.preset, small.image_size) == ("small", EVALUATIONS["detect"]["small"]["image_size"])
    coco = options(protocol="detect", preset="coco", epochs=3)
    assert (coco.image_size, coco.epochs, coco.window, coco.lrs) == (1024, 3, 14, (1e-4,))
    assert options().preset is None and options().epochs == 40
    with pytest.raises(UserError, match="no preset 'cocoo'.*Did you mean 'coco'"):
        options(protocol="detect", preset="cocoo")
    with pytest.raises(UserError, match="only those by detect.* have presets, not knn"):
        options(preset="small")
