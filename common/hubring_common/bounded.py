"""Text that travels, kept within a size. Pure."""

STACKS_LIMIT = 64 << 10
"""Bytes of one process's stacks."""


def cut(text: str, limit: int) -> str:
    """At most `limit` bytes of `text`, and a line that says how much was cut, if any was."""
    whole = text.encode(errors="replace")
    if len(whole) <= limit:
        return text
    note = f"\n[cut: {limit} of {len(whole)} bytes are shown]\n"
    return whole[: limit - len(note)].decode(errors="ignore") + note
