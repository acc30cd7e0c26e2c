"""Two processes are one: the same images in two halves give the same loss, gradients, centers and teacher."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.conftest import MAE, siamese_views, tiny_model, tiny_siamese, tiny_views
from tests.processes import run_pair

CASES = {
    "ibot": {"objective": "ibot"},
    "dino": {"objective": "dino"},
    "moco_v3": {"objective": "moco_v3", "auxiliary": "resnet"},
    "head alone": {"objective": "dino", "cls_supervision": ["auxiliary->auxiliary"]},
    "siamese_im": {},
    "siamese_im dense batch norm": {"loss_normalization": "batch_norm_l2"},
    "siamese_im global": {"level": "global", "loss_normalization": "batch_norm_l2"},
    "mae": MAE,
}


def model_of(case: str):
    return (tiny_siamese if case.startswith(("siamese", "mae")) else tiny_model)(drop_path_rate=0.0, **CASES[case])


def views_of(case: str) -> dict:
    if case.startswith(("siamese", "mae")):
        views = siamese_views(images=8, views=1 if case == "mae" else 2)
        return {name: value for name, value in views.items() if case != "mae" or name != "crop_boxes"}
    return tiny_views(images=8, local=0 if case == "moco_v3" else 2, grid=4 if case == "ibot" else None)


def two_steps(model, wrapped, views) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD([p for p in model.student.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        output = wrapped(**views)
        output.loss.backward()
        optimizer.step()
        model.update_teacher(0.9)
        losses.append(output.loss.detach())
    return {"losses": torch.stack(losses), **{k: v.detach() for k, v in model.state_dict().items() if v.is_floating_point()}}


def work(rank: int, port: int, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for case in CASES:
        model = model_of(case).train()
        wrapped = DistributedDataParallel(model, find_unused_parameters=case == "head alone")
        mine = {name: value[:, 4 * rank : 4 * rank + 4] for name, value in views_of(case).items()}
        results[rank, case] = two_steps(model, wrapped, mine)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def pair():
    return run_pair(work)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(pair, case):
    model = model_of(case).train()
    single = two_steps(model, model, views_of(case))
    mean = (pair[0, case]["losses"] + pair[1, case]["losses"]) / 2
    torch.testing.assert_close(mean, single.pop("losses"), atol=1e-5, rtol=1e-5)
    for name, value in single.items():
        for rank in (0, 1):
            torch.testing.assert_close(pair[rank, case][name], value, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
