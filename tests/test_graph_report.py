"""What a recipe's graph is said to compute: FLOPs against torch's counter and the papers, reads, tables, drawings."""

import io
import json
import re
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlp.data.batch import DataNeeds, TaskRequest
from vlp.errors import UserError
from vlp.graph_report.drawing import draw_report
from vlp.graph_report.layout import Layout
from vlp.graph_report.report import Line, Report, Row, graph_report
from vlp.graph_report.synthetic import SyntheticImages, images_for_shares
from vlp.graph_report.tables import print_report
from vlp.graph_report.trace import trace
from vlp.objectives.graph import ObjectiveGraph, graph_needs
from vlp.recipe import SHIPPED_RECIPES, Recipe, load_recipe

RECIPES = sorted(path.stem for path in SHIPPED_RECIPES.glob("*.yaml"))
SMALL = [f"scale={Path(__file__).parent / 'objectives/tiny.yaml'}"]


def small(name: str, *overrides: str) -> Recipe:
    return load_recipe(SHIPPED_RECIPES / f"{name}.yaml", [*SMALL, *overrides], world_size=1)


def thrice(name: str) -> Recipe:
    """A recipe whose batch is three times as many images as are measured first."""
    return small(name, f"train.batch_size={3 * images_for_shares(graph_needs(small(name)).data)}")


@cache
def report_of(name: str) -> Report:
    return graph_report(thrice(name))


def row(report: Report, key: str) -> Row:
    return next(row for row in report.rows if row.key == key)


def text_of(report: Report) -> str:
    console = Console(width=300, file=io.StringIO(), record=True)
    print_report(report, console)
    return console.export_text()


# ---- FLOPs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_b16() -> Report:
    return graph_report(load_recipe(SHIPPED_RECIPES / "clip.yaml", ["scale=datacomp_b16"], world_size=1), tokens=77)


def test_clip_at_the_paper_s_size(clip_b16: Report) -> None:
    """SuperCLIP's Table 5 counts MACs, five operations for each element of a LayerNorm, no attention products."""
    report, batch = clip_b16, 16_384
    assert (report.trainable, report.frozen, report.teacher) == (149_620_737, 0, 0)

    def macs(tokens: int, width: int, others: int) -> tuple[int, int]:
        return 12 * 12 * tokens * width**2 + others, 12 * 2 * tokens**2 * width

    products, attention = macs(197, 768, 196 * 768 * 768)
    assert row(report, "pass/vision 224 px").forward == 2 * (products + attention) * batch
    products += row(report, "pass/image_projection").forward // (2 * batch)
    assert (products + 5 * 26 * 197 * 768) / 1e9 == pytest.approx(16.868, abs=5e-4)
    products, attention = macs(77, 512, 512 * 512)
    assert row(report, "pass/text").forward == 2 * (products + attention) * batch
    assert (products + 5 * 25 * 77 * 512) / 1e9 == pytest.approx(2.912, abs=5e-4)

    contrast = row(report, "objective/contrastive")  # the paper counts the logits once; both directions are computed
    assert contrast.forward == 2 * 2 * batch**2 * 512
    assert contrast.forward / 2 / 1e9 == pytest.approx(274.878, abs=5e-4)
    assert contrast.step == 3 * contrast.forward
    assert report.forward == sum(part.forward for part in report.rows)
    assert report.repeated == 0


