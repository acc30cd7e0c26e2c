"""Records of a study -> table, plots, and how well the search predicts the single runs."""

import math
from collections.abc import Collection
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.figure import Figure

from hssl_hf.data.files import write_below
from hssl_hf.experiments.study import PIXELS, UNTRAINED, Study
from hssl_hf.visualization.curves import png_of

FORMATS = {"discrepancy": ".3f", "N_s": ".0f", "sIoU": ".3f", "knn_top1_auxiliary": ".2f"}  # of the last columns of `table`


class Findings:
    """Values by metric, subject and seed.

    Args:
        study: what was compared.
        records: its `Record`s as dictionaries.
    """

    def __init__(self, study: Study, records: list[dict]):
        self.study = study
        self.values: dict[tuple[str, str, int], float] = {}
        for record in records:
            metric, subject = record["metric"], record["subject"]
            if metric == "search_discrepancy":  # of one head in one of the searches
                metric, subject = subject, record["settings"]["head"]
            self.values[metric, subject, record["seed"]] = record["value"]

    def of(self, metric: str, subject: str) -> dict[int, float]:
        """Available values by seed."""
        return {seed: value for (*key, seed), value in sorted(self.values.items()) if key == [metric, subject]}

    def gains(self, variant: str) -> dict[int, float]:
        """k-NN accuracy of a variant less that of the baseline with the same seed, in percentage points."""
        base = self.of("knn_top1", self.study.baseline)
        return {seed: value - base[seed] for seed, value in self.of("knn_top1", variant).items() if seed in base}

    def rank_correlation(self, first: dict[str, dict[int, float]], second: dict[str, dict[int, float]]) -> list[float]:
        """Spearman's coefficient of two values by head and seed over all heads, one per seed that lacks none."""
        coefficients = []
        for seed in self.study.seeds:
            pair = [[values[head].get(seed) for head in self.study.heads] for values in (first, second)]
            if self.study.heads and None not in (*pair[0], *pair[1]):
                coefficients.append(spearman(*pair))
        return coefficients

    def by_head(self, metric: str) -> dict[str, dict[int, float]]:
        """A metric, or the discrepancies of a search by its name, of every head and seed."""
        return {head: self.of(metric, head) for head in self.study.heads}


def spearman(first: list[float], second: list[float]) -> float:
    """Rank correlation of two lists without ties, in [-1, 1]."""
    ranks = (np.argsort(np.argsort(values)) for values in (first, second))
    return float(np.corrcoef(*ranks)[0, 1])


