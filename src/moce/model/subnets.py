"""Sub-nets that share half of an MLP: the control SDR (Liu et al., AAAI 2022, arXiv 2205.13267), adapted.

SDR trains one net whose channels are partly shared by all sub-nets and partly a sub-net's own, each sub-net on its own
group of clusters. Here that happens where MoCE has its experts, so that the two differ in nothing else: of an MLP with
F hidden units, half are shared and half exist G times,

    sub-net g   y = W2 gelu(W1 x) + W2_g gelu(W1_g x) + b + b_g          hidden width F/2 + F/2, as the dense MLP
    whole net   the same with the means of W1_g, b1_g, W2_g, b_g over g

Both halves start as those of the dense MLP, so at step 0 every sub-net and the whole net are the dense model.

What differs from the textbook: the whole net computes with the mean of the own halves instead of all of them side by
side. As long as they are copies the two agree, with every unit's output divided by G, which keeps the scale; and copies
they remain while the whole net is trained, since each gets the same gradient. So its phase costs what the dense model
costs, and what breaks the symmetry are the groups.

Shape letters as in experts.py; the sub-nets (G) are its experts (E).
"""

import torch
from jaxtyping import Float, Int64
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from moce.model.dispatch import Choice, Dispatch, ExpertMLPs
from moce.model.experts import ExpertAutoencoder


class SubnetMLPs(nn.Module):
    """A shared half of an MLP, and the other half as often as there are sub-nets."""

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden  # of one sub-net
        self.shared = Mlp(width, hidden // 2, width)
        self.own = ExpertMLPs(num_experts, width, hidden - hidden // 2)

    @property
    def dispatch(self) -> Dispatch:
        """How pictures reach the own halves."""
        return self.own.dispatch

    @dispatch.setter
    def dispatch(self, dispatch: Dispatch) -> None:
        self.own.dispatch = dispatch

    @torch.no_grad()
    def copy_dense(self, mlp: Mlp) -> None:
        """The first half of a dense MLP's hidden units becomes the shared one, the rest every own one."""
        middle = self.hidden // 2
        self.shared.fc1.weight.copy_(mlp.fc1.weight[:middle])
        self.shared.fc1.bias.copy_(mlp.fc1.bias[:middle])
        self.shared.fc2.weight.copy_(mlp.fc2.weight[:, :middle])
        self.shared.fc2.bias.copy_(mlp.fc2.bias)
        self.own.w1_EDF.copy_(mlp.fc1.weight[middle:].T.expand_as(self.own.w1_EDF))
        self.own.b1_EF.copy_(mlp.fc1.bias[middle:].expand_as(self.own.b1_EF))
        self.own.w2_EFD.copy_(mlp.fc2.weight[:, middle:].T.expand_as(self.own.w2_EFD))
        self.own.b2_ED.zero_()

    def expert(self, index: int, scale: float = 1.0) -> dict[str, Tensor]:
        """One sub-net as the state of a timm Mlp of the dense size, its output multiplied by `scale`."""
        own, shared = self.own.expert(index), self.shared.state_dict()
        return {
            "fc1.weight": torch.cat([shared["fc1.weight"], own["fc1.weight"]]),
            "fc1.bias": torch.cat([shared["fc1.bias"], own["fc1.bias"]]),
            "fc2.weight": torch.cat([shared["fc2.weight"], own["fc2.weight"]], dim=1) * scale,
            "fc2.bias": (shared["fc2.bias"] + own["fc2.bias"]) * scale,
        }

    def forward(self, x_BTD: Float[Tensor, "images tokens width"], choice: Choice | None) -> Tensor:
        """Each picture through its sub-net; without a choice all through the whole net."""
        if choice is not None:
            return self.shared(x_BTD) + self.own(x_BTD, choice)
        own = self.own
        hidden = F.gelu(F.linear(x_BTD, own.w1_EDF.mean(dim=0).T, own.b1_EF.mean(dim=0)))
        return self.shared(x_BTD) + F.linear(hidden, own.w2_EFD.mean(dim=0).T, own.b2_ED.mean(dim=0))


class Groups(nn.Module):
    """Which sub-net the pictures of each cluster go to; in the place of a gate, with nothing to learn."""

    def __init__(self, num_clusters: int) -> None:
        super().__init__()
        self.group_K: Tensor
        self.register_buffer("group_K", torch.zeros(num_clusters, dtype=torch.int64))


class GroupRouter:
    """The sub-nets of a batch, the same in every layer; with no labels the whole net."""

    def __init__(
        self, groups: Groups, layers: tuple[int, ...], labels_B: Int64[Tensor, " images"] | None
    ) -> None:
        self.choices: dict[int, Choice] = {}
        if labels_B is not None:
            group_B = groups.group_K[labels_B]
            one_each = Choice(group_B[:, None], torch.ones(len(group_B), 1, device=group_B.device))
            self.choices = dict.fromkeys(layers, one_each)

    def choose(self, layer: int, tokens: Tensor) -> Choice | None:
        """The choice of a layer; the tokens are not looked at."""
        return self.choices.get(layer)


class SubnetAutoencoder(ExpertAutoencoder):
    """A masked autoencoder some of whose encoder MLPs are shared in half by sub-nets."""

    gate: Groups

    def new_mlps(self, width: int, hidden: int) -> nn.Module:
        """See `ExpertAutoencoder`."""
        return SubnetMLPs(self.expert_shape.num_experts, width, hidden)

    def new_gate(self, width: int) -> nn.Module:
        """See `ExpertAutoencoder`."""
        return Groups(self.expert_shape.num_clusters)

    def router(self, labels_B: Tensor | None = None, noise: Tensor | None = None) -> GroupRouter:
        """The router of a batch of pictures of these clusters; without them that of the whole net."""
        return GroupRouter(self.gate, self.expert_shape.layers, labels_B)

    def gates(self) -> Float[Tensor, "layers clusters experts"]:
        """Which sub-net each cluster goes to, as gates that are sure."""
        one_hot_KE = F.one_hot(self.gate.group_K, self.expert_shape.num_experts).float()
        return one_hot_KE.expand(len(self.expert_shape.layers), -1, -1)
