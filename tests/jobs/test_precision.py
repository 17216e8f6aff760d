"""What `precision=auto` comes to on this and that device, that a run keeps it, and where it is told that it is slow."""

import dataclasses
import stat
from pathlib import Path

import pytest

from transloom.jobs.commands.race import _refuse_unequal_precision
from transloom.jobs.config.compose import load_config, read_config
from transloom.jobs.config.schema import Config
from transloom.jobs.ray_cluster import machine
from transloom.jobs.ray_cluster.machine import examine_machine, native_precisions
from transloom.jobs.ray_cluster.session import ray_session
from transloom.jobs.runs.report import _params
from transloom.jobs.runs.workspace import Run, only_resumed, resumed, run_for
from transloom.jobs.training import precision
from transloom.jobs.training.precision import warn_of_slow_precision, with_precision
from transloom.pipeline import processor
from transloom.pipeline.data.prepare import Prepared, prepare
from transloom.pipeline.errors import UserError
from transloom.pipeline.processor import bf16_instructions
from transloom.pipeline.run_folder import CONFIG_FILE
from transloom.pipeline.train.optimizer import Precision

SMALL = ["corpus.phrasebook_pairs=60", "corpus.held_out=5", "tokenizer.vocab_size=400"]
FLAGS = {
    "laptop": ("flags\t\t: fpu avx2 fma", []),
    "avx512 without bf16": ("flags\t\t: avx2 avx512f avx512_vnni", []),
    "epyc": ("flags\t\t: avx2 avx512f avx512_bf16", ["AVX-512 bf16"]),
    "xeon": ("flags\t\t: avx2 avx512_bf16 amx_bf16", ["AMX bf16", "AVX-512 bf16"]),
    "graviton": ("Features\t: fp asimd bf16 sve", ["Arm bf16"]),
    "older arm": ("Features\t: fp asimd", []),
}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The precisions of the nodes that a worker may get, to be filled in."""
    found: dict[str, list[str]] = {}
    precision._best_everywhere.cache_clear()
    precision._warn.cache_clear()
    monkeypatch.setattr(precision, "_native_on_nodes", lambda cluster: found)
    yield found
    precision._best_everywhere.cache_clear()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def prepared(root: Path) -> Prepared:
    config = configured(root)
    return prepare(config.corpus, config.clean, config.tokenizer, root)


def configured(root: Path, *words: str) -> Config:
    return load_config([*SMALL, f"output_dir={root}", *words])


def dtype_of(config: Config) -> str:
    return config.precision.dtype.value


@pytest.mark.parametrize("kind", FLAGS)
def test_a_cpu_has_bf16_where_it_has_an_instruction_for_it(kind: str, tmp_path, monkeypatch) -> None:
    line, labels = FLAGS[kind]
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\nprocessor\t: 1\n{line}\n")
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    assert bf16_instructions() == labels
    assert native_precisions(use_gpu=False) == (["bf16", "fp32"] if labels else ["fp32"])
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert native_precisions(use_gpu=False) == ["fp32"]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx512_core_bf16")
    assert bf16_instructions() == [label for label in labels if label != "AMX bf16"]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("9.0\n9.0\n", ["bf16", "fp16", "fp32"]),
        ("8.0\n", ["bf16", "fp16", "fp32"]),
        ("7.5\n8.6\n", ["fp16", "fp32"]),  # a worker may get the older one
        ("7.0\n", ["fp16", "fp32"]),
        ("6.1\n", ["fp32"]),
        ("12.0\n", ["bf16", "fp16", "fp32"]),
    ],
)
def test_a_gpu_goes_by_its_compute_capability(told: str, expected: list[str], tmp_path, monkeypatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\ncat <<END\n{told}END\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert native_precisions(use_gpu=True) == expected


def test_workers_on_unequal_nodes_all_get_what_the_poorest_has(nodes, capsys) -> None:
    config = load_config([])
    nodes |= {"10.0.0.1:1": ["bf16", "fp32"], "10.0.0.2:1": ["fp32"]}
    assert dtype_of(with_precision(config)) == "fp32"
    said = capsys.readouterr().out
    assert "Precision   fp32" in said and "10.0.0.2:1, which has nothing better (10.0.0.1:1 has bf16)" in said
    assert dtype_of(with_precision(config)) == "fp32"
    assert capsys.readouterr().out == ""  # told once


def test_gpus_of_two_generations_share_fp16(nodes) -> None:
    nodes |= {"new": ["bf16", "fp16", "fp32"], "old": ["fp16", "fp32"]}
    assert dtype_of(with_precision(load_config([]))) == "fp16"


def test_what_was_asked_for_stays(nodes) -> None:
    nodes |= {"here": ["fp32"]}
    for asked in ("bf16", "fp16", "fp32"):
        assert dtype_of(with_precision(load_config([f"precision={asked}"]))) == asked


def test_a_run_keeps_its_precision_wherever_it_goes_on(nodes, root, prepared) -> None:
    nodes |= {"here": ["bf16", "fp32"]}
    config = configured(root, "name=kept")
    run = run_for(config, prepared)
    assert dtype_of(run.config) == "bf16" == dtype_of(read_config(run.folder / CONFIG_FILE))
    assert _params(run.config)["precision"]["dtype"] == "bf16"  # MLflow's
    nodes["here"] = ["fp32"]
    precision._best_everywhere.cache_clear()
    assert dtype_of(run_for(config, prepared).config) == "bf16"  # the same words
    again = configured(root, "resume=kept")
    assert dtype_of(resumed(again, ["resume=kept"])) == "bf16"
    submitted = dataclasses.replace(config, resume="kept")  # a job that a cluster was given with `auto` in it
    assert only_resumed(submitted).resume == "kept"
    assert dtype_of(run_for(configured(root, "name=new"), prepared).config) == "fp32"


def test_another_precision_is_another_run(nodes, root, prepared) -> None:
    nodes |= {"here": ["bf16", "fp32"]}
    names = {run_for(configured(root, f"precision={one}"), prepared).name for one in ("auto", "bf16", "fp32")}
    assert len(names) == 3
    run_for(configured(root, "name=asked", "precision=fp32"), prepared)
    with pytest.raises(UserError, match=r"^name: the run asked exists"):
        run_for(configured(root, "name=asked"), prepared)


def test_a_race_is_run_in_one_precision(root) -> None:
    runs = {
        name: Run(name, root, configured(root, f"precision={asked}")) for name, asked in (("a", "bf16"), ("b", "fp32"))
    }
    with pytest.raises(UserError, match=r"^precision: .*a has bf16, b has fp32"):
        _refuse_unequal_precision(runs)
    _refuse_unequal_precision({"a": runs["a"], "c": runs["a"]})


def test_slow_arithmetic_is_told_with_the_ratio_that_was_measured(nodes, monkeypatch, capsys) -> None:
    nodes |= {precision.THIS_MACHINE: ["fp32"]}
    monkeypatch.setattr(machine, "product_speed", {"bf16": 6e9, "fp32": 90e9}.get)
    warn_of_slow_precision(load_config(["precision=bf16"]))
    said = capsys.readouterr().out
    assert said.startswith("Warning     precision=bf16 will be slow on this machine") and " 0.067 of " in said
    warn_of_slow_precision(load_config(["precision=bf16"]))  # told once
    warn_of_slow_precision(load_config(["precision=fp32"]))
    precision._warn.cache_clear()
    nodes[precision.THIS_MACHINE] = ["bf16", "fp32"]
    warn_of_slow_precision(load_config(["precision=bf16"]))
    assert capsys.readouterr().out == ""


def test_the_measured_ratio_is_that_of_this_processor() -> None:
    ratio = precision._measured_ratio(precision.THIS_MACHINE, "bf16")
    assert ratio > 1 if bf16_instructions() else ratio < 1


def test_the_doctor_finds_nothing_to_mend_in_a_processor_without_bf16(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(machine, "bf16_instructions", lambda: [])

    def finding(asked: str) -> machine.Finding:
        return next(one for one in examine_machine(str(tmp_path), asked) if one.what == "precision")

    assert finding("auto") == ("precision", "auto is fp32 on this CPU", "")
    assert "leave precision= out" in finding("bf16").advice
    assert finding("fp32").advice == ""


@pytest.mark.slow
def test_the_nodes_of_a_cluster_are_asked(monkeypatch, capsys) -> None:
    """Two raylets, of which one may not use the processor's bf16 instructions; and one without room for a worker."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        poor = cluster.add_node(num_cpus=1, env_vars={"ONEDNN_MAX_CPU_ISA": "AVX2"})
        cluster.add_node(num_cpus=0)
        config = load_config([f"cluster.address={cluster.address}", "cluster.num_workers=2", "precision=bf16"])
        with ray_session(config.cluster):
            native = precision._native_on_nodes(config.cluster)
            slow = f"{poor.node_ip_address}:{poor.node_manager_port}"
            assert len(native) == 2 and native[slow] == ["fp32"]
            assert native_precisions(use_gpu=False) in native.values()
            auto = dataclasses.replace(config.precision, dtype=Precision.auto)
            assert dtype_of(with_precision(dataclasses.replace(config, precision=auto))) == "fp32"
            capsys.readouterr()
            warn_of_slow_precision(config)
            told = capsys.readouterr().out
            # On a machine without these instructions both nodes are named.
            assert slow in told.partition(": it is emulated at ")[0] and ": it is emulated at 0." in told
    finally:
        cluster.shutdown()
