"""The schema of every setting: type, default, bounds and meaning. Reading files is `utils.config_files`.

Defaults and units live here only; YAML files and flags hold differences. Records are frozen and strict: no
string becomes a number, no bool an int (an int may stand for a float, a list for a tuple), NaN and infinity
are refused, and so is an unknown key.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from utils.errors import USAGE, UserError
from utils.wording import describe_allowed, show_value


def _list_to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _check_levels(levels: tuple[int, ...]) -> tuple[int, ...]:
    first, last = (levels[0], levels[-1]) if levels else (0, 0)
    if levels != tuple(range(first, last + 1)) or first not in (2, 3) or last not in (5, 6):
        raise ValueError("not a contiguous range within 2..6 that contains 3, 4, 5")
    return levels


def _check_range(span: tuple[float, float]) -> tuple[float, float]:
    if not 0 < span[1] - span[0] < float("inf") or 255 / (span[1] - span[0]) == float("inf"):
        raise ValueError("low is not below high")
    return span


DGQP_BINS = 4  # largest probabilities of a side that the quality branch reads (arXiv:2011.12885, section 3.2)
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
# Bounds above are far beyond use: they stand between a slip of the keyboard and a machine that freezes. What
# this machine cannot hold is refused by `models.memory`.
MANY = 10**9  # of what costs nothing to count
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Side = Annotated[int, Field(ge=32, le=8192)]
HeightWidth = Annotated[tuple[Side, Side], BeforeValidator(_list_to_tuple)]
Levels = Annotated[tuple[int, ...], BeforeValidator(_list_to_tuple), AfterValidator(_check_levels)]
Range = Annotated[tuple[float, float], BeforeValidator(_list_to_tuple), AfterValidator(_check_range)]
Band = Annotated[int, Field(ge=1, le=10_000)]
Bands = Annotated[tuple[Band, Band, Band], BeforeValidator(_list_to_tuple)]


class Section(BaseModel):
    """What the seven sections share."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The detector's architecture."""

    depth: Positive = Field(0.33, le=8, description="factor of the block counts")
    width: Positive = Field(0.25, le=8, description="factor of the channel counts")
    max_channels: int = Field(1024, ge=64, le=65_536, description="most channels of a stage, before width")
    backbone: Literal["csp"] = Field("csp", description="name of the backbone")
    reg_max: int = Field(
        15, ge=0, le=64, description="largest side a bin stands for, in strides; 0 = one plain value a side"
    )
    levels: Levels = Field(
        (3, 4, 5), description="log2 of the strides: a contiguous range within 2..6 that contains 3, 4, 5"
    )
    quality_branch: Literal["none", "dgqp"] = Field(
        "none", description="dgqp: the shape of the distributions adds to the class score (reg_max >= 3)"
    )
    class_prior: float = Field(0.01, gt=0, lt=1, description="class score at the start of training")

    @property
    def reach(self) -> int:
        """Strides from an anchor point to the farthest side it may answer for.

        Nothing limits plain sides; they keep the candidates of the default bins, so that the two compare.
        """
        return self.reg_max or type(self).model_fields["reg_max"].default


class LossConfig(Section):
    """The three terms and their normaliser."""

    quality: NonNegative = Field(1.0, description="weight of the class-quality term")
    box: NonNegative = Field(2.0, description="weight of the box (IoU) term")
    dfl: NonNegative = Field(0.25, description="weight of the distribution term; without bins there is none")
    quality_loss: Literal["qfl", "focal", "vfl", "mal", "bce"] = Field(
        "qfl", description="loss of the class scores"
    )
    target: Literal["iou", "hard", "aligned"] = Field(
        "iou", description="class target of a positive (its quality): its IoU, 1, or the task-aligned metric"
    )
    beta: Positive = Field(2.0, description="qfl: exponent of the focal factor |target - score|")
    gamma: NonNegative = Field(2.0, description="focal, vfl, mal: exponent of the focal factor")
    alpha: Share | None = Field(
        None, description="qfl, focal: balance of targets 1 and 0; vfl: weight of the negatives; null = none"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="bce: share of the target that is one half")
    aligned_alpha: NonNegative = Field(1.0, description="target aligned: exponent of the class score")
    aligned_beta: NonNegative = Field(6.0, description="target aligned: exponent of the IoU")
    box_loss: Literal["iou", "giou", "diou", "ciou", "eiou", "siou"] = Field(
        "ciou", description="loss of the boxes"
    )
    normaliser: Literal["quality", "positives"] = Field(
        "quality", description="divisor of all terms: summed quality, or number of positives"
    )
    box_weight: Literal["quality", "one"] = Field(
        "quality", description="weight of each positive in the box and distribution terms"
    )


