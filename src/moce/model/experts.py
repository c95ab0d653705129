"""Experts: some MLPs of the encoder become several, and a gate chooses one for each picture (or token).

    G(x) = TopK( softmax( W_g c[x] + noise ) ),    y = sum_i G_i(x) E_i(x)          (MoCE; V-MoE, arXiv 2106.05974)

The gate reads c[x], the embedding of the cluster that picture x belongs to. TokenMoE, the control, reads the token
itself. Three things are kept apart: a gate says which expert and with what scale, a dispatcher brings rows to their
experts and back, the experts compute (both in `model/dispatch.py`).

What differs from the textbook: the output is multiplied by p / stopgrad(sum of the chosen p), which is exactly 1 for
one expert (so that step 0 equals the dense model) and still lets the gate learn; and nothing is dropped, there is no
capacity.

Shape letters: B images, T tokens, D width, F hidden width, E experts, L expert layers, K clusters, N rows (a row is
what is dispatched: a picture or a token), C choices per row (top-k).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from moce.errors import UserError
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder, mlp_flops, mlp_ratio
from moce.model.dispatch import Choice, Dispatch, ExpertMLPs

GATE_STD = 0.02  # of the gate's weights at the start (M)


@dataclass(frozen=True)
class ExpertShape:
    """Where the experts are and how they are chosen; JSON-able."""

    layers: tuple[int, ...]
    num_experts: int
    gate: Literal["cluster", "token", "sdr"]
    num_clusters: int
    cluster_width: int
    top_k: int = 1
    noise: float = 1.0
    output_scale: Literal["straight-through", "raw"] = "straight-through"
    embedding: Literal["centroid", "learned", "random"] = "centroid"  # what a cluster gate reads

    def to_json(self) -> dict[str, Any]:
        """For a file's header."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ExpertShape":
        """The inverse of `to_json`."""
        return cls(**{**content, "layers": tuple(content["layers"])})


def choose(
    logits_NE: Float[Tensor, "rows experts"],
    noise_NE: Float[Tensor, "rows experts"] | None,
    top_k: int,
    output_scale: str,
) -> Choice:
    """TopK of the softmax of the noisy logits, in fp32."""
    noisy = logits_NE.float() if noise_NE is None else logits_NE.float() + noise_NE
    chosen, expert_NC = noisy.softmax(dim=1).topk(top_k, dim=1)
    if output_scale == "straight-through":
        chosen = chosen / chosen.detach().sum(dim=1, keepdim=True)
    return Choice(expert_NC, chosen)


# Gates


class ClusterGate(nn.Module):
    """One linear map without bias per expert layer, on the embedding of a picture's cluster.

    `centroids_KD` are these embeddings: the fixed centroids; or, to see what the centroids are good for, fixed random
    vectors, or such as are trained along.
    """

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__()
        self.shape = shape
        self.weight_LED = nn.Parameter(torch.empty(len(shape.layers), shape.num_experts, shape.cluster_width))
        nn.init.normal_(self.weight_LED, std=GATE_STD)
        self.centroids_KD: Tensor
        embeddings_KD = torch.zeros(shape.num_clusters, shape.cluster_width)
        if shape.embedding == "learned":
            self.centroids_KD = nn.Parameter(embeddings_KD)
        else:
            self.register_buffer("centroids_KD", embeddings_KD)

    def logits(self) -> Float[Tensor, "layers clusters experts"]:
        """Clean logits of every cluster: K rows per layer, whatever the batch. fp32 also under autocast."""
        with torch.autocast(self.weight_LED.device.type, enabled=False):
            return self.centroids_KD.float() @ self.weight_LED.float().transpose(1, 2)


class TokenGate(nn.Module):
    """One linear map without bias per expert layer, on the token that enters the MLP (V-MoE)."""

    def __init__(self, shape: ExpertShape, width: int) -> None:
        super().__init__()
        self.shape = shape
        self.weight_LED = nn.Parameter(torch.empty(len(shape.layers), shape.num_experts, width))
        nn.init.normal_(self.weight_LED, std=GATE_STD)


