"""Recipes: composition, strictness, and that a mistake is told in one line before anything is built."""

import itertools
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlp.errors import UserError
from vlp.recipe import SHIPPED_RECIPES, Recipe, load_recipe, save_recipe
from vlp.run import MAY_CHANGE, load_run, open_run

GOLDI_SUPER = SHIPPED_RECIPES / "goldi_super.yaml"
RECIPES = sorted(SHIPPED_RECIPES.glob("*.yaml"))
SCALES = sorted((SHIPPED_RECIPES / "scales").glob("*.yaml"))


def load(*overrides: str, path: Path = GOLDI_SUPER, world_size: int = 1) -> Recipe:
    return load_recipe(path, list(overrides), world_size=world_size)


def mistake(*overrides: str, path: Path = GOLDI_SUPER, world_size: int = 1) -> str:
    """The line that loading ends with."""
    with pytest.raises(UserError) as raised:
        load(*overrides, path=path, world_size=world_size)
    line = str(raised.value)
    assert "\n" not in line
    return line


@pytest.fixture
def write(tmp_path: Path):
    """Write a YAML below a folder of its own, scales among them."""

    def write(name: str, content: dict | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


CLIP = {"objectives": {"contrastive": {"type": "softmax_contrastive"}}}

# ---- composition ------------------------------------------------------------------------------------------------


def test_the_last_of_scale_parent_recipe_and_overrides_wins(write) -> None:
    def train(**values: int) -> dict:
        return {"train": values}

    write("scales/small.yaml", train(steps=1, seed=1, log_every=1, keep_checkpoints=1))
    write("parent.yaml", CLIP | {"scale": "small"} | train(steps=2, seed=2, log_every=2))
    path = write("child.yaml", {"extends": "parent.yaml"} | train(steps=3, seed=3))
    recipe = load("train.steps=4", "train.steps=5", path=path)
    found = recipe.train
    assert (found.steps, found.seed, found.log_every, found.keep_checkpoints) == (5, 3, 2, 1)
    assert (recipe.name, recipe.scale, str(recipe.run_dir)) == ("child", "small", "runs/child-small")


def test_a_scale_is_named_found_by_path_or_overridden(write) -> None:
    path = write("clip.yaml", CLIP | {"scale": "cc3m"})
    other = write("elsewhere/own.yaml", {"extends": str(SHIPPED_RECIPES / "scales/demo.yaml"), "train": {"steps": 7}})
    assert load(path=path).train.batch_size == 2560
    assert load("scale=demo", path=path).model.vision.image_size == 64
    own = load(f"scale={other}", path=path)
    assert (own.scale, own.train.steps, own.model.vision.image_size) == ("own", 7, 64)


def test_null_removes_an_objective_in_a_recipe_and_in_an_override() -> None:
    assert "classification" not in load(path=SHIPPED_RECIPES / "goldiclip.yaml").objectives
    assert "vqa" not in load("objectives.vqa=null").objectives
    assert load("objectives.vqa=null", "objectives.vqa={type: decoding, task: vqa}").objectives["vqa"].task == "vqa"


def test_objective_defaults_lie_under_the_recipe(write) -> None:
    write("scales/small.yaml", {"objective_defaults": {"decoding": {"share": 0.5, "weight": 3}}})
    tasks = {"vqa": {"type": "decoding", "task": "vqa"}, "caption": {"type": "decoding", "task": "caption", "share": 1}}
    path = write("recipe.yaml", {"scale": "small", "objectives": tasks})
    found = load(path=path).objectives
    assert (found["vqa"].share, found["vqa"].weight, found["caption"].share) == (0.5, 3, 1)
    assert load("objectives.vqa.share=0.25", path=path).objectives["vqa"].share == 0.25
    assert load("objective_defaults.decoding.share=0.125", path=path).objectives["vqa"].share == 0.125


def test_yaml_that_reads_a_number_as_text_is_still_a_number() -> None:
    assert load("train.learning_rate=1e-3", "train.eps=1e-6").train.learning_rate == 0.001


def test_views_take_the_tower_s_size() -> None:
    assert load("model.vision.image_size=96").views.global_size == 96
    assert load("data.views.global_size=48").views.global_size == 48


# ---- strictness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trian.steps=1", "unknown key 'trian'; did you mean 'train'?"),
        ("train.stesp=1", "unknown key 'train.stesp'; did you mean 'steps'?"),
        ("data.views.localcount=1", "unknown key 'data.views.localcount'; did you mean 'local_count'?"),
        ("objectives.caption.taks=vqa", "unknown key 'objectives.caption.taks'; did you mean 'task'?"),
        ("objectives.retrival.captions=long", "objectives.retrival: given {'captions': 'long'}"),
        ("objectives.retrival.captions=long", "did you mean 'retrieval'?"),
        ("objectives.clasification=null", "did you mean 'classification'?"),
        (
            "objectives.caption.type=decodin",
            "objectives.caption.type: no objective 'decodin'; did you mean 'decoding'?",
        ),
        ("objectives.caption.type=[1]", "objectives.caption.type: no objective '[1]'"),
        ("objectives.new={type: decoding}", "objectives.new.task: this key is missing"),
        ("objectives.new={type: decoding, taks: vqa}", "unknown key 'objectives.new.taks'; did you mean 'task'?"),
        ("objectives=null", "objectives: given None; a mapping of keys to values belongs here"),
        ("objectives=[1]", "objectives: given [1]; a mapping of keys to values belongs here"),
        ("objective_defaults.decodin.share=1", "no objective type 'decodin'; did you mean 'decoding'?"),
        ("objective_defaults.decoding.shre=1", "unknown key 'objective_defaults.decoding.shre'; did you mean 'share'?"),
        ("objective_defaults=5", "objective_defaults: given 5"),
        ("objective_defaults.decoding=5", "objective_defaults.decoding: given 5"),
        ("scale=demoo", "scale: no scale 'demoo'; did you mean 'demo'?"),
        ("train=5", "train: given 5; a mapping of keys to values belongs here"),
        ("model=null", "model: given None; a mapping of keys to values belongs here"),
        ("train.steps=many", "train.steps: given 'many'"),
        ("train.steps=true", "train.steps: given True; true and false do not belong here"),
        ("objectives.vqa.weight=true", "objectives.vqa.weight: given True"),
        ("name=true", "name: given True"),
        ("engine.activation_checkpointing=7", "engine.activation_checkpointing: given 7"),
        ("data.train=5", "data.train: given 5"),
        ("balance=even", "balance: given 'even'; input should be 'fixed' or 'uncertainty'"),
        ("evaluation.tasks=[retrival]", "evaluation.tasks: given 'retrival'"),
        ("train.steps", "override 'train.steps' is not of the form dotted.key=value"),
        ("=5", "override '=5' is not of the form"),
        ("train.steps=[1", "override 'train.steps=[1': the value is not YAML"),
        ("train.seed=2024-99-99", "override 'train.seed=2024-99-99': the value is not YAML"),
    ],
)
def test_a_mistake_names_key_value_and_what_is_allowed(override: str, says: str) -> None:
    line = mistake(override)
    assert says in line
    assert line.startswith((f"{GOLDI_SUPER}: ", "override '"))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("objectives.vqa.weight=0", "objectives.vqa.weight"),
        ("objectives.vqa.weight=.inf", "objectives.vqa.weight"),
        ("objectives.vqa.share=1.5", "objectives.vqa.share"),
        ("objectives.distillation.prototypes=1", "objectives.distillation.prototypes"),
        ("objectives.retrieval.captions_per_image=0", "objectives.retrieval.captions_per_image"),
        ("train.learning_rate=.nan", "train.learning_rate"),
        ("train.betas=[0.9, 1]", "train.betas"),
        ("train.steps=0", "train.steps"),
        ("data.workers=-1", "data.workers"),
        ("data.streams=0", "data.streams"),
        ("data.crop_scale=[0, 1]", "data.crop_scale"),
        ("data.crop_scale=[0.9, 0.5]", "data.crop_scale"),
        ("data.crop_scale=[0.9, 1.1]", "data.crop_scale"),
        ("data.crop_scale=[0.9]", "data.crop_scale"),
        ("data.views.local_scale=[.nan, 1]", "data.views.local_scale"),
        ("data.std=[1, 1, 0]", "data.std"),
        ("model.logit_bias=.inf", "model.logit_bias"),
        ("model.logit_scale=200", "logit_scale"),
        ("model.teacher_momentum=1", "model.teacher_momentum"),
        ("model.text.context_length=2", "model.text.context_length"),
        ("model.text.heads=7", "model.text.heads"),
        ("model.vision.heads=7", "model.vision.heads"),
        ("model.pooling.heads=7", "model.pooling.heads"),
        ("model.decoder.heads=7", "model.decoder.heads"),
        ("model.vision.image_size=65", "model.vision.image_size"),
        ("data.views.local_size=33", "data.views.local_size"),
        ("data.views.global_size=33", "data.views.global_size"),
        ("model.vision.name=resnet50", "model.vision.name"),
    ],
)
def test_values_out_of_range_are_refused(override: str, key: str) -> None:
    assert key in mistake(override).removeprefix(str(GOLDI_SUPER))


