"""The Python stacks of this process as text of a bounded size: frames by the interpreter's own
account, so that neither ptrace nor another process is needed.
"""

import sys
import threading
import traceback

from hubring_common.bounded import STACKS_LIMIT, cut


def dump(limit: int = STACKS_LIMIT) -> str:
    """Every thread's frames, the latest call last; the main thread first. A thread that calls
    this, and is not the main one, is left out.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    here, main = threading.get_ident(), threading.main_thread().ident
    frames = sys._current_frames()  # noqa: SLF001 - documented, for this very use
    parts = []
    for ident in sorted(frames, key=lambda ident: ident != main):
        if ident != here or here == main:
            shown = "".join(traceback.format_stack(frames[ident]))
            parts.append(f"thread {names.get(ident) or f'{ident}, not of threading'}\n{shown}")
    return cut("\n".join(parts), limit)