class ClusterRouter:
    """Choices of a batch whose pictures belong to known clusters; the same for every token of a picture."""

    def __init__(
        self, gate: ClusterGate, labels_B: Int64[Tensor, " images"], noise_LBE: Tensor | None = None
    ) -> None:
        self.gate, self.labels_B = gate, labels_B
        self.logits_LKE = gate.logits()
        shape = gate.shape
        self.choices = {
            layer: choose(
                self.logits_LKE[i][labels_B],
                None if noise_LBE is None else noise_LBE[i] * (shape.noise / shape.num_experts),
                shape.top_k,
                shape.output_scale,
            )
            for i, layer in enumerate(shape.layers)
        }

    def choose(self, layer: int, tokens: Tensor) -> Choice:
        """The choice of a layer; the tokens are not looked at."""
        return self.choices[layer]


class TokenRouter:
    """Choices made from the tokens as they arrive; keeps what the balance loss needs.

    `noise_LBTE` is standard normal, one draw per token, or None at transfer.
    """

    def __init__(self, gate: TokenGate, noise_LBTE: Tensor | None = None) -> None:
        self.gate, self.noise_LBTE = gate, noise_LBTE
        self.logits: dict[int, Tensor] = {}
        self.noisy: dict[int, Tensor] = {}
        self.choices: dict[int, Choice] = {}

    def choose(self, layer: int, tokens: Tensor) -> Choice:
        """The choice for every token of this layer."""
        shape, i = self.gate.shape, self.gate.shape.layers.index(layer)
        with torch.autocast(tokens.device.type, enabled=False):
            logits = tokens.float().flatten(0, 1) @ self.gate.weight_LED[i].float().T
            noise = None
            if self.noise_LBTE is not None:
                noise = self.noise_LBTE[i].flatten(0, 1) * (shape.noise / shape.num_experts)
            choice = choose(logits, noise, shape.top_k, shape.output_scale)
        self.logits[layer], self.choices[layer] = logits, choice
        self.noisy[layer] = logits if noise is None else logits + noise
        return choice


# Losses on the gate


def squared_variation(values: Float[Tensor, "*rows experts"]) -> Float[Tensor, "*rows"]:
    """(standard deviation / mean)^2 over the last dimension: 0 when even, E - 1 when one has all."""
    return values.var(dim=-1, correction=0) / (values.mean(dim=-1) ** 2 + 1e-10)


def importance_loss(
    gates_NE: Float[Tensor, "*layers rows experts"], weight_N: Float[Tensor, " rows"] | None = None
) -> Float[Tensor, "*layers"]:
    """Balance, of each layer: squared variation, over experts, of the summed clean gates (V-MoE, importance loss).

    Range 0 to E-1.
    """
    weighted = gates_NE if weight_N is None else gates_NE * weight_N[:, None]
    return squared_variation(weighted.sum(dim=-2))


def imbalance_loss(
    gates_NE: Float[Tensor, "*layers rows experts"], weight_N: Float[Tensor, " rows"] | None = None
) -> Float[Tensor, "*layers"]:
    """Of each layer, minus the mean squared variation, over experts, of each row's own gate.

    Range -(E-1), one-hot, to 0, even.
    """
    variation = squared_variation(gates_NE)
    if weight_N is None:
        return -variation.mean(dim=-1)
    return -(variation * weight_N).sum(dim=-1) / weight_N.sum()


def expected_choices(
    logits_NE: Float[Tensor, "rows experts"], noisy_NE: Float[Tensor, "rows experts"], top_k: int, std: float
) -> Float[Tensor, "rows experts"]:
    """Probability that each expert would be chosen under a fresh draw of its own noise (V-MoE, load loss)."""
    threshold = noisy_NE.topk(top_k, dim=1).values[:, -1:]
    return 1 - torch.special.ndtr((threshold - logits_NE) / std)


def batch_sums(
    logits_NE: Float[Tensor, "rows experts"], noisy_NE: Float[Tensor, "rows experts"], shape: ExpertShape
) -> Float[Tensor, "2 experts"]:
    """Sums over rows whose squared variations are a token gate's importance and load losses (V-MoE)."""
    std = max(shape.noise / shape.num_experts, 1e-6)
    expected_NE = expected_choices(logits_NE, noisy_NE, shape.top_k, std)
    return torch.stack([logits_NE.softmax(dim=1).sum(dim=0), expected_NE.sum(dim=0)])


