"""What a plan says: model, data, batch, memory, hardware, growth, checkpoints, and the paper's own cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from transloom.jobs.terminal.console import console, quantity, table

FEW = 12  # rows of a table of workers


def print_plan(plan: Mapping[str, Any], name: str) -> None:
    console.print(f"Plan {name}", style="bold")
    _print_model(plan)
    _print_batch(plan["batch"])
    _print_memory(plan)
    _print_hardware(plan)
    _print_growth(plan)
    _print_checkpoints(plan)
    if plan["paper"]:
        _print_paper(plan)
    console.print(f"\nModel of time: {plan['formula']}. docs/plan.md has all assumptions.")


def _print_model(plan: Mapping[str, Any]) -> None:
    model, data = plan["model"], plan["data"]
    if is_text(plan):
        costs = (
            f"{quantity(model['flops_per_token'])}FLOP a token, {quantity(model['attention_flops_per_token'])}FLOP of "
            "it in attention's own products"
        )
        total = "" if data["tokens"] is None else f"{data['tokens']:,} tokens "
        if data["documents"] is not None:
            total = f"{data['documents']:,} documents, {total}"
        step, limit = f"{data['step_target_tokens']:,.0f} tokens", ""
    else:
        costs = (
            f"{quantity(model['flops_per_source_token'])}FLOP a source token and "
            f"{quantity(model['flops_per_target_token'])}FLOP a target token"
        )
        total = (
            ""
            if data["pairs"] is None
            else f"{data['pairs']:,} pairs, {data['source_tokens']:,} source + {data['target_tokens']:,} target tokens "
        )
        step = f"{data['step_source_tokens']:,.0f} source + {data['step_target_tokens']:,.0f} target tokens"
        limit = " on each side"
    console.print(
        f"Model  {model['architecture']}, {model['parameters']:,} parameters with {model['vocab_size']:,} pieces; "
        f"training takes {costs}"
    )
    if not total:
        console.print(f"Data   {data['origin']}")
    else:
        console.print(
            f"Data   {total}({data['origin']})\n"
            f"       {plan['steps']:,} steps are {data['epochs']:.1f} epochs of {data['steps_per_epoch']:,.0f} steps; "
            f"shards take {size(data['shard_bytes'])}"
        )
    origin = "counted" if data["is_exact"] else "estimated"
    console.print(
        f"Step   {step} ({origin}; at most {plan['batch']['tokens']:,}{limit}), "
        f"{quantity(model['flops_per_step'])}FLOP; {plan['steps']:,} steps {model['flops']:.2e} FLOP"
    )


def is_text(plan: Mapping[str, Any]) -> bool:
    """Whether the plan is of a language model."""
    return "flops_per_token" in plan["model"]


def _print_batch(batch: Mapping[str, Any]) -> None:
    rows = [[_range(one), f"{one['accumulation']}", f"{one['idle']:.0%}"] for one in _groups(batch["shares"])]
    title = f"\n{batch['micro_batches']} micro-batches of {batch['micro_tokens']:,} tokens a step, by number of workers"
    console.print(table(title, ["workers", "micro-batches each", "idle"], rows, right=(1, 2)))


def _groups(shares: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for all numbers of workers with the same accumulation, at most FEW: those without waiting, then."""
    found: list[dict[str, Any]] = []
    for one in shares:
        if found and found[-1]["accumulation"] == one["accumulation"]:
            found[-1] |= {"most": one["workers"], "idle": one["idle"]}
        else:
            found.append({**one, "most": one["workers"]})
    if len(found) > FEW:
        found = [{**one, "most": one["workers"]} for one in shares if one["idle"] == 0]
    return found


def _range(one: Mapping[str, Any]) -> str:
    return f"{one['workers']:,}" if one["workers"] == one["most"] else f"{one['workers']:,} to {one['most']:,}"


