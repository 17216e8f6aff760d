"""What this machine's processor is and can do, as Linux tells it. Light to import."""

import os
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# What multiplies bf16, by the processor's flag (Linux's words for x86 and for Arm)
INSTRUCTIONS = {"amx_bf16": "AMX bf16", "avx512_bf16": "AVX-512 bf16", "bf16": "Arm bf16"}


def processor_name() -> str:
    """The processor's name as people know it."""
    return _cpuinfo("model name") or platform.processor() or "unknown processor"


def processor_vendor() -> str:
    """Who made the processor: GenuineIntel, AuthenticAMD; empty where Linux does not say."""
    return _cpuinfo("vendor_id")


def processor_flags() -> list[str]:
    """What the processor can do: avx2, amx_bf16, …

    oneDNN, which does torch's products in bf16, can be kept from instructions that the processor has
    (ONEDNN_MAX_CPU_ISA=AVX2). Those that multiply bf16 are left out then.
    """
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()  # the latter on Arm
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if limit in ("", "ALL", "DEFAULT"):
        return flags
    allowed = {"amx_bf16": "AMX", "avx512_bf16": "BF16|FP16|AMX|AVX10", "bf16": "BF16"}
    return [flag for flag in flags if flag not in allowed or re.search(allowed[flag], limit)]


def bf16_instructions() -> list[str]:
    """What torch multiplies bf16 with on this processor; empty where bf16 is emulated, many times as slow as fp32."""
    flags = processor_flags()
    return [label for flag, label in INSTRUCTIONS.items() if flag in flags]


def _cpuinfo(key: str) -> str:
    """What Linux says of the first processor; empty where it does not."""
    try:
        lines = CPUINFO.read_bytes().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
