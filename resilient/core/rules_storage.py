# SPDX-License-Identifier: Apache-2.0
"""Rules about storage: file systems by errno, stores by what their clients raise.

Only rows. A store that is slow or away is worth another try; one that refuses is not.
"""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.lanes import Lane
from resilient.core.rule import AllOf, AnyOf, exception_rule, left_behind, printed, raised, raised_anywhere, raised_by

ERRNO: Final = "https://man7.org/linux/man-pages/man3/errno.3.html"
TORCH: Final = "https://docs.pytorch.org/docs/stable/"
S3FS: Final = "https://github.com/fsspec/s3fs/blob/main/s3fs/errors.py"
S3: Final = "https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html"
HUB: Final = "https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/errors.py"

_SETUP: Final = (Cause.CONFIG_OR_ENVIRONMENT, Action.STOP)
_CLIENTS: Final = (
    "ClientError", "BotoCoreError", "HTTPClientError", "HttpError", "HTTPError", "RequestException",
    "ClientResponseError", "AzureError", "GoogleAPIError", "GoogleAPICallError", "HfHubHTTPError", "OSError",
    "StoreError",
)  # fmt: skip
_UNREACHED: Final = (
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ReadTimeout", "ConnectTimeout",
    "ServerTimeoutError", "ServiceUnavailable", "TooManyRequests", "InternalServerError", "RetryError",
    "GatewayTimeout", "DeadlineExceeded", "LocalEntryNotFoundError", "ClientConnectorError",
    "ServerDisconnectedError", "ClientPayloadError", "IncompleteRead", "ProtocolError", "MaxRetryError",
)  # fmt: skip
# Packages that do nothing but talk to a store or hub. What they refuse for good has rules of its own above.
_PACKAGES: Final = (
    "botocore", "boto3", "s3transfer", "s3fs", "aiobotocore", "gcsfs", "google.api_core", "google.auth",
    "google.cloud", "google.resumable_media", "azure.core", "azure.storage", "adlfs", "fsspec", "urllib3",
    "requests", "httpx", "httpcore", "aiohttp", "huggingface_hub",
)  # fmt: skip
_REFUSED: Final = (
    r"Access ?Denied|InvalidAccessKeyId|SignatureDoesNotMatch|\b40[13]\b"
    r"|\b(?:[Ff]orbidden|[Uu]nauthori[sz]ed|not authori[sz]ed)\b"
)
_SHARED: Final = r'^ {2}File "[^"\n]{0,400}[/\\]multiprocessing[/\\](?:synchronize|heap|shared_memory)\.py"'
_STORE_AGAIN: Final = (Cause.STORAGE, Action.RESTART_IN_PLACE)
_STORE_UNCLEAR: Final = (Cause.STORAGE, Action.INVESTIGATE)

