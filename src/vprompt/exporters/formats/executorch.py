"""`.pte`: ExecuTorch with XNNPACK, for phones and small devices."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vprompt.exporters.base import FORMATS, Format

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

    from vprompt.exporters.base import Run


class ExecuTorch(Format):
    """Two files: the program, and its description as JSON."""

    name = "executorch"
    summary = "phones"
    suffix = ".pte"
    extra = "executorch"
    to_write = to_read = ("executorch.runtime",)
    needs_trust = True  # its makers do not promise that a program from elsewhere is harmless
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
        beside = json.dumps({"about": json.loads(about)}, indent=2) + "\n"
        self.companions(path)[0].write_text(beside, encoding="utf-8")

    def read(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """Reads both files."""
        import torch
        from executorch.runtime import Runtime

        def ready() -> Run:
            with _silent():
                program: Any = Runtime.get().load_program(path)
                method = program.load_method("forward")
            # The runtime owns what it returns, and writes over it the next time.
            return lambda images: method.execute([torch.from_numpy(images)])[0].numpy().copy()

        return json.dumps(json.loads(self.companions(path)[0].read_bytes())["about"]), ready

    def companions(self, path: Path) -> list[Path]:
        """The description."""
        return [path.with_name(path.name + ".json")]


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
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, scale: float | None = None, **__: Any
) -> Tensor:
    """Attention in operators that XNNPACK has; PyTorch's own way guards against rows that see nothing."""
    import torch

    logits = q * (q.shape[-1] ** -0.5 if scale is None else scale) @ k.mT
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    return logits.softmax(-1) @ v


FORMATS.register(ExecuTorch())
