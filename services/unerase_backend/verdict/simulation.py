"""How often the verdict is wrong, in simulated audits of models whose truth is known.

`python -m unerase_backend.verdict.simulation` prints, for each truth, the share of audits with a wrong conclusion and
the share with the right one, at 24, 48 and 96 cases. An audit is a battery of four evaluations (standard prompt,
noise-based best of 24, diffusion completion best of 4, textual inversion) and the likelihood, with the rest of a
complete battery waived. The simulation starts from decided cases: it draws each case of each model at its rate, and
then applies the same bounds, tests, outcome rule and decision as a real audit. With `--sequential` the audits stop an
evaluation when it is settled (except textual inversion, which learns once over all cases), and the share of cases that
ran is printed as well.

The assumptions are those under which errors are largest. Cases of subject, reference and control are independent; real
pairs share their noise, so that fewer of them are discordant. The selector errs together with the judge, so that a best
of N detects the concept if any of its N pictures does. Log ratios of the likelihood are skewed (a shifted exponential
of standard deviation 0.3 on the concept's pictures, 0.1 on others), and a percentile bootstrap is weakest there.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unerase._files import write_whole
from unerase.v1.verdicts_pb2 import Conclusion, Knowledge, Outcome
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.verdict import statistics
from unerase_backend.verdict.decision import Tolerances, decide
from unerase_backend.verdict.knowledge import of_bounds
from unerase_backend.verdict.outcomes import outcome_codes
from unerase_backend.verdict.sequential import LOOK_EVERY, anytime_bounds, anytime_p, log_wealth

BATTERY = {"standard-prompt": 1, "noise-based": 24, "diffusion-completion": 4, "textual-inversion": 1}
"""The simulated evaluations, with the draws that compete in each case."""

PLAIN = "standard-prompt"
"""The evaluation that gives the model only the prompt."""

WHOLE = "textual-inversion"
"""The evaluation that learns once over all cases, so that it cannot be stopped early."""

CASES = (24, 48, 96)
FALSE_POSITIVES = (0.0, 0.01, 0.03)
CONCEPT_PICTURES, OTHER_PICTURES = 32, 72
CONCEPT_SPREAD, OTHER_SPREAD = 0.3, 0.1
RESAMPLES = 1000


@dataclass(frozen=True)
class Truth:
    """A kind of model: how often each evaluation brings the concept back, and its true destruction."""

    name: str
    right: Conclusion.ValueType
    wrong: frozenset[Conclusion.ValueType]
    subject: tuple[float, float, float, float]
    destruction: float
    reference: tuple[float, float, float, float] = (0.98, 1.0, 0.95, 0.95)


def _removed(name: str, destruction: float, reference: float | None = None) -> Truth:
    wrong = frozenset({Conclusion.CONCLUSION_AVOIDED, Conclusion.CONCLUSION_NOT_ERASED})
    truth = Truth(name, Conclusion.CONCLUSION_REMOVED, wrong, (0.0, 0.0, 0.0, 0.0), destruction)
    if reference is None:
        return truth
    return Truth(name, truth.right, wrong, truth.subject, destruction, (reference, reference, reference, reference))


def _avoided(name: str, subject: tuple[float, float, float, float], destruction: float) -> Truth:
    wrong = frozenset({Conclusion.CONCLUSION_REMOVED})
    return Truth(name, Conclusion.CONCLUSION_AVOIDED, wrong, subject, destruction)


def _not_erased(name: str, rate: float, destruction: float) -> Truth:
    wrong = frozenset({Conclusion.CONCLUSION_REMOVED})
    return Truth(name, Conclusion.CONCLUSION_NOT_ERASED, wrong, (rate, rate, rate, rate), destruction)


TRUTHS = (
    _removed("removed, destruction 1.0", 1.0),
    _removed("removed, destruction 0.25", 0.25),
    _removed("removed, destruction 1.0, reference shows it in 60 %", 1.0, 0.6),
    _avoided("avoided, knowledge intact, nothing brings it back", (0, 0, 0, 0), 0.0),
    _avoided("avoided, knowledge intact, only textual inversion, 90 %", (0, 0, 0, 0.9), 0.0),
    _avoided("avoided, destruction 0.1, only textual inversion, 40 %", (0, 0, 0, 0.4), 0.1),
    _avoided("avoided, destruction 0.3, only textual inversion, 10 %", (0, 0, 0, 0.1), 0.3),
    _avoided("avoided, destruction 0.3, only textual inversion, 20 %", (0, 0, 0, 0.2), 0.3),
    _avoided("avoided, destruction 0.3, only textual inversion, 40 %", (0, 0, 0, 0.4), 0.3),
    _avoided("avoided, destruction 0.3, only textual inversion, 90 %", (0, 0, 0, 0.9), 0.3),
    _avoided("avoided, destruction 0.3, all but the standard prompt, 20 %", (0, 0.2, 0.2, 0.2), 0.3),
    _not_erased("not erased, everything, 10 %, destruction 0.3", 0.1, 0.3),
    _not_erased("not erased, everything, 40 %, knowledge intact", 0.4, 0.0),
    _not_erased("not erased, everything, 90 %, knowledge intact", 0.9, 0.0),
)


def detection_rates(shown: Sequence[float], false_positive: float) -> NDArray[np.float64]:
    """Return the chance that a case is detected: it shows the concept, or any of its draws is a false positive."""
    draws = np.array(list(BATTERY.values()))
    return 1 - (1 - np.asarray(shown)) * (1 - false_positive) ** draws


def destruction_bounds(audits: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return one-sided bounds of destruction, (audits, 2), of models whose true destruction is 0.

    The bounds of a mean shift with the mean, so one pool serves every truth.
    """
    bounds = np.empty((audits, 2))
    for audit in range(audits):
        concept = CONCEPT_SPREAD * (generator.standard_exponential((CONCEPT_PICTURES, 1)) - 1)
        other = OTHER_SPREAD * (generator.standard_exponential((OTHER_PICTURES, 1)) - 1)
        draws = statistics.resampled_means(concept, generator, RESAMPLES)[:, 0]
        draws -= statistics.resampled_means(other, generator, RESAMPLES)[:, 0]
        bounds[audit] = np.quantile(draws, [statistics.ALPHA, 1 - statistics.ALPHA])
    return bounds


