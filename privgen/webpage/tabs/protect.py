"""The tab Protect."""

import gradio as gr

from privgen.protection.method import PSNR
from privgen.webpage.protect import LIMITS, protect_picture
from privgen.webpage.tabs.bench import (
    Bench,
    download,
    download_of,
    in_words,
    picture_of,
    place_for_picture,
    shown_as,
    visitor_of,
)


EYES = "which 99 % of the pixels stay below; from about 1 on, eyes can see it."


def protect_tab(bench: Bench) -> None:
    """Lay out the tab and connect it."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            place = place_for_picture(bench, "protect")
            psnr = gr.Slider(
                30,
                44,
                PSNR,
                step=0.5,
                label="PSNR in dB",
                info="Higher is fainter, and protects less.",
                elem_id="protect-psnr",
            )
            keep = gr.Checkbox(label="Keep the format", info="Otherwise the file is PNG, which loses nothing.")
            button = gr.Button("Protect", variant="primary", elem_id="protect-run")
            gr.Markdown("\n".join(["**What protection cannot do**", "", *(f"- {limit}" for limit in LIMITS)]))
        with gr.Column(scale=5, min_width=480):
            with gr.Row():
                place.picture.render()
                protected = picture_of("Protected", "protect-protected")
            words = gr.HTML(elem_id="protect-words")
            file = download_of("protect")
            changed = picture_of("Difference", "protect-difference", visible=False)

    def run(request: gr.Request, quality: float, same: bool) -> tuple[gr.Image, gr.Image, str, gr.DownloadButton]:
        visitor = visitor_of(request)
        source, folder = bench.desk.picture(visitor, "protect"), bench.desk.results(visitor, "protect")
        made = protect_picture(source, folder, bench.protection, psnr=quality, keep_format=same)
        figures = made.figures
        rows = {
            "PSNR": "" if figures.psnr is None else f"{figures.psnr:.1f} dB",
            "SSIM": "" if figures.ssim is None else f"{figures.ssim:.3f}",
            "Visible difference": "" if figures.visible_de_p99 is None else f"{figures.visible_de_p99:.1f}, {EYES}",
        }
        verdict = "The picture is protected: models learn less from it, but they still learn."
        return (
            shown_as(f"Protected: {made.file.name}", made.after, folder),
            shown_as(f"Difference × {made.difference.factor}", made.difference.picture, folder),
            in_words(verdict, "plain", rows, figures.notes),
            download(made.file),
        )

    place.connect(button, bench.says_errors(run), [psnr, keep], [protected, changed, words, file])
