"""The decoder: it reads a prompt and the patch tokens, and predicts the next token of the answer.

Shapes: R prompts, L token ids, P patches, Q queries, D width, W width of the text tower, V vocabulary, A answer tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear_cross_entropy, scaled_dot_product_attention

from vlp.data.batch import Prompts
from vlp.data.tokens import VOCABULARY
from vlp.precision import full, without_autocast
from vlp.settings import DecoderSettings, TextSettings


class Attention(nn.Module):
    """Multi-head attention over `context`, or over itself."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_RLD: Tensor, context_RPD: Tensor | None = None, seen_RLL: Tensor | None = None) -> Tensor:
        """[R, L, D]. Over itself it is causal, or sees what `seen_RLL` (bool) says."""
        key, value = self.key_value(x_RLD if context_RPD is None else context_RPD).chunk(2, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(x_RLD), key, value)
        )
        causal = context_RPD is None and seen_RLL is None
        mask = None if seen_RLL is None else seen_RLL[:, None]
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self.output(found.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Pre-norm: self-attention, cross-attention to the patches, MLP of four times the width (C21)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_self = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.norm_cross = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_RLD: Tensor, patches_RPD: Tensor, seen_RLL: Tensor | None) -> Tensor:
        """[R, L, D]"""
        x_RLD = x_RLD + self.self_attention(self.norm_self(x_RLD), seen_RLL=seen_RLL)
        x_RLD = x_RLD + self.cross_attention(self.norm_cross(x_RLD), patches_RPD)
        return x_RLD + self.mlp(self.norm_mlp(x_RLD))


class TokenInput(nn.Module):
    """Token ids and their positions as input, for a decoder that has no text tower before it (LocCa). Hidden tokens
    are one learned vector."""

    def __init__(self, width: int, context_length: int):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(torch.empty(context_length, width))
        self.hidden = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def forward(self, ids_RL: Tensor, hidden_RL: Tensor) -> Tensor:
        """[R, L, D]"""
        x_RLD = torch.where(hidden_RL[..., None], self.hidden, self.embedding(ids_RL))
        return x_RLD + self.positions[: ids_RL.shape[1]]


class PatchPooling(nn.Module):
    """CoCa's attentional pooling: learned queries over the patch tokens, normed before and after."""

    def __init__(self, width: int, heads: int, queries: int):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.norm_query = nn.LayerNorm(width)
        self.norm_patches = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, patches_RPD: Tensor) -> Tensor:
        """[R, Q, D]"""
        queries_RQD = self.norm_query(self.queries).expand(len(patches_RPD), -1, -1)
        return self.norm(self.attention(queries_RQD, self.norm_patches(patches_RPD)))


class Decoder(nn.Module):
    """Next-token prediction for prompts about images [docs/method.md 3, Decoder].

    GoldiCLIP's input is the text tower's per-token output instead of token ids. That tower is causal, so position l
    knows ids 0..l and predicts id l+1; the decoder's gradient trains it. Discarded after training.
    """

    def __init__(self, settings: DecoderSettings, width: int, text: TextSettings):
        super().__init__()
        self.reads_tokens = settings.input == "tokens"
        self.input = TokenInput(width, text.context_length) if self.reads_tokens else nn.Linear(text.width, width)
        self.pooling = PatchPooling(width, settings.heads, settings.queries) if settings.queries else None
        self.blocks = nn.ModuleList(DecoderBlock(width, settings.heads) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                is_output = name.endswith(("output.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * settings.layers) ** 0.5 if is_output else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, text_RLW: Tensor | None, patches_RPD: Tensor, prompts: Prompts, answers_RL: Tensor) -> Tensor:
        """float32 [A] negative log-likelihood of every answer token.

        Args:
            text_RLW: the text tower's tokens for each prompt; None where the decoder reads the ids.
            patches_RPD: the projected patch tokens of each prompt's image.
            answers_RL: bool, true at the ids that are predicted (answer and end token; not the start token).
        """
        seen_RLL = None
        if self.reads_tokens:
            position_L = torch.arange(prompts.ids_RL.shape[1], device=answers_RL.device)
            hidden_RL = prompts.parallel_R[:, None] & (position_L >= prompts.answer_start_R[:, None])
            x_RLD = self.input(prompts.ids_RL, hidden_RL)
            seen_RLL = (position_L[:, None] >= position_L) | prompts.parallel_R[:, None, None]
        else:
            x_RLD = self.input(text_RLW)
        if self.pooling is not None:
            patches_RPD = self.pooling(patches_RPD)
        for block in self.blocks:
            x_RLD = block(x_RLD, patches_RPD, seen_RLL)
        predicting_RL = answers_RL.roll(-1, dims=1)  # position l predicts id l+1; position 0 is never an answer
        return token_losses(self.norm(x_RLD[predicting_RL]), self.head.weight, prompts.ids_RL[answers_RL])


@without_autocast
def token_losses(hidden_AD: Tensor, head_VD: Tensor, ids_A: Tensor) -> Tensor:
    """float32 [A] cross-entropy of each id under the logits `hidden @ head.T`."""
    # In chunks the [A, V] logits never lie in memory; on a CPU that takes three times as long.
    options = LinearCrossEntropyOptions() if hidden_AD.is_cuda else None
    return linear_cross_entropy(full(hidden_AD), full(head_VD), ids_A, reduction="none", options=options)
