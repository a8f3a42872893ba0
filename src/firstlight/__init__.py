"""firstlight: any open-weight language model on any chip, the day the model is released.

>>> import firstlight
>>> model = firstlight.load("demo")
>>> model.generate("A telescope is", max_tokens=20).text
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.language_model import LanguageModel
    from firstlight.loading import load

__version__ = "0.1.0"
__all__ = ["LanguageModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `firstlight --help` does not wait for NumPy.
    if name == "load":
        from firstlight.loading import load

        return load
    if name == "LanguageModel":
        from firstlight.language_model import LanguageModel

        return LanguageModel
    raise AttributeError(f"module 'firstlight' has no attribute {name!r}")
