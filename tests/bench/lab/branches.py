"""A run that goes on in several ways from one moment: each branch is a copy of the process.

What a branch does is gone with it; only its answer comes back. The process must have one thread, and must not share
with its copies what cannot be shared (a simulated mesh has nothing: its clock, queues and sockets are values).
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_branch(work: Callable[[], T]) -> T:
    """The answer of `work`, done in a copy of this process as it is now. RuntimeError if the copy failed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 1
        try:
            with os.fdopen(writer, "wb") as file:
                pickle.dump(work(), file)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError("a branch failed; its traceback is above")
    return pickle.loads(answer)  # type: ignore[no-any-return]
