"""Sealed folders: whatever changes in one is found and named."""

import hashlib
import json
import os
import socket
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worker.loaders import make
from worker.local_tasks import TaskPool

from hubring_common.errors import SettingsMismatch, UsageError
from hubring_worker import sealed
from hubring_worker.sealed import MANIFEST, UNFINISHED, check, require_sealed, seal

FILES = {"a.bin": b"\0" * 10, "b.txt": b"text", "deep/er/c": b"", "deep/d": b"d" * 3_000_000}


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "data", FILES)
    return tmp_path / "data"


def fill(folder, files):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- sealing ---------------------------------------------------------------------------------


def test_a_manifest_holds_every_files_size_and_sha256_sorted(folder):
    manifest = seal(folder)
    told = json.loads((folder / MANIFEST).read_bytes())
    assert told["version"] == 1
    assert [(f["path"], f["size"], f["sha256"]) for f in told["files"]] == [
        (path, len(content), hashlib.sha256(content).hexdigest())
        for path, content in sorted(FILES.items())
    ]
    assert told["digest"] == manifest.digest == require_sealed(folder)
    assert manifest.size == sum(map(len, FILES.values()))
    assert check(folder).is_good


def test_the_digest_depends_on_contents_and_names_alone(tmp_path):
    fill(tmp_path / "one", FILES)
    fill(tmp_path / "two", dict(reversed(FILES.items())))
    fill(tmp_path / "three", FILES | {"b.txt": b"tex."})
    os.utime(tmp_path / "two" / "b.txt", (1, 1))
    one, two, three = (seal(tmp_path / name).digest for name in ("one", "two", "three"))
    assert one == two != three


def test_sealing_again_replaces_the_manifest_and_does_not_count_it(folder):
    first = seal(folder).digest
    assert seal(folder).digest == first
    (folder / "new").write_bytes(b"new")
    assert not check(folder).is_good
    assert seal(folder).digest != first
    assert check(folder).is_good


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_seal_that_is_cut_off_leaves_the_old_manifest(folder, monkeypatch, call):
    seal(folder)
    (folder / "new").write_bytes(b"new")
    before = snapshot(folder)

    def cut(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sealed.os, "fsync", cut) if call == "fsync" else patch.setattr(
            sealed.Path, "replace", cut
        )
        with pytest.raises(UsageError, match="No space left"):
            seal(folder)
    after = snapshot(folder)
    assert {path: after[path] for path in before} == before
    assert check(folder).extra == (UNFINISHED, "new")
    assert UNFINISHED not in seal(folder).files
    assert check(folder).is_good
    assert not (folder / UNFINISHED).exists()


@pytest.mark.parametrize("name", ["missing", "b.txt"])
def test_what_is_no_folder_is_refused(folder, name):
    for call in (seal, check):
        with pytest.raises(UsageError, match="is not a folder"):
            call(folder / name)


def test_a_folder_without_files_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no file"):
        seal(tmp_path)


def test_where_nothing_may_be_written_the_error_says_so(folder, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sealed.Path, "unlink", denied)
    with pytest.raises(UsageError, match=f"{MANIFEST} cannot be written: .*Permission denied"):
        seal(folder)


def a_link(path):
    path.symlink_to("a.bin")


def a_link_to_nothing(path):
    path.symlink_to("nowhere")


def a_pipe(path):
    os.mkfifo(path)


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    ("make_it", "kind"),
    [
        (a_link, "a symbolic link"),
        (a_link_to_nothing, "a symbolic link"),
        (a_pipe, "a pipe"),
        (a_socket, "a socket"),
    ],
)
def test_what_is_no_regular_file_cannot_be_sealed_nor_added_nor_swapped_in(folder, make_it, kind):
    seal(folder)
    make_it(folder / "deep" / "odd")
    with pytest.raises(UsageError, match=f"deep/odd is {kind}"):
        seal(folder)
    assert check(folder).extra == ("deep/odd",)
    (folder / "deep" / "odd").unlink()
    (folder / "b.txt").unlink()
    make_it(folder / "b.txt")
    assert check(folder).unreadable == (("b.txt", kind),)
    with pytest.raises(UsageError, match=f"b.txt cannot be read .{kind}"):
        require_sealed(folder)


