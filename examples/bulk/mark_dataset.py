"""Mark the photographs of a folder with Hugging Face Datasets. A run that was stopped goes on.

    pip install datasets
    python examples/bulk/mark_dataset.py photos --key alice.key --out marked

The photographs are marked in shards. Each shard becomes a folder of --out that `datasets.load_from_disk` reads. A shard
is written beside its place and renamed when it is whole, and a whole shard is not made again.
"""

import argparse
import shutil
from pathlib import Path

from datasets import Dataset, Image, concatenate_datasets, load_from_disk

from privgen import Key, Watermark
from privgen.io.files import iter_image_files


def mark_shards(files: list[str], out: Path, mark: Watermark, key: Key, shards: int, processes: int | None) -> Dataset:
    """Mark each shard that is not whole yet, and return the whole data set."""
    photos = Dataset.from_dict({"path": files, "image": files}).cast_column("image", Image(mode="RGB"))
    for number in range(shards):
        folder = out / f"shard-{number:05d}-of-{shards:05d}"
        if folder.exists():
            continue
        shard = photos.shard(num_shards=shards, index=number, contiguous=True)
        marked = shard.map(lambda row: {"image": mark.embed(row["image"], key)}, num_proc=processes)
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        marked.save_to_disk(unfinished)
        unfinished.rename(folder)
    return concatenate_datasets([load_from_disk(folder) for folder in sorted(out.glob("shard-*[0-9]"))])


def main() -> None:
    parser = argparse.ArgumentParser(description="Mark the photographs of a folder with Hugging Face Datasets.")
    parser.add_argument("folder", help="folder of photographs")
    parser.add_argument("--key", required=True, help="a key file")
    parser.add_argument("--out", required=True, type=Path, help="folder for the shards")
    parser.add_argument("--shards", type=int, default=10, help="how many; the same number in each run")
    parser.add_argument("--processes", type=int, help="processes that mark; default: this one")
    given = parser.parse_args()
    files = [str(path) for path in iter_image_files([given.folder], recursive=True)]
    mark, key = Watermark.from_pretrained("mini"), Key.load(given.key)
    print(mark_shards(files, given.out, mark, key, min(given.shards, len(files)), given.processes))


if __name__ == "__main__":
    main()
