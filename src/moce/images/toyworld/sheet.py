"""The contact sheet: a row of pictures per class, to see whether a stranger can name them."""

from PIL import Image, ImageDraw, ImageFont

from moce.images.toyworld.kinds import KINDS, picture


def contact_sheet(
    size: int = 32, per_class: int = 8, kinds: list[str] | None = None, named: bool = True
) -> Image.Image:
    """Test pictures of every class, two kinds beside each other; `named` writes kind and class in front of a row."""
    kinds = list(KINDS) if kinds is None else kinds
    gap, margin, head = max(2, size // 16), 84 if named else 4, 16
    row, wide = size + gap, margin + per_class * (size + gap) + 8
    columns = min(2, len(kinds))
    tall = head + max(len(KINDS[kind]) for kind in kinds) * row + 8
    sheet = Image.new("RGB", (wide * columns, tall * -(-len(kinds) // columns)), (255, 255, 255))
    pen, face = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for k, kind in enumerate(kinds):
        left, top = wide * (k % columns), tall * (k // columns)
        pen.text((left + 4, top + 2), kind, fill=(0, 0, 0), font=face)
        for r, name in enumerate(KINDS[kind]):
            y = top + head + r * row
            if named:
                pen.text((left + 10, y + size / 2 - 7), name, fill=(60, 60, 60), font=face)
            for j in range(per_class):
                shown = Image.fromarray(picture(kind, name, "test", j, size))
                sheet.paste(shown, (left + margin + j * row, y))
    return sheet
