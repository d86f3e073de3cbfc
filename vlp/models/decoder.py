"""GoldiCLIP's decoder: it reads the text tower's outputs and the patch tokens, and predicts the next token.

Shapes: R prompts, L token ids, P patches, D width, W width of the text tower, V vocabulary, A answer tokens.
"""

from torch import Tensor, nn
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear_cross_entropy, scaled_dot_product_attention

from vlp.data.tokens import VOCABULARY
from vlp.precision import full, without_autocast


class Attention(nn.Module):
    """Multi-head attention over `context`; causal self-attention when there is none."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_RLD: Tensor, context_RPD: Tensor | None = None) -> Tensor:
        """[R, L, D]"""
        key, value = self.key_value(x_RLD if context_RPD is None else context_RPD).chunk(2, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(x_RLD), key, value)
        )
        found = scaled_dot_product_attention(query, key, value, is_causal=context_RPD is None)
        return self.output(found.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Pre-norm: causal self-attention, cross-attention to the patches, MLP of four times the width (C21)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_self = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.norm_cross = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_RLD: Tensor, patches_RPD: Tensor) -> Tensor:
        """[R, L, D]"""
        x_RLD = x_RLD + self.self_attention(self.norm_self(x_RLD))
        x_RLD = x_RLD + self.cross_attention(self.norm_cross(x_RLD), patches_RPD)
        return x_RLD + self.mlp(self.norm_mlp(x_RLD))


class Decoder(nn.Module):
    """Next-token prediction for prompts about images [docs/method.md 3, Decoder].

    Its input is the text tower's per-token output instead of token ids. That tower is causal, so position l knows
    ids 0..l and predicts id l+1; its gradient trains the text tower. Discarded after training.
    """

    def __init__(self, width: int, text_width: int, layers: int, heads: int):
        super().__init__()
        self.input = nn.Linear(text_width, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                std = 0.02 / (2 * layers) ** 0.5 if name.endswith(("output.weight", "mlp.2.weight")) else 0.02
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, text_RLW: Tensor, patches_RPD: Tensor, answers_RL: Tensor, ids_RL: Tensor) -> Tensor:
        """float32 [A] negative log-likelihood of every answer token.

        Args:
            text_RLW: the text tower's tokens for each prompt.
            patches_RPD: the projected patch tokens of each prompt's image.
            answers_RL: bool, true at the ids that are predicted (answer and end token; not the start token).
            ids_RL: the ids themselves.
        """
        x_RLD = self.input(text_RLW)
        for block in self.blocks:
            x_RLD = block(x_RLD, patches_RPD)
        predicting_RL = answers_RL.roll(-1, dims=1)  # position l predicts id l+1; position 0 is never an answer
        return token_losses(self.norm(x_RLD[predicting_RL]), self.head.weight, ids_RL[answers_RL])


@without_autocast
def token_losses(hidden_AD: Tensor, head_VD: Tensor, ids_A: Tensor) -> Tensor:
    """float32 [A] cross-entropy of each id under the logits `hidden @ head.T`."""
    # In chunks the [A, V] logits never lie in memory; on a CPU that takes three times as long.
    options = LinearCrossEntropyOptions() if hidden_AD.is_cuda else None
    return linear_cross_entropy(full(hidden_AD), full(head_VD), ids_A, reduction="none", options=options)
