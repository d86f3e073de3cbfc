"""Generation with a tiny Phi-3 that has learned four answers by heart, and vLLM's calls on a stand-in."""

import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import webdataset
from random_run import run_tool
from tiny_checkpoints import TEMPLATE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from vlp.annotation.generation import Answer, Generate, GenerationSettings, check_generation, load_generator
from vlp.annotation.questions import make_prompt
from vlp.data.shards import read_shard
from vlp.errors import UserError

TOOL = "tools/prepare_vqa.py"
CONTEXT = 320
KNOWN = {
    "a cat": "1. Question: What is it?\n   Answer: A cat",
    "two dogs on a beach": "Q1: How many dogs are there?\nA1: Two\n\nQ2: Where are they?\nA2: On a beach",
    "a red car that stands in front of an old house of bricks": "Q: What color is the car? A: Red",
    "nothing": "I cannot help with that.",
}
"""What the model writes about a caption."""


def settings(model: Path | str, **change) -> GenerationSettings:
    """Of greedy decoding with 60 new tokens."""
    given = {"model": str(model), "max_new_tokens": 60, "context": 4096, "temperature": 0, "seed": 0} | change
    return GenerationSettings(**given)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Phi-3 of width 32 that knows `KNOWN`. Its turns end with <|end|>, its texts with another token,
    nothing pads, and it comes with wild sampling, which must not be used."""
    folder = tmp_path_factory.mktemp("model") / "phi"
    torch.manual_seed(0)
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"]
    bytes_.train_from_iterator(
        [make_prompt(caption) + text for caption, text in KNOWN.items()],
        trainers.BpeTrainer(
            vocab_size=640, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_, eos_token="<|endoftext|>", chat_template=TEMPLATE)
    config = Phi3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, original_max_position_embeddings=CONTEXT,
        bos_token_id=None, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    phi = Phi3ForCausalLM(config)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    optimizer = torch.optim.Adam(phi.parameters(), 1e-2)
    prompts = [
        tokenizer.apply_chat_template(chat(caption), add_generation_prompt=True)["input_ids"] for caption in KNOWN
    ]
    answers = [[*tokenizer.encode(text), end] for text in KNOWN.values()]
    for _ in range(300):
        losses = []
        for prompt, answer in zip(prompts, answers, strict=True):
            logits = phi(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        if max(losses) < 0.02:
            break
    phi.generation_config.update(do_sample=True, temperature=50.0, top_k=50, eos_token_id=[end], max_length=2000)
    phi.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(caption: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": make_prompt(caption)}]


def ask(generate: Generate, captions: list[str]) -> list[Answer | None]:
    return generate([make_prompt(caption) for caption in captions])


def load(model: Path, batch_size: int = 8, **change) -> Generate:
    return load_generator(settings(model, **change), "transformers", "cpu", batch_size)


# ---- transformers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_every_prompt_gets_its_own_answer(model: Path, batch_size: int) -> None:
    captions = [*KNOWN, *reversed(KNOWN)]
    assert ask(load(model, batch_size), captions) == [Answer(KNOWN[caption], cut=False) for caption in captions]


def test_an_answer_does_not_depend_on_the_rest_of_its_batch(model: Path) -> None:
    unknown = ["a", "a bird in a tree", "a cat on a red car", "zebra " * 10, "Ünïcödé <|end|> ✓"]
    generate = load(model, max_new_tokens=30)
    alone = [ask(generate, [caption])[0] for caption in unknown]
    assert ask(generate, unknown) == alone and len(set(alone)) >= 4
    naive = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for caption, answer in zip(unknown, alone, strict=True):
        ids = tokenizer.apply_chat_template(chat(caption), add_generation_prompt=True)["input_ids"]
        start = len(ids)
        while len(ids) < start + 30 and "<|end|>" not in tokenizer.convert_ids_to_tokens(ids[start:]):
            ids.append(int(naive(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer.text == tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_new_tokens_are_bounded_and_a_cut_text_says_so(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    captions = list(KNOWN)
    lengths = [len(tokenizer.encode(text)) for text in KNOWN.values()]
    longest = max(lengths)
    for most in (1, 5, min(lengths), longest, longest + 1):
        for caption, answer in zip(captions, ask(load(model, max_new_tokens=most), captions), strict=True):
            ids = tokenizer.encode(KNOWN[caption])
            assert answer == Answer(tokenizer.decode(ids[:most]), cut=len(ids) >= most)


def test_prompts_without_room_are_left_out(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    length = len(tokenizer.apply_chat_template(chat("a cat"), add_generation_prompt=True)["input_ids"])
    captions = ["a cat", "x" * 100_000, "two dogs on a beach", "a cat"]
    answers = ask(load(model, context=length + 60), captions)
    assert answers == [Answer(KNOWN["a cat"], False), None, None, Answer(KNOWN["a cat"], False)]
    assert ask(load(model, context=length + 59), captions) == [None] * 4
    assert ask(load(model), captions)[1:3] == [None, Answer(KNOWN["two dogs on a beach"], False)]  # the model's context
    assert load(model)([]) == []


def test_sampling_follows_its_seed(model: Path) -> None:
    captions = list(KNOWN)
    greedy = ask(load(model), captions)
    hot = [ask(load(model, temperature=3.0, seed=seed, max_new_tokens=20), captions) for seed in (0, 0, 1)]
    assert hot[0] == hot[1] != hot[2] and hot[0] != greedy
    generate = load(model, temperature=3.0, max_new_tokens=20)
    assert [ask(generate, captions) for _ in range(2)] == [hot[0]] * 2
    assert ask(load(model, temperature=0.01), captions) == greedy == ask(load(model, seed=5), captions)


# ---- vLLM -------------------------------------------------------------------------------------------------------


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """A `vllm` with the part of its interface that is used; what it was called with."""
    calls: list[tuple[str, object]] = []

    class SamplingParams:
        def __init__(self, *, temperature: float, max_tokens: int, seed: int):
            self.given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}

    class LLM:
        def __init__(self, model: str, *, dtype: str, max_model_len: int, seed: int):
            calls.append(("LLM", {"model": model, "dtype": dtype, "max_model_len": max_model_len, "seed": seed}))

        def chat(self, messages: list[list[dict]], sampling_params: SamplingParams, use_tqdm: bool) -> list:
            assert isinstance(sampling_params, SamplingParams) and use_tqdm is False
            calls.append(("chat", sampling_params.given))
            texts = []
            for (message,) in messages:
                assert message.keys() == {"role", "content"} and message["role"] == "user"
                texts.append(next(text for caption, text in KNOWN.items() if f"“{caption}”" in message["content"]))
            reasons = ["length" if "car" in text else "stop" for text in texts]
            written = [[SimpleNamespace(text=t, finish_reason=r)] for t, r in zip(texts, reasons, strict=True)]
            return [SimpleNamespace(outputs=outputs) for outputs in written]

    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return calls


def test_vllm_is_called_as_documented(model: Path, vllm: list) -> None:
    wanted = settings(model, seed=3, temperature=0.5)
    generate = load_generator(wanted, "vllm", "auto", 2)
    captions = ["x" * 100_000, *KNOWN, "a cat"]
    answers = ask(generate, captions)
    assert answers == [None, *(Answer(text, cut="car" in text) for text in [*KNOWN.values(), KNOWN["a cat"]])]
    assert vllm == [
        ("LLM", {"model": str(model), "dtype": "bfloat16", "max_model_len": CONTEXT, "seed": 3}),
        ("chat", {"temperature": 0.5, "max_tokens": 60, "seed": 3}),
    ]
    assert ask(generate, ["x" * 100_000]) == [None] and len(vllm) == 2


def test_auto_takes_vllm_only_where_it_and_a_gpu_are(model: Path, vllm: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load_generator(settings(model), "auto", "auto", 1)
    load_generator(settings(model), "auto", "cuda", 1)
    assert len(vllm) == 2
    load_generator(settings(model), "auto", "cpu", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    load_generator(settings(model), "auto", "auto", 1)
    load_generator(settings(model), "transformers", "auto", 1)
    assert len(vllm) == 2


# ---- what cannot be ---------------------------------------------------------------------------------------------


@pytest.fixture
def changed(model: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """A copy of the model's folder in which a file has another content, or is missing."""

    def change(name: str, text: str | None) -> Path:
        folder = tmp_path / "changed"
        folder.mkdir()
        for file in model.iterdir():
            if file.name != name:
                (folder / file.name).symlink_to(file)
        if text is not None:
            (folder / name).write_text(text)
        return folder

    return change


