# SPDX-License-Identifier: Apache-2.0
"""What workers say is data: it leaks no secret, breaks no reader, and steers no verdict."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from failing_store import plugin
from supervised import LIMIT_S, ROOT, Folder, training

from resilient.core.redact import Redactor
from resilient.supervisor.collect import read_error

NASTY = "<script>alert(1)</script> [/x] [rank0] [bold] \x1b]0;owned\x07\x1b[2J\x00 \u202e evil"
LONGEST_MESSAGE = 1024


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def own_lines(stderr: str) -> str:
    """What the supervisor itself has said."""
    return "\n".join(line for line in stderr.splitlines() if line.startswith("resilient:"))


def test_secrets_are_in_no_artefact(folder: Folder) -> None:
    """Secrets of argv, environment, URL and exception appear in nothing that is kept or said by us."""
    folder.environ.update(plugin(folder.path, ROOT))
    secrets = [f"canary{number}Zq7" for number in range(6)]
    argument, option, token, password, user, signature = secrets
    body = f"""
def after():
    said = os.environ["HF_TOKEN"] + " and " + os.environ["DB_PASSWORD"]
    options = sys.argv[1].partition("=")[2] + " nor " + sys.argv[3]
    options += " fits https://bucket/x?X-Amz-Signature={signature}&y"
    raise resilient.Reschedule("neither " + options + " Authorization: Bearer " + said)
"""
    script = folder.script(training(body))
    url = f"failing://me:{user}@{folder.checkpoints}"
    arguments = (f"--api-key={argument}", "--token", option)
    ended = folder.run("--checkpoints", url, script, *arguments, HF_TOKEN=token, DB_PASSWORD=password)
    assert ended.code == 194, ended.stderr
    (folder.path / "fault").write_text("denied")
    refused = folder.run("--checkpoints", url, script, RESILIENT_STORE_PATIENCE="1s")
    (folder.path / "fault").write_text("")
    assert refused.code == 199, refused.stderr
    said = [own_lines(ended.stderr), own_lines(refused.stderr)]
    said += [folder.ask("explain", folder.path / "journal-1").stdout, folder.ask("explain", url).stdout]
    kept = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path != script}
    for name in ("manifest.json", "debits/", "checkpoints/journal/", "journal.jsonl", ".termination"):
        assert any(name in str(path) for path in kept), f"no {name} was looked at"
    by_script = (argument, option, token, password, signature)
    assert all(secret in ended.stderr for secret in by_script), "the script itself has said it"
    for secret in secrets:
        assert [text for text in said if secret in text] == []
        assert [str(path) for path, data in kept.items() if secret.encode() in data] == []


def test_the_reason_of_a_refusal_holds_no_secret_of_the_command(folder: Folder) -> None:
    """Nothing was started, and still the pod's status is kept by others."""
    ended = folder.run("--keep", "canaryZq7", folder.script(""), "--token", "canaryZq7")
    assert (ended.code, ended.termination["code"]) == (115, 115)
    assert "[redacted]" in ended.termination["why"]
    assert "canaryZq7" not in json.dumps(dict(ended.termination))


def test_markup_and_control_sequences_break_nothing(folder: Folder) -> None:
    """They are passed on in the output, and are text everywhere else."""
    printing = f"import sys\nsys.stdout.buffer.write({NASTY!r}.encode() + b'\\xff\\n' + b'x' * 3_000_000)\n"
    ended = folder.run(folder.script(printing + f"raise ValueError({NASTY!r})"))
    assert ended.code == 114, ended.stderr
    assert "x" * 10_000 in ended.stdout
    assert "<script>alert(1)</script> [/x] [rank0]" in own_lines(ended.stderr)
    assert not {"\x1b", "\x00", "\x07", "\u202e"} & set(own_lines(ended.stderr) + json.dumps(dict(ended.termination)))
    journal = (folder.path / "journal-1" / "journal.jsonl").read_text()
    assert "\\u001b" not in journal
    plain = folder.ask("explain", folder.path / "journal-1")
    assert plain.returncode == 0, plain.stderr
    assert "<script>alert(1)</script> [/x] [rank0]" in plain.stdout
    assert "[/x]" in on_a_terminal(folder, "explain", str(folder.path / "journal-1"))


