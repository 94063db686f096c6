"""How often the verdict is wrong, in simulated audits of models whose truth is known.

`python -m unerase_backend.verdict.simulation` prints, for each truth, the share of audits with a wrong conclusion and
the share with the right one, at 24, 48 and 96 cases. An audit is a battery of five evaluations (standard prompt,
noise-based best of 24, diffusion completion best of 8, textual inversion, UnlearnDiffAtk best of 11) and the
likelihood. The simulation starts from decided cases: it draws each case of each model at its rate, and then applies the
same bounds, tests, outcome rule and decision as a real audit, with the default tolerances. With `--judges` it compares
ways to decide a case, and audits beside placebos or without a control. With `--sequential` the audits stop an
evaluation when it is settled (except the two attacks that learn once over all cases), and the share of cases that ran
is printed as well.

The assumptions are those under which errors are largest. Cases of subject, reference and control are independent; real
pairs share their noise, so that fewer of them are discordant. The selector errs together with the judges who decide, so
that a best of N detects the concept if any of its N pictures does. Log ratios of the likelihood are skewed (a shifted
exponential of standard deviation 0.3 on the concept's pictures, 0.1 on others), and a percentile bootstrap is weakest
there; there is no general damage. One assumption is the best case: unless the table says otherwise, the errors of judge
and second judge are independent, so that both err on a picture with the square of the rate of one. If they share a
part s of their errors, both err with f (s + (1 - s) f). Where the concept is shown, both see it. A placebo is never
shown, and the judges err on it as on the concept; it lacks four of the eight draws of diffusion completion.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unerase._files import write_whole
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.verdicts_pb2 import Conclusion, Knowledge, Outcome
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.verdict import paired, statistics
from unerase_backend.verdict.decision import Tolerances, decide
from unerase_backend.verdict.knowledge import of_bounds
from unerase_backend.verdict.outcomes import outcome_codes
from unerase_backend.verdict.sequential import LOOK_EVERY, anytime_bounds, anytime_p, log_wealth
from unerase_backend.verdict.simulated_models import COMPARED, TRUTHS, Truth

BATTERY = {
    "standard-prompt": 1,
    "noise-based": 24,
    "diffusion-completion": 8,
    "textual-inversion": 1,
    "unlearn-diff-atk": 11,
}
"""The simulated evaluations, with the draws that compete in each case."""

PLAIN = "standard-prompt"
"""The evaluation that gives the model only the prompt."""

INJECTING = ("diffusion-completion", "textual-inversion")
"""The evaluations that give the model something of the concept, or of the placebo."""

UNCOMPARED = {"diffusion-completion": 4}
"""The draws of an evaluation that begin from the reference, which placebos cannot have."""

WHOLE = ("textual-inversion", "unlearn-diff-atk")
"""The evaluations that learn once over all cases, so that they cannot be stopped early."""

CASES = (24, 48, 96)
FALSE_POSITIVES = (0.0, 0.01, 0.03)
CONCEPT_PICTURES, OTHER_PICTURES = 32, 72
CONCEPT_SPREAD, OTHER_SPREAD = 0.3, 0.1
RESAMPLES = 1000


@dataclass(frozen=True)
class Conditions:
    """How an audit is done."""

    cases: int
    false_positive: float
    """The rate at which one judge sees the concept in a picture without it."""
    both: bool = True
    """Judge and second judge decide a case together, not the judge alone."""
    shared: float = 0.0
    """The part of a judge's false positives that the second judge has in common with it."""
    control: Literal["model", "placebo", "none"] = "model"
    evaluations: tuple[str, ...] = tuple(BATTERY)
    tolerance: float | None = None
    """Of the excess; None for the default at this number of cases."""

    @property
    def wrong_picture(self) -> float:
        """The chance that those who decide see the concept in a picture without it."""
        second = self.shared + (1 - self.shared) * self.false_positive if self.both else 1.0
        return self.false_positive * second

    @property
    def tolerances(self) -> Tolerances:
        """The tolerances of such an audit."""
        spec = AuditSpec(cases=self.cases)
        if self.tolerance is not None:
            spec.tolerances.excess = self.tolerance
        return Tolerances.of(spec)

    @property
    def draws(self) -> tuple[int, ...]:
        """The draws that decide a case in each evaluation, where a control has them as well."""
        missing = UNCOMPARED if self.control == "placebo" else {}
        return tuple(BATTERY[name] - missing.get(name, 0) for name in self.evaluations)

    @property
    def excess(self) -> NDArray[np.float64]:
        """The tolerance of each evaluation's excess, (evaluations,)."""
        return np.array([self.tolerances.excess_of(BATTERY[name]) for name in self.evaluations])

    def of(self, rates: Sequence[float]) -> NDArray[np.float64]:
        """Return the rates of this audit's evaluations, from those of the whole battery."""
        return np.array([rate for name, rate in zip(BATTERY, rates, strict=True) if name in self.evaluations])


