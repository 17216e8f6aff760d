"""Faults, injected for real into trainings by the real command line: `make chaos`. docs/reliability.md says what is
promised, and how to run this."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))  # command.py and runs.py
