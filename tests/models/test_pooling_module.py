"""Text-conditioned pooling: torch's attention with a zero key, broadcasting, and the pooling of single patches."""

import pytest
import torch
from torch import nn

from vlp.models.pooling import TextConditionedPooling


@pytest.fixture
def pooling() -> TextConditionedPooling:
    torch.manual_seed(0)
    module = TextConditionedPooling(16, 4).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def as_torch(pooling: TextConditionedPooling, sink: bool) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(16, pooling.heads, add_zero_attn=sink, batch_first=True).double()
    inputs = (pooling.query, pooling.key, pooling.value)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([part.weight for part in inputs]))
        attention.in_proj_bias.copy_(torch.cat([part.bias for part in inputs]))
    attention.out_proj.load_state_dict(pooling.output.state_dict())
    return attention


@pytest.mark.parametrize(("images", "texts", "patches"), [(1, 1, 1), (3, 1, 4), (2, 5, 7)])
def test_equals_torch_attention_with_a_zero_key(images, texts, patches, pooling) -> None:
    texts_BND = torch.randn(images, texts, 16, dtype=torch.float64)
    patches_BPD = torch.randn(images, patches, 16, dtype=torch.float64)
    norms = pooling.norm_query(texts_BND), pooling.norm_key(patches_BPD), pooling.norm_value(patches_BPD)
    expected = as_torch(pooling, sink=True)(*norms)[0]
    torch.testing.assert_close(pooling(texts_BND, patches_BPD), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(pooling(texts_BND, patches_BPD), as_torch(pooling, sink=False)(*norms)[0], atol=1e-3)
    shared = pooling(texts_BND[:1], patches_BPD)
    for image in range(images):
        torch.testing.assert_close(shared[image], pooling(texts_BND[:1], patches_BPD[image : image + 1])[0])


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_a_single_patch_without_sink_is_the_same_for_every_text(scale: float, pooling) -> None:
    """docs/method.md 2, Segmentation: the softmax over one key is 1, whatever the query."""
    patches = torch.randn(3, 5, 16, dtype=torch.float64)
    query = pooling.norm_query(scale * torch.randn(15, 1, 16, dtype=torch.float64))
    alone = patches.reshape(15, 1, 16)
    expected = as_torch(pooling, sink=False)(query, pooling.norm_key(alone), pooling.norm_value(alone))[0]
    torch.testing.assert_close(pooling.patch_values(patches), expected.view(3, 5, 16), rtol=1e-12, atol=1e-12)
    with_sink = pooling(torch.randn(15, 1, 16, dtype=torch.float64), alone).view(3, 5, 16)
    assert not torch.allclose(with_sink, pooling.patch_values(patches), atol=1e-3)


def test_output_projection_and_mean_commute(pooling) -> None:
    found = torch.randn(4, 6, 16, dtype=torch.float64)
    torch.testing.assert_close(pooling.output(found.mean(1)), pooling.output(found).mean(1))


def test_size_at_the_papers_width() -> None:
    """1.05M parameters: four 512 x 512 maps with biases, three norms."""
    with torch.device("meta"):
        module = TextConditionedPooling(512, 8)
    assert sum(p.numel() for p in module.parameters()) == 4 * (512 * 512 + 512) + 3 * 2 * 512
