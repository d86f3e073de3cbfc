"""What runs while one batch passes the graph: its parts, who reads what, and the FLOPs of each.

No module, feature or objective is named here. Passes are the calls of the children of student and teacher, features
are what objectives read of `Features`, and a part is computed from the parts that its tensors come from.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import MISSING, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from vlp.data.batch import Batch
from vlp.graph_report.provenance import Part, Provenance, place, tensors_in
from vlp.objectives.features import Features
from vlp.objectives.graph import ObjectiveGraph


def trace(graph: ObjectiveGraph, batch: Batch, step: int) -> dict[str, Part]:
    """The parts that ran, by key, in order: a forward of `batch` as a few of the images of a global batch as large as
    the recipe's, whose other embeddings are zeros. No backward runs; its FLOPs follow from what takes a gradient."""
    totals = graph.begin_step([batch], step)
    run = Trace(graph.recipe.train.batch_size)
    run.mark_data(batch)
    with ExitStack() as stack:

        def replace(owner: Any, name: str, function: Callable) -> None:
            restore = (setattr, owner, name, vars(owner)[name]) if name in vars(owner) else (delattr, owner, name)
            stack.callback(*restore)
            setattr(owner, name, function)

        replace(graph, "features", partial(run.features, graph.features))
        for prefix, model in (("", graph.model), ("teacher ", graph.teacher)):
            for name, child in model.named_children() if model is not None else ():
                for label, owner, method in methods(child):
                    replace(owner, method, partial(run.call, prefix + name, child, label, getattr(owner, method)))
        for name, objective in graph.objectives.items():
            part = Part("objective", name)
            replace(objective, "shared", partial(run.objective, part, objective.shared))
            replace(objective, "forward", partial(run.objective, part, objective.forward))
        replace(graph.balancer, "forward", partial(run.balancer, graph.recipe.balance, graph.balancer.forward))
        stack.enter_context(saved_tensors_hooks(lambda _: None, lambda _: None))  # nothing is kept for a backward
        stack.enter_context(run)
        graph(batch, totals, step)
    return run.parts


class Trace(Provenance):
    """What `trace` puts in the place of methods, to learn of their calls."""

    def __init__(self, images: int):
        super().__init__()
        self.images = images
        self.owners: dict[tuple, Part] = {}  # features by the places of their tensors
        self.exchanged: list[Tensor] = []

    def mark_data(self, batch: Batch) -> None:
        """Every field of the batch that not all recipes read."""
        for entry in fields(batch):
            value = getattr(batch, entry.name)
            if value is None or (entry.default is MISSING and entry.default_factory is MISSING):
                continue
            name = re.sub(r"_([^_]|[^_]*[A-Z][^_]*)$", "", entry.name)  # without the shape suffix
            entries = value.items() if isinstance(value, dict) else [("", value)]
            for key, content in entries:
                part = self.part("data", f"{name} {key}".strip())
                part.tensors = tensors_in(content)
                self.mark(content, {part.key: None})

    def call(self, name: str, module: nn.Module, label: str, method: Callable, *args, **kwargs) -> Any:
        """A method of a child of student or teacher: a pass if it is the module's forward, or multiplies."""
        if self.scopes[-1].kind == "pass":
            return method(*args, **kwargs)
        given, sources, made = tensors_in((args, kwargs)), self.sources(args, kwargs), Part("pass", name)
        with self.within(made):
            result = method(*args, **kwargs)
        if label == "forward" or made.forward:
            shape = tuple(given[0].shape) if given else ()
            part = self.part("pass", f"{name} {shape[-1]} px" if len(shape) == 4 and shape[1] == 3 else name)
            part.module = module
            part.calls.append((label, shape))
            part.forward, part.backward = part.forward + made.forward, part.backward + made.backward
            self.come_from(part, result, sources)
        return result

    def objective(self, part: Part, method: Callable, *args) -> Any:
        part = self.parts.setdefault(part.key, part)
        with self.within(part):
            result = method(*args)
        if not isinstance(result, dict):  # its forward, and not what it shares
            self.come_from(part, result.loss, self.sources(result.loss))
        return result

    def balancer(self, name: str, method: Callable, *args, **kwargs) -> Any:
        part = self.part("balancer", name)
        with self.within(part):
            total, weights = method(*args, **kwargs)
        self.come_from(part, total, self.sources(total))
        return total, weights

    # ---- what is read -------------------------------------------------------------------------------------------

    def features(self, make: Callable[..., Features], *args) -> Features:
        """Features that tell what is read of them, and exchange with images that do not exist."""
        run, made = self, make(*args)

        class Read(type(made)):
            def __getattribute__(self, name: str) -> Any:
                return run.read(name, partial(super().__getattribute__, name))

            def share(self, own: dict[str, Tensor], everywhere: dict[str, Tensor] | None = None) -> None:
                super().share(own, {name: run.everywhere(name, tensor) for name, tensor in own.items()})

        made.__class__ = Read
        return made

    def everywhere(self, name: str, own: Tensor) -> Tensor:
        """A shared tensor of all images of the global batch."""
        if name == "index":
            return torch.arange(self.images)
        tensor = own.new_zeros(self.images, *own.shape[1:]).requires_grad_(own.requires_grad)
        self.exchanged.append(tensor)
        return tensor

    def read(self, name: str, get: Callable[[], Any]) -> Any:
        """An attribute of `Features`, read by an objective or for another feature."""
        if name.startswith("_") or self.scopes[-1].kind not in ("objective", "feature"):
            return get()
        made = Part("feature", name)
        with self.within(made):
            value = get()
        if made.forward:
            part = self.part("feature", name)
            part.forward, part.backward = part.forward + made.forward, part.backward + made.backward
        return self.feature(name, value)

    def feature(self, name: str, value: Any) -> Any:
        """`value` under its name, if it has tensors; entries of mappings and results of methods have names too."""
        if inspect.ismethod(value):
            return lambda *args: self.feature(" ".join([name, *(x for x in args if isinstance(x, str))]), value(*args))
        if isinstance(value, dict):
            return Entries(value, lambda key, entry: self.feature(f"{name} {key}", entry))
        tensors = [] if isinstance(value, Batch) else tensors_in(value)
        if tensors:
            places = tuple(map(place, tensors))
            part = self.owners.get(places) or self.part("feature", name)  # one that is known may have a second name
            self.owners[places] = part
            self.come_from(part, value, {} if part.tensors else self.sources(value))
            part.tensors = tensors
            part.of_all_images = any(tensor is other for tensor in tensors for other in self.exchanged)
            if self.scopes[-1].kind == "objective":
                part.readers[self.scopes[-1].name] = None
        return value


class Entries(dict):
    """A mapping that tells which entries are read."""

    def __init__(self, content: dict, read: Callable[[Any, Any], Any]):
        super().__init__(content)
        self.read = read

    def __getitem__(self, key: Any) -> Any:
        return self.read(key, super().__getitem__(key))

    def values(self) -> list:
        return [self[key] for key in self]

    def items(self) -> list[tuple]:
        return [(key, self[key]) for key in self]


def methods(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The public methods of a module and of all inside it: what a call of it is named, whose it is, its name."""
    for path, owner in module.named_modules():
        classes = type(owner).__mro__[: type(owner).__mro__.index(nn.Module)]
        names = dict.fromkeys(
            name for kind in classes for name, entry in vars(kind).items() if inspect.isfunction(entry)
        )
        for name in names:
            if not name.startswith("_"):
                yield f"{path}.{name}".strip(".").removesuffix(".forward"), owner, name
