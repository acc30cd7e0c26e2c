"""Records of a study -> table, plots, and how well the search foretells the single runs."""

from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.figure import Figure

from hssl_hf.study import PIXELS, SEARCH, UNTRAINED, Study

COLUMNS = (
    ("discrepancy", "D", ".3f"),
    ("N_s", "N_s", ".0f"),
    ("sIoU", "sIoU", ".3f"),
    ("knn_top1_auxiliary", "k-NN of the head", ".2f"),
)


class Findings:
    """Values by metric, subject and seed.

    Args:
        study: what was compared.
        records: its `Record`s as dictionaries.
    """

    def __init__(self, study: Study, records: list[dict]):
        self.study = study
        self.values: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for record in records:
            subject = record["settings"]["head"] if record["subject"] == SEARCH else record["subject"]
            self.values[record["metric"]][subject][record["seed"]] = record["value"]

    def of(self, metric: str, subject: str) -> dict[int, float]:
        """Values by seed, those that are there."""
        return dict(sorted(self.values[metric][subject].items()))

    def gains(self, arm: str) -> dict[int, float]:
        """k-NN accuracy of an arm less that of the baseline with the same seed, in percentage points."""
        base = self.of("knn_top1", self.study.baseline)
        return {seed: value - base[seed] for seed, value in self.of("knn_top1", arm).items() if seed in base}

    def rank_correlations(self) -> dict[str, list[float]]:
        """Spearman's coefficient over the heads, a value per seed; seeds that lack a head are left out.

        Returns:
            "gain by discrepancy": of the discrepancies of the single runs with their gains; "search": of the discrepancies in
            the search with those of the single runs; "gain by search": with their gains.
        """
        found = {"gain by discrepancy": [], "search": [], "gain by search": []}
        for seed in self.study.seeds:
            single = [self.of("discrepancy", head).get(seed) for head in self.study.heads]
            searched = [self.of("search_discrepancy", head).get(seed) for head in self.study.heads]
            gained = [self.gains(head).get(seed) for head in self.study.heads]
            pairs = ((single, gained), (searched, single), (searched, gained))
            for name, (first, second) in zip(found, pairs, strict=True):
                if self.study.heads and None not in (*first, *second):
                    found[name].append(spearman(first, second))
        return found


def spearman(first: list[float], second: list[float]) -> float:
    """Rank correlation of two lists without ties, in [-1, 1]."""
    ranks = (np.argsort(np.argsort(values)) for values in (first, second))
    return float(np.corrcoef(*ranks)[0, 1])


def table(findings: Findings) -> list[str]:
    """Lines of Markdown: references, baseline, arms."""
    lines = [
        "| | k-NN (%) | seeds | gain, paired | D | N_s | sIoU | k-NN of the head |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for subject in (PIXELS, UNTRAINED, *findings.study.arms):
        accuracies = findings.of("knn_top1", subject)
        if not accuracies:
            continue
        cells = [subject, _mean(accuracies, ".2f"), ", ".join(f"{value:.2f}" for value in accuracies.values())]
        compared = subject in findings.study.arms and subject != findings.study.baseline
        gains = findings.gains(subject) if compared else {}
        cells.append(_mean(gains, "+.2f", spread=True))
        cells += [_mean(findings.of(metric, subject), form) for metric, _, form in COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def sentences(findings: Findings) -> list[str]:
    """What discrepancies foretell, in words, as far as there are records."""
    meaning = {
        "gain by discrepancy": "discrepancies and gains of the single runs",
        "search": "discrepancies in the search and in the single runs",
        "gain by search": "discrepancies in the search and gains of the single runs",
    }
    found = {meaning[name]: values for name, values in findings.rank_correlations().items() if values}
    parts = [f"{text}: {', '.join(f'{value:+.2f}' for value in values)}" for text, values in found.items()]
    heads = len(findings.study.heads)
    return [f"Rank correlations (Spearman, {heads} heads, a value per seed) of {'; '.join(parts)}."] if parts else []


def draw(findings: Findings, path: Path) -> None:
    """Gains of all arms; gains and the search's discrepancies against the discrepancies of the single runs."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    arms = [arm for arm in findings.study.arms if arm != findings.study.baseline and findings.gains(arm)]
    for place, arm in enumerate(arms):
        gains = list(findings.gains(arm).values())
        left.barh(place, mean(gains), color="C0", alpha=0.35)
        left.plot(gains, [place] * len(gains), "o", color="C0", markersize=4)
    left.set_yticks(range(len(arms)), arms, fontsize=8)
    left.invert_yaxis()
    left.axvline(0, color="black", linewidth=0.8)
    left.set(title=f"k-NN less that of {findings.study.baseline}", xlabel="percentage points; a dot is a seed")
    for number, head in enumerate(findings.study.heads):
        single, gains, searched = (
            findings.of("discrepancy", head),
            findings.gains(head),
            findings.of("search_discrepancy", head),
        )
        both = [(single[seed], gains[seed]) for seed in single.keys() & gains.keys()]
        middle.plot(*zip(*both, strict=True) if both else ([], []), "o", color=f"C{number}", label=head, markersize=5)
        both = [(single[seed], searched[seed]) for seed in single.keys() & searched.keys()]
        right.plot(*zip(*both, strict=True) if both else ([], []), "o", color=f"C{number}", markersize=5)
    middle.set(title="gain by discrepancy", xlabel="D of the single run (nats)", ylabel="percentage points")
    middle.legend(fontsize=7)
    right.set(title="search and single runs", xlabel="D of the single run (nats)", ylabel="D in the search (nats)")
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=90)


def _mean(values: dict[int, float], form: str, spread: bool = False) -> str:
    if not values:
        return "–"
    text = format(mean(values.values()), form)
    return f"{text} ± {stdev(values.values()):.2f}" if spread and len(values) > 1 else text
