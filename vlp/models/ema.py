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
    partitioned alike, and nothing is gathered. Small parameters that ZeRO-3 also keeps whole on every rank
    (`stage3_param_persistence_threshold`) move there too, or the teacher would be read one step late.
    """
    for name, old in teacher.named_parameters():
        new = student.get_parameter(name)
        pairs = [(old, new)]
        if hasattr(old, "ds_tensor"):
            whole = [(old.data, new.data)] if old.numel() and new.numel() == old.numel() else []
            pairs = [(old.ds_tensor, new.ds_tensor), *whole]
        for slow, fast in pairs:
            slow.lerp_(fast.to(slow), 1 - momentum)
