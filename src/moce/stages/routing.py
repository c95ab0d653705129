"""How well experts keep apart what differs and together what is alike: NMI and purity of routing, pictures per expert.

Everything counts patches, each with the class of its picture, so that gates which read the token and gates which read
the cluster are measured alike.

    nmi        mutual information of expert and class over the mean of their entropies
    purity     share of patches that are of the most frequent class of their expert; at most experts / classes
    together   share of patches that go to the most frequent expert of their class: 1 where a class has one expert
    main       share of a picture's patches that go to the picture's most frequent expert: 1 where a picture has one

`chance` holds the first three after the classes were dealt out to the pictures anew: few pictures of many classes agree
with anything by accident.
"""

from typing import Any

import numpy as np
from jaxtyping import Int64

from moce.stages.agreement import normalised_mutual_information, purity

NUM_SHUFFLES = 10

Patches = Int64[np.ndarray, "images patches"]


def routing_of(
    experts: Patches, num_experts: int, classes: Int64[np.ndarray, "images"] | None, seed: int
) -> dict[str, Any]:
    """Of a layer: {pictures [experts], main, classes {nmi, purity, together, chance {the same}} or None}."""
    counts = np.stack([np.bincount(row, minlength=num_experts) for row in experts])
    found: dict[str, Any] = {
        "pictures": np.bincount(counts.argmax(axis=1), minlength=num_experts).tolist(),
        "main": float((counts.max(axis=1) / counts.sum(axis=1)).mean()),
        "classes": None,
    }
    if classes is not None:
        draw = np.random.default_rng(seed)
        anew = [separation(experts, draw.permutation(classes)) for _ in range(NUM_SHUFFLES)]
        chance = {name: float(np.mean([one[name] for one in anew])) for name in anew[0]}
        found["classes"] = {**separation(experts, classes), "chance": chance}
    return found


def separation(experts: Patches, classes: Int64[np.ndarray, "images"]) -> dict[str, float]:
    """{nmi, purity, together} of the experts of patches and the classes of their pictures."""
    flat = experts.ravel()
    spread = np.repeat(classes, experts.shape[1])
    return {
        "nmi": normalised_mutual_information(flat, spread),
        "purity": purity(flat, spread),
        "together": purity(spread, flat),
    }
