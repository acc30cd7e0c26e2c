"""Run a study: `python training/study.py [study.yaml] [a.b=c ...]`.

Every variant with every seed is trained by training/pretrain.py, a run per core side by side, and measured once. What was
interrupted is resumed, and finished measurements are kept: repeat the command until it is done.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import torch

from hssl_hf.cli.programs import split_settings
from hssl_hf.config.recipe_files import TRAINING
from hssl_hf.evaluation.records import read_records
from hssl_hf.experiments.study import Measurement, Study, study_recipe
from hssl_hf.experiments.study_report import Findings, draw, rank_table, table
from hssl_hf.experiments.study_runner import Runner, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="study.yaml | a.b=c", help="a study, and values for all its variants")
    parser.add_argument("--folder", type=Path, help="of the runs (default: runs/study-<name of the study>)")
    parser.add_argument("--results", type=Path, help="file of the records (default: model_cards/results/study_<name>.jsonl)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time (default: one per core)")
    options = parser.parse_intermixed_args()
    names, overrides = split_settings(options.arguments)
    path = next(map(Path, names), TRAINING / "studies" / "cifar10.yaml")
    folder = options.folder or Path("runs") / f"study-{path.stem}"
    results = options.results or TRAINING.parent / "model_cards" / "results" / f"study_{path.stem}.jsonl"
    torch.set_num_threads(1)
    try:
        study = Study.read(path)
        measurement = Measurement(study_recipe(path, study, overrides), results)
        runner = Runner(path, study, overrides, folder)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        run(study, runner, measurement, max(1, options.jobs))
        findings = Findings(study, read_records(results))
        draw(findings, folder / "study.png")
        print("\n".join([*table(findings), "", *rank_table(findings), f"plots  {folder / 'study.png'}", f"records  {results}"]))
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command to resume", file=sys.stderr)
        return 75
    return 0


if __name__ == "__main__":
    sys.exit(main())
