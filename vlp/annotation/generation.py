"""Text from an instruction model, for many prompts at once: through transformers, or vLLM where that is installed."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from pydantic import Field

from vlp.errors import UserError
from vlp.settings import Count, Positive, Section

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Backend = Literal["auto", "transformers", "vllm"]
Device = Literal["auto", "cpu", "cuda"]


class GenerationSettings(Section):
    """What decides the text. The defaults are the command line's."""

    model: str
    max_new_tokens: Positive
    context: Positive
    """Tokens of a prompt and its answer together; less where the model has less."""
    temperature: float = Field(ge=0)
    """0 takes the likeliest token every time."""
    seed: Count


class Answer(NamedTuple):
    """What the model wrote, and whether it was stopped before its end."""

    text: str
    cut: bool


Generate = Callable[[list[str]], list[Answer | None]]
"""The answer to every prompt, in order; None to one that leaves no room for an answer in the context."""
_GenerateFitting = Callable[[list[str], list[list[int]]], list[Answer]]
"""The same for prompts that fit, with their token ids."""


def check_generation(settings: GenerationSettings, backend: Backend, device: Device) -> None:
    """Find out, without loading weights, what would stop `load_generator` here. Raises `UserError`."""
    if backend == "vllm" and not _has_vllm():
        raise UserError("--backend vllm wants vLLM: pip install vllm, or give --backend transformers")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; give --device cpu or auto")
    load_tokenizer(settings)


def load_generator(settings: GenerationSettings, backend: Backend, device: Device, batch_size: int) -> Generate:
    """Load the model, in bfloat16 on a GPU and float32 on the CPU.

    Args:
        backend: auto takes vLLM where it is installed and there is a GPU to use.
        batch_size: prompts that transformers answers together; vLLM batches by itself.

    Raises:
        UserError: a model that cannot be loaded or takes no chat, or a context without room for an answer.
    """
    tokenizer, context = load_tokenizer(settings)
    gpu = device != "cpu" and torch.cuda.is_available()
    if backend == "vllm" or (backend == "auto" and gpu and _has_vllm()):
        generate = _load_vllm(settings, context)
    else:
        generate = _load_transformers(settings, tokenizer, "cuda" if gpu else "cpu", batch_size)
    return partial(_generate, tokenizer, context - settings.max_new_tokens, generate)


def load_tokenizer(settings: GenerationSettings) -> tuple["PreTrainedTokenizerBase", int]:
    """The tokenizer, and the tokens that prompt and answer may have together. Raises `UserError`."""
    try:
        from transformers import AutoConfig, AutoTokenizer
    except ImportError:
        raise UserError("generation wants transformers: pip install -e '.[annotate]'") from None
    try:
        config = AutoConfig.from_pretrained(settings.model)
        tokenizer = AutoTokenizer.from_pretrained(settings.model, padding_side="left")
    except (OSError, ValueError) as error:
        raise _no_model(settings.model, error) from None
    if not tokenizer.chat_template:
        raise UserError(f"--model {settings.model} has no chat template; give a model that follows instructions")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    context = min(settings.context, getattr(config.get_text_config(), "max_position_embeddings", settings.context))
    if context <= settings.max_new_tokens:
        raise UserError(
            f"--max-new-tokens {settings.max_new_tokens} leaves no room for a prompt: the context is {context} tokens, "
            f"of the model or by --context {settings.context}"
        )
    return tokenizer, context


def _generate(
    tokenizer: "PreTrainedTokenizerBase", room: int, generate: _GenerateFitting, prompts: list[str]
) -> list[Answer | None]:
    """Answer the prompts of at most `room` tokens, the longest first: what does not fit in memory shows at once."""
    ids = [tokenizer.apply_chat_template(_chat(p), add_generation_prompt=True, return_dict=False) for p in prompts]
    fitting = sorted((i for i in range(len(ids)) if len(ids[i]) <= room), key=lambda i: -len(ids[i]))
    answers: list[Answer | None] = [None] * len(prompts)
    found = generate([prompts[i] for i in fitting], [ids[i] for i in fitting]) if fitting else []
    for i, answer in zip(fitting, found, strict=True):
        answers[i] = answer
    return answers


def _chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _no_model(model: str, error: Exception) -> UserError:
    lines = str(error).splitlines() or [type(error).__name__]
    return UserError(
        f"--model {model} cannot be loaded ({lines[0]}); give a causal language model of the Hugging Face hub by its "
        "name, or a folder that holds one"
    )


# ---- transformers -----------------------------------------------------------------------------------------------


def _load_transformers(
    settings: GenerationSettings, tokenizer: "PreTrainedTokenizerBase", device: str, batch_size: int
) -> _GenerateFitting:
    from transformers import AutoModelForCausalLM, GenerationConfig

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    try:
        model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype).to(device).eval()
    except (OSError, ValueError) as error:
        raise _no_model(settings.model, error) from None
    end = model.generation_config.eos_token_id  # of a turn, which the tokenizer's end of text need not be
    # Replaced as a whole, or the sampling that the model came with would show through.
    model.generation_config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.temperature > 0,
        temperature=settings.temperature or None,
        top_k=0 if settings.temperature else None,
        eos_token_id=tokenizer.eos_token_id if end is None else end,
        pad_token_id=tokenizer.pad_token_id,
    )
    return partial(_generate_with_transformers, tokenizer, model, batch_size, settings.seed)


@torch.inference_mode()
def _generate_with_transformers(
    tokenizer: "PreTrainedTokenizerBase",
    model: "PreTrainedModel",
    batch_size: int,
    seed: int,
    prompts: list[str],
    ids: list[list[int]],
) -> list[Answer]:
    ends = torch.tensor(model.generation_config.eos_token_id, device=model.device).reshape(-1)
    answers = []
    for start in range(0, len(ids), batch_size):
        batch = tokenizer.pad({"input_ids": ids[start : start + batch_size]}, return_tensors="pt").to(model.device)
        torch.manual_seed(seed)  # a shard that is tried again gets the same answers
        output = model.generate(**batch)[:, batch["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(output, skip_special_tokens=True)
        ended = torch.isin(output, ends).any(1).tolist()
        answers += [Answer(text, cut=not end) for text, end in zip(texts, ended, strict=True)]
    return answers


# ---- vLLM -------------------------------------------------------------------------------------------------------


def _load_vllm(settings: GenerationSettings, context: int) -> _GenerateFitting:
    """vLLM's offline inference [docs.vllm.ai, `LLM.chat`]."""
    from vllm import LLM, SamplingParams

    model = LLM(model=settings.model, dtype="bfloat16", max_model_len=context, seed=settings.seed)
    sampling = SamplingParams(temperature=settings.temperature, max_tokens=settings.max_new_tokens, seed=settings.seed)

    def generate(prompts: list[str], ids: list[list[int]]) -> list[Answer]:
        outputs = model.chat([_chat(prompt) for prompt in prompts], sampling_params=sampling, use_tqdm=False)
        written = [output.outputs[0] for output in outputs]
        return [Answer(one.text, cut=one.finish_reason == "length") for one in written]

    return generate


def _has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None