class AssignerConfig(Section):
    """Which anchor points answer for which truth."""

    name: Literal["task_aligned", "atss", "simota", "center"] = Field(
        "task_aligned", description="rule that picks the positives"
    )
    top_k: Count = Field(
        13,
        le=10_000,
        description="task_aligned: most points per truth; atss: candidates per level; "
        "simota: best IoUs, whose sum is the number of points",
    )
    alpha: NonNegative = Field(1.0, description="task_aligned: exponent of the class score in the metric")
    beta: NonNegative = Field(6.0, description="task_aligned: exponent of the IoU in the metric")
    iou_weight: NonNegative = Field(3.0, description="simota: weight of -log IoU in the cost")


class DataConfig(Section):
    """What is read, and at which size."""

    path: str = Field("data/shapes.yaml", min_length=1, description="YAML file of the data set")
    root: str = Field(
        "datasets", min_length=1, description="folder that holds a folder for each downloaded data set"
    )
    imgsz: Side | HeightWidth = Field(640, description="input size in px: one side, or [height, width]")
    rect: bool = Field(
        False, description="validation pads to a multiple of the stride instead of to a square"
    )
    single_cls: bool = Field(False, description="treat all classes as one")
    workers: CountOrZero | None = Field(
        None, le=256, description="loader processes; null = chosen from the cores"
    )
    label_errors: Literal["stop", "skip", "clip"] = Field(
        "stop", description="what faulty labels do: end the run, be left out, or (beyond the picture) be cut"
    )
    cache: Literal["none", "ram", "disk"] = Field(
        "none", description="keep the training pictures decoded, at training size"
    )
    pixel_range: Literal["auto", "full"] | Range = Field(
        "auto",
        description="[low, high] of pixels deeper than 8 bits, mapped to 0..255; full = 0..65535; "
        "auto = found in the training pictures",
    )
    bands: Bands | None = Field(
        None,
        description="[red, green, blue] of files of many bands or pages, counted from 1; null = the first",
    )
    group: Count = Field(
        32, le=65_536, description="positions of the epoch's permutation that share mosaic partners"
    )


class AugmentConfig(Section):
    """Random changes of the training pictures."""

    mosaic: Share = Field(1.0, description="probability that a picture is a mosaic")
    mosaic9: Share = Field(0.0, description="share of the mosaics that are of nine pictures instead of four")
    close_mosaic: Share = Field(0.1, description="share of the epochs, at the end, without mosaic and mixup")
    mixup: Share = Field(0.0, description="probability that a second picture or mosaic is blended in")
    scale: float = Field(0.5, ge=0, lt=1, description="the size gain lies in 1 - scale .. 1 + scale")
    translate: Share = Field(0.1, description="largest shift, share of the input size")
    degrees: float = Field(0.0, ge=0, le=180, description="largest turn, +- degrees")
    shear: float = Field(0.0, ge=0, le=45, description="largest shear along each axis, +- degrees")
    perspective: float = Field(0.0, ge=0, le=0.4, description="largest change of depth to an edge, +- share")
    multi_scale: float = Field(
        0.0, ge=0, lt=1, description="a batch's input side lies in 1 - x .. 1 + x of imgsz; 0 = always imgsz"
    )
    flip_lr: Share = Field(0.5, description="probability of a left-right flip")
    flip_ud: Share = Field(0.0, description="probability of an up-down flip")
    hue: float = Field(0.015, ge=0, le=0.5, description="largest hue shift, +- share of a full turn")
    saturation: Share = Field(0.7, description="the saturation gain lies in 1 - x .. 1 + x")
    value: Share = Field(0.4, description="the brightness gain lies in 1 - x .. 1 + x")
    min_visible: Share = Field(0.1, description="share of a box's area that must stay in view to keep it")
    min_side: NonNegative = Field(2.0, description="shortest side a box must keep after the changes, in px")


class TrainConfig(Section):
    """Optimiser, schedule and the run."""

    epochs: Count = Field(100, le=10**6, description="passes over the training pictures")
    batch_size: BatchSize | Literal["auto"] = Field(
        16, description="pictures per batch, over all ranks; auto = as many as the GPU's memory holds"
    )
    micro_batch: BatchSize | None = Field(
        None, description="most pictures of a rank in one forward pass; null = all of the batch"
    )
    nominal_batch: Count | None = Field(
        None,
        le=10**7,
        description="pictures per optimiser step, gradients accumulate up to it; null = batch_size",
    )
    optimizer: Literal["AdamW", "SGD"] = Field("AdamW", description="optimiser")
    lr: Positive = Field(2e-3, description="peak learning rate")
    final_lr: Share = Field(0.05, description="learning rate at the end, share of lr")
    schedule: Literal["cosine", "linear"] = Field("cosine", description="decay from lr to final_lr * lr")
    momentum: float = Field(0.937, ge=0, lt=1, description="momentum of SGD")
    weight_decay: NonNegative = Field(0.05, description="weight decay; none on 1-D tensors")
    warmup_epochs: NonNegative = Field(
        3.0, le=10**6, description="warm-up in epochs; the longer of the two counts"
    )
    warmup_steps: CountOrZero = Field(
        500, le=MANY, description="warm-up in batches; the longer of the two counts"
    )
    warmup_share: Share = Field(0.1, description="the warm-up is at most this share of the run")
    clip_norm: Positive = Field(10.0, description="largest L2 norm of the gradient")
    ema_decay: float = Field(0.9998, ge=0, lt=1, description="largest decay of the weight average, per step")
    ema_share: Share = Field(0.05, description="mean age of the weight average, share of the run's steps")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of all randomness")
    patience: CountOrZero = Field(
        100, le=MANY, description="epochs without progress before stopping; 0 = never stop"
    )
    freeze: Annotated[int, Field(ge=0, le=1000)] | Literal["backbone", "neck"] = Field(
        0, description="parts that do not train: the first n blocks, or all up to the named part; 0 = none"
    )
    amp: Literal["auto", "off", "bf16", "fp16"] = Field("auto", description="mixed precision")
    sync_bn: bool = Field(False, description="batch normalisation over all GPUs")
    val_every: Count = Field(1, le=MANY, description="epochs between validations")
    anatomy_every: CountOrZero = Field(
        50, le=MANY, description="steps between two looks into the loss; 0 = none"
    )
    save_period: int = Field(
        -1, ge=-1, le=MANY, description="epochs between extra checkpoints; below 1 = none"
    )
    save_minutes: NonNegative = Field(
        10.0, le=MANY, description="minutes between saves of last.pt inside an epoch; 0 = only at its end"
    )
    deterministic: bool = Field(False, description="the same bits again on the same GPU, at some cost")

    @property
    def accumulation(self) -> int:
        """Batches per optimiser step."""
        return max(1, round((self.nominal_batch or self.batch_size) / self.batch_size))


