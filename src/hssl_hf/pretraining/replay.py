"""A step whose gradients are not finite: captured with its batch and the weights before it, so that it can be replayed.

Such an error is hard to reproduce otherwise. `hssl-hf replay` shows which losses and which gradients are not finite.
"""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from hssl_hf.data.files import make_folder_below
from hssl_hf.data.views import Views
from hssl_hf.engine.checkpoint import WEIGHTS, write_state
from hssl_hf.engine.distributed import on_main_process
from hssl_hf.errors import reading
from hssl_hf.pretraining.setup import forward_on_cpu
from hssl_hf.runs.run_directory import RunDirectory

CAPTURES = "captures"


class BatchRecorder:
    """Keeps the last micro-batches as they came from the loader, with the random state before their forward pass.

    Args:
        limit: how many to keep.
    """

    def __init__(self, limit: int):
        self.micro_batches: deque[dict] = deque(maxlen=limit)

    def record(self, step: int, batch: Views, temperature: float) -> None:
        random = torch.get_rng_state()
        self.micro_batches.append({"step": step, "temperature": temperature, "random": random, "batch": dict(vars(batch))})

    def save(self, accelerator: Accelerator, model: nn.Module | None, folder: Path, step: int) -> Path:
        """Write the micro-batches of a step of every process, and the weights.

        Args:
            model: with unsharded weights, on the main process.
            folder: folder of the run.
        Returns:
            the folder of the capture.
        """
        capture = on_main_process(accelerator, lambda: make_folder_below(folder, f"{CAPTURES}/step-{step:08d}"))
        micro_batches = [micro_batch for micro_batch in self.micro_batches if micro_batch["step"] == step]
        torch.save(micro_batches, capture / f"micro-batches-{accelerator.process_index}.pt")
        if accelerator.is_main_process:
            save_file({name: value.contiguous() for name, value in model.state_dict().items()}, capture / WEIGHTS)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_state(capture, step, processes=accelerator.num_processes)
        return capture


@dataclass(frozen=True)
class ReplayedMicroBatch:
    """Result of replaying a micro-batch.

    Args:
        process: file of the process that it belonged to.
        losses: loss, its terms and the metrics by name.
        not_finite: names of the parameters whose gradients are not finite.
    """

    process: str
    losses: dict[str, float]
    not_finite: list[str]

    def __str__(self) -> str:
        values = "  ".join([self.process, *(f"{name} {value:.4g}" for name, value in self.losses.items())])
        return "\n    ".join([f"{values}\n  gradients that are not finite: {len(self.not_finite)}", *self.not_finite])


def replay(folder: Path | str) -> list[ReplayedMicroBatch]:
    """Run the micro-batches of a captured step again, forward and backward.

    Args:
        folder: of a capture.
    Raises:
        CheckpointError: if the folder holds no capture.
        UserError: if its files are damaged.
    """
    folder = Path(folder)
    run, reports = RunDirectory.open(folder), []
    model = run.model.train()
    for path in sorted(folder.glob("micro-batches-*.pt")):
        with reading(path, "run the training again to capture the step again"):
            micro_batches = torch.load(path, weights_only=True)
        for micro_batch in micro_batches:
            views = Views(**micro_batch["batch"]).augment_and_normalize(run.recipe.views)
            torch.set_rng_state(micro_batch["random"])
            output = forward_on_cpu(model, run.recipe, views, micro_batch["temperature"])
            model.zero_grad()
            output.loss.backward()
            values = {"loss": output.loss, **output.losses, **(output.get("metrics") or {})}
            losses = {name: value.item() for name, value in values.items()}
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            not_finite = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
            reports.append(ReplayedMicroBatch(path.stem, losses, not_finite))
    return reports
