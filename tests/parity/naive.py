"""Slow float64 parts of the losses, written from docs/method.md: one vector, one key, one head at a time."""

import math
from collections.abc import Sequence

import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn


def unit(x: Tensor) -> Tensor:
    """`x` divided by its length along the last dimension."""
    return x / (x * x).sum(-1, keepdim=True).sqrt()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (unit(a) * unit(b)).sum()


def softmax(values: Sequence[Tensor]) -> list[Tensor]:
    exponents = [value.exp() for value in values]
    return [exponent / sum(exponents) for exponent in exponents]


def log_sigmoid(x: Tensor) -> Tensor:
    return -torch.log(1 + (-x).exp())


def clip(images_BD: Tensor, texts_BD: Tensor, scale: Tensor) -> Tensor:
    """open_clip's loss, a mean over the pairs, of vectors of any length."""
    return ClipLoss()(unit(images_BD), unit(texts_BD), scale)


def mean_clip(images: Sequence[Tensor], texts: Sequence[Tensor], scale: Tensor) -> Tensor:
    """C(X, Y; s): the mean of CLIP's loss over every pair of an X and a Y, [B, D] each."""
    losses = [clip(x, y, scale) for x in images for y in texts]
    return sum(losses) / len(losses)


def look(query_D: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], heads: int) -> Tensor:
    """[D]: what a query finds; in each head a softmax of q.k / sqrt(width of a head)."""
    size, found = len(query_D) // heads, []
    for start in range(0, len(query_D), size):
        part = slice(start, start + size)
        weights = softmax([(query_D[part] * key[part]).sum() / math.sqrt(size) for key in keys])
        found.append(sum(weight * value[part] for weight, value in zip(weights, values, strict=True)))
    return torch.cat(found)


def attention(module: nn.Module, queries_LD: Tensor, context_PD: Tensor, seen: Sequence[int] | None = None) -> Tensor:
    """[L, D]: query l looks at the first `seen[l]` of the context, at all of it where `seen` is None."""
    keys, values = module.key_value(context_PD).chunk(2, dim=-1)
    seen = [len(context_PD)] * len(queries_LD) if seen is None else seen
    found = [
        look(query, keys[:count], values[:count], module.heads)
        for query, count in zip(module.query(queries_LD), seen, strict=True)
    ]
    return module.output(torch.stack(found))


def pool(pooling: nn.Module, text_D: Tensor, patches_PD: Tensor) -> Tensor:
    """v_tc = MHA(LN_q(t), LN_k(v), LN_v(v)), the last key and value being zero."""
    query = pooling.query(pooling.norm_query(text_D))
    keys = [*pooling.key(pooling.norm_key(patches_PD)), torch.zeros_like(query)]
    values = [*pooling.value(pooling.norm_value(patches_PD)), torch.zeros_like(query)]
    return pooling.output(look(query, keys, values, pooling.heads))


def distillation(student: Sequence[Tensor], teacher: Sequence[Tensor], center_C: Tensor) -> Tensor:
    """Mean over pairs (g, v != g) of H(softmax((z_g - c) / 0.04), softmax(z_v / 0.1)), for one image whose views are
    [C] each; no gradient to the teacher (C16, C17)."""
    losses = []
    for g, target in enumerate(teacher):
        for v, view in enumerate(student):
            if v != g:
                q = torch.exp((target.detach() - center_C) / 0.04)
                p = torch.exp(view / 0.1)
                losses.append(-(q / q.sum() * torch.log(p / p.sum())).sum())
    return sum(losses) / len(losses)
