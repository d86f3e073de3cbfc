"""The sections of a recipe, every key with its default. `vlp/recipe.py` loads and composes them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator
from pydantic_core import PydanticCustomError

from vlp.data.layouts import LAYOUTS
from vlp.errors import nearest


def _is_ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if not 0 < ends[0] <= ends[1] <= 1:
        raise ValueError("two shares of the picture belong here, 0 < smallest <= largest <= 1")
    return ends


Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Scale = Annotated[
    tuple[float, float], AfterValidator(_is_ordered), Field(description="smallest and largest share of the picture")
]
Probability = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Deviation = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Python, and so pydantic, takes true for 1."""
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and key in cls.model_fields and cls.model_fields[key].annotation is not bool:
                raise PydanticCustomError("boolean", "true and false do not belong here", {"key": key, "value": value})
        return values


class RunSettings(Section):
    """Where the run writes. The default folder is `runs/RECIPE-SCALE`."""

    dir: str | None = None


class TrainSettings(Section):
    """Batch, schedule and optimizer (AdamW; linear warm-up, then cosine to zero)."""

    steps: Positive = 1000
    batch_size: Positive = Field(64, description="global: over all ranks and accumulation steps")
    accumulation: Positive = 1
    seed: Count = 0
    learning_rate: float = Field(5e-4, gt=0)
    warmup_steps: Count = 500
    betas: tuple[Momentum, Momentum] = (0.9, 0.98)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.2, ge=0)
    gradient_clip: float = Field(0.0, ge=0, description="largest global gradient norm; 0 clips nothing")
    log_every: Positive = 10
    checkpoint_every: Positive = 500
    keep_checkpoints: Positive = 2


class FieldMap(Section):
    """Which keys of a sample's JSON (or `txt` for the caption file) hold what; null where the data has none. The name
    of a published layout, as in data.fields=dreamlip, stands for its keys."""

    raw: str | list[str] | None = "raw"
    short: str | list[str] | None = "short"
    long: str | list[str] | None = "long"
    regions: str | None = "regions"
    vqa: str | None = "vqa"

    @model_validator(mode="before")
    @classmethod
    def _of_a_layout(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in LAYOUTS:
            raise ValueError(f"'{value}' is no layout; allowed are {', '.join(LAYOUTS)}{nearest(value, list(LAYOUTS))}")
        columns = LAYOUTS[value].columns
        return {kind: list(columns[kind]) if kind in columns else None for kind in ("raw", "short", "long")}


class ViewSettings(Section):
    """Crops for self-distillation, docs/method.md choices C13 and C18. Sizes are side lengths in pixels."""

    global_count: Positive = 2
    global_size: Positive | None = Field(None, description="the vision tower's input size when null")
    global_scale: Scale = (0.4, 1.0)
    local_count: Count = 6
    local_size: Positive = 96
    local_scale: Scale = (0.05, 0.4)
    flip: Probability = 0.5
    jitter: Probability = Field(0.0, description="of a change of brightness, contrast, saturation and hue")
    grayscale: Probability = 0.0
    blur: Probability = 0.0


class DataSettings(Section):
    """Shards, how they are read, and what of a sample is used."""

    train: str | list[str] = "demo:train"
    weights: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="how often an epoch reads each source of `train`; null reads each once"
    )
    validation: str | list[str] | None = "demo:validation"
    cache: str | None = Field(None, description="folder of the demo set; else $VLP_CACHE, else ~/.cache/vlp")
    fields: FieldMap = FieldMap()
    workers: Count = Field(1, description="loader processes per rank; 0 reads in the training process")
    streams: Positive = Field(4, description="interleaved readers of the whole run; ranks times workers divide them")
    shuffle: Positive = Field(1000, description="samples in each stream's shuffle buffer")
    bad_share: Probability = Field(0.2, description="a stream of which more is unusable stops the run")
    crop_scale: Scale = (0.9, 1.0)
    flip: Probability = Field(0.0, description="of mirroring the picture; boxes follow, what captions say of sides not")
    views: ViewSettings | None = ViewSettings()
    box_score: float = Field(0.3, ge=0, le=1, description="regions below this score are not used (C25)")
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[Deviation, Deviation, Deviation] = (0.26862954, 0.26130258, 0.27577711)


class VisionSettings(Section):
    """A timm vision transformer. Null keeps what the named architecture has."""

    name: str = "vit_base_patch16_clip_224"
    image_size: Positive = 224
    patch_size: Positive | None = None
    width: Positive | None = None
    depth: Positive | None = None
    heads: Positive | None = None
    pooling: Literal["cls", "average"] = "cls"
    patch_dropout: float = Field(0.0, ge=0, lt=1, description="share of the patches left out in training (FLIP, C7)")
    locked: bool = Field(False, description="the tower keeps its initial weights (LiT)")


