"""Arrays, multi-band TIFFs and alpha: which axis the channels are, which numbers are pixels, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image

from moce.errors import UserError
from moce.images.arrays import picture_of
from moce.images.decode import UnreadableImage, decode
from moce.images.reading import survey
from moce.images.sources import open_images

BANDS = (np.arange(5 * 3 * 4).reshape(5, 3, 4) * 1000).astype(np.uint16)  # channels, rows, columns
BYTES = ((BANDS.astype(int) + 128) // 257).astype(np.uint8)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def png(mode: str, colour: object = 0) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (5, 4), colour).save(file, "PNG")
    return file.getvalue()


# The rule ----------------------------------------------------------------------------------------------------------


def test_channels_are_the_axis_as_long_as_the_model_has_them() -> None:
    for array in (BYTES, BYTES.transpose(1, 2, 0)):
        assert np.array_equal(picture_of(array, 5).numpy(), BYTES)
    assert np.array_equal(picture_of(BYTES[0], 1).numpy(), BYTES[:1])
    assert picture_of(BYTES[:1], 1).shape == picture_of(BYTES[0][..., None], 1).shape == (1, 3, 4)
    assert picture_of(BYTES, 5).is_contiguous()


@pytest.mark.parametrize(
    ("shape", "channels", "words"),
    [
        ((4, 9, 4), 4, "4 x 9 x 4: its first and its last axis could both be"),
        ((5, 13, 7), 13, "5 x 13 x 7: neither its first nor its last axis has the 13 channels.*--channels"),
        ((6, 6), 3, "1 channel and the model takes 3"),
        ((6,), 1, "needs 2 or 3 axes"),
        ((1, 2, 3, 4), 1, "needs 2 or 3 axes"),
        ((0, 4, 4), 4, "no picture"),
        ((), 1, "one number is no picture"),
    ],
)
def test_arrays_that_are_no_picture(shape: tuple[int, ...], channels: int, words: str) -> None:
    with pytest.raises(UnreadableImage, match=words):
        picture_of(np.zeros(shape, np.uint8), channels)


def test_sixteen_bits_are_scaled_in_either_byte_order_and_other_numbers_refused() -> None:
    deep = np.array([[0, 25700, 25828, 25829, 65535]], np.uint16)
    for order in ("<u2", ">u2"):
        assert decode(npy(deep.astype(order)), 1).tolist() == [[[0, 100, 100, 101, 255]]]
    for kind in (np.float32, np.int64, np.int16, np.uint32, bool):
        with pytest.raises(UnreadableImage, match=f"{np.dtype(kind)} values.*store uint8 or uint16"):
            decode(npy(deep.astype(kind)), 1)


def test_damaged_and_dangerous_npy() -> None:
    whole = npy(BANDS)
    for data in (whole[: len(whole) // 2], whole[:20], npy(np.array([{}], object))):
        with pytest.raises(UnreadableImage):
            decode(data, 5)
    claims = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        claims, {"descr": "|u1", "fortran_order": False, "shape": (5, 2**20, 2**20)}
    )
    with pytest.raises(UnreadableImage):
        decode(claims.getvalue(), 5)


# TIFF --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("depth", ["uint8", "uint16"])
def test_bands_of_a_tiff_pixel_by_pixel_band_by_band_and_page_by_page(compression: str, depth: str) -> None:
    bands = BYTES if depth == "uint8" else BANDS
    last = bands.transpose(1, 2, 0)
    options = {"compression": compression, "photometric": "minisblack"}
    for data in (
        tiff(last, planarconfig="contig", predictor=bool(compression), **options),
        tiff(bands, planarconfig="separate", **options),
        tiff(bands, **options),  # five pages
        tiff(last, **options),  # three pages, and a note of the array's shape
        tiff(bands, planarconfig="separate", byteorder=">", **options),
        tiff(bands, planarconfig="separate", bigtiff=True, **options),
    ):
        assert np.array_equal(decode(data, 5).numpy(), BYTES)


@pytest.mark.parametrize(
    "options", [{}, {"ome": True, "metadata": {"axes": "CYX"}}, {"imagej": True, "metadata": {"axes": "CYX"}}]
)
def test_three_grey_pages_are_bands_where_the_file_says_so(options: dict) -> None:
    data = tiff(BYTES[:3], photometric="minisblack", **options)
    assert np.array_equal(decode(data, 3).numpy(), BYTES[:3])
    assert np.array_equal(decode(data, 1).numpy(), BYTES[:1])


def test_three_grey_pages_without_a_note_are_a_document_whose_first_is_taken() -> None:
    file = io.BytesIO()
    pages = [Image.fromarray(page) for page in BYTES[:3]]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    for data in (file.getvalue(), tiff(BYTES[:3], photometric="minisblack", metadata=None)):
        assert np.array_equal(decode(data, 3).numpy(), BYTES[:1].repeat(3, 0))


def test_planes_say_what_shape_alone_does_not() -> None:
    square = np.random.default_rng(0).integers(0, 256, (5, 5, 5), dtype=np.uint8)
    separate = tiff(square, planarconfig="separate", photometric="minisblack")
    contig = tiff(square, planarconfig="contig", photometric="minisblack")
    assert np.array_equal(decode(separate, 5).numpy(), square)
    assert np.array_equal(decode(contig, 5).numpy(), square.transpose(2, 0, 1))


def test_tiffs_that_do_not_fit() -> None:
    bands = {"planarconfig": "separate", "photometric": "minisblack"}
    for channels in (1, 3, 4, 13):
        with pytest.raises(UnreadableImage, match=f"it has 5 channels and the model takes {channels} "):
            decode(tiff(BANDS, **bands), channels)
    with pytest.raises(UnreadableImage, match="float32 values"):
        decode(tiff(BANDS.astype(np.float32), **bands), 5)
    whole = tiff(BANDS, **bands)
    for data in (whole[: len(whole) // 2], b"II*\0 and then nothing that is a picture"):
        with pytest.raises(UnreadableImage):
            decode(data, 5)


def test_a_compression_that_needs_another_package() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (5, 4), (1, 2, 3, 4)).save(file, "TIFF", compression="tiff_lzw")
    with pytest.raises(
        UnreadableImage, match="LZW compression needs the package imagecodecs; save it uncomp"
    ):
        decode(file.getvalue(), 4)
    assert decode(file.getvalue(), 3).shape == (3, 4, 5), "Pillow reads colour by itself"


def test_a_tiff_too_large_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiff(BANDS, planarconfig="separate", photometric="minisblack")
    monkeypatch.setattr("moce.images.tiff.MAX_PIXELS", 11)
    with pytest.raises(UnreadableImage, match="4 x 3 pixels are more than 11"):
        decode(data, 5)


# Alpha -------------------------------------------------------------------------------------------------------------


def test_alpha_is_the_fourth_channel_where_four_are_asked_for() -> None:
    assert decode(png("RGBA", (1, 2, 3, 4)), 4)[:, 0, 0].tolist() == [1, 2, 3, 4]
    assert decode(png("LA", (7, 9)), 4)[:, 0, 0].tolist() == [7, 7, 7, 9]
    assert decode(png("LA", (7, 9)), 2)[:, 0, 0].tolist() == [7, 9]
    assert decode(png("RGBA", (0, 0, 0, 0)), 3)[:, 0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("mode", "found", "channels"),
    [("RGB", "3 channels", 4), ("RGB", "3 channels", 13), ("P", "3 channels", 4), ("L", "1 channel", 4),
     ("RGBA", "4 channels", 13), ("LA", "2 channels", 5), ("I;16", "1 channel", 2), ("1", "1 channel", 4)],
)  # fmt: skip
def test_a_picture_with_another_number_of_channels(mode: str, found: str, channels: int) -> None:
    with pytest.raises(UnreadableImage, match=f"it has {found} and the model takes {channels} "):
        decode(png(mode), channels)


# Folders and parquet -----------------------------------------------------------------------------------------------


def test_npy_files_are_the_pictures_of_a_folder_without_others(tmp_path: Path) -> None:
    for name in ("a/1.npy", "b/2.npy"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(npy(BANDS))
    source = open_images(str(tmp_path), 5)
    assert [source.name(i) for i in range(2)] == ["a/1.npy", "b/2.npy"] and source.classes == ["a", "b"]
    assert np.array_equal(source.get(1)[0].numpy(), BYTES) and survey(source).size == (3, 4)
    (tmp_path / "a" / "0.png").write_bytes(png("RGB"))
    assert len(open_images(str(tmp_path))) == 1, "an array beside pictures may be anything"
    with pytest.raises(UserError, match="'.*2.npy' is one picture"):
        open_images(str(tmp_path / "b" / "2.npy"), 5)


def written(path: Path, column: pa.Array, name: str = "image") -> str:
    pq.write_table(pa.table({name: column, "label": [0] * len(column)}), path, row_group_size=2)
    return str(path)


def test_nested_lists_of_every_kind(tmp_path: Path) -> None:
    arrays = [BANDS, BANDS[::-1], BANDS + 1]
    wanted = [picture_of(array, 5) for array in arrays]
    variable = pa.list_(pa.list_(pa.large_list(pa.uint16())))
    fixed = pa.list_(pa.list_(pa.list_(pa.uint16(), 4), 3), 5)
    for number, kind in enumerate([variable, fixed]):
        path = written(tmp_path / f"{number}.parquet", pa.array([a.tolist() for a in arrays], kind))
        source = open_images(path, 5)
        assert all(torch.equal(source.get(i)[0], wanted[i]) for i in range(3)), kind
    grey = pa.array([a[0].tolist() for a in arrays], pa.list_(pa.list_(pa.uint16())))
    path = written(tmp_path / "grey.parquet", grey, "picture")
    assert torch.equal(open_images(path, 1).get(2)[0], wanted[2][:1])
    encoded = pa.array([npy(a) for a in arrays], pa.binary())
    assert torch.equal(open_images(written(tmp_path / "npy.parquet", encoded), 5).get(1)[0], wanted[1])


def test_pictures_of_various_sizes_and_rows_that_are_no_array(tmp_path: Path) -> None:
    rows = [BYTES.tolist(), BYTES[:, :2].tolist(), None, [[[1, 2], [3]]], [[[1, None]]], [[[]]]]
    kind = pa.list_(pa.list_(pa.list_(pa.uint8())))
    source = open_images(written(tmp_path / "a.parquet", pa.array(rows, kind)), 5)
    assert source.get(0)[0].shape == (5, 3, 4) and source.get(1)[0].shape == (5, 2, 4)
    for index, words in {2: "no bytes", 3: "various lengths", 4: "gaps", 5: "no picture"}.items():
        with pytest.raises(UnreadableImage, match=words):
            source.get(index)


def test_a_file_of_the_datasets_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Array3D(shape=(5, 3, 4), dtype="uint16"),
            "label": datasets.ClassLabel(names=["a", "b"]),
        }
    )
    content = {"image": [BANDS, BANDS[::-1]], "label": [1, 0]}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(content, features=features).to_parquet(str(tmp_path / "hub.parquet"))
    source = open_images(str(tmp_path / "hub.parquet"), 5)
    assert source.classes == ["a", "b"] and np.array_equal(source.get(0)[0].numpy(), BYTES)
    assert source.get(1)[1] == 0 and np.array_equal(source.get(1)[0].numpy(), BYTES[::-1])


def test_pictures_go_before_arrays_that_lie_beside_them(tmp_path: Path) -> None:
    mask = pa.array([np.zeros((4, 5), np.uint8).tolist()], pa.list_(pa.list_(pa.uint8())))
    pq.write_table(pa.table({"mask": mask, "photo": [png("RGB")]}), tmp_path / "a.parquet")
    assert open_images(str(tmp_path / "a.parquet")).column == "photo"


def test_arrays_of_numbers_without_a_known_range_are_refused_at_once(tmp_path: Path) -> None:
    column = pa.array([BYTES.tolist()], pa.list_(pa.list_(pa.list_(pa.float32()))))
    with pytest.raises(
        UserError, match="arrays of float in 'image', whose range nobody knows: store pictures as"
    ):
        open_images(written(tmp_path / "a.parquet", column), 5)


# The toy world -----------------------------------------------------------------------------------------------------


def test_the_toy_world_in_grey() -> None:
    colour, grey = (open_images("toyworld://fruit?num=6&size=16", channels) for channels in (3, 1))
    wanted = Image.fromarray(colour.get(4)[0].permute(1, 2, 0).numpy()).convert("L")
    assert np.array_equal(grey.get(4)[0].numpy()[0], np.array(wanted))
    assert torch.equal(grey.array()[4], grey.get(4)[0])
    with pytest.raises(UserError, match=r"of 3 channels or 1, not of 4 \(--channels\)"):
        open_images("toyworld://fruit", 4)
