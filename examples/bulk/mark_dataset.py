"""Mark the photographs of a folder with Hugging Face Datasets. A run that was stopped goes on.

    pip install datasets
    python examples/bulk/mark_dataset.py photos --key alice.key --out marked

The photographs are marked in shards. Each shard becomes a folder of --out that `datasets.load_from_disk` reads. A
shard is written under another name and renamed when it is whole. A whole shard is not made again.
"""

import argparse
import shutil
from pathlib import Path

from datasets import Dataset, Image, concatenate_datasets, load_from_disk

from privgen import Key, Watermark
from privgen.io.files import iter_image_files
from privgen.io.fingerprints import settings_fingerprint


def mark_shards(
    files: list[str], out: Path, mark: Watermark, key: Key, per_shard: int, processes: int | None = None
) -> Dataset:
    """Mark each shard that is not whole yet, and return the whole data set."""
    shards = []
    for start in range(0, len(files), per_shard):
        part = files[start : start + per_shard]
        # The name says which files and whose key, so that a shard of another run is never taken for this one.
        shard = out / f"{start:08d}-{settings_fingerprint(key.key_id, *part)[:12]}"
        if not shard.exists():
            photos = Dataset.from_dict({"path": part, "image": part}).cast_column("image", Image(mode="RGB"))
            marked = photos.map(lambda row: {"image": mark.embed(row["image"], key)}, num_proc=processes)
            unfinished = shard.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            marked.save_to_disk(unfinished)
            unfinished.rename(shard)
        shards.append(shard)
    return concatenate_datasets([load_from_disk(shard) for shard in shards])


def main() -> None:
    parser = argparse.ArgumentParser(description="Mark the photographs of a folder with Hugging Face Datasets.")
    parser.add_argument("folder", help="folder of photographs")
    parser.add_argument("--key", required=True, help="a key file")
    parser.add_argument("--out", required=True, type=Path, help="folder for the shards")
    parser.add_argument("--per-shard", type=int, default=250, help="images of a shard")
    parser.add_argument("--processes", type=int, help="processes that mark; default: this one")
    given = parser.parse_args()
    files = [str(path) for path in iter_image_files([given.folder], recursive=True)]
    mark, key = Watermark.from_pretrained("mini"), Key.load(given.key)
    print(mark_shards(files, given.out, mark, key, given.per_shard, given.processes))


if __name__ == "__main__":
    main()