def check(model: Path | str, backend: str = "auto", device: str = "cpu", **change) -> None:
    check_generation(settings(model, **change), backend, device)


def test_a_model_that_can_be_used(model: Path) -> None:
    check(model)
    check(model, max_new_tokens=CONTEXT - 1)


def test_models_that_cannot_be_loaded(changed: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model \S*/nowhere cannot be loaded \(.*\); give a causal language model"):
        check(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--model .* cannot be loaded \(.*\); give a causal language model"):
        check(changed("config.json", '{"model_type": "no_such_model"}'))


def test_a_model_without_weights_or_template(model: Path, changed: Callable) -> None:
    weightless = changed("model.safetensors", None)
    check(weightless)  # weights are not looked at before they are wanted
    with pytest.raises(UserError, match=r"--model \S* cannot be loaded \("):
        load(weightless)


def test_a_model_without_a_chat_template(changed: Callable) -> None:
    with pytest.raises(UserError, match="has no chat template; give a model that follows instructions"):
        check(changed("chat_template.jinja", None))


def test_settings_that_this_machine_or_model_cannot_follow(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=f"--max-new-tokens {CONTEXT} leaves no room .* the context is {CONTEXT} tokens"
    ):
        check(model, max_new_tokens=CONTEXT)
    with pytest.raises(UserError, match=r"--max-new-tokens 60 leaves no room .* by --context 50"):
        check(model, context=50)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: torch finds no GPU here"):
        check(model, device="cuda")
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--backend vllm wants vLLM: pip install vllm"):
        check(model, backend="vllm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"generation wants transformers: pip install -e '\.\[annotate\]'"):
        check(model)


# ---- the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    captions = [*KNOWN, "long " * 500]
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar"), encoder=False) as tar:
            for number, caption in enumerate(captions):
                annotations = json.dumps({"sv": ["other", caption]}).encode()
                tar.write({"__key__": f"{shard}-{number}", "jpg": b"picture", "json": annotations})
    return folder


EXPECTED = [
    [{"question": "What is it?", "answer": "A cat"}],
    [
        {"question": "How many dogs are there?", "answer": "Two"},
        {"question": "Where are they?", "answer": "On a beach"},
    ],
    [{"question": "What color is the car?", "answer": "Red"}],
    None,
    None,
]


def arguments(shards: Path, out: Path, model: Path) -> list[object]:
    return [TOOL, f"{shards}/*.tar", "--out", out, "--model", model, "--fields", "short=sv", "--index", 1,
            "--max-new-tokens", 60, "--device", "cpu", "--batch-size", 2]  # fmt: skip


def check_output(out: Path) -> None:
    for shard in range(2):
        written = [json.loads(sample["json"]) for sample in read_shard(str(out / f"{shard:05d}.tar"))]
        assert [annotations.get("vqa") for annotations in written] == EXPECTED
        assert [annotations["sv"][1] for annotations in written][: len(KNOWN)] == list(KNOWN)
    assert json.loads((out / "summary.json").read_text()) == {
        "shards": 2, "samples": 10, "annotated": 6, "pairs": 8, "no_pairs": 2, "rejected_remark": 2,
        "caption_too_long": 2,
    }  # fmt: skip


def test_shards_get_the_models_questions(
    model: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run_tool(*arguments(shards, out, model)) == 0
    check_output(out)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{out}: 2 shards, annotated 6, caption_too_long 2, ")
    (out / "00001.tar").unlink()
    (out / "00001_stats.json").unlink()
    kept = (out / "00000.tar").stat().st_mtime_ns
    assert run_tool(*arguments(shards, out, model)) == 0
    check_output(out)
    assert (out / "00000.tar").stat().st_mtime_ns == kept
    monkeypatch.setattr("vlp.annotation.questions.load_generator", None)  # a third run loads nothing
    assert run_tool(*arguments(shards, out, model)) == 0
    check_output(out)
    assert run_tool(*arguments(shards, out, model), "--temperature", 1) == 2
    assert "holds shards made with temperature=0.0, not 1.0" in capsys.readouterr().err
    assert run_tool(*arguments(shards, tmp_path / "none", tmp_path / "nowhere")) == 2
    assert not (tmp_path / "none").exists()
