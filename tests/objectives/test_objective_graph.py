"""The graph: what it builds, that features are computed once, that every parameter learns, that splits add up."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from vlp.data.batch import Batch, Prompts, join
from vlp.data.captions import CaptionRequest
from vlp.objectives.graph import ObjectiveGraph, graph_needs

OBJECTIVES = ["retrieval", "classification", "distillation", "caption", "referring", "grounded", "vqa"]
TASKS = OBJECTIVES[3:]
SMALL = [
    "objectives.retrieval.captions_per_image=3",
    "objectives.distillation.captions_per_image=3",
    "objectives.distillation.negatives=2",
    "objectives.distillation.prototypes=24",
]
EMPTY = Prompts(torch.zeros(0, 8, dtype=torch.int64), *(torch.zeros(0, dtype=torch.int64) for _ in range(2)))


@pytest.fixture
def goldi_super(tiny_recipe, random_batch):
    def make(*overrides: str, seed: int = 0) -> tuple[ObjectiveGraph, Batch]:
        recipe = tiny_recipe("goldi_super", *SMALL, *overrides)
        torch.manual_seed(seed)
        graph = ObjectiveGraph(recipe)
        return graph, random_batch(graph.needs.data, recipe)

    return make


@pytest.fixture
def passes():
    """Counts calls of modules by name and by the side of what they are given (pixels, or 0 for texts)."""

    def count(graph: ObjectiveGraph) -> Counter:
        seen: Counter = Counter()
        parts = {"vision": graph.model.vision, "text": graph.model.text, "decoder": graph.model.decoder}
        parts |= {"teacher": graph.teacher.vision, "vit": graph.model.vision.vit}
        for name, module in parts.items():

            def hook(_, inputs, __, name=name) -> None:
                seen[name, inputs[0].shape[-1] if inputs[0].ndim == 4 else 0] += 1

            module.register_forward_hook(hook)
        return seen

    return count


def run(graph: ObjectiveGraph, batch: Batch, step: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    totals = graph.begin_step([batch], step)
    return graph(batch, totals, step)


# ---- passes and gradients ---------------------------------------------------------------------------------------


def test_features_are_computed_once(goldi_super, passes) -> None:
    graph, batch = goldi_super()
    seen = passes(graph)
    run(graph, batch)
    expected = {("vision", 32): 1, ("vision", 16): 1, ("teacher", 32): 1, ("text", 0): 1, ("decoder", 0): 1}
    assert seen == expected | {("vit", 32): 1, ("vit", 16): 1}


@pytest.mark.parametrize(
    ("views", "sizes"),
    [
        ("{global_count: 2, local_count: 3, global_size: 48, local_size: 16}", {32: 1, 48: 1, 16: 1}),
        ("{global_count: 2, local_count: 0}", {32: 1}),
        ("{global_count: 1, local_count: 1, local_size: 32}", {32: 1}),
        ("{global_count: 1, local_count: 1, global_size: 48, local_size: 48}", {32: 1, 48: 1}),
    ],
)
def test_one_student_pass_per_picture_size(views: str, sizes: dict[int, int], goldi_super, passes) -> None:
    graph, batch = goldi_super(f"data.views={views}")
    seen = passes(graph)
    _, report = run(graph, batch)
    assert all(torch.isfinite(value).all() for value in report.values())
    assert {size: count for (name, size), count in seen.items() if name == "vision"} == sizes
    assert sum(count for (name, _), count in seen.items() if name == "teacher") == 1


def test_every_trainable_parameter_gets_a_gradient(goldi_super) -> None:
    graph, batch = goldi_super()
    total, report = run(graph, batch)
    total.backward()
    assert {key for key in report if key.startswith("loss/")} == {f"loss/{name}" for name in OBJECTIVES}
    assert {key for key in report if key.startswith("weight/")} == {f"weight/{name}" for name in OBJECTIVES}
    assert all(torch.isfinite(value).all() for value in report.values())
    assert all(report[f"loss/{name}"] > 0 for name in OBJECTIVES)
    for name, parameter in graph.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name
        else:
            assert parameter.grad is None, name
            assert "teacher" in name
    assert all(not p.requires_grad for p in graph.teacher.parameters())


def test_total_is_the_balanced_sum(goldi_super) -> None:
    graph, batch = goldi_super()
    with torch.no_grad():
        graph.balancer.log_variances.copy_(torch.linspace(-1, 1, 7))
    total, report = run(graph, batch)
    expected = 0.0
    for name, s in zip(OBJECTIVES, graph.balancer.log_variances.tolist(), strict=True):
        weight = 2.0 if name == "caption" else 1.0
        sigma_squared = torch.tensor(s).exp().item()
        expected += weight * (report[f"loss/{name}"].item() / (2 * sigma_squared) + 0.5 * s)
        assert report[f"weight/{name}"].item() == pytest.approx(weight / (2 * sigma_squared))
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert report["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_a_step_can_be_repeated_and_another_step_draws_anew(goldi_super) -> None:
    graph, batch = goldi_super()
    totals = graph.begin_step([batch], 3)
    _, first = graph(batch, totals, 3)
    _, again = graph(batch, totals, 3)
    _, later = graph(batch, totals, 4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert first["loss/retrieval"] != later["loss/retrieval"]
    assert first["loss/distillation"] != later["loss/distillation"]
    assert first["loss/vqa"] == later["loss/vqa"]


# ---- absent samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", [[task] for task in TASKS] + [TASKS, ["distillation"], ["distillation", *TASKS]])
def test_a_micro_batch_without_samples_of_an_objective(absent: list[str], goldi_super, random_batch) -> None:
    """Zero loss there, both parts skipped in the total, the others as before, gradients for every parameter."""
    graph, batch = goldi_super()
    _, before = run(graph, batch)
    graph, _ = goldi_super()
    with torch.no_grad():
        graph.balancer.log_variances.fill_(0.5)
    for task in set(absent) & set(TASKS):
        batch.prompts[task] = EMPTY
    if "distillation" in absent:
        batch.view_rows_b = batch.view_rows_b[:0]
        batch.global_views_bG3HW, batch.local_views_bV3HW = batch.global_views_bG3HW[:0], batch.local_views_bV3HW[:0]
    total, report = run(graph, batch)
    expected = 0.0
    for name in OBJECTIVES:
        loss = report[f"loss/{name}"].item()
        if name in absent:
            assert loss == 0
        else:
            assert loss == pytest.approx(before[f"loss/{name}"].item(), rel=1e-5)
            expected += (2.0 if name == "caption" else 1.0) * 0.5 * (loss * torch.tensor(-0.5).exp().item() + 0.5)
    assert total.item() == pytest.approx(expected, rel=1e-5)
    total.backward()
    for name, parameter in graph.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    for name, gradient in zip(OBJECTIVES, graph.balancer.log_variances.grad.tolist(), strict=True):
        assert (gradient == 0) == (name in absent), name


def test_one_image(goldi_super, random_batch) -> None:
    """No other image: no negatives, no conditioning by others; an empty caption is among its captions."""
    graph, _ = goldi_super()
    batch = random_batch(graph.needs.data, graph.recipe, images=1)
    total, report = run(graph, batch)
    total.backward()
    assert all(torch.isfinite(value).all() for value in report.values())
    assert all(torch.isfinite(p.grad).all() for p in graph.parameters() if p.requires_grad)


# ---- splits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", ["uncertainty", "fixed"])
def test_accumulation_gives_the_gradient_of_the_whole(balance: str, tiny_recipe, random_batch) -> None:
    """Two micro-batches, one of them without a prompt of `vqa` and with other views, equal one batch."""
    overrides = [*SMALL, f"balance={balance}"]

    def build(accumulation: int) -> ObjectiveGraph:
        torch.manual_seed(0)
        graph = ObjectiveGraph(tiny_recipe("goldi_super", *overrides, f"train.accumulation={accumulation}")).double()
        if balance == "uncertainty":
            torch.nn.init.constant_(graph.balancer.log_variances, 0.3)
        return graph

    whole, split = build(1), build(2)
    make = lambda images, **more: random_batch(whole.needs.data, whole.recipe, images, **more)  # noqa: E731
    parts = [make(3, seed=1), make(3, seed=2, without=["vqa"], view_rows=[2], first_index=3)]
    total, report = run(whole, join(parts))
    total.backward()
    totals = split.begin_step(parts, 3)
    reports = []
    for part, cache in zip(parts, split(parts, totals, 3), strict=True):
        share, part_report = split(part, totals, 3, cache)
        (share / 2).backward()  # the engine averages over the accumulated micro-batches
        reports.append(part_report)
    for key in report:
        if key.split("/")[0] == "loss":
            torch.testing.assert_close(sum(part[key] for part in reports), report[key], rtol=1e-9, atol=1e-9)
    gradients = dict(whole.named_parameters())
    for name, parameter in split.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-8, atol=1e-9, msg=name)
    whole.end_step(3)
    split.end_step(3)
    for name, buffer in split.named_buffers():
        torch.testing.assert_close(buffer, whole.get_buffer(name), rtol=1e-9, atol=1e-9, msg=name)


def test_losses_do_not_depend_on_the_order_of_the_images(goldi_super) -> None:
    """The same images under the same numbers, rows in another order, and longer padding."""
    graph, batch = goldi_super()
    graph = graph.double()
    totals = graph.begin_step([batch], 3)
    _, first = graph(batch, totals, 3)
    order = torch.tensor([3, 0, 4, 2, 1])
    rank = order.argsort()
    views = rank[batch.view_rows_b]
    other = Batch(
        index_B=batch.index_B[order],
        images_B3HW=batch.images_B3HW[order],
        captions={name: torch.nn.functional.pad(ids[order], (0, 8)) for name, ids in batch.captions.items()},
        prompts={
            task: Prompts(torch.nn.functional.pad(p.ids_RL, (0, 8)), p.answer_start_R, rank[p.rows_R], p.parallel_R)
            for task, p in batch.prompts.items()
        },
        view_rows_b=views,
        global_views_bG3HW=batch.global_views_bG3HW,
        local_views_bV3HW=batch.local_views_bV3HW,
    )
    _, second = graph(other, totals, 3)
    for name in OBJECTIVES:
        torch.testing.assert_close(second[f"loss/{name}"], first[f"loss/{name}"], rtol=1e-9, atol=1e-9, msg=name)


# ---- end of a step ----------------------------------------------------------------------------------------------


def test_teachers_follow_the_formula_over_steps(goldi_super) -> None:
    graph, batch = goldi_super("model.teacher_momentum=0.9")
    optimizer = torch.optim.SGD([p for p in graph.parameters() if p.requires_grad], lr=0.1)
    student = dict(graph.model.named_parameters())
    expected = {name: p.detach().double().clone() for name, p in graph.teacher.named_parameters()}
    assert all(torch.equal(expected[name].float(), student[name]) for name in expected)
    twin = graph.objectives["distillation"].conditioned
    expected_twin, start = twin.teacher.weight.double().clone(), twin.teacher.weight.clone()
    for step in range(3):
        optimizer.zero_grad()
        run(graph, batch, step)[0].backward()
        optimizer.step()
        graph.end_step(step)
        for name, value in expected.items():
            expected[name] = 0.9 * value + 0.1 * student[name].detach().double()
        expected_twin = 0.9 * expected_twin + 0.1 * twin.student.weight.detach().double()
    for name, parameter in graph.teacher.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert parameter.grad is None
    torch.testing.assert_close(twin.teacher.weight.double(), expected_twin, rtol=1e-5, atol=1e-6)
    assert not torch.equal(twin.teacher.weight, start)
    assert graph.objectives["classification"].documents.item() == 3 * 5
    assert twin.center_C.any()


# ---- what is built and loaded -----------------------------------------------------------------------------------

BUILT = {
    "clip": {"vision", "image_projection", "text", "logit_scale"},
    "superclip": {"vision", "image_projection", "text", "logit_scale"},
    "flair": {"vision", "image_projection", "text", "pooling", "logit_scale", "logit_bias"},
    "goldiclip": {
        *("vision", "image_projection", "patch_projection", "text", "pooling", "decoder", "logit_scale", "logit_bias")
    },
}


@pytest.mark.parametrize("name", BUILT)
def test_only_what_is_read_is_built(name: str, tiny_recipe, random_batch) -> None:
    graph = ObjectiveGraph(tiny_recipe(name))
    assert {part for part, _ in graph.model.named_children()} == BUILT[name]
    teacher = {"vision", "image_projection", "patch_projection", "pooling"} if name == "goldiclip" else set()
    assert {part for part, _ in graph.teacher.named_children()} == teacher if teacher else graph.teacher is None
    total, _ = run(graph, random_batch(graph.needs.data, graph.recipe))
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None for p in graph.parameters() if p.requires_grad)
    balanced = graph.balancer.log_variances is not None
    assert balanced == (name == "goldiclip")


@pytest.mark.parametrize("name", ["clip", "superclip", "flair"])
def test_recipes_without_tasks_read_no_boxes_views_or_prompts(name: str, tiny_recipe) -> None:
    data = graph_needs(tiny_recipe(name)).data
    assert data.images
    assert data.tasks == ()
    assert data.view_share == 0
    assert [request.kind for request in data.captions] == [{"flair": "diverse"}.get(name, "any")]
    if name != "flair":
        assert data.captions == (CaptionRequest("any", 1),)


def test_decoding_without_pooling(tiny_recipe) -> None:
    """Decoding reads the patch projection, not the pooling: `model.pooling: null` builds, or is one clear line."""
    recipe = tiny_recipe("clip", "objectives.caption={type: decoding, task: caption}")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"pooling": None})})
    graph = ObjectiveGraph(recipe)
    assert not hasattr(graph.model, "pooling")
    assert hasattr(graph.model, "decoder")
