"""The preset for photographs: what is on its list, and that all of it runs."""

import torch

from privgen.attacks import ModelAttack, list_attacks
from privgen.evaluation.robustness.photographs.attacks import PAIRED_FIRST, PAIRED_THEN, SINGLE, photograph_attacks
from privgen.evaluation.robustness.plan import get_preset, strengths


def test_every_attack_has_a_label_of_its_own():
    attacks = photograph_attacks()
    assert (
        len({attack.label for attack in attacks}) == len(attacks) == len(SINGLE) + len(PAIRED_FIRST) * len(PAIRED_THEN)
    )


def test_distortions_that_other_presets_leave_out_are_here():
    names = {text.partition(",")[0].partition("=")[0] for text in SINGLE}
    left_out = {kind.name for kind in list_attacks("D") if not strengths(kind, get_preset("full"))}
    assert left_out <= names
    assert {"border", "whatsapp", "micro_warp"} <= left_out


def test_all_but_the_models_run_on_a_small_image():
    image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    for attack in photograph_attacks():
        if not isinstance(attack, ModelAttack):
            made = attack(image, generator=torch.Generator().manual_seed(1))
            assert made.isfinite().all()
            assert not torch.equal(made, image), attack.label
