"""Models with random weights, and the tokenizers that belong to them, in folders as transformers saves them."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def write_detector(folder: Path, side: int = 64) -> Path:
    """OWLv2 with random weights and 4 x 4 places, and CLIP's tokenizer over letters, padded with OWLv2's id 0."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789'"
    words = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer({word: i for i, word in enumerate(words)}, [], pad_token="!")
    size = {"height": side, "width": side}
    processor = transformers.Owlv2Processor(transformers.Owlv2ImageProcessor(size=size), tokenizer)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    config = transformers.Owlv2Config(
        text_config=layers | {"vocab_size": len(words), "max_position_embeddings": 16} | ends,
        vision_config=layers | {"image_size": side, "patch_size": side // 4},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = transformers.Owlv2ForObjectDetection(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_language_model(folder: Path) -> Path:
    """A Phi-3 of width 32 over bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"]
    tokens = Tokenizer(models.BPE({word: i for i, word in enumerate([*special, *alphabet])}, []))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token=special[0], chat_template=TEMPLATE, additional_special_tokens=special[1:]
    )
    torch.manual_seed(0)
    model = transformers.Phi3ForCausalLM(
        transformers.Phi3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            original_max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=None,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
