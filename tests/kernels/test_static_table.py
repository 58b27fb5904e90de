"""The table of kernels/README.md is what the kernels are compiled to; what is read out of machine
code is what is there."""

from __future__ import annotations

import os

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels that are interpreted cannot be compiled", allow_module_level=True)

import sass  # noqa: E402
import static_table  # noqa: E402


@pytest.mark.thorough
def test_table_of_the_readme_is_current():
    """To the number with the version of Triton that it names; the bounds that hold with every
    version are asserted in test_compile.py."""
    if (named := static_table.version_of(static_table.written())) != triton.__version__:
        pytest.skip(f"the table is of Triton {named}, and {triton.__version__} is here")
    assert static_table.table() == static_table.written(), "python tests/static_table.py --write"


LOOPS = """
.text._kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_2:
        /*0010*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0020*/                   DEPBAR.LE SB0, 0x2 ;
        /*0030*/              @!P1 LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
        /*0040*/                   LDGDEPBAR ;
        /*0050*/                   LDGDEPBAR ;
        /*0060*/               @P0 BRA `(.L_x_1) ;
        /*0070*/               @P2 BRA `(.L_x_2) ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3);
"""


def test_innermost_loops_are_found():
    """Not the loop around another, nor the branch to itself at the end."""
    found, loops = sass.parsed(LOOPS)
    assert len(found) == 10
    assert [[each.kind for each in loop] for loop in loops] == [
        ["DEPBAR", "LDGSTS.128", "LDGDEPBAR", "LDGDEPBAR", "BRA"]
    ]


@pytest.mark.parametrize(("left", "expected"), [("0x2", True), ("0x1", False), ("0x0", False)])
def test_copies_are_in_flight_if_those_of_a_step_are_left_by_the_wait(left, expected):
    """Two groups of copies a step: with fewer left, one of the next step is waited for."""
    (loop,) = sass.parsed(LOOPS.replace("SB0, 0x2", f"SB0, {left}"))[1]
    assert sass.copies_in_flight(loop) is expected
    assert sass.copies_in_flight(loop[1:2]) is None


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "expected"),
    [
        # by registers, which a warp is given 256 at a time
        (128, 0, 8, 2),
        (129, 0, 8, 1),
        (168, 0, 4, 3),
        # by shared memory: 228 KB, one of them for each program
        (32, 73_728, 4, 3),
        (32, 114_688, 4, 2),
        # by warps, and by the number of programs
        (16, 0, 16, 4),
        (16, 0, 1, 32),
    ],
)
def test_resident_programs_are_limited_by_what_runs_out_first(registers, shared, warps, expected):
    assert sass.Code((), (), registers, 0).resident(shared, warps, 90) == expected
