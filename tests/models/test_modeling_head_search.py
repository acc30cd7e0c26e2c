"""Several candidates on one base: the mean of what each would be alone."""

import pytest
import torch

from hssl_hf import HeadSearchConfig, HeadSearchForPreTraining, HSSLForPreTraining
from tests.conftest import tiny_config, tiny_views

CANDIDATES = ["convnext", "resmlp", "vit"]


def config(objective: str, **changes) -> HeadSearchConfig:
    values = {**tiny_config(objective=objective, **changes).to_diff_dict(), "candidates": CANDIDATES}
    return HeadSearchConfig(
        **{key: value for key, value in values.items() if key not in ("model_type", "transformers_version")}
    )


def views(objective: str) -> dict:
    local, grid = (3, 4) if objective == "ibot" else (0, None)
    return tiny_views(local=local, grid=grid)


def load_pair(ours, theirs, name: str) -> None:
    """Give a network with one head, or none, the weights of a search's network."""
    theirs.base.load_state_dict(ours.base.state_dict(), strict=False)
    if theirs.auxiliary is not None:
        theirs.auxiliary.load_state_dict(ours.candidates[name].state_dict())
    theirs.heads.load_state_dict(ours.heads[name].state_dict())


@pytest.mark.parametrize(
    ("objective", "patches"), [("dino", []), ("moco_v3", []), ("ibot", ["base->base"]), ("ibot", ["auxiliary->auxiliary"])]
)
def test_equals_the_mean_of_every_candidate_alone(objective, patches):
    """The same weights in one `HSSLForPreTraining` per candidate give the same terms, discrepancies and mean loss.

    The patch level of the base alone is that of plain iBOT with the projection that the search keeps for it.
    """
    torch.manual_seed(0)
    search = HeadSearchForPreTraining(config(objective, drop_path_rate=0.0, patch_supervision=patches)).train()
    batch = views(objective)
    result = search(**batch)
    own = [] if patches == ["base->base"] else patches
    losses = []
    for name in CANDIDATES:
        alone = HSSLForPreTraining(
            tiny_config(objective=objective, auxiliary=name, drop_path_rate=0.0, patch_supervision=own)
        ).train()
        for ours, theirs in ((search.student, alone.student), (search.teacher, alone.teacher)):
            load_pair(ours, theirs, name)
        if own != patches:  # the masks are the patch level's, but also hide patches from the student's class token
            alone.student.base.mask_token = search.student.base.mask_token
        output = alone(**batch)
        losses.append(output.loss)
        torch.testing.assert_close(result.metrics[f"discrepancy_{name}"], output.discrepancy)
        for key, value in output.losses.items():
            torch.testing.assert_close(result.losses[f"{key}_{name}"], value)
    loss = torch.stack(losses).mean()
    if own != patches:
        plain = {"auxiliary": None, "cls_supervision": ["base->base"], "patch_supervision": patches}
        alone = HSSLForPreTraining(tiny_config(objective=objective, drop_path_rate=0.0, **plain)).train()
        for ours, theirs in ((search.student, alone.student), (search.teacher, alone.teacher)):
            load_pair(ours, theirs, "patches")
        term = alone(**batch).losses["patch_base_to_base"]
        torch.testing.assert_close(result.losses["patch_base_to_base"], term)
        loss = loss + term
    torch.testing.assert_close(result.loss, loss)


@pytest.mark.parametrize("objective", ["dino", "ibot", "moco_v3"])
def test_every_candidate_learns_and_the_teacher_does_not(objective):
    model = HeadSearchForPreTraining(config(objective)).train()
    before = {name: p.clone() for name, p in model.student.named_parameters()}
    optimizer = torch.optim.SGD(model.student.parameters(), lr=1.0)
    for _ in range(2):
        model(**views(objective)).loss.backward()
        assert all(p.grad is None for p in model.teacher.parameters())
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.5)
    unchanged = [name for name, p in model.student.named_parameters() if torch.equal(p, before[name])]
    assert not unchanged
    assert not any(p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("objective", ["dino", "ibot"])
def test_candidates_have_prototypes_of_their_own_and_do_not_interfere(tmp_path, objective):
    """Without its own loss a candidate's prototypes and projections get no gradient; all are frozen and restored together."""
    model = HeadSearchForPreTraining(config(objective)).train()
    losses = model(**views(objective)).losses
    sum(value for name, value in losses.items() if name.endswith("_vit")).backward()
    for name, heads in model.student.heads.items():
        reached = {key for key, parameter in heads.named_parameters() if parameter.grad is not None and parameter.grad.any()}
        assert reached == (set(dict(heads.named_parameters())) if name == "vit" else set()), name
    trained = {name for name, _ in model.student.named_parameters() if "prototypes" in name}
    assert len(trained) == len(model.student.heads) == len(model.freezable_parameters()["prototypes"])
    model.save_pretrained(tmp_path)
    again = HeadSearchForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_initial_values_of_a_candidate_do_not_depend_on_the_others():
    torch.manual_seed(0)
    first = HeadSearchForPreTraining(config("moco_v3"))
    torch.manual_seed(0)
    fewer = config("moco_v3")
    fewer.candidates = ["vit", "swin"]
    second = HeadSearchForPreTraining(fewer)
    for modules in ("candidates", "heads"):
        expected = getattr(first.student, modules)["vit"].state_dict()
        state = getattr(second.student, modules)["vit"].state_dict()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (["vit"], "a list of 2 to 6 values"),
        (["vit", "vit"], "without repetitions"),
        (["vit", "convnet"], r"candidates\[1\]: expected one of 'convnext', .*, got 'convnet'"),
    ],
)
def test_invalid_candidates_are_refused(candidates, message):
    with pytest.raises(ValueError, match=message):
        HeadSearchConfig(candidates=candidates)