STORAGE_RULES: Final = (
    exception_rule(
        "shared-memory",
        *_SETUP,
        "rank {rank} has too little shared memory; give it a larger /dev/shm",
        AnyOf(
            (
                raised_anywhere(
                    "RuntimeError",
                    text=r"unable to (?:write to file|allocate shared memory|resize|mmap \d+ bytes from file) ?[<(]",
                ),
                # What multiprocessing makes, semaphores too, is in /dev/shm; no disk is full then.
                AllOf(
                    (
                        raised_anywhere("OSError", text=r"^\[Errno 28\]"),
                        printed(Lane.STDERR, _SHARED, "multiprocessing"),
                    )
                ),
            )
        ),
        ("RuntimeError", "unable to write to file </torch_4242_7>"),
        "https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/MapAllocator.cpp",
        Confidence.MEDIUM,
    ),
    exception_rule(
        "storage-full",
        *_STORE_UNCLEAR,
        "rank {rank} found no space left",
        AnyOf(
            (
                raised_anywhere("OSError", text=r"^\[Errno (?:28|122)\]"),
                # Other languages' layers pass the system's words on in types of their own.
                raised_anywhere(text=r"No space left on device|Disk quota exceeded"),
                raised_anywhere("RuntimeError", text=r"PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+"),
            )
        ),
        ("OSError", "[Errno 28] No space left on device: 'out.pt'"),
        ERRNO,
    ),
    exception_rule(
        "storage-stale-handle",
        *_STORE_AGAIN,
        "a network file system dropped a file under rank {rank}",
        AnyOf((raised_anywhere("OSError", text=r"^\[Errno 116\]"), raised_anywhere(text=r"Stale file handle"))),
        ("OSError", "[Errno 116] Stale file handle: 'shard-3'"),
        ERRNO,
    ),
    exception_rule(
        "storage-expired-token",
        *_STORE_AGAIN,
        "the store credentials of rank {rank} ran out",
        raised_anywhere(*_CLIENTS, text=r"ExpiredToken|RequestTimeTooSkewed|token .{0,40}expired|Token has expired"),
        ("PermissionError", "The provided token has expired."),
        S3,
        Confidence.MEDIUM,
    ),
    exception_rule(
        "storage-unavailable",
        *_STORE_AGAIN,
        "the store did not answer rank {rank}, or too slowly",
        AnyOf(
            (
                raised_anywhere(
                    *_CLIENTS,
                    text=r"SlowDown|Slow Down|reduce your request rate"
                    r"|ServiceUnavailable|Service Unavailable|InternalError\b"
                    r"|Internal Server Error|Bad Gateway|Gateway Time-?out|Too Many Requests|RequestTimeout|Throttl"
                    r"|\b(?:HTTP|status|code|Error|response)\W{1,4}(?:status |code |code: )?"
                    r"(?:408|429|50[0234])\b|^50[0234]\b",
                ),
                raised_anywhere(*_UNREACHED),
                raised_anywhere("OSError", text=r"^\[Errno (?:16|121)\]"),
            )
        ),
        ("botocore.exceptions.ClientError", "An error occurred (SlowDown) when calling the PutObject operation"),
        S3,
    ),
    exception_rule(
        "storage-lost-on-the-way",
        *_STORE_AGAIN,
        "rank {rank} did not find a file after the store had not answered in time",
        AllOf(
            (
                raised("FileNotFoundError"),
                printed(
                    Lane.STDERR,
                    r"Read ?[Tt]imed ?[Oo]ut|ReadTimeout|Max retries exceeded|Retrying in \d",
                    "imed",
                    "ReadTimeout",
                    "Max retries exceeded",
                    "Retrying in ",
                ),
            )
        ),
        left_behind(
            "Read timed out. Retrying in 1s [Retry 1/5].",
            "Traceback (most recent call last):",
            "FileNotFoundError: hf://datasets/someone/something/train-00001.zst",
            code=1,
        ),
        HUB,
        Confidence.MEDIUM,
    ),
    exception_rule(
        "storage-io-error",
        *_STORE_UNCLEAR,
        "a read or write failed under rank {rank} (a bad disk, or a store's error under that number)",
        AnyOf(
            (
                raised_anywhere("OSError", text=r"^\[Errno 5\]"),
                raised_anywhere(text=r"Input/output error"),
                # From torch.save: the system's own words are lost on the way.
                raised_anywhere("RuntimeError", text=r"^File \S{1,400} cannot be opened"),
            )
        ),
        ("OSError", "[Errno 5] Input/output error: '/data/shard-3'"),
        S3FS,
        Confidence.MEDIUM,
    ),
    exception_rule(
        "storage-refused",
        *_SETUP,
        "the store refused rank {rank}",
        AnyOf(
            (
                raised_anywhere(
                    "NoCredentialsError",
                    "PartialCredentialsError",
                    "GatedRepoError",
                    "ClientAuthenticationError",
                    "DefaultCredentialsError",
                    "Forbidden",
                    "Unauthorized",
                ),
                raised_anywhere(*_CLIENTS, text=_REFUSED),
                AllOf((raised_by(*_PACKAGES), raised_anywhere(text=_REFUSED))),
            )
        ),
        ("PermissionError", "Access Denied"),
        S3FS,
        Confidence.MEDIUM,
    ),
    exception_rule(
        "storage-no-such-object",
        *_SETUP,
        "what rank {rank} asked for is not in the store",
        AnyOf(
            (
                raised_anywhere(
                    "RepositoryNotFoundError",
                    "RevisionNotFoundError",
                    "EntryNotFoundError",
                    "HFValidationError",
                    "NotFound",
                    "ResourceNotFoundError",
                    "DatasetNotFoundError",
                ),
                raised_anywhere(*_CLIENTS, text=r"NoSuchKey|NoSuchBucket|\b404 Client Error|\(404\)"),
            )
        ),
        ("huggingface_hub.errors.RepositoryNotFoundError", "404 Client Error. Repository Not Found for url"),
        HUB,
    ),
    exception_rule(
        "storage-client",
        *_STORE_AGAIN,
        "the client of a store failed under rank {rank}",
        AllOf((raised_by(*_PACKAGES), raised_anywhere(text=r"\A(?!.{0,400}(?:Invalid|No (?:schema|host)|missing))"))),
        ("botocore.exceptions.HTTPClientError", "An HTTP Client raised an unhandled exception"),
        "https://docs.aws.amazon.com/boto3/latest/guide/error-handling.html",
        Confidence.LOW,
    ),
    exception_rule(
        "checkpoint-not-there",
        *_SETUP,
        "rank {rank} was to load a checkpoint where there is none",
        raised_anywhere(
            "AssertionError", "RuntimeError", text=r"metadata read failed: .{0,400}No such file or directory"
        ),
        ("AssertionError", "metadata is None; global metadata read failed: [Errno 2] No such file or directory: 'x'"),
        "https://github.com/pytorch/pytorch/blob/main/torch/distributed/checkpoint/state_dict_loader.py",
        Confidence.MEDIUM,
    ),
    exception_rule(
        "storage-read-only",
        Cause.CONFIG_OR_ENVIRONMENT,
        Action.STOP,
        "rank {rank} wrote to a read-only file system (a wrong path; a failed disk where it was writable before)",
        raised_anywhere("OSError", text=r"^\[Errno 30\]"),
        ("OSError", "[Errno 30] Read-only file system: '/models'"),
        ERRNO,
        Confidence.MEDIUM,
    ),
    exception_rule(
        "checkpoint-damaged",
        *_STORE_UNCLEAR,
        "rank {rank} read a damaged file",
        AnyOf(
            (
                raised_anywhere("BadZipFile", "SafetensorError"),
                # A whole file of types that torch does not trust is not damaged.
                raised_anywhere(
                    "UnpicklingError",
                    text=r"\A(?![\s\S]{0,4000}(?:Unsupported (?:global|class)|not an allowed global))",
                ),
                raised_anywhere("EOFError", text=r"^Ran out of input"),
                raised_anywhere(
                    "RuntimeError",
                    text=r"PytorchStreamReader failed|The file might be corrupted"
                    r"|Invalid magic number; corrupt file|archive is corrupted",
                ),
                raised_anywhere("OSError", text=r"\bfile should be of size \d+ but has size"),
            )
        ),
        ("RuntimeError", "PytorchStreamReader failed reading zip archive: failed finding central directory"),
        TORCH + "generated/torch.load.html",
    ),
)
