"""Pictures of the docs, from the folder of a run of `privgen evaluate protection`.

    python benchmarks/protection_pictures.py out/protection --into docs/images

`protection-curves.png` has the success of two adversaries over their training steps, and `protection-images.png` what
LoRA draws of the first subject after its longest training.
"""

import base64
import io
from pathlib import Path

import click
from PIL import Image

from privgen.data.sheets import contact_sheet, save_picture
from privgen.evaluation.protection.charts import effort_chart
from privgen.evaluation.protection.log import LOG, Row
from privgen.evaluation.protection.plan import CLEAN, NONE, UNTRAINED, Cell
from privgen.evaluation.protection.summary import outcomes
from privgen.io.journal import Journal
from privgen.io.plots import as_image


ADVERSARIES = {"lora": "LoRA", "prompt-embeds": "vectors behind the encoded prompt"}
CURVES = (CLEAN, "noise", "encoder", "shield")
SHOWN = {
    CLEAN: "clean images",
    "noise": "noise",
    "encoder": "encoder attack",
    "shield": "shield",
    "shield, jpeg": "shield, then JPEG 75",
    "shield, resize": "shield, then halved and enlarged",
    "shield, diffpure": "shield, then DiffPure",
    UNTRAINED: "before training",
}
"""Which images of the adversary are shown, and their captions."""


def rows_of(folder: Path) -> list[Row]:
    """All rows of a run, those of the first model."""

    def parse(record: dict[str, object]) -> list[Row]:
        cell = Cell(**record["cell"])  # type: ignore[arg-type]
        return [Row(cell, **row) for row in record["rows"]]  # type: ignore[attr-defined]

    cells = {rows[0].cell: rows for rows in Journal.of_process(folder, LOG).read(parse)}
    model = next(iter(cells)).model
    return [row for cell, rows in cells.items() if cell.model == model for row in rows]


def curves(rows: list[Row]) -> Image.Image:
    """Success over steps, a panel for each adversary."""
    found = outcomes([row for row in rows if row.cell.purification == NONE and row.cell.fraction == 1])
    charts = []
    for adversary in ADVERSARIES:
        own = {s.method: outcome for s, outcome in found.items() if s.adversary == adversary}
        charts.append(as_image(effort_chart({name: own[name] for name in CURVES}), dpi=120))
    return contact_sheet(charts, list(ADVERSARIES.values()), 2, font_size=14)


def sheet(rows: list[Row]) -> Image.Image:
    """What LoRA draws after its longest training, at the guidance scale with the best score."""
    best: dict[str, Row] = {}
    for row in rows:
        name = row.cell.method + ("" if row.cell.purification == NONE else f", {row.cell.purification}")
        if row.cell.adversary == "lora" and row.sheet:
            before = best.setdefault(name, row)
            if (row.effort, row.score) > (before.effort, before.score):
                best[name] = row
    pictures = [Image.open(io.BytesIO(base64.b64decode(best[name].sheet.split(",")[1]))) for name in SHOWN]
    return contact_sheet(pictures, list(SHOWN.values()), 2, font_size=14)


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--into", default=Path("docs/images"), type=click.Path(path_type=Path), help="Folder for the pictures.")
def main(folder: Path, into: Path) -> None:
    rows = rows_of(folder)
    save_picture(curves(rows), into / "protection-curves.png", overwrite=True)
    save_picture(sheet(rows), into / "protection-images.png", overwrite=True)


if __name__ == "__main__":
    main()