def counted(recipe: Recipe) -> tuple[int, int]:
    """FLOPs of a forward, and of forward and backward, of a whole global batch, run for real and counted by torch."""
    graph = ObjectiveGraph(recipe)
    images = SyntheticImages(recipe, graph.needs.data)
    batch = images.batch(recipe.train.batch_size // len(images.samples))
    assert batch.index_B.tolist() == list(range(recipe.train.batch_size))
    totals = graph.begin_step([batch], recipe.train.steps)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # its other kernels are not counted
        total, _ = graph(batch, totals, recipe.train.steps)
        forward = counter.get_total_flops()
        total.backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_is_shown_and_its_flops_are_torch_s(name: str) -> None:
    """Measured on a few images and twice as many, against three times as many at once with a real backward."""
    report, recipe = report_of(name), thrice(name)
    assert 3 * report.images == report.batch_size
    assert (report.forward, report.step) == counted(recipe)
    assert not report.of("rest")

    graph = ObjectiveGraph(recipe)
    assert report.trainable == sum(p.numel() for p in graph.parameters() if p.requires_grad)
    assert report.teacher == sum(p.numel() for p in graph.teacher.parameters()) if graph.teacher else not report.teacher
    ran = {re.sub(r" \d+ px$", "", part.name) for part in report.of("pass")}
    models = {"": graph.model, "teacher ": graph.teacher}
    assert ran == {prefix + child for prefix, model in models.items() if model for child, _ in model.named_children()}

    text = text_of(report)
    assert all(part.name in text for part in report.rows if part.kind != "balancer")
    json.dumps(asdict(report))
    layout = Layout(report.rows, {part.key: 1.0 for part in report.rows})
    for part in report.rows:
        assert all(layout.column[source] < layout.column[part.key] for source in part.reads), part.name


def test_parts_are_linear_in_the_own_images() -> None:
    recipe = small("goldi_super", "objectives.distillation.negatives=3")
    graph = ObjectiveGraph(recipe)
    images = SyntheticImages(recipe, graph.needs.data)
    one, two, three, five = (trace(graph, images.batch(times), recipe.train.steps) for times in (1, 2, 3, 5))
    for times, other in ((3, three), (5, five)):
        line = Line(len(images.samples), times * len(images.samples))
        for key, part in one.items():
            assert line.at_batch_size(part.forward, two[key].forward) == other[key].forward, key
            assert line.at_batch_size(part.backward, two[key].backward) == other[key].backward, key


def test_teachers_have_no_backward_and_students_twice_their_forward() -> None:
    report = report_of("goldi_super")
    for part in report.of("pass"):
        ratio = part.step / part.forward if part.forward else 3
        if part.name.startswith("teacher"):
            assert (ratio, part.trainable) == (1, 0), part.name
        elif part.name.startswith("vision"):
            assert 2.5 < ratio < 3, part.name  # pixels take no gradient
        else:
            assert ratio == 3, part.name
    assert 1 < row(report, "objective/distillation").step / row(report, "objective/distillation").forward < 3


def test_a_locked_tower_has_no_backward() -> None:
    vision = row(graph_report(small("clip", "model.vision.locked=true")), "pass/vision 32 px")
    assert vision.step == vision.forward
    assert vision.trainable == 0


# ---- shapes and shares ------------------------------------------------------------------------------------------


def test_shares_are_exact() -> None:
    def images(*tasks: float, views: float = 0.0) -> int:
        requests = tuple(TaskRequest("caption", share) for share in tasks)
        return images_for_shares(DataNeeds(tasks=requests, view_share=views))

    assert [images(), images(1, 1), images(0.5, 0.5), images(0.0625), images(views=0.125)] == [4, 4, 4, 64, 8]
    assert images(0.0625, 0.0625, 0.0625, 0.0625, views=0.125) == 16
    assert images(1 / 3) == 12
    assert images(0.01) == 100

    data = {part.name: part for part in report_of("goldi_super").of("data")}
    assert {name: part.about["share"] for name, part in data.items() if part.about["share"] != 1} == {
        **{f"prompts {task}": 0.125 for task in ("caption", "referring", "grounded", "vqa")},
        **dict.fromkeys(["view_rows", "global_views", "local_views"], 0.25),
    }
    assert data["images"].shapes == ["[B, 3, 32, 32]"]
    assert data["local_views"].shapes == ["[B/4, 2, 3, 16, 16]"]
    assert data["captions diversex3"].shapes[0].startswith("[B, 3, ")
    assert row(report_of("goldi_super"), "pass/vision 32 px").shapes == ["[1.5B, 3, 32, 32]"]
    assert row(report_of("goldi_super"), "feature/everywhere texts/diversex3").shapes == ["[G, 3, 16]"]


def test_captions_of_a_given_length() -> None:
    report = graph_report(small("superclip"), tokens=20)
    assert row(report, "data/captions any").about["tokens"] == 20
    with pytest.raises(UserError, match=r"--tokens 78: allowed are 3 to model.text.context_length=77"):
        graph_report(small("clip"), tokens=78)


# ---- who reads what ---------------------------------------------------------------------------------------------


def test_who_reads_what_in_goldi_super() -> None:
    report = report_of("goldi_super")
    objectives = {
        part.name: {key.removeprefix("objective/") for key in part.read_by if key.startswith("objective/")}
        for part in report.of("feature")
    }
    assert objectives["image_tokens"] == {"classification"}
    assert objectives["image_embeds"] == objectives["patch_embeds"] == {"retrieval"}
    assert objectives["texts diversex3"] == objectives["everywhere texts/diversex3"] == {"retrieval", "distillation"}
    assert objectives["student_views"] == objectives["teacher_views"] == {"distillation"}
    assert {name: readers for name, readers in objectives.items() if name.startswith("answer_losses")} == {
        f"answer_losses {task}": {task} for task in ("caption", "referring", "grounded", "vqa")
    }
    reads = {part.key: set(part.reads) for part in report.rows}
    assert reads["pass/vision 32 px"] == {"data/images", "data/global_views"}
    assert reads["pass/vision 16 px"] == {"data/local_views"}
    assert reads["pass/teacher vision 32 px"] == {"data/global_views"}
    assert {"pass/text", "feature/patch_embeds", "data/prompts vqa"} < reads["pass/decoder"]
    assert reads["objective/classification"] == {"feature/image_tokens", "data/captions long"}
    assert "data/captions long" not in reads["pass/text"]
    assert reads["balancer/uncertainty"] == {f"objective/{name}" for name in report_objectives(report)}
    assert all(part.calls == 1 for part in report.of("pass") if part.name.split()[-1] in ("px", "text", "decoder"))


def report_objectives(report: Report) -> list[str]:
    return [part.name for part in report.of("objective")]


def test_objectives_that_start_later_are_shown_at_work() -> None:
    report = graph_report(small("superclip", "objectives.classification.starts_at=0.99", "train.steps=4"))
    part = row(report, "objective/classification")
    assert part.about == {"type": "token_classification", "weight": 1, "starts_at": 0.99}
    assert part.forward > 0
    assert "99%" in text_of(report)


# ---- drawings and the command -----------------------------------------------------------------------------------


def test_drawings_hold_every_part(tmp_path: Path) -> None:
    report = report_of("goldi_super")
    for _ in range(2):
        draw_report(report, tmp_path / "graph.svg")
        first = (tmp_path / "graph.svg").read_text()
    drawn = (tmp_path / "graph.svg").read_text()
    assert drawn == first
    assert all(f">{part.name}</text>" in drawn for part in report.rows if part.kind != "balancer")
    assert ">balancer: uncertainty</text>" in drawn
    draw_report(report, tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")


def test_boxes_stand_in_columns_and_do_not_overlap() -> None:
    rows = report_of("goldi_super").rows
    layout = Layout(rows, {part.key: 1.0 for part in rows})
    for part in rows:
        for other in rows:
            if other is not part and layout.column[other.key] == layout.column[part.key]:
                assert abs(layout.y[other.key] - layout.y[part.key]) > 1
    assert {layout.column[part.key] for part in rows if part.kind == "data"} == {0}
    assert len({layout.column[part.key] for part in rows if part.kind == "objective"}) == 1


@pytest.mark.slow
def test_the_command(repository: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "tools/show_graph.py", *arguments]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True)

    done = run("recipes/clip.yaml", *SMALL, "--json", f"{tmp_path}/g.json", "--draw", f"{tmp_path}/g.svg")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "g.json").read_text())
    assert written["recipe"] == "clip"
    assert [part["name"] for part in written["rows"] if part["kind"] == "objective"] == ["contrastive"]
    assert "contrastive" in done.stdout
    assert "contrastive" in (tmp_path / "g.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--draw", "graph.pdf"], "graph.pdf: the name must end in .svg or .png"),
        (["--json", "nowhere/graph.json"], "nowhere/graph.json: there is no folder nowhere; make it"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], says: str, repository: Path) -> None:
    command = [sys.executable, "tools/show_graph.py", "recipes/clip.yaml", *arguments]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {says}\n")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vlp.graph_report.drawing")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"drawing needs matplotlib: pip install 'vlp\[plot\]'"):
        import vlp.graph_report.drawing  # noqa: F401


def test_tracing_leaves_the_graph_as_it_was() -> None:
    recipe = small("goldi_super")
    graph = ObjectiveGraph(recipe)
    before = {id(module): set(vars(module)) for module in graph.modules()}
    batch = SyntheticImages(recipe, graph.needs.data).batch(1)
    trace(graph, batch, recipe.train.steps)
    assert {id(module): set(vars(module)) for module in graph.modules()} == before
    total, _ = graph(batch, graph.begin_step([batch], 0), 0)
    assert torch.isfinite(total)
