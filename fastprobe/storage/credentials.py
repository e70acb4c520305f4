"""What a filesystem package said, and which credentials it looks for."""

from __future__ import annotations

import os

# By the name of the error, as the filesystem packages need not be installed: what each of them reads, in its order.
_CREDENTIALS = {
    "NoCredentialsError": "aws",
    "PartialCredentialsError": "aws",
    "ProfileNotFound": "aws",
    "TokenRetrievalError": "aws",
    "UnauthorizedSSOTokenError": "aws",
    "DefaultCredentialsError": "google",
    "RefreshError": "google",
    "ClientAuthenticationError": "azure",
    "CredentialUnavailableError": "azure",
}


def explain(error: BaseException) -> str:
    """What a filesystem package said, in one line; where it found no credentials, which ones it looks for."""
    found: BaseException | None = error
    while found is not None and type(found).__name__ not in _CREDENTIALS:
        found = found.__cause__ or found.__context__
    words = " ".join(str(error).split()).rstrip(".")
    said = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return said if found is None else f"{said}. {_credentials(_CREDENTIALS[type(found).__name__])}"


def _credentials(of: str) -> str:
    def told(name: str) -> str:
        return f"{name} ({'set' if os.environ.get(name) else 'not set'})"

    if of == "google":
        return (
            f"Read are the file that {told('GOOGLE_APPLICATION_CREDENTIALS')} names, then what `gcloud auth application-default login` "
            "stored, then the machine's own account"
        )
    if of == "azure":
        names = ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY")
        return f"Read are {', '.join(map(told, names))}"
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    which = f"the profile {profile!r} (AWS_PROFILE)" if profile else "the profile 'default' (AWS_PROFILE is not set)"
    file = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    return (
        f"Read are {told('AWS_ACCESS_KEY_ID')} with {told('AWS_SECRET_ACCESS_KEY')}, then {which} in {file} and ~/.aws/config, then the "
        "machine's own role. For a public bucket set FSSPEC_S3_ANON=true; for a store that is not Amazon's, AWS_ENDPOINT_URL"
    )
