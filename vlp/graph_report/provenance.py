"""Which part of the graph a tensor comes from, and how many FLOPs a part has.

Products (matrix products, convolutions, attention) are counted by torch's formulas and not computed: their results are
zeros of the right shape. All else runs, so that whatever looks at a tensor finds one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
FORMULAS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention]
}


@dataclass
class Part:
    """A data field, a pass, a feature, an objective or the balancer, as one batch met it."""

    kind: str
    name: str
    reads: dict[str, None] = field(default_factory=dict)  # keys of the parts that its tensors come from
    readers: dict[str, None] = field(default_factory=dict)  # of a feature: the objectives that read it
    calls: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)  # of a pass: method, shape of its input
    tensors: list[Tensor] = field(default_factory=list)  # of data and features
    module: nn.Module | None = None
    of_all_images: bool = False  # exchanged between ranks
    forward: int = 0
    backward: int = 0

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"


class Provenance(TorchDispatchMode):
    """Counts products for the part that is open, and follows every tensor from part to part."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Part] = {}
        self.scopes: list[Part] = [self.part("rest", "outside")]
        self.origins: dict[tuple, dict[str, None]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        result = zeros_of(func, args, kwargs) if formula else func(*args, **kwargs)
        if formula:
            flops = formula(*args, **kwargs, out_val=result)
            learning = sum(x.requires_grad for x in args if isinstance(x, Tensor) and x.ndim > 1)
            self.scopes[-1].forward += flops
            # the backward is one such product for each factor that takes a gradient
            self.scopes[-1].backward += flops * min(2, learning) * torch.is_grad_enabled()
        self.mark(result, self.sources(args, kwargs))
        return result

    def sources(self, *tree: Any) -> dict[str, None]:
        """Keys of the parts that the tensors in `tree` come from."""
        found: dict[str, None] = {}
        for tensor in tensors_in(tree):
            found |= self.origins.get(place(tensor), {})
        return found

    def mark(self, tree: Any, sources: dict[str, None]) -> None:
        self.origins |= dict.fromkeys(map(place, tensors_in(tree)), sources)

    def come_from(self, part: Part, tree: Any, sources: dict[str, None]) -> None:
        """The tensors in `tree` are what `part` gives, and it is computed from `sources`."""
        part.reads |= {key: None for key in sources if key != part.key}
        self.mark(tree, {part.key: None})

    def part(self, kind: str, name: str) -> Part:
        return self.parts.setdefault(f"{kind}/{name}", Part(kind, name))

    @contextmanager
    def within(self, part: Part) -> Iterator[None]:
        """Products count for `part`, unless another one opens inside."""
        self.scopes.append(part)
        try:
            yield
        finally:
            self.scopes.pop()


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in nested lists, mappings and dataclasses."""
    found = []
    for leaf in tree_leaves(tree):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_in([getattr(leaf, entry.name) for entry in fields(leaf)])
        elif isinstance(leaf, Tensor):
            found.append(leaf)
    return found


def place(tensor: Tensor) -> tuple:
    """Equal for tensors that show the same numbers of the same storage."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def zeros_of(function: Callable, args: tuple, kwargs: dict) -> Any:
    """Zeros in the shapes of what `function` would give."""
    args, kwargs = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
    return tree_map_only(Tensor, lambda x: torch.zeros_like(x, device="cpu"), function(*args, **kwargs))
