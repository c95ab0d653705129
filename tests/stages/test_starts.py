"""What experts start from: embeddings of clusters, gates at clusters of clusters, groups of sub-nets."""

import copy

import pytest
import torch
from torch.nn import functional as F

from moce.config import ExpertsConfig
from moce.errors import UserError
from moce.images.augment import IMAGENET_MEAN, IMAGENET_STD
from moce.model.assigner import Assigner
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.experts import ExpertAutoencoder
from moce.model.weights import load_model, save_model
from moce.stages.starts import new_experts
from moce.verbs import resolve

SHAPE = AutoencoderShape("test_vit", (16, 16), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)


def config(**options: object) -> ExpertsConfig:
    given = {"mae": "m", "clusters": "c", "images": "x", "out": "y", "preset": "debug", "quiet": True}
    return resolve(ExpertsConfig, {**given, "num_experts": 3, **options})


@pytest.fixture(scope="module")
def assigner(dense: MaskedAutoencoder) -> Assigner:
    """Nine clusters in three bunches: 0 to 2, 3 to 5, 6 to 8."""
    generator = torch.Generator().manual_seed(0)
    middles = torch.eye(64)[:3].repeat_interleave(3, dim=0)
    centroids = F.normalize(middles + 0.05 * torch.randn(9, 64, generator=generator))
    return Assigner(
        encoder=copy.deepcopy(dense), centroids=centroids, potentials=torch.zeros(9), mean=torch.zeros(64), eps=0.05,
        crop_pct=1.0, pixel_mean=IMAGENET_MEAN, pixel_std=IMAGENET_STD, images_fingerprint="0" * 16,
        encoder_fingerprint="1" * 16, cosine_quantiles=torch.zeros(1001), sizes=torch.full((9,), 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def dense() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(SHAPE)


def started(dense: MaskedAutoencoder, assigner: Assigner, **options: object) -> ExpertAutoencoder:
    model = new_experts(dense, assigner, config(**options))
    assert isinstance(model, ExpertAutoencoder)
    return model


@pytest.mark.parametrize("kind", ["centroid", "learned", "random"])
def test_what_a_gate_reads_of_a_cluster(
    dense: MaskedAutoencoder, assigner: Assigner, kind: str, tmp_path
) -> None:
    model = started(dense, assigner, embedding=kind, gate_start="random")
    read = model.gate.centroids_KD
    assert torch.allclose(read.norm(dim=1), torch.ones(9), atol=1e-5)
    assert torch.equal(read, assigner.centroids) == (kind == "centroid")
    assert ("gate.centroids_KD" in dict(model.named_parameters())) == (kind == "learned")
    again = started(dense, assigner, embedding=kind, gate_start="random").gate.centroids_KD
    other = started(dense, assigner, embedding=kind, gate_start="random", seed=1).gate.centroids_KD
    assert torch.equal(read, again) and torch.equal(read, other) == (kind == "centroid")
    save_model(tmp_path / "model.safetensors", model, {})
    rebuilt = load_model(tmp_path / "model.safetensors")[0]
    assert isinstance(rebuilt, ExpertAutoencoder) and rebuilt.expert_shape.embedding == kind
    assert torch.equal(rebuilt.gate.centroids_KD, read)


def test_a_learned_embedding_is_trained_at_the_gates_rate(
    dense: MaskedAutoencoder, assigner: Assigner
) -> None:
    from moce.stages.experts import ExpertsObjective

    options = config(embedding="learned", gate_lr=0.01)
    model = new_experts(dense, assigner, options)
    groups = ExpertsObjective(model, dense, options).parameter_groups(options)
    assert [id(p) for p in groups[-1]["params"]] == [
        id(p) for p in (model.gate.weight_LED, model.gate.centroids_KD)
    ]
    assert model.gate.centroids_KD.grad is None  # though fitting the gates went through it


def test_gates_at_super_centroids_follow_the_bunches_and_are_sure(
    dense: MaskedAutoencoder, assigner: Assigner
) -> None:
    gates_LKE = started(dense, assigner, gate_start="super-centroids").gates()
    for gates_KE in gates_LKE:
        chosen = gates_KE.argmax(dim=1).view(3, 3)
        assert (chosen == chosen[:, :1]).all() and len(chosen[:, 0].unique()) == 3
        assert gates_KE.amax(dim=1).mean().item() == pytest.approx(0.95, abs=1e-3)


def test_sub_nets_are_those_of_the_bunches(dense: MaskedAutoencoder, assigner: Assigner) -> None:
    model = started(dense, assigner, gate="sdr", top_k=2, output_scale="raw")
    groups = model.gates().argmax(dim=-1)
    assert torch.equal(groups[0], groups[1])
    assert (groups[0].view(3, 3) == groups[0].view(3, 3)[:, :1]).all() and len(groups[0].unique()) == 3
    assert (model.expert_shape.top_k, model.expert_shape.output_scale) == (1, "straight-through")


@pytest.mark.parametrize("dispatch", ["sorted", "loop", "grouped"])
@pytest.mark.parametrize("gate", ["cluster", "token", "sdr"])
def test_rows_reach_their_experts_as_asked(
    dense: MaskedAutoencoder, assigner: Assigner, gate: str, dispatch: str
) -> None:
    model = started(dense, assigner, gate=gate, dispatch=dispatch, gate_start="random")
    assert {model.encoder.blocks[layer].mlp.dispatch for layer in model.expert_shape.layers} == {dispatch}


@pytest.mark.parametrize("gate", ["cluster", "token"])
def test_experts_share_gradients_as_asked(dense: MaskedAutoencoder, assigner: Assigner, gate: str) -> None:
    for share in (0.0, 0.3):
        model = started(dense, assigner, gate=gate, shared_gradient=share, gate_start="random")
        shares = {model.encoder.blocks[layer].mlp.shared_gradient for layer in model.expert_shape.layers}
        assert shares == {share}


@pytest.mark.parametrize("options", [{"gate": "sdr"}, {"gate_start": "super-centroids"}])
def test_more_groups_than_clusters_are_refused(
    dense: MaskedAutoencoder, assigner: Assigner, options: dict[str, str]
) -> None:
    with pytest.raises(UserError, match="--num-experts 10 is more than the 9 clusters"):
        started(dense, assigner, num_experts=10, **options)