def interval(values: Collection[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean of n > 1 independent values, by Student's t with n - 1 degrees of freedom.

    With t = sqrt(f) tan(angle), f degrees of freedom give the angle a density that is proportional to cos(angle)^(f - 1).
    """
    freedom, angles = len(values) - 1, np.linspace(0, math.pi / 2, 100_001)[:-1]
    mass = np.cumsum(np.cos(angles) ** (freedom - 1))
    t = math.sqrt(freedom) * math.tan(angles[np.searchsorted(mass, 0.95 * mass[-1])])
    half = t * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def table(findings: Findings) -> list[str]:
    """Lines of Markdown: references, baseline, variants; gains with their intervals over the seeds."""
    lines = ["| | k-NN (%) | seeds | gain, paired | D | N_s | sIoU | k-NN of the head |", "|---|---|---|---|---|---|---|---|"]
    for subject in (PIXELS, UNTRAINED, *findings.study.variants):
        accuracies = findings.of("knn_top1", subject)
        if not accuracies:
            continue
        gains = findings.gains(subject) if subject not in (PIXELS, UNTRAINED, findings.study.baseline) else {}
        cells = [subject, _mean(accuracies, ".2f"), ", ".join(f"{value:.2f}" for value in accuracies.values())]
        cells += [_mean(gains, "+.2f", with_interval=True)]
        cells += [_mean(findings.of(metric, subject), form) for metric, form in FORMATS.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def summary(findings: Findings) -> list[str]:
    """Lines of Markdown: accuracies of references, baseline and single heads, with the gains of the heads."""
    study = findings.study
    lines = [f"| | k-NN (%) | gain over {study.baseline}, paired | seeds |", "|---|---|---|---|"]
    for subject in (PIXELS, UNTRAINED, study.baseline, *study.heads):
        accuracies = findings.of("knn_top1", subject)
        gain = _mean(findings.gains(subject), "+.2f", with_interval=True) if subject in study.heads else "–"
        label = f"with a {subject} head" if subject in study.heads else subject
        lines.append(f"| {label} | {_mean(accuracies, '.2f')} | {gain} | {len(accuracies)} |")
    return lines


def rank_table(findings: Findings) -> list[str]:
    """Lines of Markdown: what discrepancies of single runs and of searches predict; none without records."""
    single = findings.by_head("discrepancy")
    gains = {head: findings.gains(head) for head in findings.study.heads}
    rows = {"D of the single runs": single} | {f"D in the {name}": findings.by_head(name) for name in findings.study.searches}
    lines = []
    for name, values in rows.items():
        cells = [findings.rank_correlation(values, other) if values is not other else [] for other in (single, gains)]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(map(_coefficients, cells))} |")
    heads = len(findings.study.heads)
    title = f"| rank correlation of {heads} heads, every seed | with D of the single runs | with their gains |"
    return [title, "|---|---|---|", *lines] if lines else []


def draw(findings: Findings, path: Path) -> None:
    """Gains of all variants; gains and the searches' discrepancies against the discrepancies of the single runs."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _draw_gains(left, findings)
    single, markers = findings.by_head("discrepancy"), dict(zip(findings.study.searches, cycle("o^sDv"), strict=False))
    for number, head in enumerate(findings.study.heads):
        _scatter(middle, single[head], findings.gains(head), "o", color=f"C{number}", label=head, markersize=5)
        for search, marker in markers.items():
            _scatter(right, single[head], findings.of(search, head), marker, color=f"C{number}", markersize=5)
    for search, marker in markers.items():
        right.plot([], [], marker, color="gray", label=search)
    middle.set(title="gain by discrepancy", xlabel="D of the single run (nats)", ylabel="percentage points")
    right.set(title="search and single runs", xlabel="D of the single run (nats)", ylabel="D in the search (nats)")
    for axes in (middle, right):
        axes.legend(fontsize=7, loc="upper left")
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
    write_below(path.parent, path.name, png_of(figure, dpi=90))


def _draw_gains(axes, findings: Findings) -> None:
    """A bar per variant, a dot per seed."""
    gains = {variant: list(findings.gains(variant).values()) for variant in findings.study.variants}
    bars = {variant: values for variant, values in gains.items() if values and variant != findings.study.baseline}
    for position, values in enumerate(bars.values()):
        axes.barh(position, mean(values), color="C0", alpha=0.35)
        axes.plot(values, [position] * len(values), "o", color="C0", markersize=4)
    axes.set_yticks(range(len(bars)), bars, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(title=f"k-NN less that of {findings.study.baseline}", xlabel="percentage points; a dot is a seed")


def _scatter(axes, across: dict[int, float], up: dict[int, float], marker: str, **style) -> None:
    """A point per seed that has both values."""
    seeds = sorted(across.keys() & up.keys())
    axes.plot([across[seed] for seed in seeds], [up[seed] for seed in seeds], marker, **style)


def _mean(values: dict[int, float], form: str, with_interval: bool = False) -> str:
    if not values:
        return "–"
    text = format(mean(values.values()), form)
    if not with_interval or len(values) == 1:
        return text
    low, high = interval(values.values())
    return f"{text} [{low:{form}}, {high:{form}}]"


def _coefficients(values: list[float]) -> str:
    """Rank correlations of all seeds, and the interval of their mean within its range."""
    text = ", ".join(f"{value:+.2f}" for value in values)
    if len(values) < 2:
        return text or "–"
    low, high = interval(values)
    return f"{text} [{max(low, -1):+.2f}, {min(high, 1):+.2f}]"
