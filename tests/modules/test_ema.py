import pytest
import torch
from torch import nn

from hssl_hf.modules.ema import copy_to_teacher, update_teacher


def pair():
    torch.manual_seed(0)
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    student.extra = nn.Parameter(torch.ones(1))
    return student, teacher.requires_grad_(False)


def test_moves_by_one_minus_momentum():
    student, teacher = pair()
    expected = 0.9 * teacher.weight + 0.1 * student.weight
    update_teacher(student, teacher, 0.9)
    torch.testing.assert_close(teacher.weight, expected.detach())


def test_momentum_one_keeps_and_zero_copies():
    student, teacher = pair()
    before = teacher.weight.clone()
    update_teacher(student, teacher, 1.0)
    assert torch.equal(teacher.weight, before)
    update_teacher(student, teacher, 0.0)
    torch.testing.assert_close(teacher.weight, student.weight.detach())


def test_copying_replaces_even_what_is_not_a_number():
    student, teacher = pair()
    with torch.no_grad():
        teacher.weight.fill_(torch.nan)
    copy_to_teacher(student, teacher)
    assert torch.equal(teacher.weight, student.weight)


def test_half_precision_student_moves_a_full_precision_teacher():
    student, teacher = pair()
    before = teacher.weight.clone()
    for _ in range(3):
        update_teacher(student.to(torch.bfloat16), teacher, 0.9995)
    assert teacher.weight.dtype == torch.float32 and not torch.equal(teacher.weight, before)


def test_teacher_without_a_student_parameter_is_refused():
    student, teacher = pair()
    teacher.lonely = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="lonely"):
        update_teacher(student, teacher, 0.9)
