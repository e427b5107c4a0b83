"""Who waits for whom in kernels written in Gluon, which takes no functions of Triton's."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

barrier = getattr(gl, "barrier", None) or gl.thread_barrier
"""All threads of a program are here, and see what the others have written (3.6: its old name)."""


@gluon.jit
def wait_then_release():
    """For short kernels (`pdl.py`): wait for the kernel before, then let the next one start."""
    gl.inline_asm_elementwise(
        "griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )
