"""What the workers are not to import: it would cost each of them seconds before its first step."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TRAINING = """
import sys
import torch
from transloom.model.losses import LossSum
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.optimizer import OptimizerConfig, Precision, PrecisionConfig

class Objective(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, batch):
        return LossSum(self.linear(batch).square().sum(), 4)

precision = PrecisionConfig(Precision.fp32)
for name, stage in (("torch", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)):
    engine = make_engine(
        Objective(), OptimizerConfig(), precision, EngineConfig(EngineName(name), stage), torch.device("cpu")
    )
    before = engine.weights()
    for _ in range(2):
        engine.forward_backward(torch.ones(1, 4), scale=1.0, last=True)
        engine.step(0.1)
    assert any((before[key] != weight).any() for key, weight in engine.weights().items()), "nothing was learned"
    print(name, stage, *sorted({"torch._dynamo", "torch._inductor", "sympy", "mlflow", "scipy"} & sys.modules.keys()))
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))  # whoever wants to compile still can
"""


def test_a_training_imports_neither_torch_s_compiler_nor_mlflow(tmp_path):
    """All engines in one process, where the first that imports one of them is seen; which finds no C++ compiler."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TRAINING], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    trainings = ["torch 0", "deepspeed 0", "deepspeed 1", "deepspeed 2", "deepspeed 3"]
    assert done.stdout.splitlines() == trainings, "imported by a training of two steps"
    assert list(tmp_path.iterdir()) == []  # nothing was built
