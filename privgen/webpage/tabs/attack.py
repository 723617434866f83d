"""The tab Attack."""

import gradio as gr

from privgen.webpage.attack import ATTACKS, attack_picture, chain, strength_of, written
from privgen.webpage.tabs.bench import (
    QUICK,
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


STEPS = ("jpeg", None, None)
"""The attacks that are chosen at first; as many can be done in a row."""

HINT = "Drop a marked picture. Attacks are done one after the other; then privgen looks for the key's mark again."


def attack_tab(bench: Bench) -> gr.Dropdown:
    """Lay out the tab and connect it; returns its list of keys."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            place = place_for_picture(bench, "attack")
            keys = keys_of("attack", "Key", info=HINT)
            steps = [component for i, name in enumerate(STEPS) for component in _step(i, name)]
            button = gr.Button("Attack", variant="primary", elem_id="attack-run")
        with gr.Column(scale=5, min_width=480):
            with gr.Row():
                place.picture.render()
                attacked = picture_of("Attacked", "attack-attacked")
            words = gr.HTML(elem_id="attack-words")
            file = download_of("attack")

    def run(
        request: gr.Request, key: str | None, *chosen: str | float | None
    ) -> tuple[gr.Image, str, gr.DownloadButton]:
        visitor = visitor_of(request)
        pairs = zip(chosen[::2], chosen[1::2], strict=True)
        attack = chain([(str(name) if name else None, float(strength or 0)) for name, strength in pairs])
        source, folder = bench.desk.picture(visitor, "attack"), bench.desk.results(visitor, "attack")
        made = attack_picture(source, folder, attack, key, bench.networks)
        tone = "good" if made.after.detected else "bad" if made.before.detected else "plain"
        rows = {"Before": f"the picture {made.before}.", "After": f"the attacked picture {made.after}."}
        if made.psnr is not None:
            rows["Quality"] = f"{made.psnr:.1f} dB PSNR against the picture before."
        shown = shown_as(f"Attacked: {written(attack)}", made.picture, folder)
        return shown, in_words(made.verdict, tone, rows), download(made.file)

    place.connect(button, bench.says_errors(run), [keys, *steps], [attacked, words, file])
    return keys


def _step(number: int, name: str | None) -> tuple[gr.Dropdown, gr.Slider]:
    """One attack of the chain, and its strength."""
    with gr.Group():
        choices = [("nothing", ""), *((attack, attack) for attack in ATTACKS)]
        attack = gr.Dropdown(
            choices, value=name or "", label=f"Attack {number + 1}", elem_id=f"attack-{number}", interactive=True
        )
        strength = gr.Slider(interactive=True, elem_id=f"strength-{number}", **_slider(name))
    attack.change(lambda chosen: gr.Slider(**_slider(chosen)), attack, strength, **QUICK)
    return attack, strength


def _slider(name: str | None) -> dict[str, float | str | bool]:
    if not name:
        return {"minimum": 0, "maximum": 1, "value": 0, "label": "Strength", "info": "", "visible": False}
    of = strength_of(name)
    ends = {"minimum": of.low, "maximum": of.high, "value": of.default, "step": of.step}
    return {**ends, "label": f"Strength: {of.unit}", "info": of.words, "visible": True}
