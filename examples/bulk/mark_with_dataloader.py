"""Mark the photographs of a folder with the worker processes of a PyTorch DataLoader. A run that was stopped goes on.

    python examples/bulk/mark_with_dataloader.py photos --key alice.key --out marked --workers 8

Each worker marks on one core, and loads the networks once. A photograph whose marked file exists is not marked again.
Use one folder --out for one key.
"""

import argparse
from io import BytesIO
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from privgen import Key, PrivgenError, Watermark
from privgen.io.files import iter_image_files, write_bytes


class MarkedPhotos(Dataset[str]):
    """The photographs of a folder that have no marked file yet. Asking for one marks it and writes its file.

    An item is the path of the written file, or the reason why there is none.
    """

    def __init__(self, folder: Path, out: Path, mark: Watermark, key: Key) -> None:
        files = iter_image_files([folder], recursive=True)
        targets = [out / path.relative_to(folder).with_name(f"{path.name}.png") for path in files]
        self.waiting = [pair for pair in zip(files, targets, strict=True) if not pair[1].exists()]
        self.mark, self.key = mark, key

    def __len__(self) -> int:
        return len(self.waiting)

    def __getitem__(self, index: int) -> str:
        path, target = self.waiting[index]
        content = BytesIO()
        try:
            self.mark.embed(path, self.key).save(content, "PNG")
        except PrivgenError as error:
            return f"{path} was left out: {error}"
        write_bytes(target, content.getvalue())  # whole or not at all
        return str(target)


def mark_folder(folder: Path, out: Path, mark: Watermark, key: Key, workers: int) -> list[str]:
    """Mark what is not marked yet, and return what became of each photograph."""
    loader = DataLoader(
        MarkedPhotos(folder, out, mark, key),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=lambda number: torch.set_num_threads(1),
    )
    return list(loader)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mark the photographs of a folder with a PyTorch DataLoader.")
    parser.add_argument("folder", type=Path, help="folder of photographs")
    parser.add_argument("--key", required=True, help="a key file")
    parser.add_argument("--out", required=True, type=Path, help="folder for the marked photographs, PNG")
    parser.add_argument("--workers", type=int, default=2, help="processes that mark")
    given = parser.parse_args()
    mark, key = Watermark.from_pretrained("mini"), Key.load(given.key)
    print("\n".join(mark_folder(given.folder, given.out, mark, key, given.workers)))


if __name__ == "__main__":
    main()
