"""What explains the experts of patches: known answers, the model's own choices, and the file of a run."""

import json

import numpy as np
import pytest
import torch

import moce
from moce.images.augment import finish
from moce.images.sources import open_images
from moce.model.weights import load_model, read_header, read_tensors
from moce.stages.patches import (
    experts_of_patches,
    explanations,
    mean_colours,
    mutual_information,
    quantised,
    smaller,
    write_patches,
)

PICTURES, PATCHES, EXPERTS = 96, 16, 4


@pytest.fixture(scope="module")
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


def explain(experts: np.ndarray, colours: np.ndarray, clusters: np.ndarray) -> dict[str, float | None]:
    return explanations(experts, colours, clusters, None, seed=0)


def test_mutual_information_by_hand() -> None:
    experts = np.array([[0, 0, 1, 1]])
    assert mutual_information(experts, np.array([[5, 5, 7, 7]])) == pytest.approx(np.log(2))
    assert mutual_information(experts, np.array([[5, 7, 5, 7]])) == pytest.approx(0)


def test_each_cause_is_found_and_the_others_are_not(draw: np.random.Generator) -> None:
    shape = (PICTURES, PATCHES)
    colours, clusters = draw.integers(0, EXPERTS, shape), draw.integers(0, 24, PICTURES)
    causes = {
        "colour": colours,
        "place": np.broadcast_to(np.arange(PATCHES) % EXPERTS, shape),
        "cluster": np.broadcast_to(clusters[:, None] % EXPERTS, shape),
    }
    for cause, experts in causes.items():
        found = explain(experts, colours, clusters)
        assert found["class"] is None
        assert found[cause] == pytest.approx(1, abs=1e-9), cause
        for other in causes.keys() - {cause}:
            assert found[other] == pytest.approx(0, abs=0.03), (cause, other)


def test_many_clusters_do_not_explain_by_accident(draw: np.random.Generator) -> None:
    experts = draw.integers(0, EXPERTS, (PICTURES, PATCHES))
    clusters = np.arange(PICTURES) // 2  # two pictures each: plain mutual information is far from 0
    assert mutual_information(experts, np.broadcast_to(clusters[:, None], experts.shape)) > 0.04
    assert explain(experts, experts * 0, clusters)["cluster"] == pytest.approx(0, abs=0.03)


def test_one_expert_needs_no_explanation() -> None:
    found = explain(np.zeros((4, 4), np.int64), np.arange(16).reshape(4, 4), np.arange(4))
    assert set(found.values()) == {None}


def test_colours_are_few_and_sorted() -> None:
    colours = torch.tensor([[[250.0, 250, 250], [0, 0, 0]], [[250, 250, 250], [90, 80, 70]]])
    places, bins = quantised(colours, seed=0)
    assert places.tolist() == [[2, 0], [2, 1]]
    assert bins[2].tolist() == [250, 250, 250]


def test_mean_colours_are_those_of_the_patches(small_runs) -> None:
    model, _ = load_model(small_runs.token_moce)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found = mean_colours(model, images)
    assert found.shape == (2, 16, 3)
    assert torch.allclose(found[1, 6], images[1, :, 8:16, 16:24].float().mean(dim=(1, 2)))


def test_a_patch_s_expert_is_the_one_its_token_chooses(small_runs) -> None:
    model, header = load_model(small_runs.token_moce)
    pixels, about = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), header["about"]
    images = finish(pixels, None, tuple(about["mean"]), tuple(about["std"]))
    seen = {}

    class Watcher:
        def __init__(self) -> None:
            self.router = model.router()

        def choose(self, layer: int, tokens: torch.Tensor):
            seen[layer] = (tokens @ model.gate.weight_LED[len(seen)].T).argmax(dim=2)
            return self.router.choose(layer, tokens)

    with torch.no_grad():
        model.tokens(images, Watcher())
    found = experts_of_patches(model, images, torch.zeros(3, dtype=torch.int64))
    assert found.shape == (2, 3, 16)
    for row, layer in zip(found, model.expert_shape.layers, strict=True):
        assert row.equal(seen[layer][:, 1:])


@pytest.mark.parametrize("gate", ["cluster", "token"])
def test_a_run_leaves_what_its_gates_follow(small_runs, gate: str) -> None:
    folder = small_runs.moce if gate == "cluster" else small_runs.token_moce
    header, content = (
        read_header(folder / "patches.safetensors"),
        read_tensors(folder / "patches.safetensors"),
    )
    assert header["gate"] == gate
    assert header["num_pictures"] == 256
    assert set(header["explained"]) == {"1", "3"}
    assert content["images"].shape == (8, 3, 32, 32)
    assert content["experts"].shape == (2, 8, 4, 4)
    assert content["counts"].shape == (2, 4, len(content["colours"]))
    assert (content["counts"].sum(dim=(1, 2)) == 256 * 16).all()
    assert content["indices"].tolist() == sorted(content["indices"].tolist())
    for explained in header["explained"].values():
        assert explained["class"] is not None  # the built-in pictures have labels
        if gate == "cluster":
            assert explained["cluster"] == pytest.approx(1)
            assert explained["place"] == pytest.approx(0, abs=0.01)
    if gate == "cluster":
        routing = json.loads((folder / "routing.json").read_text())
        labels = np.load(small_runs.clusters / "labels.npy")[content["indices"].numpy()]
        for layer, experts in zip(("1", "3"), content["experts"], strict=True):
            assert experts[:, 0, 0].tolist() == [routing[layer]["expert"][k] for k in labels]
            assert (experts == experts[:, :1, :1]).all()


def test_the_dense_control_has_no_gates_to_follow(small_runs) -> None:
    assert not (small_runs.mae_star / "patches.safetensors").exists()


def test_the_file_is_the_same_every_time(small_runs, tmp_path) -> None:
    model, header = load_model(small_runs.token_moce)
    source = open_images("toyworld://all?split=train&num=40&size=32")
    for name in ("a", "b"):
        labels = torch.arange(40) % 5
        write_patches(tmp_path / name, model, source, labels, header["about"], 1.0, seed=3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("gate", "device"), [("token", "meta"), ("cluster", "cpu")])
def test_who_has_to_pass_through_the_model_does_so_on_the_device(
    small_runs, tmp_path, monkeypatch: pytest.MonkeyPatch, gate: str, device: str
) -> None:
    """Training gives back a model on the CPU, as with --shard on GPUs; torch's `meta` stands for the GPU."""

    class Seen(Exception):
        """Where the model lay."""

    def look(path: object, model: torch.nn.Module, *_: object, **__: object) -> None:
        raise Seen(model.mask_token.device)

    monkeypatch.setattr("moce.stages.experts.pick_device", lambda name: torch.device("meta"))
    monkeypatch.setattr("moce.stages.experts.write_patches", look)
    monkeypatch.setattr("moce.stages.experts.train", lambda *_: {})
    options = {"images": small_runs.images, "gate": gate, "gate_start": "random", "quiet": True}
    with pytest.raises(Seen, match=device):
        moce.train_experts(small_runs.mae, small_runs.clusters, out=tmp_path / "run", **options)


def test_large_pictures_become_small_ones() -> None:
    assert smaller(torch.zeros(2, 3, 224, 112, dtype=torch.uint8)).shape == (2, 3, 96, 48)
    assert smaller(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 3, 64, 64)
