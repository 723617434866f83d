"""The page: its four tabs, and what connects them."""

from importlib.resources import files
from typing import Any

import gradio as gr

from privgen.webpage.owners import key_names, make_key
from privgen.webpage.tabs.attack import attack_tab
from privgen.webpage.tabs.bench import QUICK, Bench, visitor_of
from privgen.webpage.tabs.mark import credentials_choices, mark_tab
from privgen.webpage.tabs.protect import protect_tab
from privgen.webpage.tabs.verify import verify_tab


INTRODUCTION = """# privgen

Mark pictures with a key, find out whose mark a picture carries, and see what survives. Everything happens on this
computer: no picture leaves it, and none is kept.
"""

SWEEP, KEPT = 600, 24 * 3600
"""Every so many seconds, Gradio deletes what is as old as this on a page that stays open."""


def build_page(bench: Bench) -> gr.Blocks:
    """Return the page, not yet shown."""
    with gr.Blocks(title="privgen", analytics_enabled=False, delete_cache=(SWEEP, KEPT), fill_width=True) as page:
        gr.Markdown(INTRODUCTION, elem_classes="top")
        with gr.Tab("Mark", id="mark"):
            mark = mark_tab(bench)
        with gr.Tab("Detect and verify", id="verify"):
            verify_keys = verify_tab(bench)
        with gr.Tab("Attack", id="attack"):
            attack_keys = attack_tab(bench)
        with gr.Tab("Protect", id="protect"):
            protect_tab(bench)
        lists = [mark.keys, verify_keys, attack_keys]

        def fill() -> tuple[gr.Dropdown, ...]:
            signers = gr.Dropdown(credentials_choices(), value="")
            return (*_key_lists(None), signers)

        def make(name: str) -> tuple[Any, ...]:
            made = make_key(name)
            gr.Info(f"The key {made.stem} is made; keep a copy of {made}.", title="New key")
            return (*_key_lists(made.stem), "")

        def leave(request: gr.Request) -> None:
            bench.desk.leave(visitor_of(request))

        page.load(bench.says_errors(fill), None, [*lists, mark.sign], **QUICK)
        mark.new_key.click(bench.says_errors(make), mark.new_name, [*lists, mark.new_name], **QUICK)
        mark.new_name.submit(bench.says_errors(make), mark.new_name, [*lists, mark.new_name], **QUICK)
        page.unload(leave)
    return page


def stylesheet() -> str:
    """The page's own style."""
    return files("privgen.webpage").joinpath("page.css").read_text("utf-8")


def _key_lists(chosen: str | None) -> tuple[gr.Dropdown, gr.Dropdown, gr.Dropdown]:
    """The lists of keys, in the order of the tabs: with one chosen, and all of them to look for."""
    names = key_names()
    one = chosen or (names[0] if names else None)
    return gr.Dropdown(names, value=one), gr.Dropdown(names, value=names), gr.Dropdown(names, value=one)
