"""Expert MLPs with stacked weights, and the dispatchers that bring rows to their experts and back.

A gate (`model/experts.py`) has said which expert each row goes to, and with what scale; here it is computed. Nothing is
dropped, there is no capacity.

Shape letters: B images, T tokens, D width, F hidden width, E experts, N rows (a row is what is dispatched: a picture or
a token), C choices per row (top-k), R rows of single tokens, P their places when sorted by expert.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

Dispatch = Literal["sorted", "loop", "grouped"]


class Choice(NamedTuple):
    """Which experts each row goes to, and what their outputs are multiplied by."""

    expert_NC: Int64[Tensor, "rows choices"]
    scale_NC: Float[Tensor, "rows choices"]


class SharedGradient(torch.autograd.Function):
    """Stacked weights as they are; to the gradient of each expert's the others' are added, times `others`."""

    @staticmethod
    def forward(ctx: Any, weight: Float[Tensor, "experts ..."], others: float) -> Tensor:
        """The same weights."""
        ctx.others = others
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """(1 - others) * own + others * sum of all."""
        (grad,) = grads
        return torch.lerp(grad, grad.sum(dim=0, keepdim=True), ctx.others), None


class ExpertWeights(NamedTuple):
    """What the experts compute with."""

    w1_EDF: Tensor
    b1_EF: Tensor
    w2_EFD: Tensor
    b2_ED: Tensor


class ExpertMLPs(nn.Module):
    """E parallel MLPs with stacked weights, each D -> F -> D with GELU, as timm's Mlp.

    `shared_gradient`: what the rows of the other experts count in an expert's gradient, its own counting 1. With 0 it
    learns from its own alone; with 1 all get the same gradient, so that copies stay copies.
    """

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.num_experts, self.hidden = num_experts, hidden
        self.dispatch: Dispatch = "sorted"
        self.shared_gradient = 0.0
        self.w1_EDF = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.b1_EF = nn.Parameter(torch.empty(num_experts, hidden))
        self.w2_EFD = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.b2_ED = nn.Parameter(torch.empty(num_experts, width))

    @torch.no_grad()
    def copy_dense(self, mlp: Mlp) -> None:
        """Make every expert a copy of a dense MLP (sparse upcycling)."""
        self.w1_EDF.copy_(mlp.fc1.weight.T.expand_as(self.w1_EDF))
        self.b1_EF.copy_(mlp.fc1.bias.expand_as(self.b1_EF))
        self.w2_EFD.copy_(mlp.fc2.weight.T.expand_as(self.w2_EFD))
        self.b2_ED.copy_(mlp.fc2.bias.expand_as(self.b2_ED))

    def weights(self) -> ExpertWeights:
        """The weights for a pass, through which gradients are shared; ask once for a pass."""
        own = ExpertWeights(self.w1_EDF, self.b1_EF, self.w2_EFD, self.b2_ED)
        if not self.shared_gradient:
            return own
        return ExpertWeights(*(SharedGradient.apply(weight, self.shared_gradient) for weight in own))

    def expert(self, index: int, scale: float = 1.0) -> dict[str, Tensor]:
        """One expert as the state of a timm Mlp, its output multiplied by `scale`."""
        return {
            "fc1.weight": self.w1_EDF[index].T.contiguous(),
            "fc1.bias": self.b1_EF[index],
            "fc2.weight": self.w2_EFD[index].T.contiguous() * scale,
            "fc2.bias": self.b2_ED[index] * scale,
        }

    def forward(self, x_BTD: Float[Tensor, "images tokens width"], choice: Choice) -> Tensor:
        """Each row through its experts. Rows are pictures when there are B choices, tokens when there are B*T."""
        images, tokens, width = x_BTD.shape
        rows_NTD = x_BTD if len(choice.expert_NC) == images else x_BTD.reshape(images * tokens, 1, width)
        dispatch, weights = DISPATCHERS[self.dispatch], self.weights()
        total = None
        for c in range(choice.expert_NC.shape[1]):
            out = dispatch(weights, rows_NTD, choice.expert_NC[:, c]) * choice.scale_NC[:, c, None, None]
            total = out if total is None else total + out
        assert total is not None
        return total.reshape(images, tokens, width)


def dispatch_loop(
    weights: ExpertWeights, rows_NTD: Float[Tensor, "rows tokens width"], expert_N: Int64[Tensor, " rows"]
) -> Float[Tensor, "rows tokens width"]:
    """The reference: every expert on every row, keeping the row's own."""
    out = torch.zeros_like(rows_NTD)
    for e, (w1, b1, w2, b2) in enumerate(zip(*weights, strict=True)):
        hidden = F.gelu(rows_NTD @ w1 + b1)
        own = (expert_N == e)[:, None, None]
        out = out + torch.where(own, hidden @ w2 + b2, 0.0)
    return out


ROWS = 32
"""Each expert gets a multiple of so many rows: libraries of products compile a kernel for every number of rows they
meet, which takes longer than the product, and with it there are few."""


