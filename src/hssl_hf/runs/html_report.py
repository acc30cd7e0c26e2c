"""One self-contained HTML page on a run, finished or not."""

import base64
from pathlib import Path

import yaml
from jinja2 import Environment

from hssl_hf.config.recipe import Recipe, load_recipe
from hssl_hf.data.files import read_lines, require_output, write_below
from hssl_hf.data.local_dataset import printable
from hssl_hf.errors import UserError
from hssl_hf.evaluation.records import read_records
from hssl_hf.publish import card_text
from hssl_hf.publish.model_card import METRICS
from hssl_hf.publish.secret_scan import redact
from hssl_hf.runs import manifest
from hssl_hf.runs.metric_logger import CURVES, LOG, read_log
from hssl_hf.runs.run_directory import ALARMS, RECIPE, RESULTS, read_figures
from hssl_hf.runs.run_lock import describe_status
from hssl_hf.visualization.curves import curves_png

SHORTEST = 1e-9  # epoch from which the length of a run is extrapolated
TEMPLATE = Path(__file__).with_name("report.html")
HEADLINES = {
    "loss": ("loss", "{:.3f}"),
    "k-NN top-1": ("knn_top1", "{:.1f} %"),
    "k-NN of raw pixels": ("knn_top1_pixels", "{:.1f} %"),
    "linear probe top-1": ("linear_top1", "{:.1f} %"),
    "linear probe of raw pixels": ("linear_top1_pixels", "{:.1f} %"),
    "discrepancy": ("discrepancy", "{:.3f}"),
    "RankMe of the teacher": ("rank_me", "{:.1f}"),
    "images per second": ("images_per_second", "{:.0f}"),
    "time without data": ("data_wait", "{:.0%}"),
}


def write_report(folder: Path | str, output: Path | str | None = None) -> Path:
    """Write the page, and nothing else.

    Args:
        folder: of a run.
        output: file to write; by default `report.html` in the folder.
    Returns:
        the file.
    Raises:
        UserError: if the folder holds no run, or the file cannot be written.
    """
    folder = Path(folder)
    if not (folder / RECIPE).is_file():
        raise UserError(
            f"{folder} is no run: it holds no {RECIPE}. Name the folder that training wrote to, such as runs/quickstart"
        )
    output = Path(output or folder / "report.html")
    require_output(output, "--output")
    recipe, log = load_recipe(folder / RECIPE), read_log(folder / LOG)
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text()).render(**_content(folder, recipe, log))
    write_below(output.parent, output.name, page)
    return output


def _content(folder: Path, recipe: Recipe, log: list[dict]) -> dict:
    config, known, figures = recipe.model_config(), manifest.read(folder), read_figures(folder)
    figures[CURVES] = curves_png(log) or figures.get(CURVES)
    last = {key: value for line in log for key, value in line.items() if value is not None}
    done = last.get("step", 0)
    steps = known.get("steps") or _planned(recipe, log) or done
    values = {name: form.format(last[key]) for name, (key, form) in HEADLINES.items() if key in last}
    return {
        "title": card_text.title(config, "main"),
        "description": f"{config.describe()[1]} · {printable(folder.resolve().name)}",
        "status": redact(describe_status(folder)),
        "done": done, "steps": steps, "percent": round(100 * done / max(1, steps), 1),
        "headlines": {"of the steps": f"{done / max(1, steps):.0%}", **values},
        "alarms": read_lines(folder / ALARMS),
        "results": read_records(folder / RESULTS), "metrics": METRICS,
        "figures": [
            {"caption": caption, "photo": name != CURVES, "data": base64.b64encode(figures[name]).decode()}
            for name, caption in card_text.FIGURES.items() if figures.get(name)
        ],
        "training": card_text.training(known) if known else [],
        "recipe": redact(yaml.safe_dump(recipe.to_dict(), sort_keys=False, default_flow_style=None, width=110)),
    }  # fmt: skip


def _planned(recipe: Recipe, log: list[dict]) -> int | None:
    """Steps of the full run, from the fraction of an epoch that the logged ones took."""
    lines = [line for line in log if line.get("epoch", 0) > SHORTEST]
    return round(recipe.optim.epochs * lines[-1]["step"] / lines[-1]["epoch"]) if lines else None