def _print_memory(plan: Mapping[str, Any]) -> None:
    places = [("gpu", "fp32"), ("gpu", "bf16"), ("cpu", "fp32"), ("cpu", "bf16")]
    rows = [
        [str(stage), *(size(plan["memory"][place][precision][stage]["total"]) for place, precision in places)]
        for stage in range(4)
    ]
    columns = ["ZeRO stage", "GPU, fp32", "GPU, bf16 or fp16", "this CPU, fp32", "this CPU, bf16 or fp16"]
    title = f"\nMemory of each of {plan['workers']} workers (engine=torch is as stage 0)"
    console.print(table(title, columns, rows, right=(1, 2, 3, 4)))
    place = "gpu" if plan["on_gpu"] else "cpu"
    configured = next(one for one in plan["hardware"] if (one["key"] != "cpu") == plan["on_gpu"])["precision"]
    precision = "fp32" if configured == "fp32" else "bf16"
    engine = plan["engine"]
    stage = engine["zero_stage"] if engine["name"] == "deepspeed" else 0
    parts = plan["memory"][place][precision][stage]
    names = {
        "libraries": "libraries",
        "weights": "weights",
        "optimizer": "masters and moments",
        "gradients": "gradients",
        "passing": "activations and loss",
        "kernels": "oneDNN's kernels",
    }
    told = ", ".join(f"{text} {size(parts[part])}" for part, text in names.items())
    console.print(f"As configured (stage {stage}, {precision}): {told}")


def plan_precision(plan: Mapping[str, Any]) -> str:
    """What the devices of a plan compute in, in words; `auto` may be different things on them."""
    devices: dict[str, list[str]] = {}
    for one in plan["hardware"]:
        devices.setdefault(one["precision"], []).append(one["name"])
    if len(devices) == 1:
        return next(iter(devices))
    return " and ".join(f"{precision} ({', '.join(names)})" for precision, names in devices.items())


def _print_hardware(plan: Mapping[str, Any]) -> None:
    columns = ["device", "workers", "ZeRO", "memory", "of", "peak FLOP/s", "used", "step"]
    columns += ["tok/s" if is_text(plan) else "target tok/s", "time"]
    columns += ["device-hours", "$/hour", "$"]
    rows = []
    for one in plan["hardware"]:
        assumed = one["assumed"]
        stage = f"{one['stage']}" if one["fits"] else "none fits"
        rows.append(
            [
                one["name"],
                f"{one['workers']:,}",
                stage,
                size(one["memory_bytes"]),
                size(one["device_bytes"]),
                quantity(assumed["peak_flops_per_second"]).strip(),
                f"{assumed['utilisation']:.0%}",
                duration(one["step_seconds"]["total"]),
                f"{one['target_tokens_per_second']:,.0f}",
                duration(3600 * one["hours"]),
                f"{one['device_hours']:,.1f}",
                f"{assumed['price_per_hour']:g}",
                f"{one['cost']:,.2f}",
            ]
        )
    title = f"\n{plan['steps']:,} steps in {plan_precision(plan)}, checkpoints included, validation not"
    if plan["max_minutes"]:
        title += f"; at most {plan['max_minutes']:g} minutes of training"
    console.print(table(title, columns, rows, right=tuple(range(1, len(columns)))))
    cpu = next(one for one in plan["hardware"] if one["key"] == "cpu")
    of_cpu = "assumed too; --calibrate measures it"
    if cpu["origin"] == "measured":
        of_cpu = "measured, its FLOP/s being those of training itself"
    console.print(
        f"GPUs: speed, links and prices are assumed. This CPU: {of_cpu}. Other prices: price.h100=2.5 and the like"
    )
    fitting = {one["recommended_stage"] for one in plan["hardware"] if (one["key"] != "cpu") == plan["on_gpu"]}
    if None in fitting:
        console.print("Recommended: smaller batch.micro_tokens, for no stage fits every device above")
    else:
        console.print(f"Recommended: ZeRO stage {max(fitting)}, the lowest that fits; higher ones communicate more")


