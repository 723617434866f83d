"""Breaks the maths of the core, one place at a time, and checks that the tests notice: `make mutants`.

    python tests/mutants.py            # all of them, about half an hour on two cores
    python tests/mutants.py search     # those whose file or texts contain "search"

Each mutant is a copy of the sources in a temporary folder with one text replaced. The tests that should notice run
there. A mutant that they do not notice survives; then a test is missing. The exit code is 1 if any survives.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import NamedTuple


ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("privgen", "pipelines", "attacks", "cli", "tests", "benchmarks", "examples")
AT_A_TIME = 2
LIMIT = 1200  # seconds for the tests of one mutant; a mutant that never ends is noticed, too


class Mutant(NamedTuple):
    """One wrong line.

    Attributes:
        file: source file.
        old: text that is in the file exactly once.
        new: what replaces it.
        tests: files in tests/ that should notice, separated by spaces.
    """

    file: str
    old: str
    new: str
    tests: str


P_VALUES = "watermark/read/test_p_values.py"
SEARCH = "watermark/read/test_corrections.py watermark/read/test_search.py"
POSE = "watermark/read/test_pose.py"
KEY = "watermark/test_key.py"
TOKEN = "watermark/test_token.py"
CALLBACKS = "watermark/write/test_callbacks.py"
RESIDUAL = "watermark/write/test_residual.py"
PIXELS = "io/test_pixels.py"
LOUDNESS = "watermark/write/test_loudness.py"
ROBUST = "watermark/write/test_robust_mark.py"
CODE = "watermark/write/test_linear_code.py"
ALIGNER = "models/test_aligner.py"
ALIGNER_FIT = "training/watermark/test_aligner_fit.py"
EXTRACTOR = "models/test_extractor.py"
CONVERSIONS = "diffusion/test_parameterisation.py"
SCHEDULER = "hallucination/test_scheduler.py hallucination/test_amplification.py"
VARIANCE = "hallucination/test_learned_variance.py"
UNROLLED = "watermark/write/test_token_by_gradient.py"
LATENTS = "watermark/test_model_sizes.py watermark/test_watermark.py"
ASSIGN = "noise_assignment/test_assign.py noise_assignment/test_assign_training.py"
MATCHING = "noise_assignment/test_matching.py"
ATTACKS = "attacks/test_attack_references.py"
CANVAS = "attacks/distortions/test_canvas.py"
SHARING = "attacks/distortions/test_sharing.py"
WARP = "attacks/distortions/test_warp.py"
SHIELD = "protection/test_shield.py"
SHIELD_TRAINING = "training/protection/test_shield.py"
VISIBILITY = "protection/test_visibility.py"
LATENT_SHIFTS = "evaluation/protection/test_latents.py"
DIFFPURE = "attacks/purification/test_diffpure.py"
FIT = "attacks/purification/test_fit.py"
INVERSION = "protection/test_inversion.py"
SHIFT = "protection/test_trajectory_shift.py"
IMPRESS = "attacks/purification/test_impress.py"
STUDY_SCORES = "evaluation/protection/test_scores.py"
STUDY = "evaluation/protection/test_evaluate.py"

TABLE = {
    "privgen/evaluation/protection/scores.py": (
        ("1 - max(successes)", "1 - min(successes)", STUDY_SCORES),
        ("(level - below) / (curve", "level / (curve", STUDY_SCORES),
    ),
    "privgen/evaluation/protection/run.py": (("1 - cell.fraction)", "cell.fraction)", STUDY),),
    "attacks/purification/impress.py": (("lr=self.lr / 2", "lr=self.lr", IMPRESS),),
    "privgen/watermark/read/p_values.py": (
        ("np.cumsum(counts) * 0.5", "(np.cumsum(counts) - counts) * 0.5", P_VALUES),
        ("keepdims=True) - rows", "keepdims=True) + rows", P_VALUES),
        ("int(count) / 2**n_bits", "int(count) / 2 ** (n_bits - 1)", P_VALUES),
        ("_tail(n_bits) > fpr", "_tail(n_bits) >= 2 * fpr", P_VALUES),
        ("np.minimum(p * family, 1)", "np.minimum(p, 1)", P_VALUES),
        ("(family - np.arange(p.shape[-1]))", "family", P_VALUES),
        ("np.maximum.accumulate(stepped, axis=-1)", "stepped", P_VALUES),
        ("fpr / family", "fpr", P_VALUES),
        ("q <= fpr, test", "p <= fpr, test", P_VALUES),
    ),
    "privgen/watermark/read/bits.py": (
        ("np.where(values > 0", "np.where(values >= 0", P_VALUES),
        ("_CLEAREST = 3.0", "_CLEAREST = 0.5", P_VALUES),
    ),
    "privgen/watermark/read/search.py": (
        ("WHOLE, SEARCHED = 2, 4", "WHOLE, SEARCHED = 1, 4", SEARCH),
        ("WHOLE, SEARCHED = 2, 4", "WHOLE, SEARCHED = 2, 1", SEARCH),
        ("UPHILL = 16", "UPHILL = 1", SEARCH),
        ("len(_TURNED) * windows if", "windows if", SEARCH),
        ("else len(_DEGREES) + windows", "else windows", SEARCH),
        ("p, places = WHOLE * whole", "p, places = whole", SEARCH),
        ("corrected = tried * np", "corrected = np", SEARCH),
        ("keys * p.min(axis=1) > enough", "p.min(axis=1) > enough", SEARCH),
        ("by = (right, -right, down, -down)", "by = (-right, right, -down, down)", SEARCH),
        ("_WORTH_CLIMBING = 3.2", "_WORTH_CLIMBING = 32.0", SEARCH),
    ),
    "privgen/watermark/read/pose.py": (
        ("-sin / wide", "-sin * wide", POSE),
        ("[sin * wide, cos]", "[-sin * wide, cos]", POSE),
        ("2 * left + side - 1, 2 * top + side - 1", "2 * top + side - 1, 2 * left + side - 1", POSE),
        ("places.abs().amax(dim=-1) <= 1", "places.abs().amax(dim=-1) <= 1.2", POSE),
        ("+ 0.5) * 2 / length - 1", ") * 2 / length - 1", POSE),
    ),
    "privgen/watermark/key.py": (
        ('b"message"', 'b"fingerprint"', KEY),
        ("block + info + bytes", "info + bytes", KEY),
        ("(7 - i % 8)", "(i % 8)", KEY),
        ("salt or bytes(32)", "bytes(32)", KEY),
    ),
    "privgen/watermark/token.py": (
        ("starts.append(len(words))", "starts.append(len(words) - 1)", TOKEN),
        ("vectors, end]", "vectors]", TOKEN),
        ("mapper(1 - bits) if", "mapper(bits) if", TOKEN),
    ),
    "privgen/watermark/write/callbacks.py": (
        ("bool(later) and later[0] <= tau < now", "bool(later) and later[0] <= tau", CALLBACKS),
        ("first = 1 if joined else 0", "first = 0", CALLBACKS),
        ("latents + residual", "latents - residual", CALLBACKS),
    ),
    "privgen/io/residual.py": (
        ("gain = 10 ** (-psnr / 20) / (rms", "gain = 10 ** (-psnr / 10) / (rms", RESIDUAL),
        ("-10 * math.log10(error", "-20 * math.log10(error", RESIDUAL),
        ("_CLOSE_DB, _LARGEST_GAIN = 8, 0.002", "_CLOSE_DB, _LARGEST_GAIN = 8, 1.0", RESIDUAL),
    ),
    "privgen/watermark/write/residual.py": (("return with_mark - without", "return without - with_mark", RESIDUAL),),
    "privgen/io/pixels.py": (
        ("LUMA = (0.299, 0.587, 0.114)", "LUMA = (0.114, 0.587, 0.299)", PIXELS),
        ("antialias=True", "antialias=False", PIXELS),
    ),
    "privgen/watermark/write/loudness.py": (
        ("FAINTEST, LOUDEST = 0.4, 2.0", "FAINTEST, LOUDEST = 0.0, 2.0", LOUDNESS),
        ("FAINTEST, LOUDEST = 0.4, 2.0", "FAINTEST, LOUDEST = 0.4, 4.0", LOUDNESS),
        ("keepdim=True) >= 1", "keepdim=True) >= 2", LOUDNESS),
        ("message * before / gain", "before / gain", LOUDNESS),
        ("(1 + message * loudness(favour)) / 2", "(1 + message) / 2", LOUDNESS),
    ),
    "privgen/watermark/write/robust_mark.py": (
        ("_ORIGINAL_FRACTION = 0.5", "_ORIGINAL_FRACTION = 0.0", ROBUST),
        ("_CROP_WEIGHT = 0.5, 0.06, 0.7", "_CROP_WEIGHT = 0.5, 0.06, 0.0", ROBUST),
        ("softplus(-message *", "softplus(message *", ROBUST),
        ("_SCALINGS = 6", "_SCALINGS = 0", ROBUST),
    ),
    "privgen/watermark/write/linear_code.py": (
        (".eigenvectors[:, -n_bits:]", ".eigenvectors[:, :n_bits]", CODE),
        ("signals.T @ whitened, whitened.T", "whitened.T @ whitened, whitened.T", CODE),
        ("[:, :, lags[1]] / pairs", "[:, :, lags[1]] / (height * width)", CODE),
        ("values.clamp(min=0)", "values.abs()", CODE),
    ),
    "privgen/diffusion/parameterisation.py": (
        ("alpha_bar**0.5, (1 - alpha_bar) ** 0.5", "alpha_bar, (1 - alpha_bar) ** 0.5", CONVERSIONS),
        (
            "(level.alpha * original + level.sigma * noise) / level.scale",
            "level.alpha * original + noise",
            CONVERSIONS,
        ),
        ("level.alpha * noise - level.sigma * original", "level.alpha * noise + level.sigma * original", CONVERSIONS),
        ("return noise - original", "return original - noise", CONVERSIONS),
        ("level.alpha * output + level.sigma * x_t", "level.alpha * output - level.sigma * x_t", CONVERSIONS),
        ("return x_t + level.alpha * output", "return x_t + level.sigma * output", CONVERSIONS),
        ("(x_t - level.alpha * output) / level.sigma", "(x_t - level.alpha * output)", CONVERSIONS),
        ("(x_t - level.sigma * output) / level.alpha", "(x_t - level.sigma * output)", CONVERSIONS),
        ("level.alpha * x_t - level.sigma * output", "level.sigma * x_t - level.alpha * output", CONVERSIONS),
        ("return x_t - level.sigma * output", "return x_t - level.alpha * output", CONVERSIONS),
    ),
    "privgen/hallucination/amplification.py": (
        ("-level.sigma / level.alpha if", "level.sigma / level.alpha if", SCHEDULER),
        ("(factor - 1) * weight", "factor * weight", SCHEDULER),
        ("(eta - 1) * (step - radial)", "(eta - 1) * step", SCHEDULER),
        ("    return variance / (variance + halfway)", "    return variance / halfway", SCHEDULER),
    ),
    "privgen/diffusion/noise_level.py": (
        ("NoiseLevel(1 - sigma, sigma)", "NoiseLevel(sigma, 1 - sigma)", SCHEDULER),
        ("max(1 - scale**2, 0.0) ** 0.5, scale)", "max(1 - scale**2, 0.0) ** 0.5)", SCHEDULER),
        ("value * 1000 /", "value /", SCHEDULER),
    ),
    "privgen/diffusion/unrolled_ddim.py": (
        ("NoiseLevel.from_alpha_bar(alpha_bar_next)", "level", UNROLLED),
        ("without + self.guidance_scale", "with_prompt + self.guidance_scale", UNROLLED),
    ),
    "privgen/diffusion/latents.py": (
        ("(z.float() - shift(vae)) * scale(vae)", "z.float() * scale(vae) - shift(vae)", LATENTS),
        ("latents / scale(vae) + shift(vae)", "latents / scale(vae) - shift(vae)", LATENTS),
    ),
    "privgen/hallucination/running_variance.py": (("(self.count - 1)).flatten", "self.count).flatten", SCHEDULER),),
    "privgen/hallucination/learned_variance.py": (
        ("        w = (v + 1) / 2", "        w = (1 - v) / 2", VARIANCE),
        ("before.sqrt() * beta / (1 - now)", "before * beta / (1 - now)", VARIANCE),
        ("tilde_all[0] = tilde_all[1]", "tilde_all[0] = beta_all[0]", VARIANCE),
        ("- 1) / weight**2", "- 1) / weight", f"{SCHEDULER} {VARIANCE}"),
        ("mean_output.detach(), x_t", "mean_output, x_t", VARIANCE),
    ),
    "privgen/noise_assignment/assign.py": (
        ("(x.mean(0) - x)", "(x - x.mean(0))", ASSIGN),
        ("all_scores[-1] > scores", "all_scores[-1] < scores", ASSIGN),
        ("cost -= weight", "cost += weight", ASSIGN),
        ("rows[_permute(x_0[rows], eps[rows],", "rows[_permute(x_0[rows], -eps[rows],", ASSIGN),
    ),
    "privgen/noise_assignment/matching.py": (
        ("best - second + epsilon", "best - second", MATCHING),
        ("- prices.to(precise).sum()", "", MATCHING),
        ("values = values - sinkhorn_potentials(", "values = values * sinkhorn_potentials(", MATCHING),
    ),
    "privgen/models/extractor.py": (
        ("(values + 1e-6).rsqrt()", "(values + 1e-6).sqrt()", EXTRACTOR),
        ("logits = 2 * bits / variance", "logits = 2 * bits", EXTRACTOR),
        ("white.lerp(scaled,", "scaled.lerp(white,", EXTRACTOR),
    ),
    "privgen/models/aligner.py": (
        ("posterior @ matched / posterior", "matched / posterior", ALIGNER),
        ("estimate = matched - matched @ known.mT", "estimate = matched", ALIGNER),
        ("/ (1 - fraction)", "", ALIGNER),
        ("scale = 2 / (torch.stack(loudness)", "scale = 1 / (torch.stack(loudness)", ALIGNER),
    ),
    "privgen/training/watermark/aligner_fit.py": (
        ("measure_patterns((one - other) / 2", "measure_patterns(one - other", ALIGNER_FIT),
        ("seen = (latents - mean) * shown", "seen = latents * shown", ALIGNER_FIT),
        ("deviation[:, None] * deviation", "deviation", ALIGNER_FIT),
    ),
    "privgen/io/journal.py": (
        ('split(b"\\n")[:-1]', 'split(b"\\n")', "io/test_journal.py"),
        ('rfind(b"\\n") + 1', 'rfind(b"\\n")', "io/test_journal.py"),
    ),
    "privgen/io/batches.py": (
        ("len(set(names.values())) == len(group)", "names", "io/test_batches.py"),
        ("if name in owners:", "if False:", "io/test_batches.py"),
    ),
    "privgen/evaluation/intervals.py": (
        ("confidence_level=0.95", "confidence_level=0.9", "evaluation/test_intervals.py"),
        ('method="exact"', 'method="wilson"', "evaluation/test_intervals.py"),
    ),
    "privgen/evaluation/robustness/scores.py": (
        ("min(places * float(", "min(float(", "evaluation/robustness/test_scores.py"),
        ("row.places) for row in rows", "1) for row in rows", "evaluation/robustness/test_scores.py"),
    ),
    "privgen/protection/inversion.py": (
        ("(z - level.sigma * noise) / level.alpha", "(z - level_t.sigma * noise) / level.alpha", INVERSION),
        ("ddim.predict(estimate, now", "ddim.predict(z, now", INVERSION),
        ("tuple(reversed(residuals))", "tuple(residuals)", INVERSION),
    ),
    "privgen/protection/trajectory_shift.py": (
        ("(multiplier + rate * mean)", "(multiplier + rate * mean.relu())", SHIFT),
        ("(multiplier * excess.relu() - loss)", "(multiplier * excess - loss)", SHIFT),
        ("psnr + 10 * torch.log10", "psnr - 10 * torch.log10", SHIFT),
        ("noise + network(noise), beginning.inversion", "noise + network(noise).detach(), beginning.inversion", SHIFT),
        ("repeat_interleave(times.shape[1], dim=0)", "repeat(times.shape[1], 1, 1, 1)", SHIFT),
    ),
    "privgen/training/protection/shift.py": (
        ('return {"multiplier": self.multiplier}', "return {}", "training/test_shift.py"),
    ),
    "attacks/purification/diffpure.py": (("round(noise * denoiser.steps / 1000)", "round(noise)", DIFFPURE),),
    "attacks/purification/fit.py": (
        ("return images + resize(residual,", "return resize(small + residual,", FIT),
        ("height * width > canvas**2", "height * width >= canvas**2", FIT),
        ("canvas / math.sqrt(height * width)", "canvas / min(height, width)", FIT),
        ("+= weight * result", "+= result", FIT),
    ),
    "attacks/purification/reverse.py": (
        ("return alpha_bar**0.5 * x_0 +", "return x_0 +", DIFFPURE),
        ("denoiser.alpha_bar(t_star - 1)\n", "denoiser.alpha_bar(t_star // 2)\n", DIFFPURE),
        ("(slope + denoiser.noise(euler * alphas[s], s)) / 2", "slope", DIFFPURE),
    ),
    "attacks/distortions/jpeg.py": (
        ("(14, 13, 16, 24, 40, 57, 69, 56)", "(14, 13, 16, 24, 40, 57, 69, 65)", ATTACKS),
        ("(24, 26, 56, 99,", "(24, 26, 65, 99,", ATTACKS),
        ("200 - 2 * quality", "200 - quality", ATTACKS),
    ),
    "attacks/distortions/photometric.py": (
        ("math.sin(angle) * cross", "-math.sin(angle) * cross", ATTACKS),
        ("turn + (weights - weights @ turn)", "turn", ATTACKS),
    ),
    "attacks/distortions/canvas.py": (
        ("own * (other / own) ** fraction", "own + (other - own) * fraction", CANVAS),
        ("max(height, round(width / ratio))", "round(width / ratio)", CANVAS),
        ("min(width, max(1, round(height * ratio)))", "min(width, max(1, round(height / ratio)))", CANVAS),
        ("own = min(int(draws[i, 0] * tiles), tiles - 1)", "own = 0", CANVAS),
        ("draws[i, 1 + 3 * tile : 4 + 3 * tile]", "draws[i, 1:4]", CANVAS),
    ),
    "attacks/distortions/codecs.py": (
        ("if len(data) <= at_most:\n            best", "if len(data) >= at_most:\n            best", SHARING),
        ("best, fits = data, level", "fits = level", SHARING),
    ),
    "attacks/distortions/sharing.py": (
        ("covered = round(self.strength * height)", "covered = round(self.strength * height / 2)", SHARING),
        ("longest = max(images.shape[-2:])", "longest = images.shape[-1]", SHARING),
        ("at_most=self._at_most()", "at_most=None", SHARING),
        ("Brightness(1 + 0.1 * self.strength)", "Brightness(1 - 0.1 * self.strength)", SHARING),
    ),
    "attacks/distortions/warp.py": (
        ("return field / longest", "return field", WARP),
        ("round(cells * side / short)", "round(cells * side / max(height, width) / 4)", WARP),
        ('mode="bicubic", padding_mode', 'mode="bilinear", padding_mode', WARP),
        ("dtype=images.dtype) + shift[:, 0]", "dtype=images.dtype) + 2 * shift[:, 0]", WARP),
    ),
    "privgen/protection/shield.py": (
        ("margin = -(-(network.reach", "margin = -(-(0 * network.reach", SHIELD),
        ("drawn.sub_(drawn.mean(dim=(-2, -1), keepdim=True))", "drawn", SHIELD),
        ("top, left = rows.start - outer_rows.start", "top, left = 0", SHIELD),
    ),
    "privgen/metrics/visibility.py": (
        ("return lightness * texture", "return texture / lightness", VISIBILITY),
        ("_BLURS = (1.0, 2.5, 4.0)", "_BLURS = (1.0, 1.0, 1.0)", VISIBILITY),
    ),
    "privgen/training/protection/shield.py": (
        ("loss = -shift", "loss = shift", SHIELD_TRAINING),
        ("tiles.mean(dim=(3, 6))", "tiles.mean(dim=(2, 5))", SHIELD_TRAINING),
    ),
    "privgen/evaluation/protection/latents.py": (
        ("((shift, noise), (jpeg, shift))", "((noise, shift), (jpeg, shift))", LATENT_SHIFTS),
        ("_rms(moved_file - own_file)", "_rms(moved_file - own)", LATENT_SHIFTS),
    ),
}
MUTANTS = [Mutant(file, *texts) for file, entries in TABLE.items() for texts in entries]


def main(words: list[str]) -> int:
    """Try the mutants that contain all the words; return the exit code."""
    chosen = [m for m in MUTANTS if all(word in " ".join(m[:3]) for word in words)]
    if unknown := [m for m in chosen if (ROOT / m.file).read_text().count(m.old) != 1]:
        for mutant in unknown:
            print(f"{mutant.file} must contain exactly once: {mutant.old}", file=sys.stderr)
        return 1
    tests = sorted({test for mutant in chosen for test in mutant.tests.split()})
    if run_tests(None, " ".join(tests)) != 0:
        print(f"These tests do not pass or do not run on the sources as they are: {' '.join(tests)}", file=sys.stderr)
        return 1
    survivors = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for mutant, code in zip(chosen, pool.map(lambda m: run_tests(m, m.tests), chosen), strict=True):
            noticed = code == 1
            survivors += [] if noticed else [mutant]
            print(
                f"{'noticed' if noticed else f'SURVIVES ({code})'}  {mutant.file}: {mutant.old} -> {mutant.new}",
                flush=True,
            )
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants are noticed.")
    return 1 if survivors else 0


def run_tests(mutant: Mutant | None, tests: str) -> int:
    """Run tests on the sources with a mutant, or as they are; return pytest's exit code: 1 says that a test failed."""
    with TemporaryDirectory(prefix="privgen-mutant-") as folder:
        tree = Path(folder)
        copy_sources(tree)
        if mutant is not None:
            source = tree / mutant.file
            source.write_text(source.read_text().replace(mutant.old, mutant.new))
        own = {"PYTHONPATH": str(tree / "import"), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        own["PYTHONDONTWRITEBYTECODE"] = "1"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
        command += [f"tests/{test}" for test in tests.split()]
        try:
            done = subprocess.run(
                command, cwd=tree, env=os.environ | own, capture_output=True, text=True,
                timeout=None if mutant is None else LIMIT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return 1
    if done.returncode not in (0, 1) or (mutant is None and done.returncode):
        print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
    return done.returncode


def copy_sources(tree: Path) -> None:
    """Copy the Python files, link to all others, and make a folder `import` from which Python imports `privgen`."""
    for room in ROOMS:
        for folder, subfolders, files in os.walk(ROOT / room):
            subfolders[:] = [name for name in subfolders if name != "__pycache__"]
            target = tree / Path(folder).relative_to(ROOT)
            target.mkdir(parents=True, exist_ok=True)
            for name in files:
                source = Path(folder, name)
                if source.suffix == ".py":
                    copyfile(source, target / name)
                else:
                    (target / name).symlink_to(source)
    for entry in ROOT.iterdir():
        if entry.name not in (*ROOMS, ".git", ".types"):
            (tree / entry.name).symlink_to(entry)
    package = tree / "import" / "privgen"
    package.mkdir(parents=True)
    for part in [*(tree / "privgen").iterdir(), *(tree / room for room in ("pipelines", "attacks", "cli"))]:
        (package / part.name).symlink_to(part)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
