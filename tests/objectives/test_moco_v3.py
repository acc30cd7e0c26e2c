import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hssl_hf.objectives.moco_v3 import MoCoV3, Queue
from tests.conftest import tiny_config, tiny_model, tiny_views


def test_equals_official_moco_v3(golden):
    """Official contrastive loss, T = .2 with the factor 2T, on 8 queries and keys of 16 dimensions."""
    arrays = golden("base_methods")
    objective = MoCoV3(tiny_config(objective="moco_v3", contrastive_temperature=float(arrays["moco/T"])))
    queries = torch.from_numpy(arrays["moco/q"]).requires_grad_()
    loss = objective._contrast(queries, F.normalize(torch.from_numpy(arrays["moco/k"]), dim=1))
    np.testing.assert_allclose(loss.item(), arrays["moco/loss"], rtol=1e-5)
    np.testing.assert_allclose(torch.autograd.grad(loss, queries)[0], arrays["moco/grad"], atol=1e-6)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_contrast_is_the_cross_entropy_among_the_keys_of_the_batch(temperature):
    """MoCo v3, algorithm 1 (arXiv 2104.02057): logits q·k / T of unit vectors, labels on the diagonal, the loss times 2T."""
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(2, 7, 5))
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, keys)]
    logits = unit[0] @ unit[1].T / temperature
    expected = 2 * temperature * np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    objective = MoCoV3(tiny_config(objective="moco_v3", contrastive_temperature=temperature))
    assert objective._contrast(*map(torch.Tensor, (queries, unit[1]))).item() == pytest.approx(expected, rel=1e-5)


def test_matching_keys_cost_less_than_shuffled_ones():
    objective = MoCoV3(tiny_config(objective="moco_v3"))
    keys = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert objective._contrast(keys, keys) < objective._contrast(keys, keys.roll(1, 0))


def test_teacher_has_no_predictor():
    model = tiny_model(objective="moco_v3")
    assert len(model.student.heads.predictors) == 2 and len(model.teacher.heads.predictors) == 0


def test_local_views_are_refused():
    with pytest.raises(ValueError, match="takes no local views, got 3"):
        tiny_model(objective="moco_v3")(**tiny_views(grid=None))


def test_the_queue_holds_the_newest_keys_first_in_first_out():
    queue = Queue(5, 2)
    start = queue.keys.clone()
    for value in (1.0, 2.0):  # two micro-batches of one step enter together
        queue.collect(torch.full((2, 2), value))
    assert torch.equal(queue.keys, start), "before the step nothing enters"
    queue.update()
    assert queue.keys[:, 0].tolist() == [1, 1, 2, 2, start[4, 0]]
    queue.collect(torch.full((3, 2), 3.0))
    queue.update(), queue.update()
    assert queue.keys[:, 0].tolist() == [3, 3, 2, 2, 3]
    queue.collect(torch.arange(7.0)[:, None].expand(7, 2))
    queue.update()
    assert sorted(queue.keys[:, 0].tolist()) == [2, 3, 4, 5, 6], "of a batch longer than the queue the newest stay"


def test_training_fills_the_queue_with_the_teachers_keys():
    """Both views of every image, those of the auxiliary teacher; the base start alike with and without a queue."""
    model, plain = tiny_model(objective="moco_v3", queue_size=16), tiny_model(objective="moco_v3")
    assert torch.equal(model.student.base.model.pos_embed, plain.student.base.model.pos_embed)
    views = tiny_views(local=0, grid=None)
    before = model.objective.queues["auxiliary"].keys.clone()
    assert list(model.objective.queues) == ["auxiliary"] and not model.in_batch_negatives and plain.in_batch_negatives
    model(**views).loss.backward()
    model.update_teacher(0.9)
    after = model.objective.queues["auxiliary"].keys
    assert (after != before).any(1).tolist() == [True] * 8 + [False] * 8
    torch.testing.assert_close(after.norm(dim=1), torch.ones(16))
