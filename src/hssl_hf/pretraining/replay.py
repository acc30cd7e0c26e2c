"""A step whose gradients are not finite: kept with its batch and the weights before it, so that it can be run again.

Such an error is gone with the next step and rarely comes back in a smaller program. `hssl-hf replay` shows which losses and
which gradients break.
"""

import json
from collections import deque
from collections.abc import Iterable
from inspect import signature
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from hssl_hf.data.views import Views
from hssl_hf.engine.checkpoint import STATE, WEIGHTS
from hssl_hf.pretraining.diagnostics import NonFiniteError, advice
from hssl_hf.runs.run_directory import RunFolder

CAPTURES = "captures"


class Recorder:
    """The last parts of batches, as they came from the loader, with the random state that they met.

    Args:
        parts: how many to keep.
    """

    def __init__(self, parts: int):
        self.parts: deque[dict] = deque(maxlen=parts)

    def note(self, step: int, batch: Views, temperature: float) -> None:
        random = torch.get_rng_state()
        self.parts.append({"step": step, "temperature": temperature, "random": random, "batch": dict(vars(batch))})

    def save(self, accelerator: Accelerator, whole: nn.Module | None, folder: Path, step: int) -> Path:
        """Write the parts of a step of every process, and the weights.

        Args:
            whole: the model, on the main process.
            folder: folder of the run.
        """
        place = folder / CAPTURES / f"step-{step:08d}"
        place.mkdir(parents=True, exist_ok=True)
        parts = [part for part in self.parts if part["step"] == step]
        torch.save(parts, place / f"parts-{accelerator.process_index}.pt")
        if accelerator.is_main_process:
            save_file({name: value.contiguous() for name, value in whole.state_dict().items()}, place / WEIGHTS)
            (place / STATE).write_text(json.dumps({"step": step, "processes": accelerator.num_processes}))
        accelerator.wait_for_everyone()
        return place

    def stop(self, accelerator: Accelerator, whole: nn.Module | None, folder: Path, step: int, newest: Path | None) -> None:
        """Save, and end the run.

        Args:
            newest: the newest checkpoint.
        Raises:
            NonFiniteError: always, with what to do.
        """
        place = self.save(accelerator, whole, folder, step)
        raise NonFiniteError(
            f"the gradients of step {step + 1} are not finite. Its batch and the weights before it are in {place}; see which "
            f"losses and weights break with: hssl-hf replay {place}\n{advice(newest)}"
        )


def replay(place: Path) -> list[dict]:
    """Run the parts of a captured step again, forward and backward.

    Args:
        place: folder of a capture.
    Returns:
        for every part of every process: its losses by name, and the parameters whose gradients are not finite.
    Raises:
        CheckpointError: if the folder holds no capture.
    """
    run = RunFolder.open(place)
    model, recipe = run.model, run.recipe
    model.train()
    known, reports = signature(model.forward).parameters, []
    for path in sorted(place.glob("parts-*.pt")):
        for part in torch.load(path, weights_only=True):
            views = Views(**part["batch"]).coloured(recipe.views)
            arguments = {**views.tensors(), "teacher_temperature": part["temperature"]}
            torch.set_rng_state(part["random"])
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.optim.mixed_precision == "bf16"):
                output = model(**{name: value for name, value in arguments.items() if name in known})
            model.zero_grad()
            output.loss.backward()
            losses = {"loss": output.loss.item(), **{name: value.item() for name, value in output.parts.items()}}
            reports.append({"process": path.stem, "losses": losses, "not_finite": list(_not_finite(model.named_parameters()))})
    return reports


def _not_finite(parameters: Iterable[tuple[str, nn.Parameter]]):
    for name, parameter in parameters:
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            yield name