def test_a_link_that_takes_a_files_place_meanwhile_is_not_followed(folder, monkeypatch):
    seal(folder)
    walk = sealed._walk

    def swapped(path):
        found = walk(path)
        (folder / "b.txt").rename(folder.parent / "moved")
        (folder / "b.txt").symlink_to(folder.parent / "moved")
        return found

    monkeypatch.setattr(sealed, "_walk", swapped)
    ((path, why),) = check(folder).unreadable
    assert (path, why) == ("b.txt", "unreadable: Too many levels of symbolic links")


def test_a_link_to_the_folder_itself_is_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert seal(tmp_path / "link").digest == require_sealed(folder)


def test_files_that_cannot_be_read_are_named_with_the_reason(folder, monkeypatch):
    seal(folder)
    opened = os.open

    def denied(path, flags, *rest):
        if str(path).endswith("b.txt"):
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *rest)

    monkeypatch.setattr(sealed.os, "open", denied)
    assert check(folder).unreadable == (("b.txt", "unreadable: Permission denied"),)
    with pytest.raises(UsageError, match=r"b\.txt is unreadable: Permission denied"):
        seal(folder)


def test_a_file_that_is_written_to_meanwhile_is_not_sealed(folder, monkeypatch):
    fstat, calls = os.fstat, []

    def grows(handle):
        calls.append(handle)
        with (folder / "a.bin").open("ab") as file:
            file.write(b"more")
        return fstat(handle)

    monkeypatch.setattr(sealed.os, "fstat", grows)
    with pytest.raises(UsageError, match=r"a\.bin is written to while it was read"):
        seal(folder)


@pytest.mark.parametrize("name", ["with space", "new\nline", "quo\"te'", "ü😀", b"\xff\xfe", "-x"])
def test_names_may_be_any_bytes(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"1")
    (manifest,) = seal(tmp_path).files
    assert manifest == os.fsdecode(name)
    assert check(tmp_path).is_good
    path.write_bytes(b"2")
    with pytest.raises(UsageError, match="was changed") as refused:
        require_sealed(tmp_path)
    assert str(refused.value).isprintable()


# --- what changes is found -------------------------------------------------------------------


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    files=st.dictionaries(
        st.sampled_from([f"{a}{b}" for a in ("", "x/", "y/z/") for b in "abc"]),
        st.binary(max_size=5),
        min_size=1,
    ),
    later=st.dictionaries(
        st.sampled_from([f"{a}{b}" for a in ("", "x/", "y/z/") for b in "abc"]),
        st.binary(max_size=5),
    ),
)
def test_a_check_finds_just_what_differs(tmp_path_factory, files, later):
    folder = tmp_path_factory.mktemp("sealed")
    fill(folder, files)
    seal(folder)
    for path in files:
        (folder / path).unlink()
    fill(folder, later)
    verdict = check(folder)
    both = files.keys() & later.keys()
    assert verdict.changed == tuple(sorted(p for p in both if files[p] != later[p]))
    assert verdict.missing == tuple(sorted(files.keys() - later.keys()))
    assert verdict.extra == tuple(sorted(later.keys() - files.keys()))
    assert verdict.is_good == (files == later)


