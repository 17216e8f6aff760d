"""Translating, as a library: docs/library.md has the steps.

from transloom.pipeline.translate import Translator

translator = Translator.load("outputs/runs/first/model")
translator.translate(["A dog runs."])
"""

from transloom.pipeline.data.terminology import Terminology
from transloom.pipeline.generate.align import pharaoh
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.sample import SampleConfig
from transloom.pipeline.generate.translator import Split, TranslateConfig, Translation, Translator

__all__ = [
    "BeamConfig",
    "SampleConfig",
    "Split",
    "Terminology",
    "TranslateConfig",
    "Translation",
    "Translator",
    "pharaoh",
]
