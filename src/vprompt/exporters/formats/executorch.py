"""`.pte`: ExecuTorch with XNNPACK, for phones and small devices."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vprompt.exporters.base import FORMATS, Format, check_regular
from vprompt.exporters.checksum import BLANK, add_checksum, verify_checksum
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import printable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.export import ExportedProgram

    from vprompt.exporters.base import Run


class ExecuTorch(Format):
    """Two files: the program, and its description as JSON with the checksum of both."""

    name = "executorch"
    summary = "phones"
    suffix = ".pte"
    extra = "executorch"
    to_write = to_read = ("executorch.runtime",)
    max_batch = 8  # the program reserves memory for the largest

    def convert(self, program: ExportedProgram, opset: int | None = None) -> bytes:
        """The program for the portable runtime, as much of it as possible by XNNPACK."""
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        program = program.run_decompositions({torch.ops.aten.scaled_dot_product_attention.default: _attention})
        lowered = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner()],
            # Its check takes the batch of an operator with several results for a constant.
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        return lowered.to_executorch().buffer

    def save(self, converted: bytes, path: Path, about: str) -> None:
        """Writes the program, and the description beside it."""
        path.write_bytes(converted)
        document, beside = {"checksum": BLANK, "about": json.loads(about)}, self.companions(path)[0]
        beside.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        add_checksum([path, beside])

    def read(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """Reads both files."""
        beside = self.companions(path)[0]
        if not beside.is_file():
            raise VPromptError(
                f"{printable(str(path))} has no {printable(beside.name)} beside it, which says what it is; copy both."
            )
        check_regular(beside, path)
        verify_checksum([path, beside])
        return json.dumps(json.loads(beside.read_bytes())["about"]), lambda: _runner(path)

    def companions(self, path: Path) -> list[Path]:
        """The description."""
        return [path.with_name(path.name + ".json")]


def _runner(path: Path) -> Run:
    import torch
    from executorch.runtime import Runtime

    with _silent():
        program: Any = Runtime.get().load_program(path)
        method = program.load_method("forward")

    def run(images: np.ndarray) -> np.ndarray:
        # The runtime owns what it returns, and writes over it the next time.
        return method.execute([torch.from_numpy(images)])[0].numpy().copy()

    return run


@contextlib.contextmanager
def _silent() -> Generator[None]:
    """Closes standard error, on which the runtime tells what processor it found."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention in operators that XNNPACK has; PyTorch's own way guards against rows that see nothing."""
    import torch

    assert not is_causal
    assert not enable_gqa
    logits = q * (q.shape[-1] ** -0.5 if scale is None else scale) @ k.mT
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    return logits.softmax(-1) @ v


FORMATS.register(ExecuTorch())
