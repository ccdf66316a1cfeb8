"""Detectors for use: ``load_detector(weights)(picture) -> Detections``."""

from pathlib import Path

import numpy as np
import torch

from data.images import decode_image
from data.letterbox import apply_letterbox, input_shape, plan_letterbox, rect_shape, restore
from models.detector import Detector, build_detector
from utils.config import Config
from utils.config_files import config_from_plain
from utils.postprocess import postprocess
from utils.structures import Detections
from utils.training.checkpoint import load_checkpoint
from utils.training.device import select_device


class LoadedDetector:
    """A trained detector with its ``config``, class ``names`` and input ``shape`` (height, width)."""

    def __init__(self, model: Detector, config: Config, names: tuple[str, ...], device: torch.device):
        self.model, self.config, self.names, self.device = model, config, names, device
        self.stride = max(model.strides)
        self.shape = input_shape(config.data.imgsz, self.stride)

    def __call__(
        self,
        picture: str | Path | np.ndarray,
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        classes: list[int] | None = None,
        agnostic: bool = False,
        rect: bool = False,
    ) -> Detections:
        """The objects of one picture: a path, or (H, W, 3) uint8 RGB. Boxes are in the picture's own pixels.

        Thresholds default to the configuration's. ``rect`` pads to a multiple of the stride, not to a square.
        """
        pixels = picture if isinstance(picture, np.ndarray) else decode_image(picture)
        shape = rect_shape(pixels.shape[:2], self.shape, self.stride) if rect else self.shape
        letterbox = plan_letterbox(pixels.shape[:2], shape)
        image = torch.from_numpy(apply_letterbox(pixels, letterbox)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            pred = self.model(image.to(self.device))
        val = self.config.val
        (found,) = postprocess(
            pred,
            conf=val.detect_conf if conf is None else conf,
            iou=val.detect_iou if iou is None else iou,
            max_det=max_det or val.max_det,
            classes=classes,
            agnostic=agnostic,
        )
        return restore(found, letterbox)


def load_detector(
    weights: str | Path, device: str = "", *, imgsz: int | tuple[int, int] | None = None
) -> LoadedDetector:
    """The detector of a checkpoint: its averaged weights, convolutions and normalisations fused.

    Raises ``UserError`` for files that are not this project's checkpoints.
    """
    content = load_checkpoint(weights)
    config = config_from_plain(content["config"], where=str(weights))
    target = select_device(device, command="detect.py")
    model = build_detector(config.model, len(content["names"]))
    model.load_state_dict(content["ema"])
    model = model.eval().fuse().to(target, memory_format=torch.channels_last)
    detector = LoadedDetector(model, config, tuple(content["names"]), target)
    if imgsz is not None:
        detector.shape = input_shape(imgsz, detector.stride)
    return detector