def detection_rates(shown: Sequence[float], conditions: Conditions) -> NDArray[np.float64]:
    """Return the chance that a case is detected: it shows the concept, or any of its draws is a false positive."""
    return 1 - (1 - conditions.of(shown)) * (1 - conditions.wrong_picture) ** np.array(conditions.draws)


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
    truth: Truth, conditions: Conditions, bounds: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return the conclusions of `len(bounds)` audits; `bounds` is a pool from `destruction_bounds`."""
    cases = conditions.cases
    subject, reference, control = _hits(truth, conditions, len(bounds), generator)
    if conditions.control != "none":
        only_subject, only_control, only_reference, not_reference = _counts(subject, reference, control)
        bounded = _bounded(only_subject, only_control, conditions)
        informative = only_reference >= paired.bounded_below(0.0, cases)[not_reference]
        recovers = statistics.holm(statistics.mcnemar_p(only_subject, only_control)) < statistics.ALPHA
        recovers &= ~_injected(control.sum(-1), cases, conditions)
    else:
        bounded = statistics.clopper_pearson_upper(subject.sum(-1), cases) < conditions.excess
        informative = statistics.clopper_pearson_lower(reference.sum(-1), cases) > conditions.excess
        recovers = np.zeros_like(bounded)
    loud = _loud(subject.sum(-1), cases, conditions)
    if conditions.control == "placebo":
        bounded &= ~_seen(control.sum(-1), cases, conditions) | ~loud | np.isin(conditions.evaluations, INJECTING)
        unbounded = _loud(uncompared_hits(truth, conditions, len(bounds), generator), cases, conditions)
        bounded &= ~unbounded
        loud |= unbounded
    return _conclusions(outcome_codes(informative, recovers, bounded), loud, truth, conditions, bounds, generator)


def simulate_sequential(
    truth: Truth, conditions: Conditions, bounds: NDArray[np.float64], generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the conclusions of audits that stop settled evaluations, and the cases that each evaluation ran.

    Shapes (audits,) and (audits, evaluations). The draws are those of `simulate` with the same generator.

    Raises:
        ValueError: the control is not a model, and its conditions at each look are not simulated.
    """
    if conditions.control != "model":
        raise ValueError(f"sequential audits are simulated beside a control model, not {conditions.control!r}")
    cases, tests = conditions.cases, len(conditions.evaluations)
    subject, reference, control = _hits(truth, conditions, len(bounds), generator)
    looks = np.unique(np.append(np.arange(LOOK_EVERY, cases, LOOK_EVERY), cases))
    # Counts up to each look, (audits, evaluations, looks).
    pairs = (*_pairs(subject, reference, control), subject, control)
    up_to_looks = [each.cumsum(-1)[..., looks - 1] for each in pairs]
    only_subject, only_control, only_reference, not_reference, _, of_control = up_to_looks
    enough = -np.log(statistics.ALPHA)
    recovers = _each_once(anytime_p, only_subject, only_control) * tests < statistics.ALPHA
    recovers &= ~np.moveaxis(_injected(np.moveaxis(of_control, -1, 1), looks[:, None], conditions), 1, -1)
    wealth = [
        _each_once(partial(log_wealth, excess=excess), only_subject[:, at], only_control[:, at], looks)
        for at, excess in enumerate(conditions.excess)
    ]
    bounded = np.stack(wealth, axis=1) > enough
    informative = _each_once(partial(log_wealth, excess=0.0), not_reference, only_reference, looks) > enough
    whole = np.array([name in WHOLE for name in conditions.evaluations])
    settled = informative & (recovers | bounded) & ~whole[:, None]
    settled[..., -1] = True
    stop = settled.argmax(-1)[..., None]
    counts = [np.take_along_axis(each, stop, -1)[..., 0] for each in up_to_looks]
    run = looks[stop[..., 0]]
    lower = _each_once(lambda *each: anytime_bounds(*each)[0], counts[2], counts[3], run)
    upper = _each_once(lambda *each: anytime_bounds(*each)[1], counts[0], counts[1], run)
    fixed = _bounded(counts[0], counts[1], conditions)
    fixed_informative = counts[2] >= paired.bounded_below(0.0, cases)[counts[3]]
    p = np.where(whole, statistics.mcnemar_p(counts[0], counts[1]), anytime_p(counts[0], counts[1]))
    outcomes = outcome_codes(
        np.where(whole, fixed_informative, lower > 0),
        (statistics.holm(p) < statistics.ALPHA) & ~_injected(counts[5], run, conditions),
        np.where(whole, fixed, upper < conditions.excess),
    )
    loud = _loud(counts[4], run, conditions)
    return _conclusions(outcomes, loud, truth, conditions, bounds, generator), run


