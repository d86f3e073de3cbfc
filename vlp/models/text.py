"""The text tower: open_clip's causal transformer over any length up to its context.

Shapes: T texts, L token ids, W width, D joint width.
"""

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor

from vlp.data.tokens import VOCABULARY
from vlp.settings import TextSettings


class TextTower(TextTransformer):
    """CLIP's text transformer. Text cut to its longest caption gives the same result, because attention is causal
    and pooling happens at the end token; open_clip's own forward takes only the full context."""

    def __init__(self, settings: TextSettings, embed_dim: int):
        super().__init__(
            context_length=settings.context_length,
            vocab_size=VOCABULARY,
            width=settings.width,
            heads=settings.heads,
            layers=settings.layers,
            output_dim=embed_dim,
        )

    def forward(self, ids_TL: Tensor) -> tuple[Tensor, Tensor]:
        """int64 ids to (tokens after the last norm [T, L, W], projected token at the end of text [T, D])."""
        length = ids_TL.shape[1]
        x_TLW = self.token_embedding(ids_TL) + self.positional_embedding[:length]
        tokens_TLW = self.ln_final(self.transformer(x_TLW, attn_mask=self.attn_mask[:length, :length]))
        end_T = ids_TL.argmax(dim=1)  # the end token has the largest id
        return tokens_TLW, tokens_TLW[torch.arange(len(ids_TL), device=ids_TL.device), end_T] @ self.text_projection