class TextSettings(Section):
    """open_clip's causal text transformer over CLIP's byte pairs."""

    width: Positive = 512
    layers: Positive = 12
    heads: Positive = 8
    context_length: Annotated[int, Field(ge=8)] = 77


class PoolingSettings(Section):
    """FLAIR's text-conditioned pooling. `separate` gives patches a projection of their own (GoldiCLIP)."""

    heads: Positive = 8
    projection: Literal["shared", "separate"] = "separate"
    chunk: Positive = Field(4096, description="captions that one pass over the patch tokens scores")


class DecoderSettings(Section):
    """The decoder; its width is `model.embed_dim`. GoldiCLIP and CoCa route it through the text tower, LocCa has
    none. CoCa pools the patches by learned queries first."""

    layers: Positive = 8
    heads: Positive = 8
    input: Literal["text_tower", "tokens"] = "text_tower"
    queries: Positive | None = Field(None, description="learned queries that pool the patch tokens; null reads all")


class ModelSettings(Section):
    """The towers and what joins them. A module is built only when an objective reads it."""

    embed_dim: Positive = 512
    vision: VisionSettings = VisionSettings()
    text: TextSettings = TextSettings()
    pooling: PoolingSettings | None = PoolingSettings()
    decoder: DecoderSettings | None = DecoderSettings()
    logit_scale: float = Field(1 / 0.07, gt=0, description="start of the learned scale (inverse temperature)")
    logit_scale_max: float = Field(100.0, gt=0)
    logit_bias: float = Field(-10.0, description="start of the sigmoid losses' learned bias")
    teacher_momentum: Momentum = 0.996
    init: str | None = Field(None, description="a run folder whose weights the student starts from")

    @model_validator(mode="after")
    def _starts_below_its_limit(self) -> "ModelSettings":
        if self.logit_scale > self.logit_scale_max:
            raise ValueError(f"logit_scale={self.logit_scale:g} is above logit_scale_max={self.logit_scale_max:g}")
        return self


class EngineSettings(Section):
    """How DeepSpeed runs it."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["float32", "bf16"] = Field("bf16", description="bf16 is autocast over float32 weights")
    activation_checkpointing: bool = False
    deepspeed: dict[str, JsonValue] = Field({}, description="further DeepSpeed configuration, passed on as it stands")

    @field_validator("deepspeed")
    @classmethod
    def _leaves_the_recipe_alone(cls, config: dict[str, Any]) -> dict[str, Any]:
        decided = {
            "train_batch_size": "train.batch_size",
            "train_micro_batch_size_per_gpu": "train.batch_size",
            "gradient_accumulation_steps": "train.accumulation",
            "gradient_clipping": "train.gradient_clip",
            "optimizer": "train.learning_rate, train.betas, train.eps and train.weight_decay",
            "scheduler": "train.learning_rate and train.warmup_steps",
            "fp16": "engine.precision",
            "bf16": "engine.precision",
            "bfloat16": "engine.precision",
            "amp": "engine.precision",
            "torch_autocast": "engine.precision",
            "steps_per_print": "train.log_every",
        }
        for key in config:
            if key in decided:
                raise ValueError(f"'{key}' is decided by {decided[key]}; set that instead")
        zero = config.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ValueError("'zero_optimization' is a mapping of keys to values")
        if "stage" in zero:
            raise ValueError("'zero_optimization.stage' is decided by engine.zero_stage; set that instead")
        return config


class EvaluationSettings(Section):
    """What is evaluated on the validation shards when training ends."""

    tasks: list[Literal["retrieval", "questions", "segmentation"]] = ["retrieval"]
    captions: list[Literal["raw", "short", "long"]] = ["short", "long"]
    questions: str | None = Field(None, description="question retrieval; else questions.json beside the shards")
    classes: str | None = Field(None, description="class names of the masks; else classes.json beside the shards")
    samples: Positive | None = Field(None, description="only the first this many validation samples")
    every: Positive | None = Field(None, description="also evaluate retrieval each this many steps")
    batch_size: Positive = 128


class ObjectiveSettings(Section):
    """What every objective has."""

    weight: float = Field(1.0, gt=0, description="multiplies the objective's whole term of the total")
    starts_at: float = Field(0.0, ge=0, lt=1, description="share of train.steps after which the objective trains")
