"""Options of the command line that are long, or that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]
Deployed = Annotated[
    tuple[str, str] | None,
    typer.Option(
        metavar="QTARGET QUNLEARNED",
        help="Both models as they were really quantized, by any quantizer: GGUF, or checkpoints of GPTQ, AWQ, "
        "compressed-tensors, bitsandbytes, FP8, NVFP4 or MXFP4.",
    ),
]
