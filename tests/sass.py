"""What compiled kernels are made of: resources and machine code of a cubin, its loops, and how a
multiprocessor holds them. Read by Triton's own nvdisasm and cuobjdump."""

from __future__ import annotations

import collections
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# of a multiprocessor, by compute capability: bytes of shared memory, of which a block's 1,024 are
# the system's; registers, warps and blocks are the same on 80 and 90
SHARED = {80: 164 << 10, 90: 228 << 10}
REGISTERS, WARPS, BLOCKS = 65_536, 64, 32
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name with modifiers, and its operands as they are written."""

    name: str
    operands: str = ""

    @property
    def kind(self) -> str:
        """The name without modifiers, but for the width of an access of 16 bytes."""
        return self.name.split(".")[0] + (".128" if ".128" in self.name else "")


@dataclass(frozen=True)
class Code:
    """A kernel: its instructions, its innermost loops, and what it occupies."""

    instructions: tuple[Instruction, ...]
    loops: tuple[tuple[Instruction, ...], ...]
    registers: int
    stack: int

    def count(self, *kinds: str) -> int:
        counted = collections.Counter(each.kind for each in self.instructions)
        return sum(counted[kind] for kind in kinds)

    def resident(self, shared: int, warps: int, capability: int) -> int:
        """Blocks that a multiprocessor holds at once."""
        # registers are given to warps 256 at a time
        of_a_warp = -(-self.registers * 32 // 256) * 256
        limits = (
            REGISTERS // of_a_warp // warps,
            SHARED[capability] // (shared + 1024),
            WARPS // warps,
            BLOCKS,
        )
        return min(limits)


def read(cubin: bytes) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text, usage = (
            subprocess.run(
                [BINARIES / tool, flag, file.name], capture_output=True, text=True, check=True
            ).stdout
            for tool, flag in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        )
    instructions, loops = parsed(text)
    registers, stack = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK"))
    return Code(instructions, loops, registers, stack)


def parsed(text: str) -> tuple[tuple[Instruction, ...], tuple[tuple[Instruction, ...], ...]]:
    """Instructions, and innermost loops: from the target of a branch backwards to the branch."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(found)
        elif match := _LINE.search(line):
            name, operands = match[3], match[4]
            target = re.search(r"`\((\.L_\w+)\)", operands)
            if name.startswith("BRA") and target and target[1] in labels:
                start = labels[target[1]]
                # a branch to itself ends the code
                if start < len(found):
                    spans.append((start, len(found) + 1))
            found.append(Instruction(name, operands.strip()))
    inner = [
        span
        for span in spans
        if not any(span[0] <= a and b <= span[1] and (a, b) != span for a, b in spans)
    ]
    return tuple(found), tuple(tuple(found[a:b]) for a, b in inner)


def copies_in_flight(loop: tuple[Instruction, ...]) -> bool | None:
    """Whether the copies of the next step of a loop, or of a later one, are on their way while it
    waits for those of this step; None without asynchronous copies.

    A step leaves as many groups of copies behind as it has LDGDEPBAR, and DEPBAR.LE SB0, N waits
    until at most N are on their way.
    """
    groups = sum(each.kind == "LDGDEPBAR" for each in loop)
    if not groups:
        return None
    waits = [each.operands for each in loop if each.kind == "DEPBAR" and "SB0" in each.operands]
    left = [int(re.search(r"0x([0-9a-f]+)", operands)[1], 16) for operands in waits]
    return bool(left) and min(left) >= groups