def test_one_changed_bit_of_the_same_size_and_time_is_found(folder):
    seal(folder)
    path = folder / "deep" / "d"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[1_500_000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert check(folder).changed == ("deep/d",)


def test_ten_files_are_named_and_the_rest_counted(tmp_path):
    fill(tmp_path, {f"{i:02}": b"x" for i in range(14)})
    seal(tmp_path)
    fill(tmp_path, {f"{i:02}": b"y" for i in range(13)})
    (tmp_path / "13").unlink()
    with pytest.raises(UsageError) as refused:
        require_sealed(tmp_path)
    assert "00 was changed, 01 was changed" in refused.value.fact
    assert refused.value.fact.endswith("09 was changed, and 4 more")


@pytest.mark.parametrize(
    ("old", "new", "fact"),
    [
        ('"size": 4', '"size": 5', "was changed: it is not what its own digest says"),
        ("b.txt", "c.txt", "not what its own digest says"),
        ('"digest": "', '"digest": "0', "not what its own digest says"),
        ('"version": 1', '"version": 2', "is of version 2; this hubring reads 1"),
        ('"hash": "sha256"', '"hash": "md5"', "with sha256"),
        ('"files"', '"feils"', "cannot be read"),
        ("{", "", "cannot be read"),
    ],
)
def test_a_manifest_that_was_changed_is_not_believed(folder, old, new, fact):
    seal(folder)
    path = folder / MANIFEST
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UsageError, match=fact) as refused:
        check(folder)
    assert "hubring data seal" in refused.value.todo


def test_a_manifest_that_is_a_link_is_not_the_folders_own(folder, tmp_path):
    seal(folder)
    (folder / MANIFEST).rename(tmp_path / "elsewhere")
    (folder / MANIFEST).symlink_to(tmp_path / "elsewhere")
    assert check(folder).extra == (MANIFEST,)


# --- with a loader, and as a command ---------------------------------------------------------


def test_a_loader_of_sealed_data_checks_it_first_and_shares_its_digest(folder, tmp_path):
    digest = seal(folder).digest
    pool = TaskPool()
    make(pool, sealed=folder)
    assert pool.settings["sealed"] == digest
    make(pool, "w1", sealed=str(folder))
    with pytest.raises(SettingsMismatch, match=f"sealed is no here, {digest}"):
        make(pool, "w2")
    fill(tmp_path / "other", FILES | {"b.txt": b"more"})
    seal(tmp_path / "other")
    with pytest.raises(SettingsMismatch, match="sealed is"):
        make(pool, "w3", sealed=tmp_path / "other")


def test_a_loader_of_changed_data_is_refused_before_a_sample_is_read(folder):
    class Unread(list):
        def __getitem__(self, index):
            raise AssertionError("it was read")

    seal(folder)
    (folder / "b.txt").write_bytes(b"TEXT")
    pool = TaskPool()
    with pytest.raises(UsageError, match=r"b\.txt was changed"):
        make(pool, dataset=Unread([1, 2]), sealed=folder)
    with pytest.raises(UsageError, match=r"b\.txt was changed"):
        make(pool, dataset=lambda _: [1], shards=[1], sealed=folder)
    assert not pool.settings


def hubring(*arguments):
    command = [sys.executable, "-m", "hubring", "data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_seals_and_checks(folder):
    done = hubring("seal", folder, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["files"], told["bytes"]) == (4, sum(map(len, FILES.values())))
    done = hubring("check", folder)
    assert done.returncode == 0
    assert done.stdout == f"{folder}: 4 files are as they were sealed\ndigest {told['digest']}\n"
    (folder / "b.txt").write_bytes(b"TEXT")
    (folder / "a.bin").unlink()
    (folder / "new").touch()
    done = hubring("check", folder, "--json")
    assert done.returncode == 2
    said = json.loads(done.stdout)
    found = (said["good"], said["changed"], said["missing"], said["extra"], said["unreadable"])
    assert found == (False, ["b.txt"], ["a.bin"], ["new"], {})
    assert "HUB-02" in done.stderr
    assert "b.txt was changed, a.bin is missing, new was added" in done.stderr


def test_the_command_without_a_seal_or_folder_says_so(tmp_path):
    for arguments, fact in (
        (("check", tmp_path), "is not sealed"),
        (("seal", tmp_path), "no file"),
    ):
        done = hubring(*arguments)
        assert done.returncode == 2
        assert fact in done.stderr


def test_neither_needs_torch(folder):
    code = (
        "import sys; from hubring.cli import app\n"
        f"app(['data', 'seal', {str(folder)!r}], result_action='return_value')\n"
        f"app(['data', 'check', {str(folder)!r}], result_action='return_value')\n"
        "sys.exit(bool({'torch', 'numpy', 'grpc'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)