def test_a_misspelt_tower_gets_the_nearest() -> None:
    assert "did you mean 'vit_base_patch16_clip_224'?" in mistake("model.vision.name=vit_base_patch16_clp_224")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.pooling=null", "objectives.retrieval: text-conditioned contrast reads model.pooling"),
        ("model.decoder=null", "objectives.caption: decoding reads model.decoder"),
        ("data.views=null", "objectives.distillation: distillation compares views"),
        ("data.fields.long=null", "objectives.classification: captions: long reads data.fields.long, which is null"),
        ("data.fields.vqa=null", "objectives.vqa: task vqa reads data.fields.vqa"),
    ],
)
def test_a_null_that_something_reads_is_refused_and_else_allowed(override: str, says: str) -> None:
    assert says in mistake(override)
    if override != "data.fields.long=null":
        load(override, path=SHIPPED_RECIPES / "clip.yaml")


@pytest.mark.parametrize(
    ("recipe", "override", "says"),
    [
        ("superclip_dual", "data.fields.long=null", "objectives.classification: captions: long reads data.fields.long"),
        ("goldiclip_dc", "data.fields.regions=null", "objectives.referring: task referring reads data.fields.regions"),
        ("goldiclip_vd", "data.fields.vqa=null", "objectives.vqa: task vqa reads data.fields.vqa"),
        ("coca", "objectives.caption.captions=raw + data.fields.raw=null", "task caption reads data.fields.raw"),
        ("silc", "data.views=null", "objectives.distillation: distillation compares views"),
        ("cosmos", "data.views=null", "objectives.distillation: cross-modal distillation compares views"),
        ("slip", "data.views.global_count=1", "objectives.views: view_contrastive compares two global views; set data"),
        ("siglip2_style", "data.views=null", "objectives.distillation: distillation compares views"),
        ("siglip2_style", "objectives.caption.parallel=1.5", "objectives.caption.parallel: given 1.5"),
        ("siglip2_style", "model.decoder.input=text_tower", "objectives.caption: parallel hides the answer from"),
        ("siglip2_style", "objectives.masked.starts_at=1", "objectives.masked.starts_at: given 1"),
        ("siglip2_style", "objectives.masked.masked=0", "objectives.masked.masked: given 0"),
        ("clip_mixed", "objectives.contrastive.long_share=-0.1", "objectives.contrastive.long_share: given -0.1"),
        ("flip", "model.vision.patch_dropout=1", "model.vision.patch_dropout: given 1"),
        ("dreamlip", "objectives.grouping.sparsity=2", "objectives.grouping.sparsity: given 2"),
        ("cosmos", "objectives.distillation.heads=3", "objectives.distillation: heads: model.embed_dim=128 does not"),
        ("lit", "model.init=nowhere", "model.init: nowhere does not exist; give the folder of a finished run"),
        (
            "locca",
            "objectives.again={type: decoding, task: vqa} + objectives.more={type: decoding, task: vqa}",
            "same task",
        ),
    ],
)
def test_what_an_objective_lacks_is_named(recipe: str, override: str, says: str) -> None:
    assert says in mistake(*override.split(" + "), path=SHIPPED_RECIPES / f"{recipe}.yaml")


