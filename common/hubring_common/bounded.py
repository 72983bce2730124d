"""What travels and could grow, kept within a size. Pure."""

STACKS_LIMIT = 64 << 10
"""Bytes of one process's stacks."""
BUFFERS_LIMIT = 3 << 20
"""Bytes of one worker's buffers that are pooled, as float64s. A ResNet-152 has 1.2 MB of them."""


def cut(text: str, limit: int) -> str:
    """At most `limit` bytes of `text`, and a line that says how much was cut, if any was."""
    whole = text.encode(errors="replace")
    if len(whole) <= limit:
        return text
    note = f"\n[cut: {limit} of {len(whole)} bytes are shown]\n"
    return whole[: limit - len(note)].decode(errors="ignore") + note
