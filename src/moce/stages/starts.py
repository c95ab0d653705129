"""What the training of experts starts from: copies of the dense model, and gates that read the clusters.

How gates start (`--gate-start`):

    fitted            fitted on the embeddings of the clusters with balance + imbalance, before any expert moves
    super-centroids   spherical k-means of the embeddings into E groups; each expert's weights are its group's centroid,
                      scaled so that the mean largest gate is 0.95; the same in every layer
    random            N(0, 0.02)

What they read of a cluster (`--embedding`): its centroid; or a random vector of length 1, which stays as it is (random)
or is trained along with the gates (learned). So learned differs from random in training alone, and random from the
centroid in meaning alone.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from moce.config import ExpertsConfig
from moce.engine.progress import say
from moce.engine.randomness import normal
from moce.errors import UserError
from moce.model.assigner import Assigner
from moce.model.autoencoder import MaskedAutoencoder
from moce.model.experts import (
    ClusterGate,
    ExpertAutoencoder,
    ExpertShape,
    imbalance_loss,
    importance_loss,
    require_blocks,
)
from moce.model.subnets import Groups, SubnetAutoencoder
from moce.stages.balance import spherical_kmeans

SURE_FROM_THE_START = 0.95  # the mean largest gate of super-centroids


def new_experts(dense: MaskedAutoencoder, assigner: Assigner, config: ExpertsConfig) -> MaskedAutoencoder:
    """The model that training starts from; for gate `none` a copy of the dense one."""
    if config.gate == "none":
        model = MaskedAutoencoder(dense.shape)
        model.load_state_dict(dense.state_dict())
        return only_mlps(model, config.layers) if config.only_mlps else model
    shape = ExpertShape(
        layers=tuple(sorted(config.layers)),
        num_experts=config.num_experts,
        gate=config.gate,
        num_clusters=assigner.num_clusters,
        cluster_width=assigner.centroids.shape[1],
        top_k=1 if config.gate == "sdr" else config.top_k,
        noise=config.gate_noise,
        output_scale="straight-through" if config.gate == "sdr" else config.output_scale,
        embedding=config.embedding if config.gate == "cluster" else "centroid",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = (SubnetAutoencoder if config.gate == "sdr" else ExpertAutoencoder).from_dense(dense, shape)
    model.set_dispatch(config.dispatch)
    if isinstance(model.gate, Groups):
        model.gate.group_K.copy_(super_clusters(assigner.centroids, shape.num_experts, config.seed)[0])
        sizes = model.gate.group_K.bincount(minlength=shape.num_experts)
        say(f"{shape.num_experts} groups of {int(sizes.min())} to {int(sizes.max())} clusters", config.quiet)
    elif isinstance(model.gate, ClusterGate):
        start_gates(model.gate, assigner, config)
    if config.gate != "sdr":
        model.share_gradient(config.shared_gradient)
    return model


def only_mlps(model: MaskedAutoencoder, layers: Sequence[int]) -> MaskedAutoencoder:
    """The model with nothing to train but the MLPs of these blocks. UserError for a block that is not there."""
    require_blocks(layers, len(model.encoder.blocks))
    model.requires_grad_(False)
    for layer in layers:
        model.encoder.blocks[layer].mlp.requires_grad_(True)
    return model


def start_gates(gate: ClusterGate, assigner: Assigner, config: ExpertsConfig) -> None:
    """Give the gates their embeddings and their first weights; says how sure they are."""
    with torch.no_grad():
        gate.centroids_KD.copy_(embeddings(assigner.centroids, config))
    if config.gate_start == "random":
        return
    if config.gate_start == "fitted":
        seen = fit_gates(gate, assigner.sizes, config.balance, config.imbalance)
    else:
        seen = take_super_centroids(gate, assigner.sizes, config.seed)
    for layer, own in zip(gate.shape.layers, seen, strict=True):
        say(
            f"gate of block {layer} {config.gate_start} on {gate.shape.num_clusters} clusters: mean largest gate "
            f"{own['max_gate']:.3f}, largest load {own['largest_load']:.2f} times the even one",
            config.quiet,
        )


def embeddings(
    centroids: Float[Tensor, "clusters width"], config: ExpertsConfig
) -> Float[Tensor, "clusters width"]:
    """What the gate reads of each cluster, at the start."""
    if config.embedding == "centroid":
        return centroids
    num_clusters, width = centroids.shape
    return F.normalize(normal(config.seed, "embedding", 0, torch.arange(num_clusters), width))


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
    what `confidence` says of them.

    The weight of imbalance rises from 0 over the first half: clusters spread over the experts before they settle. At
    full weight from the start 0 to 3 of 8 experts were left without a cluster, with the rise none (M).
    """
    optimizer = torch.optim.Adam([gate.weight_LED], lr=lr)
    weight_K = sizes_K.float().to(gate.weight_LED.device)
    for step in range(num_steps):
        gates_LKE = gate.logits().softmax(dim=-1)
        balances_L = balance * importance_loss(gates_LKE, weight_K)
        imbalances_L = imbalance * min(2 * step / num_steps, 1) * imbalance_loss(gates_LKE, weight_K)
        optimizer.zero_grad()
        (balances_L + imbalances_L).sum().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = lr * (1 - 0.9 * step / num_steps)
    gate.zero_grad()
    return confidence(gate, weight_K)


def confidence(gate: ClusterGate, weight_K: Float[Tensor, " clusters"]) -> list[dict[str, float]]:
    """Per layer the mean largest gate and the largest load over the even one, clusters weighted by their sizes."""
    fitted = []
    share_K = (weight_K / weight_K.sum()).to(gate.weight_LED.device)
    for gates_KE in gate.logits().detach().softmax(dim=-1):
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


def super_clusters(
    embeddings_KD: Float[Tensor, "clusters width"], num_groups: int, seed: int
) -> tuple[Int64[Tensor, " clusters"], Float[Tensor, "groups width"]]:
    """(group of each cluster, centroids of the groups): clusters of clusters. UserError where they are too few."""
    if num_groups > len(embeddings_KD):
        raise UserError(
            f"--num-experts {num_groups} is more than the {len(embeddings_KD)} clusters that are to be grouped; take "
            "fewer experts, or more clusters."
        )
    groups = spherical_kmeans(embeddings_KD.float(), num_groups, seed)
    return (embeddings_KD.float() @ groups.T).argmax(dim=1), groups


@torch.no_grad()
def take_super_centroids(
    gate: ClusterGate, sizes_K: Int64[Tensor, " clusters"], seed: int
) -> list[dict[str, float]]:
    """Start the gates of all layers at the centroids of E groups of clusters; returns their `confidence`."""
    groups = super_clusters(gate.centroids_KD, gate.shape.num_experts, seed)[1]
    weight_K = sizes_K.float()
    low, high = 0.0, 1e4  # the mean largest gate grows with the scale
    for _ in range(50):
        gate.weight_LED.copy_((low + high) / 2 * groups.expand_as(gate.weight_LED))
        sure = confidence(gate, weight_K)[0]["max_gate"] >= SURE_FROM_THE_START
        low, high = (low, (low + high) / 2) if sure else ((low + high) / 2, high)
    gate.weight_LED.copy_(high * groups.expand_as(gate.weight_LED))
    return confidence(gate, weight_K)