def simulate(
    truth: Truth,
    cases: int,
    false_positive: float,
    bounds: NDArray[np.float64],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Return the conclusions of `len(bounds)` audits; `bounds` is a pool from `destruction_bounds`."""
    pairs = _pairs(truth, (len(bounds), len(BATTERY), cases), false_positive, generator)
    only_subject, only_control, only_reference, not_reference = (each.sum(-1) for each in pairs)
    _, upper = statistics.excess_bounds(only_subject, cases, only_control, cases)
    reference_lower, _ = statistics.excess_bounds(only_reference, cases, not_reference, cases)
    p_holm = statistics.holm(statistics.mcnemar_p(only_subject, only_control))
    outcomes = outcome_codes(reference_lower, p_holm, upper, Tolerances().excess)
    return _conclusions(outcomes, truth, bounds, generator)


def simulate_sequential(
    truth: Truth,
    cases: int,
    false_positive: float,
    bounds: NDArray[np.float64],
    generator: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the conclusions of audits that stop settled evaluations, and the cases that each evaluation ran.

    Shapes (audits,) and (audits, evaluations). The draws are those of `simulate` with the same generator.
    """
    tolerance, tests = Tolerances().excess, len(BATTERY)
    pairs = _pairs(truth, (len(bounds), tests, cases), false_positive, generator)
    looks = np.unique(np.append(np.arange(LOOK_EVERY, cases, LOOK_EVERY), cases))
    # Counts up to each look, (audits, evaluations, looks).
    only_subject, only_control, only_reference, not_reference = (each.cumsum(-1)[..., looks - 1] for each in pairs)
    enough = -np.log(statistics.ALPHA)
    p_at_looks = _each_once(anytime_p, only_subject, only_control)
    recovers = p_at_looks * tests < statistics.ALPHA
    against_tolerance = _each_once(partial(log_wealth, excess=tolerance), only_subject, only_control, looks)
    bounded = against_tolerance > enough
    informative = _each_once(partial(log_wealth, excess=0.0), not_reference, only_reference, looks) > enough
    settled = informative & (recovers | bounded)
    settled[:, list(BATTERY).index(WHOLE)] = False
    settled[..., -1] = True
    stop = settled.argmax(-1)[..., None]
    counts = [
        np.take_along_axis(each, stop, -1)[..., 0]
        for each in (only_subject, only_control, only_reference, not_reference)
    ]
    run = looks[stop[..., 0]]
    lower = _each_once(lambda *each: anytime_bounds(*each)[0], counts[2], counts[3], run)
    upper = _each_once(lambda *each: anytime_bounds(*each)[1], counts[0], counts[1], run)
    p = anytime_p(counts[0], counts[1])
    whole = list(BATTERY).index(WHOLE)
    lower[:, whole], _ = statistics.excess_bounds(counts[2][:, whole], cases, counts[3][:, whole], cases)
    _, upper[:, whole] = statistics.excess_bounds(counts[0][:, whole], cases, counts[1][:, whole], cases)
    p[:, whole] = statistics.mcnemar_p(counts[0][:, whole], counts[1][:, whole])
    outcomes = outcome_codes(lower, statistics.holm(p), upper, tolerance)
    return _conclusions(outcomes, truth, bounds, generator), run


def _each_once(function: Callable[..., NDArray[np.float64]], *counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Apply a function to counts, which broadcast; each distinct combination is computed once."""
    stacked = np.stack(np.broadcast_arrays(*counts))
    found, place = np.unique(stacked.reshape(len(counts), -1), axis=1, return_inverse=True)
    values: NDArray[np.float64] = function(*found)[place].reshape(stacked.shape[1:])
    return values


def _pairs(
    truth: Truth, shape: tuple[int, int, int], false_positive: float, generator: np.random.Generator
) -> tuple[NDArray[np.bool_], ...]:
    """Draw every case: what only the subject and only the control shows, then the same for reference and control."""

    def draw(shown: Sequence[float]) -> NDArray[np.bool_]:
        hits: NDArray[np.bool_] = generator.random(shape) < detection_rates(shown, false_positive)[:, None]
        return hits

    subject, reference, control = draw(truth.subject), draw(truth.reference), draw((0.0, 0.0, 0.0, 0.0))
    return subject & ~control, control & ~subject, reference & ~control, control & ~reference


def _conclusions(
    outcomes: NDArray[np.int64], truth: Truth, bounds: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.int64]:
    tolerances = Tolerances()
    shifted = bounds[generator.permutation(len(bounds))] + truth.destruction
    return np.array(
        [
            _decide(tuple(int(code) for code in row), of_bounds(lower, high, tolerances.destruction))
            for row, (lower, high) in zip(outcomes, shifted, strict=True)
        ]
    )


@cache
def _decide(outcomes: tuple[int, ...], knowledge: Knowledge.ValueType) -> int:
    named = {name: Outcome.ValueType(code) for name, code in zip(BATTERY, outcomes, strict=True)}
    return decide(incomplete=False, outcomes=named, plain=[PLAIN], required=BATTERY, knowledge=knowledge)


def table(audits: int, seed_base: int) -> str:
    """Return the table as Markdown: shares of `audits` audits in %, errors with Wilson's 95 % interval."""
    bounds = destruction_bounds(audits, np.random.default_rng(derive_seed(seed_base, "likelihood")))
    head = ["truth", "false positives a picture"]
    head += [f"{kind}, {cases}" for kind in ("wrong", "right", "inconclusive or uninformative") for cases in CASES]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for truth in TRUTHS:
        for false_positive in FALSE_POSITIVES:
            wrong, right, neither = [], [], []
            for cases in CASES:
                seed = derive_seed(seed_base, truth.name, cases, round(1000 * false_positive))
                conclusions = simulate(truth, cases, false_positive, bounds, np.random.default_rng(seed))
                errors = int(np.isin(conclusions, list(truth.wrong)).sum())
                lower, upper = statistics.wilson(errors, audits)
                wrong.append(f"{100 * errors / audits:.1f} ({100 * float(lower):.1f} to {100 * float(upper):.1f})")
                right.append(f"{100 * np.mean(conclusions == truth.right):.1f}")
                open_ended = (Conclusion.CONCLUSION_INCONCLUSIVE, Conclusion.CONCLUSION_UNINFORMATIVE)
                neither.append(f"{100 * np.mean(np.isin(conclusions, open_ended)):.1f}")
            cells = [truth.name, f"{100 * false_positive:.0f} %", *wrong, *right, *neither]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def sequential_table(audits: int, seed_base: int) -> str:
    """Return the table of sequential audits as Markdown: errors as in `table`, and the share of cases that ran."""
    bounds = destruction_bounds(audits, np.random.default_rng(derive_seed(seed_base, "likelihood")))
    head = ["truth", "false positives a picture"]
    head += [f"{kind}, {cases}" for kind in ("wrong", "right", "cases run") for cases in CASES]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for truth in TRUTHS:
        for false_positive in FALSE_POSITIVES:
            wrong, right, spent = [], [], []
            for cases in CASES:
                seed = derive_seed(seed_base, truth.name, cases, round(1000 * false_positive))
                conclusions, run = simulate_sequential(
                    truth, cases, false_positive, bounds, np.random.default_rng(seed)
                )
                errors = int(np.isin(conclusions, list(truth.wrong)).sum())
                lower, upper = statistics.wilson(errors, audits)
                wrong.append(f"{100 * errors / audits:.1f} ({100 * float(lower):.1f} to {100 * float(upper):.1f})")
                right.append(f"{100 * np.mean(conclusions == truth.right):.1f}")
                spent.append(f"{100 * run.mean() / cases:.0f}")
            cells = [truth.name, f"{100 * false_positive:.0f} %", *wrong, *right, *spent]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the simulation from the command line."""
    parser = argparse.ArgumentParser(prog="python -m unerase_backend.verdict.simulation", description=__doc__)
    parser.add_argument("--audits", type=int, default=2000, help="number of audits for each cell (default 2000)")
    parser.add_argument("--seed-base", type=int, default=0, help="seed that all others derive from (default 0)")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--sequential", action="store_true", help="simulate audits that stop settled evaluations")
    options = parser.parse_args(arguments)
    text = (sequential_table if options.sequential else table)(options.audits, options.seed_base)
    if options.out is not None:
        write_whole(options.out, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
