"""What `make gpu-check` looks at on a machine with a GPU, a module for each kind of part; `runner.py` runs the parts.

Nothing here needs Ray, MLflow or Hydra: the machine may have no more than torch and a folder of wheels.
"""
