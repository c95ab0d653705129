"""Every protocol by two processes: what one process measures, written once. Real processes, gloo."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_ade import write_ade
from drawn_coco import draw_set
from safetensors.numpy import load_file
from same_numbers import lines
from shared import made_once
from started import run_both
from two_evaluations import PROBES

import moce

WORKER = Path(__file__).parent.parent / "two_evaluations.py"
PLANTS = {"task": "toyworld://plants?size=32&num=40"}
# Five pictures a step: two for one process, three for the other.
FINE = {**PLANTS, "protocol": "finetune", "epochs": 2, "batch_size": 5}
COMMON = {"num_workers": 0, "device": "cpu", "precision": "fp32", "quiet": True}


@pytest.fixture(scope="module")
def evaluations(small_runs: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Options by name."""

    def draw(folder: Path) -> None:
        draw_set(folder / "boxes", num_train=6, num_val=3)
        write_ade(folder / "masks", num_train=6, num_test=1)  # so that one process has nothing to test

    sets = made_once(tmp_path_factory, "several-sets", draw)
    boxes, masks = str(sets / "boxes"), str(sets / "masks")
    moe, token = str(small_runs.moce), str(small_runs.token_moce)
    wanted = {
        "vote": {"model": moe, "protocol": "knn,linear", **PLANTS},
        "oracle": {"model": moe, "protocol": "knn", "strategy": "oracle", **PLANTS},
        "finetune": {"model": moe, "lrs": [1e-3], **FINE},
        "chosen": {"model": token, "lrs": [1e-4, 1e-3, 1e38], **FINE},
        "norms": {"model": "timm:test_resnet?pretrained=false", "image_size": 32, "lrs": [1e-3], **FINE},
        "detect": {
            "model": moe,
            "task": boxes,
            "protocol": "detect",
            "image_size": 64,
            "epochs": 2,
            "batch_size": 3,
        },
        "segment": {
            "model": token,
            "task": masks,
            "protocol": "segment",
            "image_size": 32,
            "steps": 6,
            "batch_size": 5,
        },
    }
    return {name: {**COMMON, **options} for name, options in wanted.items()}