@pytest.mark.parametrize("key", ["train_batch_size", "gradient_clipping", "optimizer", "bf16", "steps_per_print"])
def test_deepspeed_settings_may_not_contradict_the_recipe(key: str) -> None:
    assert f"engine.deepspeed: '{key}' is decided by " in mistake(f"engine.deepspeed.{key}=1")


def test_other_deepspeed_settings_are_passed_on() -> None:
    assert "decided by engine.zero_stage" in mistake("engine.deepspeed.zero_optimization.stage=3")
    assert "'zero_optimization' is a mapping" in mistake("engine.deepspeed.zero_optimization=3")
    assert "engine.deepspeed: given" in mistake("engine.deepspeed.when=2026-01-01")
    further = load("engine.deepspeed.zero_optimization.overlap_comm=true").engine.deepspeed
    assert further == {"zero_optimization": {"overlap_comm": True}}


def test_a_batch_must_divide_over_ranks_streams_and_accumulation() -> None:
    sizes = ("data.streams=4", "train.batch_size=64")
    assert "data.streams: 4 does not divide over 3 ranks; allowed are multiples of 3" in mistake(*sizes, world_size=3)
    line = mistake("data.streams=4", "train.batch_size=66")
    assert "train.batch_size: 66 does not divide over data.streams=4" in line
    assert "the nearest that does is 68" in line
    assert "nearest that does is 60" in mistake(*sizes, "train.accumulation=5")
    no_contrast = ("objectives.retrieval=null", "objectives.distillation=null")
    assert load(*sizes, *no_contrast, "train.accumulation=2", world_size=2).train.batch_size == 64


