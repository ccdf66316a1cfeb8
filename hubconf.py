"""``torch.hub.load("path/to/ltrb", "detector", "best.pt", source="local")``, without a network."""

dependencies = ["torch", "torchvision", "numpy", "cv2", "PIL", "yaml", "pydantic"]

from inference import LoadedDetector, load_detector  # noqa: E402 - torch.hub reads `dependencies` first


def detector(weights: str, device: str = "", imgsz: int | tuple[int, int] | None = None) -> LoadedDetector:
    """The detector of a checkpoint: call it with a picture's path or an (H, W, 3) uint8 RGB array."""
    return load_detector(weights, device, imgsz=imgsz)
