"""Does quantization bring back what your model unlearned?

Three functions for a notebook or a pipeline; each loads what it needs on its first use, and importing this loads nothing:

    import unforgotten

    unforgotten.audit_pair("models/target", "models/unlearned", ["int4-g64"])["verdict"]
    unforgotten.survival(w, w_new, "int4-g64").gain
    unforgotten.verdict({"int4-g64": {"M1": (target, unlearned, q_target, q_unlearned)}})["overall"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unforgotten.library import __version__, audit_pair, survival, verdict

__all__ = ["__version__", "audit_pair", "survival", "verdict"]


def __getattr__(name: str) -> Any:
    """Load what is asked for on its first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'unforgotten' has no attribute {name!r}")
    from unforgotten import library

    return getattr(library, name)


def __dir__() -> list[str]:
    """List what is offered, loaded or not."""
    return sorted({*globals(), *__all__})
