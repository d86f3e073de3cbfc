"""The text tower: open_clip's causal transformer over any length up to its context.

Shapes: T texts, L token ids, W width, D joint width.
"""

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor
from torch.nn.functional import pad

from vlp.data.tokens import PAD, VOCABULARY
from vlp.settings import TextSettings

GROUPS = 4


class TextTower(TextTransformer):
    """CLIP's text transformer. Text cut to its longest caption gives the same result, because attention is causal
    and pooling happens at the end token; open_clip's own forward takes only the full context.

    For the same reason the texts of one pass are sorted by length and go through the blocks in `GROUPS` parts, each
    cut to its own longest: sampled captions differ so much in length that half of a joint rectangle is padding.
    """

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
        """int64 ids to (tokens after the last norm [T, L, W], zero past a text's group; projected end token [T, D])."""
        tokens_TLW = self._tokens_by_length(ids_TL) if self.training else self._tokens(ids_TL)
        end_T = ids_TL.argmax(dim=1)  # the end token has the largest id
        return tokens_TLW, tokens_TLW[torch.arange(len(ids_TL), device=ids_TL.device), end_T] @ self.text_projection

    def _tokens_by_length(self, ids_TL: Tensor) -> Tensor:
        texts, length = ids_TL.shape
        if texts < GROUPS:  # every rank passes the blocks equally often, or ZeRO-3 hangs
            ids_TL = torch.cat([ids_TL, ids_TL[:1].expand(GROUPS - texts, -1)])
        length_T = ((ids_TL != PAD) * torch.arange(1, length + 1, device=ids_TL.device)).amax(1)
        order_T = length_T.argsort()
        groups = order_T.tensor_split(GROUPS)
        longest = torch.stack([length_T[group[-1]] for group in groups]).tolist()
        parts = [self._tokens(ids_TL[group, :cut]) for group, cut in zip(groups, longest, strict=True)]
        padded = [pad(part, (0, 0, 0, length - part.shape[1])) for part in parts]
        return torch.cat(padded)[order_T.argsort()][:texts]

    def _tokens(self, ids_TL: Tensor) -> Tensor:
        length = ids_TL.shape[1]
        x_TLW = self.token_embedding(ids_TL) + self.positional_embedding[:length]
        return self.ln_final(self.transformer(x_TLW, attn_mask=self.attn_mask[:length, :length]))
