"""What a process of a run holds, measured: the peak of all tensors from before the model is built through two real steps."""

import os

import torch

from hssl_hf.config.recipe import load_recipe
from hssl_hf.data.views import collate
from hssl_hf.engine.distributed import make_accelerator
from hssl_hf.engine.memory import peak_allocation
from hssl_hf.engine.optim import set_rates
from hssl_hf.pretraining import setup
from hssl_hf.pretraining.estimate import estimate
from hssl_hf.pretraining.step_memory import attention_as_in_training, random_samples

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
ENVIRONMENTS = {
    "single": {},
    "ddp": {},
    "fsdp2": FSDP2,
    **{f"zero{stage}": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)} for stage in (1, 2)},
}


def measure(rank: int, port: int, engine: str, recipe: tuple, results: dict) -> None:
    """Put the bytes into `results[rank]`, under an engine of two processes or in one process."""
    torch.set_num_threads(1)
    if engine != "single":
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **ENVIRONMENTS[engine]}
    recipe = load_recipe(*recipe)
    images = recipe.images_per_process(1 if engine == "single" else 2)
    accumulate = recipe.optim.gradient_accumulation_steps
    bf16 = recipe.optim.mixed_precision == "bf16"
    accelerator = make_accelerator(bf16, accumulate, images)

    with torch.device("meta"):
        model = setup.build_model(recipe)
    samples = random_samples(recipe, model, images)  # not counted: in a run the workers hold them

    def steps() -> None:
        method = setup.build_method(recipe)
        engine = setup.build_engine(recipe, method, accelerator)
        for step in range(2):
            set_rates(engine.optimizer, 1e-3, 0.1)
            for _ in range(accumulate):
                arguments = setup.forward_arguments(
                    method, collate(samples).augment_and_normalize(recipe.views), recipe.optim.teacher_temperature[-1]
                )
                with accelerator.accumulate(engine.model):
                    output = engine.forward(**arguments)
                    engine.backward(output.loss)
                    engine.clip_and_step(step, (), recipe.optim.max_grad_norm, recipe.optim.grad_clip)
            method.update_teacher(0.99)

    with attention_as_in_training(recipe, on_device=True):
        results[rank] = peak_allocation(steps)


def estimated(recipe: tuple, engine: str) -> float:
    """Bytes of the tensors of a process of the same run, as they are estimated."""
    result = estimate(load_recipe(*recipe), engine, 1 if engine == "single" else 2, device_memory=80.0, device_tflops=1.0)
    return result.needed - result.memory_items["runtime"]