class ValConfig(Section):
    """Validation, and the thresholds of detection."""

    conf: Share = Field(0.001, description="lowest score in validation")
    iou: Share = Field(0.65, description="IoU above which NMS drops a box in validation")
    max_det: Count = Field(300, le=30_000, description="most detections per picture")
    batch_size: BatchSize | None = Field(
        None, description="pictures per batch of a rank; null = train.batch_size, at most 32"
    )
    detect_conf: Share = Field(0.25, description="lowest score in detection")
    detect_iou: Share = Field(0.6, description="IoU above which NMS drops a box in detection")
    evaluator: Literal["hotcoco", "pycocotools"] = Field("hotcoco", description="computes COCO's AP")


class Config(BaseModel):
    """All settings of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    assigner: AssignerConfig = AssignerConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    val: ValConfig = ValConfig()

    @property
    def val_batch(self) -> int:
        """Pictures per batch of validation, the same on any number of ranks."""
        trained = self.train.batch_size
        return self.val.batch_size or (32 if trained == "auto" else min(trained, 32))


SECTIONS: dict[str, type[Section]] = {name: field.annotation for name, field in Config.model_fields.items()}
KEYS = tuple(f"{section}.{name}" for section, schema in SECTIONS.items() for name in schema.model_fields)


class Entry(NamedTuple):
    """A value somebody gave."""

    value: object
    origin: str  # "configs/models/n.yaml", "--epochs", "--set"
    where: str  # the origin, with the line if it is a file


class Resolved(NamedTuple):
    """A configuration, and where each of its values comes from."""

    config: Config
    origins: dict[str, str]  # dotted key -> "default", a file's path, a flag or "--set"


def config_to_plain(config: Config) -> dict[str, dict]:
    """Nested dicts of plain values, lists instead of tuples: what a checkpoint stores."""
    return config.model_dump(mode="json")


def build_config(entries: Mapping[str, Entry]) -> Config:
    """A checked ``Config`` from dotted keys, all of them in ``KEYS``; one error names every bad value."""
    tree: dict[str, dict] = {section: {} for section in SECTIONS}
    for key, entry in entries.items():
        section, name = key.split(".")
        tree[section][name] = entry.value
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        keys = dict.fromkeys(".".join(item["loc"][:2]) for item in found)  # once, not per branch of a union
        raise UserError("\n".join(_explain_value(key, entries[key]) for key in keys), USAGE) from error
    if config.model.quality_branch == "dgqp" and config.model.reg_max < DGQP_BINS - 1:
        where = entries["model.reg_max"].where
        raise UserError(
            f"model.quality_branch is dgqp, which reads the {DGQP_BINS} largest bins of a side, but "
            f"model.reg_max is {config.model.reg_max} ({where}); set it to {DGQP_BINS - 1} or more, or the "
            "branch to none"
        )
    return config


def _has_lone_bytes(text: str) -> bool:
    """Whether it stands for bytes that are no text: half a surrogate pair, as Python reads such names."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _explain_value(key: str, entry: Entry) -> str:
    section, name = key.split(".")
    if isinstance(entry.value, str) and not entry.value.isprintable() and _has_lone_bytes(entry.value):
        return f"{key} is {show_value(entry.value)} ({entry.where}): a name that is not UTF-8; rename it"
    allowed = describe_allowed(SECTIONS[section].model_json_schema()["properties"][name])
    meaning = SECTIONS[section].model_fields[name].description
    return f"{key} is {show_value(entry.value)} ({entry.where}); it must be {allowed}. Meaning: {meaning}."
