"""The jobs. Whoever imports one, a command or a worker of Ray's, takes the project's other packages from beside it, not
from the current folder, which may have a model.py or a pipeline.py of the user's."""

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent)
if sys.path[:1] != [_ROOT]:
    sys.path.insert(0, _ROOT)