class Layout(NamedTuple):
    """Rows sorted by expert, each expert's share filled up to a multiple of `ROWS`."""

    place_R: Int64[Tensor, " rows"]  # where each row goes
    share_E: Int64[Tensor, " experts"]  # places of each expert

    def taken(self, num_places: int) -> Int64[Tensor, " places"]:
        """The row at each place; where a share is filled up, and behind the last one, any row."""
        rows = torch.arange(len(self.place_R), device=self.place_R.device)
        return rows.new_zeros(num_places).scatter_(0, self.place_R, rows)


def layout_of(expert_R: Int64[Tensor, " rows"], num_experts: int) -> Layout:
    """The places of rows that go to these experts; of one expert in their own order. Nothing is read from a GPU."""
    counts = expert_R.new_zeros(num_experts).scatter_add_(0, expert_R, torch.ones_like(expert_R))
    filled = (counts + ROWS - 1) // ROWS * ROWS
    shift = (filled.cumsum(0) - filled) - (counts.cumsum(0) - counts)
    order = expert_R.argsort(stable=True)
    rows = torch.arange(len(order), device=order.device)
    place_R = torch.empty_like(order).scatter_(0, order, rows + shift[expert_R[order]])
    return Layout(place_R, filled)


class Brought(torch.autograd.Function):
    """Rows at the places of a layout. Its gradient takes rows where indexing would add them one by one."""

    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, taken_P: Tensor, place_R: Tensor) -> Tensor:
        """[rows, width] to [places, width]."""
        ctx.save_for_backward(place_R)
        return rows_RD.index_select(0, taken_P)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradient of the rows; what came from filling up is zero and is left out."""
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


class Returned(torch.autograd.Function):
    """Back from their places to the order of the rows."""

    @staticmethod
    def forward(ctx: Any, placed_PD: Tensor, place_R: Tensor) -> Tensor:
        """[places, width] to [rows, width]."""
        ctx.save_for_backward(place_R)
        ctx.num_places = len(placed_PD)
        return placed_PD.index_select(0, place_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradient of the places: nothing where a share was filled up."""
        (grad,) = grads
        return grad.new_zeros(ctx.num_places, grad.shape[1]).index_copy_(0, ctx.saved_tensors[0], grad), None


def dispatch_sorted(
    weights: ExpertWeights, rows_NTD: Float[Tensor, "rows tokens width"], expert_N: Int64[Tensor, " rows"]
) -> Tensor:
    """Rows sorted by expert, one pair of products per expert on its contiguous share, and back in place.

    An expert without rows gets a zero gradient (the stack's backward fills it in), never None. How many rows each gets
    is asked of the device, which a GPU answers when it has done all before.
    """
    tokens, width = rows_NTD.shape[1:]
    layout = layout_of(expert_N.repeat_interleave(tokens), len(weights.w1_EDF))
    shares = layout.share_E.tolist()
    placed = Brought.apply(rows_NTD.reshape(-1, width), layout.taken(sum(shares)), layout.place_R)
    each = zip(*(weight.unbind() for weight in weights), strict=True)
    outs = [
        torch.addmm(b2, F.gelu(torch.addmm(b1, share, w1)), w2)
        for share, (w1, b1, w2, b2) in zip(placed.split(shares), each, strict=True)
        if len(share)
    ]
    return Returned.apply(torch.cat(outs), layout.place_R).reshape(rows_NTD.shape)


def dispatch_grouped(
    weights: ExpertWeights, rows_NTD: Float[Tensor, "rows tokens width"], expert_N: Int64[Tensor, " rows"]
) -> Tensor:
    """Rows sorted as in `dispatch_sorted`, and one pair of grouped products, which reads the shares on the device.

    There are as many places as the shares could need; the last expert gets those that are left over, and nobody looks
    at what comes of them.
    """
    tokens, width = rows_NTD.shape[1:]
    expert_R, num_experts = expert_N.repeat_interleave(tokens), len(weights.w1_EDF)
    layout = layout_of(expert_R, num_experts)
    num_places = (len(expert_R) // ROWS + 1 + num_experts) * ROWS
    end_E = layout.share_E.cumsum(0).to(torch.int32)
    end_E[-1:].fill_(num_places)
    place_P = torch.arange(num_places, device=end_E.device, dtype=torch.int32)
    numbers_E = torch.arange(num_experts, device=end_E.device)
    dtype = rows_NTD.dtype
    if torch.is_autocast_enabled(rows_NTD.device.type):  # knows nothing of grouped products
        dtype = torch.get_autocast_dtype(rows_NTD.device.type)
    own_PE = (torch.searchsorted(end_E, place_P, right=True)[:, None] == numbers_E).to(dtype)

    def linear(x_PI: Tensor, weight_EIO: Tensor, bias_EO: Tensor) -> Tensor:
        # A bias is the product with rows of one 1 each: its gradient is a product too, where indexing would add up.
        return F.grouped_mm(x_PI, weight_EIO.to(dtype), offs=end_E) + own_PE @ bias_EO.to(dtype)

    placed = Brought.apply(rows_NTD.reshape(-1, width).to(dtype), layout.taken(num_places), layout.place_R)
    hidden = F.gelu(linear(placed, weights.w1_EDF, weights.b1_EF))
    out = linear(hidden, weights.w2_EFD, weights.b2_ED)
    return Returned.apply(out, layout.place_R).reshape(rows_NTD.shape)


DISPATCHERS = {"sorted": dispatch_sorted, "loop": dispatch_loop, "grouped": dispatch_grouped}