def test_the_launcher_s_world_size_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="over 3 ranks"):
        load_recipe(GOLDI_SUPER, ["data.streams=4"])


# ---- files ------------------------------------------------------------------------------------------------------


def test_a_missing_recipe_names_the_nearest() -> None:
    line = mistake(path=SHIPPED_RECIPES / "goldi_supr.yaml")
    assert line.startswith(f"no recipe at {SHIPPED_RECIPES}/goldi_supr.yaml")
    assert f"did you mean '{GOLDI_SUPER}'?" in line
    assert "clip, " in line
    for path in (SHIPPED_RECIPES, Path("/nowhere/x.yaml"), Path("x" * 5000), GOLDI_SUPER / "x"):
        assert "no recipe at" in mistake(path=path)


@pytest.mark.parametrize("content", ["", "- a", "a: [", "\x00", "a: 2024-99-99", "[" * 5000, "? [a]\n: b"])
def test_a_file_that_is_no_mapping_is_one_line(write, content: str) -> None:
    path = write("broken.yaml", content)
    assert mistake(path=path).startswith(str(path))


def test_extends_that_leads_nowhere_or_in_a_circle(write) -> None:
    clip = write("clip.yaml", CLIP)
    lost = write("lost.yaml", {"extends": "clp.yaml"})
    assert f"{lost}: extends: no recipe at {clip.parent}/clp.yaml; did you mean 'clip.yaml'?" in mistake(path=lost)
    assert "extends: given 5" in mistake(path=write("number.yaml", {"extends": 5}))
    folder = clip.parent.name
    for name, parent in {"self": "self.yaml", "a": "b.yaml", "b": "c.yaml", "c": f"../{folder}/a.yaml"}.items():
        write(f"{name}.yaml", {"extends": parent})
    for name in ("self", "a", "b"):
        assert "remove one of the two lines" in mistake(path=clip.parent / f"{name}.yaml")


def test_every_recipe_at_every_scale_resolves_and_comes_back_equal(tmp_path: Path) -> None:
    assert len(RECIPES) >= 5 and len(SCALES) >= 5
    stored = tmp_path / "recipe.yaml"
    for path, scale in itertools.product(RECIPES, SCALES):
        recipe = load(f"scale={scale.stem}", path=path)
        save_recipe(recipe, stored)
        assert load(path=stored) == recipe
        assert load("train.seed=9", path=stored).train.seed == 9
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]


