"""Remove each guard of a shard in turn, in a copy, and see which test notices.

Run it by hand: `python tests/mutations.py [WORD]`, WORD to try only the guards whose name has it.
Exits 1 where a guard could go unnoticed. Not for pytest: it runs pytest once a guard.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "server" / "hubring_server"
TESTS = {
    "machine": ("rules", "first_weights", "waiting", "check", "window", "rules_at_random"),
    "shell": ("host", "host_failures", "weights", "still"),
}


class Guard(NamedTuple):
    """`rule` says what is lost where `old`, which stands once in `file`, becomes `new`."""

    rule: str
    file: str
    old: str
    new: str


SHARD, WINDOW = "machine/shard.py", "machine/window.py"
MACHINE = [
    Guard("P1 seen id", SHARD, "if seen := window.applied.get(seq):", "if seen := None:"),
    Guard("P1 payload", SHARD, "if seen.digest != push.digest:", "if False:"),
    Guard("P1 waiting", SHARD, "        if session in self.waiting:", "        if False:"),
    Guard("P1 waiting payload", SHARD, "if same else self._turn_away(push, Why.DIGEST)", ""),
    Guard("P2 window", WINDOW, "seq < first_incomplete + WINDOW:", "seq:"),
    Guard("P2 one past", WINDOW, "seq < first_incomplete + WINDOW", "seq <= first_incomplete + 4"),
    Guard("P2 slides", WINDOW, "seq < first_incomplete + WINDOW", "seq < len(self.applied) + 4"),
    Guard("P2 below", WINDOW, "not first_incomplete <= seq", "not 0 <= seq"),
    Guard("P2 stale", WINDOW, "if seq < self.mark:", "if False:"),
    Guard("P2 back", WINDOW, "max(self.mark, first_incomplete)", "first_incomplete"),
    Guard("P3 gap", WINDOW, "if any(s not in self.applied for", "if False and any(s for"),
    Guard("P3 mark", WINDOW, "self.mark = max(self.mark, first_incomplete)", "pass"),
    Guard(
        "P3 logged",
        WINDOW,
        "            return Why.GAP\n",
        "            return Why.GAP\n        self.mark = max(self.mark, first_incomplete)\n",
    ),
    Guard("P3 bounded", WINDOW, "del self.applied[passed]", "pass"),
    Guard("P4 answers", SHARD, "if lsn <= self.stored:", "if True:"),
    Guard("P4 id", SHARD, "self._when_stored(seen.lsn, Ack(", "self._when_stored(0, Ack("),
    Guard("P4 batch", SHARD, "self.done.latest_unstored(keys), refusal", "0, refusal"),
    Guard("P4 later batch", WINDOW, "return max((self", "return min((self"),
    Guard("P4 unstored", WINDOW, "if at > lsn}", "if False}"),
    Guard("P4 confessed", WINDOW, "if at > lsn}", "if True}"),
    Guard("P4 view", SHARD, "self._when_stored(self.logged, Mem", "self._when_stored(0, Mem"),
    Guard("P4 seed", SHARD, "self._when_stored(self.logged, answer)", "answer"),
    Guard("P4 stored", SHARD, "while self.applied < self.stored:", "while self.log:"),
    Guard("P5 member", SHARD, "if session not in self.sessions:  # P5", "if False:"),
    Guard(
        "P5 made by a push",
        SHARD,
        "return self._turn_away(push, Why.FENCED)",
        "self.sessions |= {session}; self.windows[session] = Window()",
    ),
    Guard("P5 old view", SHARD, "if members.view <= self.view:", "if False:"),
    Guard("P5 stays", SHARD, "self.windows.get(s, Window())", "Window()"),
    Guard("P5 leavers", SHARD, "if s not in members.sessions]", "if False]"),
    Guard("P5 the rest", SHARD, "MembersAck(members.view)), *self._append()]", "MembersAck(0))]"),
    Guard("P6 batch", SHARD, "if again := self.done.among(push.batches):", "if again := 0:"),
    Guard("P6 keys", SHARD, "None if push.batches else Why.NO_KEYS", "None"),
    Guard(
        "P6 epoch",
        WINDOW,
        "BatchKey(key.epoch, key.batch >> CHUNK)\n        bits = self",
        "BatchKey(0, key.batch >> CHUNK)\n        bits = self",
    ),
    Guard(
        "P6 first batch", SHARD, "for key in push.batches:", "for key in sorted(push.batches)[:1]:"
    ),
    Guard("P7 windows", SHARD, '"windows": windows,', '"windows": {},'),
    Guard("P7 ids", SHARD, "(w.mark, dict(w.applied), w.logged)", "(w.mark, {}, w.mark)"),
    Guard("P7 copy of ids", SHARD, "(w.mark, dict(w.applied),", "(w.mark, w.applied,"),
    Guard("P7 done", SHARD, "self.done.restore(data[", "dict(data["),
    Guard("P7 copy of done", WINDOW, "{chunk: bytes(bits) for", "{chunk: bits for"),
    Guard("P7 counts", SHARD, 'self.keys_logged = data["counts"]', "self.keys_logged = 0, 0"),
    Guard("P7 view", SHARD, 'self.view, self.sessions = data["view"],', "_, self.sessions = 0,"),
    Guard(
        "P7 seeded",
        SHARD,
        "self.seed_digest, self.still_digest, self.seeded_by = data",
        "_, self.still_digest, self.seeded_by = data",
    ),
    Guard("P7 in flight", SHARD, "if self.applied != self.logged or", "if"),
    Guard("P7 waiting", SHARD, "self.applied != self.logged or self.waiting:", "self.log:"),
    Guard("seed member", SHARD, "if seed.session not in self.sessions:", "if False:"),
    Guard("seed chief", SHARD, "if seed.session != min(self.sessions):", "if False:"),
    Guard("seed once", SHARD, "if other and self.pushes_logged else None", "if False else None"),
    Guard("seed again", SHARD, "Why.SEEDED if other and self.pushes_logged", "Why.SEEDED if other"),
    Guard("seed the same", SHARD, "if seed.digest == (", "if False and ("),
    Guard("still first", SHARD, "if self.has_still and self.still_digest is None:", "if False:"),
    Guard("still once", SHARD, "if is_late and self.still_digest", "if False and self.still_dig"),
    Guard("still late", SHARD, "self.pushes_logged or self.seeded_by", "self.seeded_by"),
    Guard("still ends", SHARD, "pushes_logged or self.seeded_by == seed.session", "pushes_logged"),
    Guard("still by the next", SHARD, "self.seeded_by == seed.session", "self.seeded_by"),
    Guard("still again", SHARD, "if is_late and self.still_digest != seed.digest", "if is_late"),
    Guard("still apart", SHARD, "(self.still_digest if seed.still else self", "(self"),
    Guard(
        "P7 still",
        SHARD,
        "self.seed_digest, self.still_digest, self.seeded_by = data",
        "self.seed_digest, _, self.seeded_by = data",
    ),
    Guard(
        "P7 seeded by",
        SHARD,
        "self.still_digest, self.seeded_by = data",
        "self.still_digest, _ = data",
    ),
    Guard("unseeded", SHARD, "if self.seed_digest is None:", "if False:"),
    Guard("free a seed", SHARD, "return [free, SeedRefuse(", "return [SeedRefuse("),
    Guard("free the same", SHARD, "return [free, *self._when_stored", "return [*self._when_stored"),
    Guard(
        "free a refused", SHARD, "[Free(push.grad), Refuse(push.id, why)]", "[Refuse(push.id, why)]"
    ),
    Guard(
        "free a known",
        SHARD,
        "[Free(push.grad), *self._when_stored(seen",
        "[*self._when_stored(seen",
    ),
    Guard(
        "free a done",
        SHARD,
        "[Free(push.grad), *self._when_stored(self.done",
        "[*self._when_stored(self.done",
    ),
    Guard("free an applied", SHARD, ", *(Free(h) for h in payloads(record))]", "]"),
    Guard(
        "free it after",
        SHARD,
        "[Apply(record), *(Free(h) for h in payloads(record))]",
        "[*(Free(h) for h in payloads(record)), Apply(record)]",
    ),
]
SHELL = [
    Guard("finite push", "host.py", ".data, present):", ".data, frozenset()):"),
    Guard("finite seed", "host.py", ".data, self._judge.all)\n", ".data, frozenset())\n"),
    Guard(
        "finite: room",
        "host.py",
        "            self._free(handle)\n            return",
        "            return",
    ),
    Guard(
        "whole copy",
        "host.py",
        "        with self._weights_lock:\n            buffer",
        "        if True:\n            buffer",
    ),
    Guard(
        "whole apply",
        "host.py",
        "        with self._weights_lock:\n            self._weights.apply",
        "        if True:\n            self._weights.apply",
    ),
    Guard(
        "numbers beside a step",
        "host.py",
        "with self._weights_lock:  # the slots",
        "if True:  # the slots",
    ),
    Guard("still NaN", "host.py", '"" if header.still else self._not', "self._not"),
    Guard(
        "still room", "host.py", "return self._still if isinstance(", "return self._still if not ("
    ),
    Guard(
        "still is no version", "host.py", "m.SeedRecord) and not record.seed.still", "m.SeedRecord)"
    ),
    Guard("still bound", "host.py", "weights.still_nbytes, 1,", "weights.still_nbytes, 2,"),
    Guard(
        "still kept once",
        "host.py",
        'for still tensors", keep=False',
        'for still tensors", keep=True',
    ),
    Guard("still answers", "host.py", "effect.digest, effect.still)", "effect.digest, False)"),
    Guard("still due", "host.py", "has_still=weights.still_nbytes > 0", "has_still=False"),
    Guard(
        "still size",
        "judge.py",
        "[(0, stop - start)], header.nbytes",
        "[(0, header.nbytes)], header.nbytes",
    ),
    Guard(
        "still replaced",
        "weights.py",
        "self.still = payloads[seed.payload].data",
        "self.still = self.still if len(self.still) else payloads[seed.payload].data",
    ),
    Guard("still restored", "weights.py", '        self.still = data["still"]\n', ""),
    Guard("unseeded", "host.py", "if not self._version:", "if False:"),
    Guard(
        "unseeded views",
        "host.py",
        "if self._version or _brings_weights(record):",
        "if self._machine.seed_digest is not None:",
    ),
    Guard(
        "ended waiters", "host.py", "            future.set_exception(error)", "            pass"
    ),
    Guard(
        "ended later", "host.py", "            if self._ended is not None:", "            if False:"
    ),
    Guard("crash is told", "host.py", "            self._crashed(error)", "            pass"),
    Guard("thread ends", "host.py", "        self._thread.join()\n", ""),
    Guard(
        "answers all",
        "host.py",
        "for future in futures:\n            future.set_result",
        "for future in futures[:1]:\n            future.set_result",
    ),
    Guard("run", "judge.py", "if header.run != self._run:", "if False:"),
    Guard("shard", "judge.py", "if header.shard != self._shard:", "if False:"),
    Guard("size", "judge.py", "if nbytes != expected:", "if False:"),
    Guard("groups", "judge.py", "if len(header.groups) != self._groups:", "if False:"),
    Guard("finite numbers", "judge.py", "if not all(map(isfinite, value.numbers)):", "if False:"),
    Guard("batch bound", "judge.py", "if batch >= MOST_BATCHES:", "if False:"),
    Guard("presence", "weights.py", "if number >> params:", "if False:"),
    Guard("numbers", "weights.py", "            self._optimizer.check(groups)\n", ""),
    Guard("trial step", "weights.py", "if header.groups != self._tried:", "if False:"),
    Guard("abstains", "weights.py", "        if present:\n", "        if True:\n"),
    Guard("absent", "weights.py", "if part.param in present and not", "if not"),
    Guard("overflow", "weights.py", " or bool(values.isfinite().all())", ""),
    Guard("weights copied", "weights.py", '"weights": self.data.clone()', '"weights": self.data'),
    Guard(
        "pool bound",
        "arena.py",
        "lambda: self._out < self._limit, timeout",
        "lambda: True, timeout",
    ),
    Guard("pool wakes", "arena.py", "            self._changed.notify()\n", ""),
    Guard("replay copies", "log.py", "payload.copy() for", "payload for"),
]


def main(word: str = "") -> int:
    unnoticed = 0
    for kind, guards in (("machine", MACHINE), ("shell", SHELL)):
        for guard in guards:
            if word in guard.rule:
                test = noticed_by(guard, TESTS[kind])
                unnoticed += not test
                sys.stdout.write(f"{kind:8} {guard.rule:22} {test or 'NOT NOTICED'}\n")
                sys.stdout.flush()
    return 1 if unnoticed else 0


def noticed_by(guard: Guard, tests: tuple[str, ...]) -> str:
    """The first test that fails without `guard`, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / PACKAGE.name
        shutil.copytree(PACKAGE, package)
        remove(guard, package / guard.file)
        return first_failure(tests, folder)


def remove(guard: Guard, file: Path) -> None:
    text = file.read_text()
    assert text.count(guard.old) == 1, f"{guard.rule}: {guard.old!r} is not in {file.name} once"
    file.write_text(text.replace(guard.old, guard.new))


def first_failure(tests: tuple[str, ...], path: str) -> str:
    """Run `tests` with `path` before the tree's own packages."""
    options = ("-q", "-x", "--timeout=60", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"tests/server/test_{t}.py" for t in tests)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    found = re.search(r"(?:FAILED|ERROR) \S+/(\S+)", done.stdout)
    return found.group(1) if found else f"pytest ended with {done.returncode}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
