"""What kind of thing a class of ImageNet is, from its WordNet id alone: n02084071 is the noun at byte 2,084,071.

WordNet 3.0 keeps its nouns in one file, ordered by the kind of thing that they name (lexicographer files: animals, then
artifacts, ...), so a range of offsets is a kind. The limits below lie in the gaps between the last class of one kind
and the first of the next among the 21,841 of ImageNet-22k. Of ImageNet-1k 416 classes are living things, 518 artifacts
and 66 neither (food, landforms, signs, ...); by descent, not by file, it would be 410, 522 and 68.
"""

import re

WNID = re.compile(r"n(\d{8})")
# Kind, first offset, first offset behind it.
RANGES = (
    ("animal", 1_200_000, 2_665_985),  # pest, ..., hogchoker
    ("artifact", 2_665_985, 4_616_000),  # aba, ..., zoot suit
    ("person", 9_483_000, 11_400_000),  # Circe, ..., zoo keeper, and people by name
    ("plant", 11_527_000, 13_245_000),  # microflora, ..., tree of knowledge; also fungi
)
LIVING = ("animal", "person", "plant")


def is_wnid(name: str) -> bool:
    """Whether a class is called by a WordNet id of a noun."""
    return WNID.fullmatch(name) is not None


def kind_of_thing(wnid: str) -> str | None:
    """animal, artifact, person or plant; None for anything else. `wnid` is a letter n and 8 digits."""
    found = WNID.fullmatch(wnid)
    assert found is not None, wnid
    offset = int(found[1])
    return next((kind for kind, first, behind in RANGES if first <= offset < behind), None)
