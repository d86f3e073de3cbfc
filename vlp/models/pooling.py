"""FLAIR's text-conditioned pooling: texts attend over the patch tokens of images.

Shapes: B images, P patches, D joint width, H heads, T texts, N texts per image.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class TextConditionedPooling(nn.Module):
    """v_tc = MHA(LN_q(t), LN_k(v_loc), LN_v(v_loc)) with one all-zero key and value, the attention sink, to look
    at when a text finds nothing in the image; no residual, no output norm [docs/method.md 2, Architecture].

    Keys and values of an image, and queries of a text, are computed once (`keys_values`, `queries`) and meet in
    `attend`, so that an image scored by many texts costs one projection of its patches.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(width)
        self.norm_key = nn.LayerNorm(width)
        self.norm_value = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        for projection in (self.query, self.key, self.value):  # as nn.MultiheadAttention
            nn.init.normal_(projection.weight, std=(2 * width) ** -0.5)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.output.bias)

    def queries(self, texts_TD: Tensor) -> Tensor:
        """Unnormalised text embeddings [..., D] to queries [..., D]."""
        return self.query(self.norm_query(texts_TD))

    def keys_values(self, patches_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """Projected patch tokens to keys and values, [B, H, P+1, D/H] each, the last one being the sink."""
        keys = self._split(self.key(self.norm_key(patches_BPD)))
        values = self._split(self.value(self.norm_value(patches_BPD)))
        sink = keys.new_zeros(keys.shape[0], self.heads, 1, keys.shape[-1])
        return torch.cat([keys, sink], dim=2), torch.cat([values, sink], dim=2)

    def attend(self, queries_BND: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        """[B, N, D] what each image's N queries found, before the output projection.

        `queries_BND` may have B = 1: the same texts for every image.
        """
        keys_BHPd, values_BHPd = keys_values
        queries_BHNd = self._split(queries_BND).expand(len(keys_BHPd), -1, -1, -1)
        found = scaled_dot_product_attention(queries_BHNd, keys_BHPd, values_BHPd)
        return found.transpose(1, 2).flatten(2)

    def forward(self, texts_BND: Tensor, patches_BPD: Tensor) -> Tensor:
        """[B, N, D] conditioned image embeddings; `texts_BND` may have B = 1."""
        return self.output(self.attend(self.queries(texts_BND), self.keys_values(patches_BPD)))

    def patch_values(self, patches_BPD: Tensor) -> Tensor:
        """[B, P, D]: the pooling of each patch alone without the sink. The softmax over one key is 1, so the
        result is the same for every text; used for segmentation [docs/method.md 2, Segmentation]."""
        return self.output(self.value(self.norm_value(patches_BPD)))

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, H, N, D/H]"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
