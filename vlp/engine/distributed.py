"""What ranks tell each other: sums, and gathered tensors that carry gradients back."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(local: Tensor) -> Tensor:
    """Every rank's tensor, concatenated along the first dimension in rank order (equal shapes on all ranks).

    The gradient of a rank's part is the sum of the gradients that all ranks have for it.
    """
    if world_size() == 1:
        return local
    return _Gather.apply(local.contiguous())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local)
        return torch.cat(parts)

    @staticmethod
    def backward(_, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def sum_over_ranks(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sum of each named tensor over ranks, in one exchange of float64."""
    if world_size() == 1 or not values:
        return values
    flat = torch.cat([value.double().flatten() for value in values.values()])
    dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in values.values()])
    return {
        name: part.view(value.shape).to(value.dtype) for (name, value), part in zip(values.items(), parts, strict=True)
    }


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()
