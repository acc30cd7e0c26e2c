"""Run a study: `python training/study.py [study.yaml] [a.b=c ...]`.

Every variant with every seed is trained by training/pretrain.py, a run per core side by side, and measured once. What was
interrupted is resumed, and finished measurements are kept: repeat the command until it is done.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from hssl_hf.cli.programs import launch, split_settings
from hssl_hf.config.recipe_files import TRAINING


def study(
    settings: Annotated[
        list[str] | None, Argument(metavar="[STUDY] [a.b=c ...]", help="File of a study, and values for all its variants.")
    ] = None,
    folder: Annotated[Path | None, Option(help="Folder of the runs (default: runs/study-NAME).")] = None,
    results: Annotated[Path | None, Option(help="File of the records (default: model_cards/results/study_NAME.jsonl).")] = None,
    jobs: Annotated[int | None, Option(min=1, help="Runs at a time (default: one per core).")] = None,
) -> int:
    """Train every variant of a study with every seed, and compare them; the same command resumes what was interrupted."""
    import torch

    from hssl_hf.engine.launch import available_cores
    from hssl_hf.evaluation.records import read_records
    from hssl_hf.experiments.study import Measurement, Study, study_recipe
    from hssl_hf.experiments.study_report import Findings, draw, rank_table, table
    from hssl_hf.experiments.study_runner import Runner, run

    names, overrides = split_settings(settings or ())
    path = next(map(Path, names), TRAINING / "studies" / "cifar10.yaml")
    folder = folder or Path("runs") / f"study-{path.stem}"
    results = results or TRAINING.parent / "model_cards" / "results" / f"study_{path.stem}.jsonl"
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    planned = Study.read(path)
    measurement = Measurement(study_recipe(path, planned, overrides), results)
    try:
        run(planned, Runner(path, planned, overrides, folder), measurement, jobs or available_cores())
    except KeyboardInterrupt:
        print("interrupted; run the same command to resume", file=sys.stderr)
        return 75
    findings = Findings(planned, read_records(results))
    draw(findings, folder / "study.png")
    print("\n".join([*table(findings), "", *rank_table(findings), f"plots  {folder / 'study.png'}", f"records  {results}"]))
    return 0


if __name__ == "__main__":
    sys.exit(launch(study))
