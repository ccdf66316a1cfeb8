"""Detectors for use: ``load_detector(weights)(picture) -> Detections``."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.images import decode_image, read_size
from data.letterbox import (
    Letterbox,
    apply_letterbox,
    centre,
    input_shape,
    plan_letterbox,
    rect_shape,
    restore,
)
from data.pixels import Pixels, pixels_of
from models.detector import Detector, build_detector
from utils.config import Config, ModelConfig
from utils.config_files import config_from_plain
from utils.errors import DATA, UserError
from utils.postprocess import postprocess
from utils.settings import override
from utils.structures import Detections
from utils.training.checkpoint import load_checkpoint
from utils.training.device import select_device
from utils.wording import show_class


class LoadedDetector:
    """A trained detector with its class ``names``; thresholds and input size are those of its ``config``."""

    def __init__(self, model: Detector, config: Config, names: tuple[str, ...], device: torch.device):
        self.model, self.config, self.names, self.device = model, config, names, device
        self.stride = max(model.strides)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the input."""
        return input_shape(self.config.data.imgsz, self.stride)

    @property
    def pixels(self) -> Pixels:
        """How the values of picture files become 0..255, as in the training."""
        return pixels_of(self.config.data)

    def plan(self, size: tuple[int, int], *, rect: bool | None = None) -> Letterbox:
        """How a picture of ``size`` (height, width) lies in its input; ``rect`` as in a call."""
        config = override(self.config, {"data.rect": ("rect", rect)})
        letterbox = plan_letterbox(size, self.shape)
        return centre(letterbox, rect_shape(size, self.shape, self.stride)) if config.data.rect else letterbox

    def __call__(
        self,
        picture: str | Path | np.ndarray,
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        classes: list[int] | None = None,
        agnostic: bool = False,
        rect: bool | None = None,
    ) -> Detections:
        """The objects of one picture: a path, or (H, W, 3) uint8 RGB. Boxes are in the picture's own pixels.

        A file much larger than the input is decoded reduced, as in training and validation; an array is
        resized, which gives pixels that differ a little. Values of files deeper than 8 bits become 0..255 as
        in the training; an array of another type or shape is a ``UserError``.
        Thresholds and ``rect`` (pad to a multiple of the stride, not to a square) default to ``config``'s.
        """
        given = {"val.detect_conf": ("conf", conf), "val.detect_iou": ("iou", iou)}
        config = override(self.config, given | {"val.max_det": ("max_det", max_det)})
        if isinstance(picture, np.ndarray):
            check_array(picture)
            letterbox = self.plan(picture.shape[:2], rect=rect)
        else:
            letterbox = self.plan(read_size(picture), rect=rect)
            known = {"reduction": letterbox.reduction, "size": letterbox.size, "pixels": self.pixels}
            picture = decode_image(picture, **known)
        image = torch.from_numpy(apply_letterbox(picture, letterbox)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            pred = self.model(image.to(self.device))
        (found,) = postprocess(
            pred,
            conf=config.val.detect_conf,
            iou=config.val.detect_iou,
            max_det=config.val.max_det,
            classes=classes,
            agnostic=agnostic,
        )
        return restore(found, letterbox)


def check_array(picture: np.ndarray) -> None:
    """A picture given as an array is (H, W, 3) uint8: nobody can tell what else its values mean."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise UserError(
            f"a picture given as an array must be (height, width, 3) uint8 RGB, not {picture.shape} "
            f"{picture.dtype}; give the path of its file, or bring it to 0..255 first",
            DATA,
        )


def load_detector(
    weights: str | Path, device: str = "", *, imgsz: int | tuple[int, int] | None = None
) -> LoadedDetector:
    """The detector of a checkpoint: its averaged weights, convolutions and normalisations fused.

    Raises ``UserError`` for files that are not this project's checkpoints, for tensors that are not those of
    the model, and for sizes below 32 px. How many processes load pictures is not for the weights to say.
    """
    content = load_checkpoint(weights)
    config = config_from_plain(content["config"], where=str(weights))
    config = override(config, {"data.imgsz": ("imgsz", imgsz)})
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": None})})
    target = select_device(device)
    model = make_detector(config.model, content["ema"], num_classes=len(content["names"]), where=str(weights))
    model = model.eval().fuse().to(target, memory_format=torch.channels_last)
    return LoadedDetector(model, config, tuple(content["names"]), target)


def make_detector(
    cfg: ModelConfig, tensors: Mapping[str, Tensor], *, num_classes: int, where: str
) -> Detector:
    """The detector that ``cfg`` describes with ``tensors`` as its weights; ``where`` they are from.

    The configuration may be a stranger's, and describe a model of 200 GB. So the model is laid out without
    memory first, and gets it only if the tensors are there whole: no more than their file held.
    """
    if not num_classes:
        raise UserError(f"{where} is damaged: it names no classes; take weights as train.py wrote them")
    with torch.device("meta"):
        model = build_detector(cfg, num_classes)
    own = model.state_dict()
    wrong = {key for key in own.keys() & tensors.keys() if not _is_like(tensors[key], own[key])}
    wrong |= own.keys() ^ tensors.keys()
    if wrong:
        raise UserError(
            f"{where} is damaged: {len(wrong)} of its tensors are not those of the model it describes, "
            f"{show_class(min(map(str, wrong)))} is the first; take weights as train.py wrote them"
        )
    storages = [tensor.untyped_storage() for tensor in tensors.values()]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if held < sum(tensor.nbytes for tensor in tensors.values()):
        raise UserError(
            f"{where} is damaged: its tensors share {held:,} bytes; take weights as train.py wrote them"
        )
    model.to_empty(device="cpu").load_state_dict(tensors)
    return model


def _is_like(tensor: Tensor, own: Tensor) -> bool:
    return tensor.shape == own.shape and tensor.is_floating_point() == own.is_floating_point()
