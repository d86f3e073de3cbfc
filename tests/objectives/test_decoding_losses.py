"""Which ids are predicted, and what the decoder cannot see. Values and gradients: tests/parity."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, settings
from hypothesis import given as over
from hypothesis import strategies as st
from random_batch import prompts_of
from torch import Tensor

import vlp.models.decoder as decoder_module
from vlp.data.batch import Batch, Prompts
from vlp.data.prompts import encode_prompt
from vlp.data.tokens import PAD, START
from vlp.errors import UserError
from vlp.models.model import VisionLanguageModel
from vlp.objectives.decoding import Decoding, answer_tokens
from vlp.objectives.features import Features

TASKS = ("caption", "referring", "grounded", "vqa")


@pytest.fixture(scope="module")
def model(tiny_recipe) -> VisionLanguageModel:
    torch.manual_seed(0)
    modules = {"image_projection", "patch_projection", "text", "decoder"}
    return VisionLanguageModel(tiny_recipe("goldiclip"), modules).double()


def run(model: VisionLanguageModel, prompts: dict[str, Prompts], patches_BPD: Tensor) -> dict[str, Tensor]:
    features = Features(model, None, Batch(torch.arange(len(patches_BPD)), prompts=prompts), frozenset(), 0, 0)
    features.patch_embeds = patches_BPD
    return features.answer_losses


ROWS = {
    "caption": [([5, 6], [7, 8, 9]), ([5, 6], [4])],
    "referring": [([1], [])],  # an empty answer: the end token alone
    "grounded": [([3, 3, 3], [0, 2, 0])],  # id 0 is a byte of "!", not only padding
    "vqa": [([9], [8]), ([9, 8], [7, 6, 5, 4, 3]), ([2], [2, 2])],
}
IMAGES = {"caption": [2, 0], "referring": [1], "grounded": [1], "vqa": [0, 1, 2]}


# ---- which ids are predicted ------------------------------------------------------------------------------------

ids_list = st.lists(st.integers(0, START - 1) | st.just(0), max_size=8)


@over(prompt=ids_list, answer=ids_list, padding=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_answers_are_from_the_first_answer_id_to_the_end_token(prompt, answer, padding) -> None:
    prompts = prompts_of([(prompt, answer)], [0], padding)
    expected = [False] * (1 + len(prompt)) + [True] * (len(answer) + 1) + [False] * padding
    assert answer_tokens(prompts)[0].tolist() == expected


texts = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=60)


@over(prompt=texts, answer=texts, context=st.integers(3, 24))
@example(prompt="a", answer="!?!?!? and more words than fit", context=6)  # "!?!?!?" begins with id 0
@settings(max_examples=100, deadline=None)
def test_truncated_prompts(prompt: str, answer: str, context: int) -> None:
    """What does not fit is cut: answer tokens that are left are predicted, prompt and padding never are."""
    ids, start = encode_prompt(prompt, answer, context)
    assert len(ids) <= context
    padded = torch.tensor([[*ids, *[PAD] * (context - len(ids))]])
    chosen = answer_tokens(Prompts(padded, torch.tensor([start]), torch.tensor([0])))[0].nonzero().flatten().tolist()
    if start >= len(ids):  # the prompt alone fills the context
        assert chosen == []
    else:
        assert chosen == list(range(start, len(ids)))


def absent_loss(objective, model, batch, tokens):
    """The loss of a task that has no answer token in the batch, seen to be zero."""
    totals = objective.counts(batch)
    assert totals["present"] == 0
    features = Features(model, None, batch, frozenset(), 0, 0)
    features.patch_embeds = tokens
    loss = objective(features, totals).loss
    assert loss == 0
    return loss


def test_a_task_whose_prompts_are_all_cut_off(model, tiny_recipe, leaf) -> None:
    """Prompts as long as the context leave no answer token anywhere: zero loss, finite gradients."""
    recipe, tokens = tiny_recipe("goldiclip"), leaf(2, 2, 16, seed=3)
    cut = Prompts(torch.tensor([[START, *range(5, 17)]]), torch.tensor([13]), torch.tensor([1]))
    objective = Decoding(recipe, recipe.objectives["vqa"], model)
    for others in ({}, {"caption": prompts_of(ROWS["caption"], [0, 1])}):
        batch = Batch(torch.arange(2), prompts={"vqa": cut, **others})
        loss = absent_loss(objective, model, batch, tokens)
        (gradient,) = torch.autograd.grad(loss, tokens)
        assert not gradient.any()


def test_a_task_without_samples_gives_zero_and_leaves_the_others_alone(model, tiny_recipe, leaf) -> None:
    recipe, tokens = tiny_recipe("goldiclip"), leaf(3, 2, 16, seed=4)
    empty = Prompts(torch.zeros(0, 8, dtype=torch.int64), *(torch.zeros(0, dtype=torch.int64) for _ in range(2)))
    full = {task: prompts_of(ROWS[task], IMAGES[task]) for task in TASKS}
    alone = run(model, {task: full[task] for task in TASKS if task != "grounded"}, tokens)
    partly = run(model, full | {"grounded": empty}, tokens)
    for task in alone:
        torch.testing.assert_close(partly[task], alone[task], rtol=1e-12, atol=1e-12)
    assert not partly["grounded"].any()

    objective = Decoding(recipe, recipe.objectives["grounded"], model)
    batch = Batch(torch.arange(3), prompts=dict.fromkeys(TASKS, empty))
    loss = absent_loss(objective, model, batch, tokens)
    gradients = torch.autograd.grad(loss, [tokens, *model.decoder.parameters(), model.text.positional_embedding])
    assert not any(gradient.any() for gradient in gradients)  # every module ran, none learns from the placeholder


# ---- leakage ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hidden(monkeypatch) -> SimpleNamespace:
    """What each answer token is predicted from, as the loss receives it."""
    seen, original = SimpleNamespace(hidden_AD=None), decoder_module.token_losses

    def spy(hidden_AD: Tensor, head_VD: Tensor, ids_A: Tensor) -> Tensor:
        seen.hidden_AD = hidden_AD.detach().clone()
        return original(hidden_AD, head_VD, ids_A)

    monkeypatch.setattr(decoder_module, "token_losses", spy)
    return seen


@pytest.mark.parametrize("place", range(5))
def test_the_decoder_does_not_see_the_token_it_predicts(place: int, model, leaf, hidden) -> None:
    """Another answer id at `place` (through text tower and decoder): what the ids up to it are predicted from stays,
    what comes after changes; the loss at `place` changes as another label under the same logits."""
    tokens, answer = leaf(1, 3, 16, seed=5), [11, 12, 13, 14, 15]
    before = run(model, {"vqa": prompts_of([([7, 8], answer)], [0])}, tokens)["vqa"]
    hidden_before = hidden.hidden_AD
    changed = [*answer[:place], 4321, *answer[place + 1 :]]
    after = run(model, {"vqa": prompts_of([([7, 8], changed)], [0])}, tokens)["vqa"]
    same = slice(0, place + 1)
    torch.testing.assert_close(hidden.hidden_AD[same], hidden_before[same], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after[:place], before[:place], rtol=1e-12, atol=1e-12)
    log_softmax_V = torch.log_softmax(model.decoder.head(hidden_before[place]), -1)
    torch.testing.assert_close(after[place], -log_softmax_V[4321], rtol=1e-10, atol=1e-10)
    assert (hidden.hidden_AD[place + 1 :] - hidden_before[place + 1 :]).abs().amax(1).min() > 1e-6


def test_prompt_and_padding_carry_no_loss_but_the_prompt_matters(model, leaf, hidden) -> None:
    tokens = leaf(1, 3, 16, seed=6)
    short = run(model, {"vqa": prompts_of([([7, 8], [9])], [0], padding=0)}, tokens)["vqa"]
    long = run(model, {"vqa": prompts_of([([7, 8], [9])], [0], padding=11)}, tokens)["vqa"]
    other = run(model, {"vqa": prompts_of([([7, 5], [9])], [0])}, tokens)["vqa"]
    assert short.shape == (2,)
    torch.testing.assert_close(short, long, rtol=1e-12, atol=1e-12)
    assert (short - other).abs().min() > 1e-8


def test_each_prompt_reads_its_own_image(model, leaf) -> None:
    tokens = leaf(3, 2, 16, seed=7)
    losses = run(model, {"vqa": prompts_of([([7], [9])] * 2, [2, 0])}, tokens)["vqa"].view(2, 2)
    for row, image in enumerate([2, 0]):
        (gradient,) = torch.autograd.grad(losses[row].sum(), tokens, retain_graph=True)
        assert gradient.flatten(1).any(1).tolist() == [i == image for i in range(3)]


# ---- all at once ------------------------------------------------------------------------------------------------


def hidden_states(model: VisionLanguageModel, prompts: Prompts, patches_BPD: Tensor) -> Tensor:
    """[R, L, D] after the last block."""
    found = []
    handle = model.decoder.blocks[-1].register_forward_hook(lambda *call: found.append(call[-1]))
    run(model, {"caption": prompts}, patches_BPD)
    handle.remove()
    return found[0]


def test_a_parallel_row_sees_its_prompt_and_no_answer_token(tiny_recipe, leaf) -> None:
    """Neither another answer id nor an answer of another length changes any of its hidden states; each of them looks at
    the whole context. The row beside it is causal."""
    recipe, tokens = tiny_recipe("locca", "model.text.context_length=10"), leaf(1, 3, 16, seed=8)
    torch.manual_seed(0)
    model = VisionLanguageModel(recipe, {"image_projection", "patch_projection", "decoder"}).double()

    def states(prompt: list[int], answer: list[int]) -> Tensor:
        rows = prompts_of([(prompt, answer)] * 2, [0, 0], length=10, parallel=[True, False])
        return hidden_states(model, rows, tokens)

    before = states([7, 8], [11, 12, 13])
    for place, answer in ((3, [14, 12, 13]), (5, [11, 12, 14]), (6, [11, 12, 13, 14, 15]), (5, [11, 12]), (3, [])):
        after = states([7, 8], answer)
        torch.testing.assert_close(after[0], before[0], rtol=1e-12, atol=1e-12)
        moved = (after[1] - before[1]).abs().amax(1) > 1e-9
        assert moved.nonzero().min() == place
    assert (states([7, 9], [11, 12, 13])[0] - before[0]).abs().amax(1).min() > 1e-9

    positions = model.decoder.input.positions
    for place in range(10):
        for row, looks_at in ((0, 10), (1, place + 1)):
            (slope,) = torch.autograd.grad(before[row, place].square().sum(), positions, retain_graph=True)
            assert slope.any(1).tolist() == [other < looks_at for other in range(10)]


# ---- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "override", "says"),
    [
        ("locca", 'prompt="Cap {phrase}:"', "prompt: given 'Cap {phrase}:'; a template of this task holds {caption}"),
        ("locca", "answer=a picture", "answer: given 'a picture'; a template of this task holds {caption}"),
        ("locca", 'answer="{}"', "answer: given '{}'; a template of this task holds {caption}"),
        ("locca", 'answer="{caption"', "which is no template"),
        ("locca", 'answer="{caption:d}"', "a template of this task holds {caption}"),
        ("locca", 'answer="{caption!z}"', "a template of this task holds {caption}"),
        ("goldiclip", "parallel=0.5", "set model.decoder.input=tokens"),
    ],
)
def test_a_template_that_cannot_be_filled_is_one_line(recipe: str, override: str, says: str, tiny_recipe) -> None:
    with pytest.raises(UserError) as raised:
        tiny_recipe(recipe, f"objectives.caption.{override}")
    assert "objectives.caption: " in str(raised.value)
    assert says in str(raised.value)


def test_a_task_may_name_each_of_its_parts(tiny_recipe) -> None:
    recipe = tiny_recipe(
        "locca", 'objectives.grounded.prompt="{phrase}?"', 'objectives.grounded.answer="{box} {{{phrase}"'
    )
    assert recipe.objectives["grounded"].request.templates == ("{phrase}?", "{box} {{{phrase}")