@pytest.fixture(scope="module")
def one(evaluations: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one process has done them."""

    def make(folder: Path) -> None:
        for name, options in evaluations.items():
            place = {} if options["protocol"] in PROBES else {"out": folder / name}
            (folder / f"{name}.json").write_text(json.dumps(moce.evaluate(**options, **place)))

    return made_once(tmp_path_factory, "several-one", make)


@pytest.fixture(scope="module")
def two(one: Path, evaluations: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have done them."""

    def make(folder: Path) -> None:
        # Trained, and not yet tested.
        for name, weights in {"detect": "detector", "segment": "segmenter"}.items():
            (folder / f"{name}-tested").mkdir()
            for file in ("config.json", "training.json", f"{weights}.safetensors"):
                shutil.copy(one / name / file, folder / f"{name}-tested")
        wanted = {**evaluations, **{f"{name}-tested": evaluations[name] for name in ("detect", "segment")}}
        (folder / "evaluations.json").write_text(json.dumps(wanted))
        codes, said = run_both(WORKER, folder / "evaluations.json", folder, cwd=folder)
        assert codes == [0, 0], said

    return made_once(tmp_path_factory, "several-two", make)


def seen(two: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((two / f"rank-{rank}.json").read_text())


@pytest.mark.parametrize("name", ["vote", "oracle"])
def test_probes_give_the_same_answers(one: Path, two: Path, name: str) -> None:
    wanted, found = json.loads((one / f"{name}.json").read_text()), seen(two)[name]
    pairs = zip(wanted, found, strict=True) if isinstance(wanted, list) else [(wanted, found)]
    for a, b in pairs:
        for key in ("value", "predicted", "labels", "choice", "num_train", "settings"):
            assert a[key] == b[key], key


@pytest.mark.parametrize("name", ["finetune", "chosen", "norms", "segment"])
def test_trainings_lose_what_one_process_loses(one: Path, two: Path, name: str) -> None:
    """All that is logged to 1e-4, weights to 1e-3: AdamW divides by small numbers.

    Biases of keys move every query's scores alike, so their gradient is nothing but rounding. In the network with
    batch norms, whose weights are random, some gradients are hardly more; a step of AdamW is 1e-3 whatever they are.
    """
    folders = [""] if name != "chosen" else ["", "lr-0.0001", "lr-0.001"]
    for folder in folders:
        for a, b in zip(lines(one / name / folder), lines(two / name / folder), strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - {"images_per_second", "utilisation"}:
                np.testing.assert_allclose(a[key], b[key], atol=1e-4, err_msg=f"{key} at {a['step']}")
    file = "segmenter.safetensors" if name == "segment" else "classifier.safetensors"
    model, other = load_file(one / name / file), load_file(two / name / file)
    assert model.keys() == other.keys()
    for part, found in other.items():
        if part.endswith("attn.qkv.bias"):
            keys = slice(len(found) // 3, 2 * len(found) // 3)
            found[keys] = model[part][keys]
        tolerance = 5e-3 if name == "norms" else 1e-3
        np.testing.assert_allclose(model[part], found, atol=tolerance, err_msg=part)


@pytest.mark.parametrize("name", ["finetune", "chosen", "norms"])
def test_fine_tuned_networks_predict_alike(one: Path, two: Path, name: str) -> None:
    """On all test pictures but one at most, whose two best classes are equal but for rounding."""
    wanted, found = json.loads((one / f"{name}.json").read_text()), seen(two)[name]
    assert found["labels"] == wanted["labels"]
    assert np.not_equal(found["predicted"], wanted["predicted"]).sum() <= 1
    assert found["settings"]["lr"] == wanted["settings"]["lr"]
    if name == "chosen":
        scores, others = wanted["settings"]["val_scores"], found["settings"]["val_scores"]
        assert scores[:2] == pytest.approx(others[:2], abs=0.13)  # one of eight pictures
        assert scores[2] is others[2] is None


@pytest.mark.parametrize(
    ("name", "keys"), [("detect", ("scores", "num_test")), ("segment", ("per_class", "value"))]
)
def test_one_network_is_tested_alike(one: Path, two: Path, name: str, keys: tuple[str, ...]) -> None:
    wanted, found = json.loads((one / f"{name}.json").read_text()), seen(two)[f"{name}-tested"]
    for key in ("pictures", "training"):
        assert found[key] == wanted[key], key
    for key in keys:
        assert found[key] == pytest.approx(wanted[key], abs=1e-6), key
    if name == "detect":
        files = (one / name / "predictions.json", two / f"{name}-tested/predictions.json")
        for row, other in zip(*(json.loads(file.read_text()) for file in files), strict=True):
            assert (row["image_id"], row["category_id"]) == (other["image_id"], other["category_id"])
            assert row["bbox"] == pytest.approx(other["bbox"], abs=0.01)
            assert row["score"] == pytest.approx(other["score"], abs=1e-4)


def test_classes_that_cannot_be_judged_count_nowhere(two: Path) -> None:
    together, alone = seen(two)["binary"]
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_detector_is_trained_and_tested_by_both(one: Path, two: Path) -> None:
    """Each normalises its losses over its own regions, so the numbers are others than one process has."""
    wanted, found = json.loads((one / "detect.json").read_text()), seen(two)["detect"]
    for key in ("num_train", "num_test", "num_objects_per_class", "settings", "pictures"):
        assert found[key] == wanted[key], key
    assert [line["step"] for line in lines(two / "detect")] == [
        line["step"] for line in lines(one / "detect")
    ]
    model, other = (load_file(folder / "detect/detector.safetensors") for folder in (one, two))
    assert model.keys() == other.keys()
    assert all(np.isfinite(part).all() for part in other.values())
    [loss], [other_loss] = ([line["loss"] for line in lines(folder / "detect")] for folder in (one, two))
    assert loss == pytest.approx(other_loss, rel=0.2)


def test_all_processes_hear_the_same_result(two: Path) -> None:
    first, second = seen(two, 0), seen(two, 1)
    assert first.keys() == second.keys()
    for name in ("finetune", "chosen", "norms", "detect", "segment"):
        assert first[name] == second[name], name


def test_a_stopped_fine_tuning_goes_on_to_the_bit(two: Path) -> None:
    stopped = seen(two)["stopped"]
    assert (stopped["code"], len(stopped["left"])) == (143, 1)
    assert stopped["result"]["predicted"] == seen(two)["finetune"]["predicted"]
    whole, cut = ((two / name / "classifier.safetensors").read_bytes() for name in ("finetune", "stopped"))
    assert whole == cut


def test_a_batch_must_have_a_picture_for_each(two: Path) -> None:
    wanted = "--batch-size 1 is less than the 2 processes; each needs a picture."
    assert [seen(two, rank)["refused"] for rank in (0, 1)] == [wanted] * 2
    assert seen(two)["nothing there"]
    assert seen(two)["download"].startswith("--download is for one process")
