"""The tab Detect and verify."""

import gradio as gr

from privgen.watermark.read.detection import DetectSpec
from privgen.watermark.read.verify import Verification
from privgen.webpage.tabs.bench import Bench, in_words, keys_of, picture_of, place_for_picture, shown_as, visitor_of
from privgen.webpage.verify import facts, p_value, verify_picture


def verify_tab(bench: Bench) -> gr.Dropdown:
    """Lay out the tab and connect it; returns its list of keys."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            place = place_for_picture(bench, "verify")
            keys = keys_of("verify", "Keys", multiselect=True, info="Whose marks to look for.")
            search = gr.Checkbox(
                label="Search",
                info="Also in what was cropped, framed, scaled or turned; takes some seconds.",
                elem_id="verify-search",
            )
            locate = gr.Checkbox(
                label="Locate", info="Also look for marked objects, and show who owns what.", elem_id="verify-locate"
            )
            button = gr.Button("Detect and verify", variant="primary", elem_id="verify-run")
        with gr.Column(scale=5, min_width=480):
            words = gr.HTML(elem_id="verify-words")
            with gr.Row():
                place.picture.render()
                owners = picture_of("Who owns what", "verify-owners", visible=False)

    def run(request: gr.Request, names: list[str] | None, searched: bool, located: bool) -> tuple[str, gr.Image]:
        visitor = visitor_of(request)
        dropped = bench.desk.picture(visitor, "verify")
        found = verify_picture(dropped, names or [], bench.networks, DetectSpec(search=searched, locate=located))
        folder = bench.desk.results(visitor, "verify")
        shown = gr.Image(None, visible=False)
        if found.owners is not None:
            shown = shown_as("Who owns what", found.owners, folder)
        return _words(found.proves), shown

    place.connect(button, bench.says_errors(run), [keys, search, locate], [words, owners])
    return keys


def _words(proves: Verification) -> str:
    said = facts(proves)
    together = said.pop("Together")
    broken = proves.credentials.state in ("changed", "invalid") or proves.agreement == "other"
    tone = "good" if proves.proven else "bad" if broken else "plain"
    rows = {"Mark": said["Mark"], "p-value": p_value(proves)} | {name: said[name] for name in ("Credentials", "Label")}
    return in_words(together[:1].upper() + together[1:], tone, rows)
