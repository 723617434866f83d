"""Mark photographs with Ray Data, on one machine or a cluster. A run that was stopped goes on.

    pip install "privgen[ray]"
    python examples/bulk/mark_with_ray.py photos --key alice.key --out marked --workers 8

The photographs are marked in shards: tar files of PNG files, which `webdataset`, Ray and Datasets read. A worker
writes a shard under another name and renames it when it is whole. A whole shard is not made again. On a cluster, all
machines must see the same folders. The key stays in its file, which each worker reads: it does not travel through Ray.
"""

import argparse
import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from privgen import Key, PrivgenError, Watermark
from privgen.io.files import atomic_write, iter_image_files
from privgen.io.fingerprints import settings_fingerprint


os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported: it reports its use by default

import ray


class Marker:
    """A worker. Ray makes one in each process, so its networks are loaded once, and not once for each shard."""

    def __init__(self, key_file: str) -> None:
        torch.set_num_threads(1)
        self.key = Key.load(key_file)
        self.mark = Watermark.from_pretrained("mini")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        left_out = [self.write(shard, files) for shard, files in zip(batch["shard"], batch["files"], strict=True)]
        return {"shard": list(batch["shard"]), "left_out": left_out, "worker": [os.getpid()] * len(left_out)}

    def write(self, shard: str, files: list[str]) -> list[str]:
        """Write one shard, and return what was left out, and why."""
        left_out = []
        with atomic_write(shard) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            for number, file in enumerate(files):
                content = BytesIO()
                try:
                    self.mark.embed(str(file), self.key).save(content, "PNG")
                except PrivgenError as error:
                    left_out.append(f"{file}: {error}")
                    continue
                entry = tarfile.TarInfo(f"{number:05d}-{Path(file).stem}.png")
                entry.size = content.tell()
                content.seek(0)
                tar.addfile(entry, content)
        return left_out


def mark_shards(files: list[str], out: Path, key_file: str, per_shard: int, workers: int) -> list[dict[str, Any]]:
    """Mark each shard that is not whole yet, and return what was done: the shard, what it lacks, the worker."""
    out.mkdir(parents=True, exist_ok=True)
    key_id, waiting = Key.load(key_file).key_id, []
    for start in range(0, len(files), per_shard):
        part = files[start : start + per_shard]
        # The name says which files and whose key, so that a shard of another run is never taken for this one.
        shard = out / f"{start:08d}-{settings_fingerprint(key_id, *part)[:12]}.tar"
        if not shard.exists():
            waiting.append({"shard": str(shard), "files": part})
    if not waiting:
        return []
    marker = ray.data.from_items(waiting, override_num_blocks=len(waiting)).map_batches(
        Marker, fn_constructor_args=(key_file,), batch_size=1, concurrency=min(workers, len(waiting))
    )
    return marker.take_all()


def main() -> None:
    parser = argparse.ArgumentParser(description="Mark photographs with Ray Data.")
    parser.add_argument("folder", type=Path, help="folder of photographs")
    parser.add_argument("--key", required=True, type=Path, help="a key file that every worker can read")
    parser.add_argument("--out", required=True, type=Path, help="folder for the shards, tar files")
    parser.add_argument("--per-shard", type=int, default=250, help="images of a shard; the same number in each run")
    parser.add_argument("--workers", type=int, default=2, help="processes that mark, one core each")
    given = parser.parse_args()
    files = [str(path.resolve()) for path in iter_image_files([given.folder], recursive=True)]
    done = mark_shards(files, given.out.resolve(), str(given.key.resolve()), given.per_shard, given.workers)
    for row in done:
        print(f"{row['shard']} is written.", *row["left_out"], sep="\n  left out: ")


if __name__ == "__main__":
    main()
