"""Built-in pictures: kinds that have nothing to do with each other, drawn by the program; no download, no files.

world.py is the source; kinds.py the list of kinds and one picture; canvas.py the sheet and the brushes; every other
file draws one group of kinds. The toy world shows that everything runs and is never quoted as evidence.
"""

from moce.images.toyworld.kinds import KINDS, MADE, NATURAL, VERSION, picture
from moce.images.toyworld.sheet import contact_sheet
from moce.images.toyworld.world import ToyWorld

__all__ = ["KINDS", "MADE", "NATURAL", "VERSION", "ToyWorld", "contact_sheet", "picture"]
