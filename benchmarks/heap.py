"""A heap of everything: the training pictures of several data sets in one parquet file, labelled by their set.

    python benchmarks/heap.py --data-root DATA --names tiny-imagenet cifar10 eurosat --out runs/heap.parquet

Labels of the sets themselves are left out: the label of a picture is the number of its set, the class names are the
sets' names. So `moce cluster` reports how far clusters follow the sets, which nothing was told of.
"""

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moce.engine.files import write_whole
from moce.errors import run_script

ROWS = 2048  # of a row group


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, required=True, help="folder of NAME/train.parquet")
    parser.add_argument("--names", nargs="+", required=True, help="the sets")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    given = parser.parse_args()
    tables = []
    for number, name in enumerate(given.names):
        images = pq.read_table(given.data_root / name / "train.parquet", columns=["image"])
        labels = pa.array([number] * len(images), pa.int64())
        tables.append(pa.table({"image": images["image"].combine_chunks(), "label": labels}))
        print(f"{name:16} {len(images):6}")
    features = {"label": {"names": given.names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    heap = pa.concat_tables(tables).replace_schema_metadata(metadata)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(given.out) as temporary:
        pq.write_table(heap, temporary, row_group_size=ROWS)
    print(f"{len(heap)} pictures in {given.out}")


if __name__ == "__main__":
    run_script(main)
