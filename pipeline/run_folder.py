"""The names in an output folder and in a run's folder. Nobody else spells them out.

<output folder>/runs/<run>/  sweeps/<sweep>/  corpora/<name>-<hash>/  tokenizers/<hash>/  shards/<hash>/
"""

RUNS_FOLDER, SWEEPS_FOLDER = "runs", "sweeps"
ARCHIVE_FOLDER = "archived"  # <run>/: runs that no command finds by their name any more
STAGES = {"corpus": "corpora", "tokenizer": "tokenizers", "shards": "shards"}  # what a run was made from, and where

CONFIG_FILE = "config.yaml"  # all settings, resolved
PREPARED_FILE = "prepared.json"  # the run's identity and the folders of its STAGES
LOCK_FILE = "lock"  # its owner holds it
RUN_RECORD = "run.json"  # what the run is called in MLflow
TRAINING_SPOOL, DRIVER_SPOOL = "metrics.jsonl", "driver.jsonl"  # what is reported to MLflow

CHECKPOINTS_FOLDER = "checkpoints"  # step_<step>/: to go on from
INITIAL_FOLDER = "initial"  # step_00000000/: the weights that the training began with, of train.initial
WEIGHTS_FOLDER = "weights"  # step_<step>/: snapshots, of which the model is the average
PROGRESS_FILE = "progress.json"  # what rank 0 shows
TRAINING_FILE = "training.json"  # how the training ended; missing while it has not
PRODUCTS_FILE = "products.json"  # which form of each matrix product is the quicker one
PARTS_FILE = "micro_batch_parts"  # into how many parts each micro-batch is cut, since a whole one did not fit
STOP_FILE = "stop"  # the training ends once something is written into it
WORKERS_FOLDER, RESTART_FILE = "workers", "restart"  # <attempt>/: heartbeats; as STOP_FILE, of this attempt
STACKS_FOLDER = "stacks"  # of workers that hung
SKIPPED_FOLDER = "skipped"  # batches that were left out
ROLLBACKS_FILE = "rollbacks.json"  # where the training went back, and why
RAY_FOLDER = "ray"

MODEL_FOLDER, MODEL_CONFIG = "model", "config.json"  # the averaged model; the file in it that is written last
EVALUATION_FOLDER, RESULT_FILE = "evaluation", "result.json"  # <search>-<hash>/; the file in each that is written last
TESTS_FOLDER, HYPOTHESES_FILE = "tests", "hypotheses"  # <test set>-<hash>/, with a RESULT_FILE: other test sets
FIGURES_FOLDER, CURVES_FILE = "figures", "curves.png"
ATTENTION_FOLDER = f"{FIGURES_FOLDER}/attention"  # <text>-<hash>/: what heads look at
INSIDE_FOLDER = f"{FIGURES_FOLDER}/inside"  # what `transloom attend part=…` finds
TABLES_FOLDER = "tables"