def test_the_scale_of_a_run_s_recipe_is_fixed(tmp_path: Path) -> None:
    stored = tmp_path / "recipe.yaml"
    save_recipe(load("scale=cc3m"), stored)
    assert load("scale=cc3m", path=stored) == load("scale=cc3m")
    assert "scale: given 'demo', but this is a run's recipe" in mistake("scale=demo", path=stored)


# ---- run folders ------------------------------------------------------------------------------------------------


def test_a_run_folder_takes_only_its_own_recipe(tmp_path: Path) -> None:
    where = f"run.dir={tmp_path / 'run'}"
    assert open_run(load(where)) == tmp_path / "run"
    free = ["data.workers=0", "train.log_every=3", "evaluation.samples=5", "engine.deepspeed.wall_clock_breakdown=true"]
    assert {override.split("=")[0].rsplit(".", 1)[0] for override in free} - {"data", "train"} <= set(MAY_CHANGE)
    open_run(load(where, *free))
    assert open_run(load(where, "train.seed=5")) == open_run(load(where)), "nothing was trained there yet"
    (tmp_path / "run" / "metrics.jsonl").touch()
    for changed in ("train.seed=5", "objectives.vqa=null", "data.views=null objectives.distillation=null"):
        with pytest.raises(UserError) as raised:
            open_run(load(where, *changed.split()))
        assert str(raised.value).startswith(f"{tmp_path}/run holds a run of another recipe: ")
        assert "give another run.dir=, or delete that folder" in str(raised.value)
    with pytest.raises(UserError, match=r"train\.seed is 0 there and 5 here and 1 more keys"):
        open_run(load(where, "train.seed=5", "train.steps=5"))


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run\.dir: cannot write .*give another run\.dir"):
        open_run(load(f"run.dir={tmp_path / 'file' / 'run'}"))


def test_a_folder_that_is_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run: it has no recipe\.yaml"):
        load_run(tmp_path)
    open_run(load(f"run.dir={tmp_path}"))
    with pytest.raises(UserError, match=r"no model\.safetensors yet"):
        load_run(tmp_path)


# ---- anything at all --------------------------------------------------------------------------------------------

KEYS = [
    *("name", "scale", "extends", "resolved", "objectives", "objective_defaults", "balance", "train", "data", "model"),
    *("engine", "evaluation", "run", "steps", "batch_size", "betas", "views", "global_count", "crop_scale", "fields"),
    *("raw", "vision", "image_size", "patch_size", "heads", "pooling", "decoder", "deepspeed", "zero_optimization"),
    *(
        "zero_stage",
        "retrieval",
        "vqa",
        "type",
        "captions",
        "decoding",
        "weight",
        "share",
        "streams",
        "",
        "étrange",
        "0",
    ),
]
VALUES = [
    *(
        "null",
        "true",
        "0",
        "-1",
        "1",
        "3",
        "1e-3",
        "1e400",
        ".nan",
        "-.inf",
        "''",
        "x",
        "demo",
        "long",
        "[]",
        "[1]",
        "{}",
    ),
    *("[0.1, 0.2]", "{a: 1}", "{type: decoding}", "{1: 2}", "{null: {a: []}}", "!!binary aGk=", "!!set {a}", "&a [*a]"),
    *(
        "*a",
        "{",
        "2024-01-01",
        "2024-13-01",
        "0x10",
        "1_0",
        "&a {b: *a}",
        "fixed",
        "{decoding: null}",
        "\x00",
        "[[[]]]",
    ),
]
overrides = st.builds(
    lambda keys, value: f"{'.'.join(keys)}={value}",
    st.lists(st.sampled_from(KEYS), min_size=1, max_size=4),
    st.sampled_from(VALUES) | st.integers().map(str) | st.floats().map(str) | st.text(max_size=8),
)


@given(st.lists(overrides | st.text(max_size=12), min_size=1, max_size=3))
@example(["model=&a {b: *a}", "model=&a {b: *a}"])
@settings(max_examples=600, deadline=None)
def test_wild_overrides_load_or_are_a_user_error(wild: list[str]) -> None:
    with suppress(UserError):
        load(*wild).to_yaml()
