"""Exponential moving averages of modules: the teachers of self-distillation."""

import torch
from torch import nn


@torch.no_grad()
def copy_student(teacher: nn.Module, student: nn.Module) -> None:
    """Start the teacher: the student's values for every parameter that it has, and no gradient."""
    for name, parameter in teacher.requires_grad_(False).named_parameters():
        parameter.copy_(student.get_parameter(name))


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, in place, for every parameter of the teacher.

    Under ZeRO-3 each rank updates its own shard (`ds_tensor`) of each parameter: student and teacher are
    partitioned alike, and nothing is gathered.
    """
    for name, old in teacher.named_parameters():
        new = student.get_parameter(name)
        if hasattr(old, "ds_tensor"):
            old, new = old.ds_tensor, new.ds_tensor
        old.lerp_(new.to(old), 1 - momentum)