def require_blocks(layers: Sequence[int], depth: int) -> None:
    """UserError for --layers that are not different blocks of an encoder of this depth."""
    if not layers or len(set(layers)) != len(layers) or not all(0 <= layer < depth for layer in layers):
        raise UserError(
            f"--layers {','.join(map(str, layers))} does not fit an encoder of {depth} blocks: name different blocks "
            f"from 0 to {depth - 1}."
        )


# The model


class ExpertAutoencoder(MaskedAutoencoder):
    """A masked autoencoder some of whose encoder MLPs are experts, with the gate that chooses them."""

    def __init__(self, shape: AutoencoderShape, expert_shape: ExpertShape) -> None:
        super().__init__(shape)
        require_blocks(expert_shape.layers, len(self.encoder.blocks))
        if expert_shape.top_k > expert_shape.num_experts:
            raise UserError(
                f"--top-k {expert_shape.top_k} is more than --num-experts {expert_shape.num_experts}."
            )
        self.expert_shape = expert_shape
        width = self.encoder.embed_dim
        for layer in expert_shape.layers:
            hidden = self.encoder.blocks[layer].mlp.fc1.out_features
            self.encoder.blocks[layer].mlp = self.new_mlps(width, hidden)
        self.gate = self.new_gate(width)

    def new_mlps(self, width: int, hidden: int) -> nn.Module:
        """What takes the place of a dense MLP."""
        return ExpertMLPs(self.expert_shape.num_experts, width, hidden)

    def new_gate(self, width: int) -> nn.Module:
        """What chooses among them."""
        shape = self.expert_shape
        return ClusterGate(shape) if shape.gate == "cluster" else TokenGate(shape, width)

    @classmethod
    def from_dense(cls, dense: MaskedAutoencoder, expert_shape: ExpertShape) -> "ExpertAutoencoder":
        """Every expert a copy of the dense MLP; everything else as it is; a fresh gate."""
        model = cls(dense.shape, expert_shape)
        places = model.state_dict()
        taken = {n: t for n, t in dense.state_dict().items() if n in places}
        model.load_state_dict(taken, strict=False)
        for layer in expert_shape.layers:
            model.encoder.blocks[layer].mlp.copy_dense(dense.encoder.blocks[layer].mlp)
        return model

    def router(self, labels_B: Tensor | None = None, noise: Tensor | None = None) -> Any:
        """The router of a batch: pictures' clusters for a cluster gate, nothing for a token gate."""
        if isinstance(self.gate, ClusterGate):
            assert labels_B is not None, "a cluster gate routes by cluster labels"
            return ClusterRouter(self.gate, labels_B, noise)
        assert isinstance(self.gate, TokenGate)
        return TokenRouter(self.gate, noise)

    def gates(self) -> Float[Tensor, "layers clusters experts"]:
        """The clean gate of every cluster in every layer; a cluster's expert is the argmax. Not for token gates."""
        assert isinstance(self.gate, ClusterGate), "a token gate knows no clusters"
        return self.gate.logits().detach().softmax(dim=-1)

    def encoder_flops(self, num_seen: int) -> int:
        """As of the dense model; with top_k 2 a token passes a second MLP in every layer of experts."""
        shape, width = self.expert_shape, self.encoder.embed_dim
        again = mlp_flops(num_seen + 1, width, int(width * mlp_ratio(self.encoder)))
        return super().encoder_flops(num_seen) + len(shape.layers) * (shape.top_k - 1) * again

    def set_dispatch(self, dispatch: Dispatch) -> None:
        """Choose how rows reach their experts."""
        for layer in self.expert_shape.layers:
            self.encoder.blocks[layer].mlp.dispatch = dispatch

    def share_gradient(self, others: float) -> None:
        """Choose what the rows of the other experts count in an expert's gradient, from 0 to 1 (`ExpertMLPs`)."""
        for layer in self.expert_shape.layers:
            mlp = self.encoder.blocks[layer].mlp
            assert isinstance(mlp, ExpertMLPs), "sub-nets share a half of their MLP, not gradients"
            mlp.shared_gradient = others
