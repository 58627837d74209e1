"""With which credentials an object store is asked: variables
that its libraries read, or a profile of the AWS command line."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.store.store_errors import StoreError

VARIABLES = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_REGION"
OWN = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
"""Variables by which obstore and polars find credentials themselves. They go before a profile, as in every
tool of AWS."""

ELSEWHERE = ("sso_", "credential_process", "role_arn", "aws_access_key_id")
"""Keys of ``~/.aws/config`` that say where credentials come from."""

ANY_REGION = "us-east-1"
"""Where a profile names an endpoint and no region, which only Amazon's own stores need."""

LIFETIME = timedelta(minutes=15)
"""How long credentials of a profile are used before they are asked for again."""


@dataclass(frozen=True)
class Access:
    """Further arguments for the two libraries that read and
    write a store; none where the environment says it all."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Of obstore's ``from_url``."""
    scanning: dict[str, Any] = field(default_factory=dict)
    """Of polars' ``scan_parquet``."""


def access(url: str) -> Access:
    """How the store of a URL is asked. Raises StoreError where a profile is asked for and cannot be read."""
    if not url.startswith("s3://") or any(os.environ.get(name) for name in OWN):
        return Access()
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    told = f"AWS_PROFILE is {profile}" if profile else _told_by_files()
    return _from_profile(url, told) if told else Access()


def _told_by_files() -> str | None:
    """Which file of the AWS command line names credentials; None where there is none."""
    credentials = _file("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
    if credentials.is_file():
        return f"{credentials} is there"
    config = _file("AWS_CONFIG_FILE", "~/.aws/config")
    try:
        found = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    except OSError:
        return None
    return f"{config} is there" if any(key in found for key in ELSEWHERE) else None


def _file(variable: str, usual: str) -> Path:
    return Path(os.environ.get(variable) or os.path.expanduser(usual))


def _from_profile(url: str, told: str) -> Access:
    """By boto3, which knows profiles, roles, single sign-on and their renewal."""
    try:
        import boto3
    except ImportError:
        raise StoreError(
            f"{url}: {told}, and boto3, which reads it, is not installed; pip install 'kvsweep[aws]', "
            f"or set {VARIABLES} (`aws configure export-credentials --format env` prints them)"
        ) from None

    try:
        session = boto3.Session()
        found = session.get_credentials()
        if found is None or not found.get_frozen_credentials().access_key:
            raise StoreError(f"{url}: {told}, and holds no credentials; correct it, or set {VARIABLES}")
        endpoint = session.client("s3", region_name=session.region_name or ANY_REGION).meta.endpoint_url
    except StoreError:
        raise
    except Exception as error:  # what botocore raises has no type in common
        raise StoreError(
            f"{url}: {told}, and gives no credentials ({' '.join(str(error).split())[:160]}); correct it, "
            f"or set {VARIABLES}"
        ) from error

    def for_obstore() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + LIFETIME,
        }

    def for_polars() -> tuple[dict[str, str], int]:
        frozen = found.get_frozen_credentials()
        keys = {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
        keys |= {"aws_session_token": frozen.token} if frozen.token else {}
        return keys, int((datetime.now(UTC) + LIFETIME).timestamp())

    place = {"region": session.region_name} if session.region_name else {}
    place |= {"endpoint": endpoint} if endpoint and "amazonaws.com" not in endpoint else {}
    return Access(
        settings={"credential_provider": for_obstore, **place},
        scanning={
            "credential_provider": for_polars,
            "storage_options": {
                "aws_region" if key == "region" else "aws_endpoint_url": value for key, value in place.items()
            },
        },
    )