def _bounded(
    only_subject: NDArray[np.int64], only_control: NDArray[np.int64], conditions: Conditions
) -> NDArray[np.bool_]:
    """Whether the exact bound of each evaluation's excess is under its tolerance; counts (audits, evaluations)."""
    least = np.stack([paired.bounded_below(excess, conditions.cases) for excess in conditions.excess])
    return only_control >= least[np.arange(len(least)), only_subject]


def _loud(hits: NDArray[np.int64], cases: int | NDArray[np.int64], conditions: Conditions) -> NDArray[np.bool_]:
    """Whether the subject's own rate is not bounded under the tolerance; hits (audits, evaluations)."""
    return np.asarray(statistics.clopper_pearson_upper(hits, cases) >= conditions.excess)


def _seen(hits: NDArray[np.int64], cases: int | NDArray[np.int64], conditions: Conditions) -> NDArray[np.bool_]:
    """Whether the control's own rate is above the tolerance; hits (audits, evaluations)."""
    return np.asarray(hits > cases * conditions.excess)


def _injected(hits: NDArray[np.int64], cases: int | NDArray[np.int64], conditions: Conditions) -> NDArray[np.bool_]:
    """Whether an injecting evaluation brings the concept into the control; hits (audits, evaluations)."""
    return _seen(hits, cases, conditions) & np.isin(conditions.evaluations, INJECTING)


def _each_once(function: Callable[..., NDArray[np.float64]], *counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Apply a function to counts, which broadcast; each distinct combination is computed once."""
    stacked = np.stack(np.broadcast_arrays(*counts))
    found, place = np.unique(stacked.reshape(len(counts), -1), axis=1, return_inverse=True)
    values: NDArray[np.float64] = function(*found)[place].reshape(stacked.shape[1:])
    return values


def _hits(
    truth: Truth, conditions: Conditions, audits: int, generator: np.random.Generator
) -> tuple[NDArray[np.bool_], ...]:
    """Draw every case of subject, reference and control: (audits, evaluations, cases) each."""
    shape = (audits, len(conditions.evaluations), conditions.cases)
    return tuple(
        generator.random(shape) < detection_rates(shown, conditions)[:, None]
        for shown in (truth.subject, truth.reference, (0.0,) * len(BATTERY))
    )


def uncompared_hits(
    truth: Truth, conditions: Conditions, audits: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the cases that the subject shows in the draws that placebos lack: (audits, evaluations)."""
    draws = np.array([UNCOMPARED.get(name, 0) for name in conditions.evaluations])
    quiet = (1 - conditions.of(truth.subject)) * (1 - conditions.wrong_picture) ** draws
    hits: NDArray[np.int64] = generator.binomial(
        conditions.cases, np.where(draws, 1 - quiet, 0.0), (audits, len(draws))
    )
    return hits


def _pairs(
    subject: NDArray[np.bool_], reference: NDArray[np.bool_], control: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], ...]:
    """Return what only the subject and only the control shows, then the same for reference and control."""
    return subject & ~control, control & ~subject, reference & ~control, control & ~reference