def _print_growth(plan: Mapping[str, Any]) -> None:
    names = [one["name"] for one in plan["hardware"]]
    growth = list(plan["growth"].values())
    for batch, title in (
        ("same_batch", "\nStep, and efficiency, of the same batch shared by more workers"),
        ("growing_batch", "\nStep, and efficiency, of a batch that grows with the workers"),
    ):
        rows = [
            [f"{some[0]['workers']:,}", *(_step(one[batch]) for one in some)]
            for some in zip(*growth, strict=True)
            if some[0][batch]
        ]
        console.print(table(title, ["workers", *names], rows, right=tuple(range(len(names) + 1))))


def _step(one: Mapping[str, float]) -> str:
    return f"{duration(one['total'])} {one['efficiency']:4.0%}"


def _print_checkpoints(plan: Mapping[str, Any]) -> None:
    checkpoint = plan["checkpoint"]
    stalls = ", ".join(
        f"{one['name']} {duration(one['checkpoint_stall_seconds'])} ({one['saving_share']:.1%})"
        for one in plan["hardware"]
    )
    console.print(
        f"\nCheckpoint {size(checkpoint['bytes'])}, snapshot {size(checkpoint['snapshot_bytes'])}; "
        f"{checkpoint['kept']} and up to {checkpoint['snapshots_kept']} are kept: {size(checkpoint['disk_bytes'])}\n"
        f"A checkpoint stops the training for (part of the time, with snapshots): {stalls}"
    )
    own = [one for one in plan["hardware"] if (one["key"] != "cpu") == plan["on_gpu"]]
    seconds = ", ".join(
        f"{one['name']} {duration(one['validation_seconds'])}" for one in own if one["validation_seconds"]
    )
    if seconds:
        console.print(f"A validation takes about (assumed; not in the hours): {seconds}")
    for one in own:
        if one["stops"]["changes"]:
            console.print(_advice(one))


def _advice(one: Mapping[str, Any]) -> str:
    """Which settings make checkpoints and validations a small part of the time on a device, and what they save."""
    stops = one["stops"]
    words = " ".join(f"{key}={value}" for key, value in stops["changes"].items())
    hours, money = duration(3600 * stops["saved_hours"]), f"{stops['saved_cost']:,.2f}"
    return (
        f"{one['name']}: checkpoints and validations take {stops['share']:.1%} of the time; {words} makes that "
        f"{stops['share_after']:.1%}, and saves {hours} and ${money}"
    )


def _print_paper(plan: Mapping[str, Any]) -> None:
    paper = plan["paper"]
    rows = [
        [
            f"the paper, {paper['gpus']}",
            f"{paper['steps']:,}",
            duration(paper["step_seconds"]),
            duration(3600 * paper["hours"]),
            f"{paper['gpu_hours']:,.0f}",
            f"{paper['flops']:.1e}",
        ]
    ]
    rows += [
        [
            f"here, {one['workers']} x {one['name']}, {one['precision']}",
            f"{one['steps']:,.0f}",
            duration(one["step_seconds"]["total"]),
            duration(3600 * one["hours"]),
            f"{one['device_hours']:,.1f}",
            f"{plan['model']['flops']:.1e}",
        ]
        for one in plan["hardware"]
    ]
    columns = ["", "steps", "step", "time", "device-hours", "FLOP"]
    title = f"\nBeside the paper's own cost: {paper['name']}, {paper['score']}"
    console.print(table(title, columns, rows, right=(1, 2, 3, 4, 5)))
    console.print(
        f"The paper's FLOP are what its GPUs could have done in the time (9.5 TFLOP/s each); counted as here, its "
        f"training took {paper['flops_counted']:.1e}, {paper['utilisation']:.0%} of that"
    )


def size(number: float) -> str:
    """1234567890 -> "1.23 GB"."""
    return f"{quantity(number)}B"


def duration(seconds: float) -> str:
    """In the unit that suits: "41 ms", "2.50 s", "12.0 min", "3.5 h", "3.5 days"."""
    for unit, length, most in (("ms", 1e-3, 1.0), ("s", 1.0, 100.0), ("min", 60.0, 6000.0), ("h", 3600.0, 172800.0)):
        if seconds < most:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:,.1f} days"
