"""Which auxiliary head suits a base model? Train all candidates at once on a part of the images, and rank them by discrepancy.

No label is needed: the more a head's representation differs from the base's, the more the base has been seen to learn from it.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from hssl_hf.config.recipe import Recipe, RecipeError
from hssl_hf.data.files import write_below
from hssl_hf.errors import UserError
from hssl_hf.fields import Depth, PositiveFraction, check
from hssl_hf.models.configuration_head_search import FAMILIES, HeadSearchConfig
from hssl_hf.models.configuration_hssl import HSSLConfig
from hssl_hf.runs.metric_logger import LOG, read_log
from hssl_hf.visualization.curves import png_of, points_of, scale

RANKING, FIGURE, WINNER = "ranking.json", "ranking.png", "winner.yaml"
DEPTH = 1  # as where the paper compares heads: one block each, whatever depth the winner will have
LAST = 0.2  # fraction of the training over which the discrepancy is averaged; ours
WINDOWS = 5  # of the second half of the training, whose orders are compared; ours


@dataclass(frozen=True)
class Candidate:
    """A head with its discrepancy from the base, in nats.

    Args:
        discrepancy, spread: mean and standard deviation over the last lines of the log.
        windows: means over consecutive parts of the second half of the log; empty where it has too few lines.
    """

    family: str
    discrepancy: float
    spread: float
    windows: tuple[float, ...] = ()


def search_recipe(recipe: Recipe, candidates: list[str] | None, data_fraction: float, depth: int = DEPTH) -> Recipe:
    """The recipe of a search for the head of another recipe.

    Args:
        recipe: of HSSL, whose `model.auxiliary` is to be found.
        candidates: families; None for all.
        data_fraction: of the images, between 0 and 1.
        depth: blocks of every candidate.
    Raises:
        RecipeError: if the recipe is of another method.
        FieldError: for a fraction or depth out of its range.
    """
    if recipe.model_type() != HSSLConfig.model_type:
        raise RecipeError(f"heads can be searched only for HSSL, got model.model_type={recipe.model_type()!r}")
    data_fraction, depth = check(PositiveFraction, data_fraction, "data_fraction"), check(Depth, depth, "depth")
    replaced = {"auxiliary", "auxiliary_connection", "model_type"}
    if recipe.model.get("auxiliary", "") is None:
        replaced.add("cls_supervision")
    model = {"model_type": HeadSearchConfig.model_type}
    model |= {key: value for key, value in recipe.model.items() if key not in replaced} | {"auxiliary_depth": depth}
    if candidates:
        model["candidates"] = candidates
    return replace(
        recipe,
        model=model,
        data=replace(recipe.data, fraction=data_fraction * recipe.data.fraction),
        probe=replace(recipe.probe, path=None),
        run=replace(recipe.run, export=False, logging_steps=max(1, round(data_fraction * recipe.run.logging_steps))),
    )


def rank(folder: Path) -> list[Candidate]:
    """Candidates of a finished search by decreasing discrepancy.

    Source: HSSL, equation 8.
    Differs: the paper computes the discrepancies after the training; here they are means over the last fifth of the log, on
        training images, whose spread shows whether the order is settled.
    Raises:
        UserError: if the log has no discrepancies.
    """
    lines, candidates = read_log(folder / LOG), []
    for family in FAMILIES:
        values = [value for _, value in points_of(lines, f"discrepancy_{family}")]
        if values:
            last, size = values[-max(1, round(LAST * len(values))) :], len(values) // (2 * WINDOWS)
            windows = [values[len(values) - size * number :][:size] for number in range(WINDOWS, 0, -1)] if size else []
            spread = stdev(last) if len(last) > 1 else 0.0
            candidates.append(Candidate(family, mean(last), spread, tuple(map(mean, windows))))
    if not candidates:
        raise UserError(f"{folder} holds no search: its log has no discrepancy of a candidate")
    return sorted(candidates, key=lambda candidate: -candidate.discrepancy)


def unsettled(ranking: list[Candidate]) -> str | None:
    """Why the first of a ranking may not stay the first in a longer search; None where nothing indicates that."""
    first, *others = ranking
    if not others or not first.windows:
        return f"the log has too few lines; {2 * WINDOWS} are needed to see where the curves go"
    for rival in others:
        leads = sum(a > b for a, b in zip(first.windows, rival.windows, strict=True))
        if leads < WINDOWS:
            return (
                f"curves cross: {first.family} is ahead of {rival.family} in {leads} of {WINDOWS} intervals of its second half"
            )
        gap, before = (first.windows[index] - rival.windows[index] for index in (-1, 0))
        if gap < (before - gap):
            return (
                f"{rival.family} is catching up with {first.family}, and would overtake it if the search ran half as long again"
            )
    if first.discrepancy - others[0].discrepancy < first.spread + others[0].spread:
        return f"{first.family} leads {others[0].family} by less than both vary between lines of the log"
    return None


def report(folder: Path, recipe: Recipe) -> str:
    """Write ranking, figure and a recipe with the winner into the folder of a search; returns a table for the screen.

    Args:
        recipe: the one whose head was searched.
    """
    ranking = rank(folder)
    write_below(folder, RANKING, json.dumps([asdict(candidate) for candidate in ranking], indent=1) + "\n")
    _draw(folder, ranking)
    winner = replace(recipe, model={**recipe.model, "auxiliary": ranking[0].family}, run=replace(recipe.run, output_dir=None))
    winner.save(folder / WINNER)
    lines = ["auxiliary head   discrepancy (nats)"]
    lines += [f"{number}. {c.family:13s} {c.discrepancy:8.4f} ± {c.spread:.4f}" for number, c in enumerate(ranking, 1)]
    if reason := unsettled(ranking):
        best = " ".join(f"--candidates {candidate.family}" for candidate in ranking[:2])
        lines += [
            "",
            f"not settled: {reason}.",
            f"Search again on more images (--data-fraction), or among fewer heads ({best}).",
        ]
    else:
        lines += ["", f"settled: {ranking[0].family} leads throughout the second half of the search"]
    lines += ["", f"curves   {folder / FIGURE}", f"winner   hssl-hf pretrain {folder / WINNER}"]
    return "\n".join(lines)


def _draw(folder: Path, ranking: list[Candidate]) -> None:
    """The ranking, and the discrepancies over time."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    bars, curves = figure.subplots(1, 2, width_ratios=(1, 1.5))
    lines, values = read_log(folder / LOG), []
    for candidate in ranking:
        bars.barh(candidate.family, candidate.discrepancy, xerr=candidate.spread)
        steps, discrepancies = zip(*points_of(lines, f"discrepancy_{candidate.family}"), strict=True)
        curves.plot(steps, discrepancies, label=candidate.family, linewidth=1.2)
        values += discrepancies
    bars.invert_yaxis()
    bars.set(title="discrepancy at the end (nats)")
    curves.set(title="discrepancy from the base (nats)", xlabel="step", yscale=scale(values))
    curves.grid(alpha=0.25)
    curves.legend(fontsize=7)
    write_below(folder, FIGURE, png_of(figure))
