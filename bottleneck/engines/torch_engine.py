"""The torch engine: CUDA, MPS and any CPU.

Channels-last, inference mode, autocast for bf16 and fp16, float32 without TF32. Pixels are uploaded one pass
ahead: on CUDA from two pinned buffers on a separate stream, so that copying overlaps with computing.

Shapes: B images of (H, W, C) uint8 in; one float32 array (B, …) per node out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn

from bottleneck.errors import EngineError, Note, counted
from bottleneck.threads import use_torch_threads

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """Run an extractor module on a torch device.

    Parameters
    ----------
    extractor : nn.Module
        uint8 (B, H, W, C) → tuple of float32 tensors. Moved to the device, in eval mode.
    precision : "fp32", "bf16" or "fp16"
    device : "cpu", "cuda", "cuda:N" or "mps"
    threads : int
        Intra-op threads on the CPU.
    compiled : bool
        Compile the module. This takes a minute and needs a C++ compiler; it may pay on long runs.
    """

    calibration: dict | None = None
    calls = 1  # the device executes one call after the other

    def __init__(
        self,
        extractor: nn.Module,
        precision: str = "fp32",
        device: str = "cpu",
        *,
        threads: int = 1,
        compiled: bool = False,
    ) -> None:
        use_torch_threads(threads)
        self.name = "torch-compiled" if compiled else "torch"
        self.precision = precision
        self.device = device
        self.agreement: dict[int, float] = {}
        self._device = torch.device(device)
        # Images per pass: on a CPU as many as fit its caches, elsewhere as many as occupy the device.
        self._pass = 16 if self._device.type == "cpu" else 128
        self._first_pass, self.batch = self._pass, 2 * self._pass
        self._upload = _PinnedUpload(self._device) if self._device.type == "cuda" else self._plain_upload
        extractor = extractor.eval().to(self._device).to(memory_format=torch.channels_last)
        self._forward = torch.compile(extractor, dynamic=False) if compiled else extractor

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Rows of every node for uint8 pixels (B, H, W, C): float32 arrays (B, …).

        Where the device has too little memory, passes are halved and the call is made again. Rows do not
        depend on their pass. EngineError where one image is too much.
        """
        while True:
            try:
                return self._rows(pixels)
            except torch.OutOfMemoryError as error:
                if self._pass == 1:
                    raise EngineError(
                        f"The memory of {self.device} is too small for one image of "
                        f"{pixels.shape[2]} × {pixels.shape[1]} pixels in this network.",
                        "Use --device cpu, a smaller --image-size or a smaller network.",
                    ) from error
            # Outside the handler, whose traceback would keep the tensors of the failed pass.
            self._halve()

    @property
    def notes(self) -> tuple[Note, ...]:
        """A note where passes were halved."""
        if self._pass == self._first_pass:
            return ()
        text = (
            f"The memory of {self.device} was too small for {counted(self._first_pass, 'image')} at once: "
            f"{self._pass} are computed at once. Rows do not depend on it."
        )
        return (Note("passes-halved", text, details={"images": self._pass, "of": self._first_pass}),)

    def _halve(self) -> None:
        self._pass //= 2
        if self._device.type == "cuda":
            self._upload = _PinnedUpload(self._device)
            torch.cuda.empty_cache()

    def _rows(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode(), self._autocast(), _exact_float32():
            passes = [[rows[:n].float() for rows in self._forward(x)] for x, n in self._passes(pixels)]
            return tuple(torch.cat(node).cpu().numpy() for node in zip(*passes, strict=True))

    def _passes(self, pixels: np.ndarray) -> Iterator[tuple[torch.Tensor, int]]:
        """The device tensor of each pass and its number of rows without padding, uploaded one pass ahead."""
        ahead: list[tuple[Callable[[], torch.Tensor], int]] = []
        for start in range(0, max(1, len(pixels)), self._pass):
            rows = pixels[start : start + self._pass]
            ahead.append((self._upload(_padded(rows)), len(rows)))
            if len(ahead) == 2:
                ready, count = ahead.pop(0)
                yield ready(), count
        ready, count = ahead.pop()
        yield ready(), count

    def _plain_upload(self, rows: np.ndarray) -> Callable[[], torch.Tensor]:
        tensor = torch.from_numpy(np.require(rows, requirements=["C", "W"])).to(self._device)
        return lambda: tensor

    def _autocast(self) -> AbstractContextManager:
        dtype = _HALF.get(self.precision)
        return torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None)


class _PinnedUpload:
    """Copies to a CUDA device from two pinned buffers in turn, on a separate stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._slots: list[tuple[torch.Tensor, torch.cuda.Event] | None] = [None, None]

    def __call__(self, rows: np.ndarray) -> Callable[[], torch.Tensor]:
        """Start the copy; the returned callable makes the network's stream wait for it and returns it."""
        slot, self._slots[0] = self._slots[0], self._slots[1]
        if slot is not None:
            slot[1].synchronize()
        if slot is None or slot[0].shape != rows.shape:
            slot = torch.empty(rows.shape, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()
        buffer, copied = slot
        buffer.numpy()[...] = rows
        with torch.cuda.stream(self._stream):
            tensor = buffer.to(self._device, non_blocking=True)
            copied.record(self._stream)
        self._slots[1] = slot

        def ready() -> torch.Tensor:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            tensor.record_stream(stream)
            return tensor

        return ready


def _padded(rows: np.ndarray) -> np.ndarray:
    """Rows repeated up to the next power of two: for each new shape, torch would search kernels again."""
    count = 1 << max(0, len(rows) - 1).bit_length()
    return rows if len(rows) in (0, count) else np.resize(rows, (count, *rows.shape[1:]))


def _exact_float32() -> AbstractContextManager:
    # TF32 keeps 10 bits of the mantissa, outside float32's bound. Deterministic kernels make runs repeatable.
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
