# SPDX-License-Identifier: Apache-2.0
"""The boundary for text from workers: no canary gets through, and ordinary text stays readable."""

from __future__ import annotations

import json
import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient.core.redact import MARK, Redactor, clean_argv, clean_url, secrets_of, secrets_of_argv

PLAIN = Redactor()
LIMIT = 100_000
CANARY = "C4naryS3cr3tValue"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"


@pytest.mark.parametrize(
    "text",
    [
        "keyboard = qwerty",
        "monkey=1",
        "tokens=4096",
        "max_tokens: 3",
        "num_keys=12",
        "key=0",
        "token_ids: 12",
        "token: 12",
        "KeyError: 'weight'",
        "missing key: model.layers.0.weight",
        'Missing key(s) in state_dict: "fc.weight"',
        "eos_token='<|endoftext|>', pad_token=0",
        "sort_key=loss",
        "def f(token: str, password: None)",
        "TOKENIZERS_PARALLELISM=false",
        "NoCredentials: Unable to locate credentials",
        "cannot run '/etc/passwd': not executable",
        "auth token: not accepted by api",
        'File "train.py", line 3, in loss',
        "http://localhost:8080/a?step=3",
        "s3://bucket/run-42/checkpoints",
        "RuntimeError: The size of tensor a (3) must match",
        "risk-adjusted-return-of-the-task-force",
        "step 3: loss=0.25 lr=1e-4",
        "[rank0] [/x] <script>",
        "tab\tand\nnewline, café, 漢字",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    """Training logs are full of tokens and keys that are no secrets."""
    assert PLAIN.clean(text, LIMIT) == text


@pytest.mark.parametrize(
    "text",
    [
        f"HF_TOKEN={CANARY}",
        f"export WANDB_API_KEY={CANARY}; python train.py",
        f"AWS_SECRET_ACCESS_KEY = {CANARY}",
        f"AWS_ACCESS_KEY_ID={CANARY}",
        f"PGPASSWORD={CANARY}",
        f"DB_PASSWORD_2='{CANARY} {CANARY}'",
        f"apiKey: {CANARY}",
        f"key={CANARY}",
        f"password={CANARY}&{CANARY},{CANARY}",
        json.dumps({"api_key": CANARY}),
        json.dumps(json.dumps({"token": CANARY})),
        repr({"client_secret": CANARY, "lr": 1}),
        repr({"token": CANARY.encode()}),
        json.dumps({"name": "HF_TOKEN", "value": CANARY}),
        f"Settings(token={CANARY}, lr=3)",
        f"--token {CANARY} --lr 3",
        f"--hub-token={CANARY}",
        f"https://user:{CANARY}@host/x",
        f"https://{CANARY}@github.com/x",
        f"s3://AKIA:{CANARY}/with/slash@bucket/x",
        f"https://b.s3/x?X-Amz-Credential={CANARY}&X-Amz-Signature={CANARY}&X-Amz-Security-Token={CANARY}",
        f"https://a.blob.core.windows.net/c?sv=1&sig={CANARY}",
        f"https://storage/x?GoogleAccessId={CANARY}&Signature={CANARY}",
        f"https://x/?AWSAccessKeyId={CANARY}&amp;token={CANARY}",
        f"DefaultEndpointsProtocol=https;AccountKey={CANARY};x",
        f"Authorization: Basic {CANARY}",
        f"{{'Authorization': 'Bearer {CANARY}'}}",
        f"authorization: AWS4-HMAC-SHA256 Credential={CANARY}, Signature={CANARY}",
        f"Cookie: session={CANARY}",
        f"sent bearer {CANARY} and failed",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{CANARY}\n-----END OPENSSH PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}",
        f"MODE=fast,HF_TOKEN={CANARY}",
        f"argv: ['--token={CANARY}', '--lr']",
        f"hf_{CANARY}",
        f"ghp_{CANARY}",
        f"github_pat_{CANARY}",
        f"sk-proj-{CANARY}",
        f"xoxb-{CANARY}",
        f"AIza{CANARY}{CANARY}",
        f"HF_\x1b[0mTOKEN\u200b=\x1b[31m{CANARY}\x1b[0m",
        f"\x1b]0;HF_TOKEN={CANARY}\x07",
    ],
)
def test_canaries_never_survive(text: str) -> None:
    """Every form in which programs print credentials."""
    assert CANARY not in PLAIN.clean(text, LIMIT)
    assert CANARY not in PLAIN.clean(f"x {text} y\n{text}".encode(), LIMIT)


def test_the_rest_of_a_private_key_is_found_where_a_tail_begins_with_it() -> None:
    """A bounded tail may have lost the line that begins the key."""
    assert PLAIN.clean(f"{CANARY}\n-----END PRIVATE KEY-----\nok", LIMIT) == f"{MARK}\nok"


@pytest.mark.parametrize("shape", ["AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", JWT])
def test_known_shapes_are_found_inside_of_prose(shape: str) -> None:
    """No name need stand before them."""
    assert PLAIN.clean(f"using {shape}, retrying", LIMIT) == f"using {MARK}, retrying"


NAMES = st.sampled_from(
    ["HF_TOKEN", "DB_PASSWORD", "clientSecret", "x-api-key", "MY_KEY", "aws_credentials", "passphrase"]
)
FORMS = st.sampled_from(
    ["{}={}", "{}: {}", '"{}": "{}"', "'{}': '{}'", "--{} {}", "--{}={}", "Env({}='{}')", "{}  =  {}"]
)
VALUES = st.text(string.ascii_letters + string.digits + "/+-_.~!$%^*", min_size=8, max_size=60)


@given(NAMES, FORMS, VALUES, st.text(max_size=40))
def test_values_of_telling_names_never_survive(name: str, form: str, value: str, around: str) -> None:
    """Whatever the value, and whatever stands before it."""
    canary = f"Zq9{value}"
    assert canary not in PLAIN.clean(f"{around}\n{form.format(name, canary)} tail", LIMIT)


@given(st.text(min_size=6, max_size=40), st.text(max_size=60), st.text(max_size=60))
def test_literal_secrets_never_survive(secret: str, before: str, after: str) -> None:
    """Secrets given by value are found without any name beside them."""
    canary = f"{secret}-canary-{secret}"
    printable = PLAIN.clean(canary, LIMIT)
    cleaned = Redactor((canary,)).clean(before + canary + after, LIMIT)
    assert canary not in cleaned
    assert printable.strip() == "" or "-canary-" not in printable or printable.strip() not in cleaned


def test_literal_secrets_are_found_in_every_spelling() -> None:
    """URLs, JSON and repr change the characters of a secret."""
    secret = 'p@ss "w\\ord'
    redactor = Redactor((secret,))
    for text in (secret, "p%40ss%20%22w%5Cord", "p%40ss+%22w%5Cord", json.dumps({"x": secret}), repr([secret])):
        assert MARK in redactor.clean(text, LIMIT)
        assert "ord" not in redactor.clean(text, LIMIT)


def test_a_secret_that_holds_another_is_replaced_whole() -> None:
    """The longest first: nothing of it is left over."""
    assert Redactor(("abcdef", "abcdefghij")).clean("x abcdefghij y", LIMIT) == f"x {MARK} y"


def test_a_redactor_does_not_show_its_secrets() -> None:
    """It may end up in a traceback itself."""
    assert CANARY not in repr(Redactor((CANARY,)))


@settings(max_examples=300)
@given(st.text(st.characters(), max_size=200) | st.binary(max_size=200), st.lists(st.text(max_size=12), max_size=3))
def test_cleaning_twice_changes_nothing_and_leaves_only_printable_text(text: str | bytes, secrets: list[str]) -> None:
    """Text may pass the boundary more than once."""
    redactor = Redactor(secrets)
    once = redactor.clean(text, LIMIT)
    assert redactor.clean(once, LIMIT) == once
    once.encode("utf-8")
    assert not [char for char in once if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"]


PIECES = st.sampled_from(
    ["TOKEN=", "password: ", '"', "'", "\\", MARK, "[redacted", "]", "Authorization: ", "Bearer ", "https://", "u:p@",
     "@", "?token=", "&sig=", " ", "\n", CANARY, "--key ", "key", "=", ":", ",", ")", "hf_",
    "-----BEGIN PRIVATE KEY-----",
     "-----END PRIVATE KEY-----", "\x1b[", "\x1b]", "b'", '"name": "HF_TOKEN", "value": "', "Cookie: "]
)  # fmt: skip


@settings(max_examples=500)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_cleaning_pieces_of_credentials_twice_changes_nothing(text: str) -> None:
    """The mark itself is never taken for a value."""
    once = PLAIN.clean(text, LIMIT)
    assert PLAIN.clean(once, LIMIT) == once


def test_control_sequences_are_stripped() -> None:
    """Colours, titles, hyperlinks, cursor movement, overrides of direction."""
    text = (
        "\x1b[1;31mred\x1b[0m\x1b]8;;http://x\x1b\\link\x1b]8;;\x07\x1b(B\x9b2J\u202eevil\u2066\x00\x07\x7f a\rb\r\nc"
    )
    assert PLAIN.clean(text, LIMIT) == "redlinkevil a\nb\nc"


def test_undecodable_bytes_are_replaced() -> None:
    """Workers print what they like."""
    assert PLAIN.clean(b"ok \xff\xfe", LIMIT) == "ok \ufffd\ufffd"


def test_the_limit_holds_and_keeps_the_end_on_request() -> None:
    """A cut never leaves a part of a secret behind."""
    text = "start " + "x " * 100 + f"HF_TOKEN={CANARY}"
    assert PLAIN.clean(text, 5) == "start"
    assert PLAIN.clean(text, 10, tail=True) == MARK
    assert PLAIN.clean(text, 0) == ""


@pytest.mark.parametrize("tail", [False, True])
def test_huge_input_is_cut_at_a_line_so_that_no_secret_is_torn(tail: bool) -> None:
    """Half a secret looks like none."""
    line = f"HF_TOKEN={CANARY}\n"
    cleaned = PLAIN.clean(line * 80_000, 3_000_000, tail=tail)
    assert 0 < len(cleaned) <= 1024 * 1024
    assert set(cleaned.split("\n")) <= {f"HF_TOKEN={MARK}", ""}


@pytest.mark.parametrize(
    "text",
    [
        "a" * 200_000,
        "key=" * 50_000,
        "://" * 60_000,
        "--a " * 50_000,
        '"' * 200_000,
        "\\" * 200_000,
        "\x1b[" * 100_000,
        "\x1b]" * 100_000,
        "a:b@" * 50_000,
        "-----BEGIN PRIVATE KEY-----" * 5_000,
        "?token" * 30_000,
        "a_" * 100_000,
        "Authorization:" * 15_000,
        "eyJaaaaaaaaaa" * 15_000,
        '"name": ' * 25_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_hostile_text_is_cleaned_in_bounded_work(text: str) -> None:
    """Every repeat in every pattern has a bound: a pattern that backtracks would never get here."""
    once = PLAIN.clean(text, 10_000_000)
    assert len(once) <= 3 * len(text)


def test_secrets_of_an_environment() -> None:
    """Telling names, passwords in URLs; nothing that would blank out ordinary words."""
    found = secrets_of(
        {
            "HF_TOKEN": "hf-value",
            "AWS_ACCESS_KEY_ID": "AKIAVALUE",
            "PGPASSWORD": "postgres1",
            "SOME_KEY": "a-key-value",
            "DATABASE_URL": "postgres://u:p%40ssw0rd@h/x",
            "TOKENIZERS_PARALLELISM": "false",
            "API_KEY": "short",
            "CLIENT_SECRET": "  None ",
            "KEYBOARD": "qwertz-de",
            "AWS_SHARED_CREDENTIALS_FILE": "/var/run/aws",
            "MAX_TOKENS": "4096000",
            "HOME": "/home/user",
        }
    )
    assert set(found) == {"hf-value", "AKIAVALUE", "postgres1", "a-key-value", "p%40ssw0rd", "p@ssw0rd"}


def test_secrets_of_a_command_line() -> None:
    """Values after and within telling flags, and of assignments; nothing that would blank out ordinary words."""
    found = secrets_of_argv(
        [
            "HF_TOKEN=of-variable",
            "train.py",
            "--api-key",
            "after-flag",
            "--token=within-flag",
            "+hub.api_key=of-hydra",
            "--db=postgres://u:p%40ssw0rd@h/x",
            "python x.py --auth-token 'of-inner'; DB_PASSWORD=\"of-shell\" y --lr=3",
            "--password",
            "of two words",
            "--secret",
            "--verbose",
            "--max-tokens",
            "4096000",
            "--token-dim=123456",
            "--sort-key",
            "timestamp",
            "--password=short",
            "--tokenizer=llama-tokenizer",
            "--api-key",
        ]
    )
    wanted = {"of-variable", "after-flag", "within-flag", "of-hydra", "p%40ssw0rd", "p@ssw0rd", "of-inner"}
    assert set(found) == wanted | {"of-shell", "of two words"}
    assert secrets_of_argv([]) == ()
    quoted = Redactor(secrets_of_argv(["--api-key", CANARY])).clean(f"ValueError: no user {CANARY!r}", LIMIT)
    assert quoted == f"ValueError: no user '{MARK}'"


def test_a_command_line_is_cleaned_item_by_item() -> None:
    """A value that follows its flag is an item of its own."""
    argv = [
        "train.py",
        "--token",
        CANARY,
        "--lr",
        "3",
        f"--api-key={CANARY}",
        f"HF_TOKEN={CANARY}",
        "--max-tokens",
        "5",
    ]
    assert clean_argv(argv) == (
        "train.py", "--token", MARK, "--lr", "3", f"--api-key={MARK}", f"HF_TOKEN={MARK}", "--max-tokens", "5",
    )  # fmt: skip
    assert clean_argv(["--token", "--verbose"]) == ("--token", "--verbose")
    assert clean_argv(["run", "plain"], secrets=("plain",)) == ("run", MARK)


def test_a_url_keeps_what_names_the_place() -> None:
    """People must still see which bucket it was."""
    assert clean_url(f"s3://key:{CANARY}@bucket/run-42?region=eu") == f"s3://{MARK}@bucket/run-42?region=eu"
    assert clean_url("s3://bucket/run-42") == "s3://bucket/run-42"
