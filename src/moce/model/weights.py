"""Reading and writing models: safetensors alone, whose header says how to rebuild the model.

The header's `moce` entry is JSON: {schema, kind, shape, experts, about}. Loading is strict: every load counts what was
loaded, missing and unexpected, and anything but a full match is refused unless it is asked for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moce.engine.files import sha256_of, write_whole
from moce.errors import UserError
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder, shape_json
from moce.model.experts import ExpertAutoencoder, ExpertShape
from moce.model.subnets import SubnetAutoencoder

SCHEMA = 1
HEADER = "moce"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON header as safetensors, whole or not at all."""
    content = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    with write_whole(path) as temporary:
        # One entry: safetensors writes several in an order that differs from process to process.
        save_file(content, temporary, metadata={HEADER: json.dumps(dict(header))})


def require_readable(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, whoever wrote it; UserError when it is missing, cut off or none."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); make it again.") from None


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON header of a file of ours; UserError when the file is missing, broken or not ours."""
    metadata = require_readable(Path(path))
    if HEADER not in metadata:
        raise UserError(f"{path} was not written by moce: its header has no '{HEADER}' entry.")
    return json.loads(metadata[HEADER])


def read_tensors(path: str | Path, device: str | torch.device = "cpu", prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a file whose names start with `prefix`, which is taken off."""
    read_header(path)
    with safe_open(path, "pt", device=str(device)) as file:
        return {n.removeprefix(prefix): file.get_tensor(n) for n in file.keys() if n.startswith(prefix)}  # noqa: SIM118


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> str:
    """Load all of `tensors` into `module`; returns 'loaded N, missing 0, unexpected 0'.

    Raises UserError unless every tensor of the module is there, in its shape, and nothing else.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    shapes = [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
    counts = f"loaded {len(own) - len(missing) - len(shapes)}, missing {len(missing)}, unexpected {len(unexpected)}"
    if missing or unexpected or shapes:
        first = (missing + unexpected + shapes)[0]
        raise UserError(
            f"{where} does not fit the model: {counts}, other shape {len(shapes)} (first: {first})."
        )
    module.load_state_dict(dict(tensors))
    return counts


def model_header(model: MaskedAutoencoder, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `build_model` needs, and `about`."""
    experts = isinstance(model, ExpertAutoencoder)
    return {
        "schema": SCHEMA,
        "kind": "experts" if experts else "autoencoder",
        "shape": shape_json(model.shape),
        "experts": model.expert_shape.to_json() if isinstance(model, ExpertAutoencoder) else None,
        "about": dict(about or {}),
    }


def build_model(header: Mapping[str, Any]) -> MaskedAutoencoder:
    """An untrained model of the header's shape."""
    shape = AutoencoderShape.from_json(header["shape"])
    if header.get("experts"):
        experts = ExpertShape.from_json(header["experts"])
        return (SubnetAutoencoder if experts.gate == "sdr" else ExpertAutoencoder)(shape, experts)
    return MaskedAutoencoder(shape)


def save_model(path: str | Path, model: MaskedAutoencoder, about: Mapping[str, Any] | None = None) -> None:
    """Write a model; its header alone rebuilds it."""
    write_tensors(path, model.state_dict(), model_header(model, about))


def load_model(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[MaskedAutoencoder, dict[str, Any]]:
    """(the model in evaluation mode, its header) from a model file or the run folder that holds one."""
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    header = read_header(path)
    if header.get("kind") not in ("autoencoder", "experts"):
        raise UserError(f"{path} holds '{header.get('kind')}', not a model.")
    model = build_model(header)
    load_strictly(model, read_tensors(path), str(path))
    return model.to(device).eval(), header


def fingerprint(module: nn.Module) -> str:
    """16 hex digits of a module's names, shapes and values."""
    parts: list[bytes | str] = []
    for name, tensor in sorted(module.state_dict().items()):
        parts += [
            f"{name}{tuple(tensor.shape)}",
            tensor.detach().cpu().contiguous().view(-1).numpy().tobytes(),
        ]
    return sha256_of(*parts)