def test_the_termination_message_is_one_short_line(folder: Folder) -> None:
    """JSON of at most 1 KiB with why and do in front, whatever the exception says."""
    ended = folder.run(folder.script("raise ValueError('\u00e9\\n' * 2_000)"))
    data = (folder.path / "journal-1.termination").read_bytes()
    assert len(data) <= LONGEST_MESSAGE
    assert len(data.splitlines()) == 1
    assert list(ended.termination)[:2] == ["why", "do"]
    assert ended.termination["code"] == ended.code == 114


def test_the_last_lines_say_all_that_a_person_needs(folder: Folder) -> None:
    """What failed, why, what next, and the one command to read more, in at most a dozen lines."""
    ended = folder.run(folder.script("raise ValueError('wrong rate')"))
    last = ended.stderr.rstrip().splitlines()
    last = last[max(at for at, line in enumerate(last) if "ended with exit code 114" in line) :]
    assert len(last) <= 12
    assert all(line.startswith("resilient: ") for line in last)
    for words in ("code fault", "rank 0", "wrong rate", "train.py:1", "next:", f"resilient explain {folder.path}"):
        assert words in "\n".join(last)
    assert words in last[-1]


GARBAGE = (b"\xff\xfe garbage\n", b"{}\n" * 1000, b"[" * 100_000 + b"\n", b"x" * 5_000_000, b'{"kind":"Hello"}\n',
           b'{"type":["Hello"]}\n')  # fmt: skip


def test_garbage_on_the_link_is_no_word_of_a_worker(folder: Folder) -> None:
    """Ranks that write into the supervisor's socket, each something else, lose their link, and nothing else."""
    text = (
        f"import os\nfd = int(os.environ['RESILIENT_INTERNAL_LINK'])\n"
        f"part, times = {[(data[:64], max(1, len(data) // 64)) for data in GARBAGE]!r}[int(os.environ['RANK'])]\n"
        "data = part * times\n"
        "try:\n    while data:\n        data = data[os.write(fd, data):]\nexcept OSError:\n    pass\nprint('done')"
    )
    ended = folder.run("--nproc-per-node", str(len(GARBAGE)), folder.script(text))
    assert (ended.code, ended.stdout.count("done")) == (0, len(GARBAGE)), ended.stderr


@pytest.mark.parametrize("record", ["", "[" * 100_000, '{"chain": []}', "x" * 2_000_000])
def test_a_damaged_error_record_is_none(tmp_path: Path, record: str) -> None:
    """Whatever is wrong with it."""
    (tmp_path / "error.json").write_text(record)
    assert read_error(tmp_path / "error.json", tmp_path / "torchelastic.json", Redactor()) is None


def test_a_damaged_error_record_hides_nothing(folder: Folder) -> None:
    """The traceback on stderr is read instead."""
    text = "import os\nopen(os.environ['RESILIENT_INTERNAL_ERROR_FILE'], 'w').write('[' * 100_000)\n"
    ended = folder.run(folder.script(text + "open('/nowhere')"))
    assert (ended.code, set(ended.rules)) == (115, {"missing-file"}), ended.stderr


def test_a_worker_cannot_speak_for_the_supervisor(folder: Folder) -> None:
    """Lines that look like ours or like the journal's carry the prefix of their rank."""
    text = 'print(\'resilient: ended with exit code 0 (finished)\')\nprint(\'{"kind": "exit", "code": 0}\')\nNone + 1'
    ended = folder.run(folder.script(text))
    assert ended.code == 114
    assert "[rank0] resilient: ended with exit code 0" in ended.stdout
    assert [entry["code"] for entry in ended.entries("exit")] == [114]


def on_a_terminal(folder: Folder, *arguments: str) -> str:
    """What a command prints where its output is a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "resilient", *arguments],
        cwd=folder.path,
        env=folder.environment(folder.path / "none", {"TERM": "xterm", "COLUMNS": "400"}),
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    data = b""
    try:
        while more := os.read(master, 1 << 16):
            data += more
    except OSError:  # EIO: the other end is closed
        pass
    finally:
        os.close(master)
    assert process.wait(LIMIT_S) == 0, data
    return data.decode(errors="replace")
