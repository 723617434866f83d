"""The tab Mark."""

from dataclasses import dataclass

import gradio as gr

from privgen.provenance.label import Preset
from privgen.provenance.seal import SAID
from privgen.watermark.tile.embed import PSNR
from privgen.webpage.mark import MarkRequest, mark_picture, payload_in
from privgen.webpage.owners import credentials_names
from privgen.webpage.tabs.bench import (
    Bench,
    download,
    download_of,
    in_words,
    keys_of,
    picture_of,
    place_for_picture,
    shown_as,
    visitor_of,
)
from privgen.webpage.verify import facts


LABELS = [("no label", ""), ("made by AI: EU AI Act", "eu-ai-act"), ("made by AI: California SB 942", "sb-942")]


@dataclass(frozen=True)
class MarkTab:
    """What other parts of the page need of the tab.

    Attributes:
        keys: the list of keys.
        sign: the list of credentials.
        new_name: name of a new key.
        new_key: makes it.
    """

    keys: gr.Dropdown
    sign: gr.Dropdown
    new_name: gr.Textbox
    new_key: gr.Button


def mark_tab(bench: Bench) -> MarkTab:
    """Lay out the tab and connect it."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            place = place_for_picture(bench, "mark")
            keys = keys_of("mark", "Key", info="Whose mark. Whoever has the key can find the mark, and make it.")
            with gr.Row(elem_classes="together"):
                new_name = gr.Textbox(
                    "", label="New key", placeholder="alice", max_lines=1, scale=3, elem_id="new-name"
                )
                new_key = gr.Button("Make it", size="md", scale=1, min_width=90, elem_id="new-key")
            payload = gr.Textbox(
                "",
                label="Payload",
                info="A number of yours that the mark carries, such as the picture's in a catalogue; empty for none.",
                max_lines=1,
                elem_id="mark-payload",
            )
            with gr.Accordion("Sign and label", open=False):
                sign = gr.Dropdown(
                    [],
                    label="Sign with",
                    info="Content Credentials: who signed this very file. `privgen credentials new NAME` makes some.",
                    elem_id="mark-sign",
                )
                label = gr.Dropdown(
                    LABELS, value="", label="Label", info="Only for pictures that AI made.", elem_id="mark-label"
                )
                said = [gr.Textbox("", label=name.replace("_", " ").capitalize(), max_lines=1) for name in SAID]
            with gr.Accordion("Quality and format", open=False):
                psnr = gr.Slider(
                    36, 50, PSNR, step=0.5, label="PSNR in dB", info="Higher is fainter, and survives less."
                )
                keep = gr.Checkbox(label="Keep the format", info="Otherwise the file is PNG, which loses nothing.")
            button = gr.Button("Mark", variant="primary", elem_id="mark-run")
        with gr.Column(scale=5, min_width=480):
            with gr.Row():
                place.picture.render()
                marked = picture_of("Marked", "mark-marked")
            words = gr.HTML(elem_id="mark-words")
            file = download_of("mark")
            changed = picture_of("Difference", "mark-difference", visible=False)

    def run(
        request: gr.Request,
        key: str | None,
        number: str,
        signer: str | None,
        law: Preset | None,
        quality: float,
        same: bool,
        *texts: str,
    ) -> tuple[gr.Image, gr.Image, str, gr.DownloadButton]:
        visitor, said_too = visitor_of(request), dict(zip(SAID, texts, strict=True))
        given = MarkRequest(key, payload_in(number), quality, same, signer or None, law or None, said_too)
        source, folder = bench.desk.picture(visitor, "mark"), bench.desk.results(visitor, "mark")
        made = mark_picture(source, folder, given, bench.networks)
        found = facts(made.proves)
        verdict = f"The file is marked, at {made.psnr:.1f} dB."
        if not made.proves.marked:
            verdict = "The mark cannot be read back from the file."
        said_of = {name: found[name] for name in ("Mark", "Credentials", "Label")}
        return (
            shown_as(f"Marked: {made.file.name}", made.after, folder),
            shown_as(f"Difference × {made.difference.factor}", made.difference.picture, folder),
            in_words(verdict, "good" if made.proves.marked else "bad", said_of, made.notes),
            download(made.file),
        )

    place.connect(
        button, bench.says_errors(run), [keys, payload, sign, label, psnr, keep, *said], [marked, changed, words, file]
    )
    return MarkTab(keys, sign, new_name, new_key)


def credentials_choices() -> list[tuple[str, str]]:
    """What the list of credentials offers."""
    return [("no signature", ""), *((name, name) for name in credentials_names())]