def _counts(*models: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    return [each.sum(-1) for each in _pairs(*models)]


def _conclusions(
    outcomes: NDArray[np.int64],
    loud: NDArray[np.bool_],
    truth: Truth,
    conditions: Conditions,
    bounds: NDArray[np.float64],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    tolerance, named = Tolerances().destruction, conditions.evaluations
    shifted = bounds[generator.permutation(len(bounds))] + truth.destruction
    return np.array(
        [
            _decide(named, tuple(map(int, row)), tuple(map(bool, of_row)), of_bounds(lower, high, tolerance))
            for row, of_row, (lower, high) in zip(outcomes, loud, shifted, strict=True)
        ]
    )


@cache
def _decide(
    evaluations: tuple[str, ...], outcomes: tuple[int, ...], loud: tuple[bool, ...], knowledge: Knowledge.ValueType
) -> int:
    named = {name: Outcome.ValueType(code) for name, code in zip(evaluations, outcomes, strict=True)}
    heard = [name for name, is_loud in zip(evaluations, loud, strict=True) if is_loud]
    return decide(incomplete=False, outcomes=named, plain=[PLAIN], required=BATTERY, knowledge=knowledge, loud=heard)


def _ways() -> Iterator[tuple[Truth, str, Conditions]]:
    """Yield the rows of the table of judges: a truth, the conditions in words, and the conditions at any case count."""
    for truth in (TRUTHS[place] for place in COMPARED):
        for false_positive in (0.005, 0.01):
            rate = f"{100 * false_positive:g} %"
            base = Conditions(0, false_positive)
            yield truth, f"{rate}, the judge decides", replace(base, both=False)
            for shared in (0.0, 0.25, 0.5):
                yield truth, f"{rate}, both, {100 * shared:.0f} % shared", replace(base, shared=shared)
            yield truth, f"{rate}, both, 0 % shared, placebo", replace(base, control="placebo")
            yield truth, f"{rate}, both, 0 % shared, no control", replace(base, control="none")


def _rows(of_judges: bool) -> Iterator[tuple[Truth, str, Conditions]]:
    if of_judges:
        yield from _ways()
        return
    for truth in TRUTHS:
        for false_positive in FALSE_POSITIVES:
            yield truth, f"{100 * false_positive:.0f} %", Conditions(0, false_positive)


def table(audits: int, seed_base: int, *, of_judges: bool = False, sequential: bool = False) -> str:
    """Return a table as Markdown: shares of `audits` audits in %, errors with Wilson's 95 % interval.

    The last columns are the undecided audits, or of `sequential` ones the share of cases that ran.
    """
    bounds = destruction_bounds(audits, np.random.default_rng(derive_seed(seed_base, "likelihood")))
    last = "cases run" if sequential else "inconclusive or uninformative"
    head = ["truth", "false positives a picture" + (", who decides" if of_judges else "")]
    head += [f"{kind}, {cases}" for kind in ("wrong", "right", last) for cases in CASES]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for truth, words, conditions in _rows(of_judges):
        cells: list[list[str]] = [[], [], []]
        for cases in CASES:
            at = replace(conditions, cases=cases)
            generator = np.random.default_rng(derive_seed(seed_base, truth.name, cases, words))
            if sequential:
                conclusions, run = simulate_sequential(truth, at, bounds, generator)
                cells[2].append(f"{100 * run.mean() / cases:.0f}")
            else:
                conclusions = simulate(truth, at, bounds, generator)
                open_ended = (Conclusion.CONCLUSION_INCONCLUSIVE, Conclusion.CONCLUSION_UNINFORMATIVE)
                cells[2].append(f"{100 * np.mean(np.isin(conclusions, open_ended)):.1f}")
            errors = int(np.isin(conclusions, list(truth.wrong)).sum())
            lower, upper = statistics.wilson(errors, audits)
            cells[0].append(f"{100 * errors / audits:.1f} ({100 * float(lower):.1f} to {100 * float(upper):.1f})")
            cells[1].append(f"{100 * np.mean(conclusions == truth.right):.1f}")
        lines.append("| " + " | ".join([truth.name, words, *cells[0], *cells[1], *cells[2]]) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the simulation from the command line."""
    parser = argparse.ArgumentParser(prog="python -m unerase_backend.verdict.simulation", description=__doc__)
    parser.add_argument("--audits", type=int, default=2000, help="number of audits for each cell (default 2000)")
    parser.add_argument("--seed-base", type=int, default=0, help="seed that all others derive from (default 0)")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--judges", action="store_true", help="compare ways to decide a case, and audits of no control")
    parser.add_argument("--sequential", action="store_true", help="simulate audits that stop settled evaluations")
    options = parser.parse_args(arguments)
    if options.judges and options.sequential:
        parser.error("--judges and --sequential are tables of their own")
    text = table(options.audits, options.seed_base, of_judges=options.judges, sequential=options.sequential)
    if options.out is not None:
        write_whole(options.out, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
