"""NAME.sig beside a model: a signature of it, made and checked by the OpenSSF package model-signing.

It says whose key was there when the model had these bytes, and nothing of how they were made. No byte of the
model depends on it: two signatures of the same bytes with the same key are not the same.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from runner.checkpoint import RECORD, SIGNATURE_SUFFIX
from runner.disk.files import read_small
from runner.errors import InputError, OutputError, RunnerError, SigningError, UsageError, clip, escape, quote
from runner.progress import say
from runner.publish.finished import add_to_record
from runner.write import write_file

CURVES = ("secp256r1", "secp384r1", "secp521r1")  # those that model-signing takes
MAX_KEY_BYTES = 1 << 16
MAX_SIGNATURE_BYTES = 4 << 20  # it names every file of a folder
_GENERATE = "openssl ecparam -name prime256v1 -genkey -noout -out private.pem"
_PUBLIC = "openssl pkey -in private.pem -pubout -out public.pem"


def signature_path(model: Path) -> Path:
    """The place of the signature of a model, also if that is the folder one stands in."""
    if model.name in ("", ".."):
        model = model.resolve()
    return model.with_name(model.name + SIGNATURE_SUFFIX)


def signing_key(path: Path) -> bytes:
    """The public half, as PEM, of the private key in a file.

    Raises:
        UsageError: it is no key that can sign, or what signs is not installed.
        InputError: there is no such file, or it cannot be read.
    """
    _check_installed("sign_key")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = read_small(path, str(path), MAX_KEY_BYTES)
    try:
        key = load_pem_private_key(content, None).public_key()
    except TypeError as error:
        hint = f"openssl pkey -in {path} -out OTHER.pem writes it without"
        raise UsageError(f"sign_key: {quote(path)} has a passphrase", hint=hint) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"sign_key: {quote(path)} is no private key as PEM", hint=_GENERATE) from error
    return _pem(key, f"sign_key: {quote(path)}")


def checking_key(path: Path) -> bytes:
    """The public key in a file, as PEM.

    Raises:
        UsageError: it is no key of signatures, or what checks them is not installed.
        InputError: there is no such file, or it cannot be read.
    """
    _check_installed("job.key")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = read_small(path, str(path), MAX_KEY_BYTES)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"job.key: {quote(path)} is no public key as PEM", hint=_PUBLIC) from error
    return _pem(key, f"job.key: {quote(path)}")


def key_digest(public: bytes) -> str:
    """What a key is known by, in signatures too: the SHA-256 of the file of its public half."""
    return hashlib.sha256(public).hexdigest()


def sign(model: Path, key: Path, run: Path) -> None:
    """Signs a finished model, says so and notes it in the record of its run.

    A signature by this key that holds stays; any other is replaced.

    Args:
        model: the file or folder.
        key: the file of the private key.
        run: the folder of the run, whose record notes it.

    Raises:
        SigningError: it failed; the model and its record are as they were, but for what it notes of that.
    """
    place, began = signature_path(model), time.monotonic()
    entry: dict[str, object] = {"signature": place.name}
    try:
        public = signing_key(key)
        entry["key_sha256"] = key_digest(public)
        if place.exists() and fault(model, public) is None:
            say(f"{escape(place.name)}: there already, by the key {entry['key_sha256']}")
            return
        write_file(place, _signed(model, key))
    except (RunnerError, OSError) as error:
        reason = error.message if isinstance(error, RunnerError) else f"{error.strerror or error}"
        message = f"the model is in place, signing failed: {reason}"
        if unnoted := _note(run, _timed(entry, began) | {"error": reason}):
            message += f"; and the record does not say so: {unnoted}"
        raise SigningError(message, hint="the same command again signs it, and does not merge") from error
    say(f"{escape(place.name)}: signed by the key {entry['key_sha256']}")
    if unnoted := _note(run, _timed(entry, began)):
        raise SigningError(f"the model is signed; the record does not say so: {unnoted}")


def fault(model: Path, public: bytes) -> str | None:
    """What is wrong with the signature of a model; None: it is of these bytes and by this key.

    Args:
        model: the file or folder; it is read whole.
        public: the key, as PEM.
    """
    from cryptography.exceptions import InvalidSignature
    from model_signing.verifying import Config

    place = signature_path(model)
    try:
        content = read_small(place, place.name, MAX_SIGNATURE_BYTES)
    except InputError as error:
        return error.message
    with TemporaryDirectory() as folder:
        key, signature = Path(folder) / "public.pem", Path(folder) / "signature"
        key.write_bytes(public)
        signature.write_bytes(content)
        try:
            with redirect_stdout(StringIO()):  # answers for programs go there
                verifier = Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(_hashing())
                verifier.verify(model.resolve(), signature)
        except InvalidSignature:
            return "it was changed, or made by another key"
        except Exception as error:  # what a stranger wrote can fail in any of the package's parsers
            return clip(str(error) or type(error).__name__).strip()
    return None


def _signed(model: Path, key: Path) -> bytes:
    """The signature of a model.

    Raises:
        OutputError: the model cannot be signed.
    """
    from model_signing.signing import Config

    with TemporaryDirectory() as folder:
        made = Path(folder) / "signature"
        try:
            signer = Config().use_elliptic_key_signer(private_key=key).set_hashing_config(_hashing())
            signer.sign(model, made)
        except (ValueError, TypeError) as error:
            raise OutputError(f"{quote(model)}: {error}") from error
        return made.read_bytes()


def _note(run: Path, entry: Mapping[str, object]) -> str:
    """Adds a signature to the record of a run; says why it cannot, "" if it can."""
    try:
        add_to_record(run, "signed", entry)
    except RunnerError as error:
        return error.message
    except (ValueError, KeyError, TypeError):
        return f"{RECORD} is malformed"
    return ""


def _hashing() -> Any:
    """What of a model is signed: every file of a folder, those of git too."""
    from model_signing.hashing import Config

    return Config().set_ignored_paths(paths=[], ignore_git_paths=False)


def _timed(entry: Mapping[str, object], began: float) -> dict[str, object]:
    return {**entry, "seconds": round(time.monotonic() - began, 3)}


def _pem(key: object, where: str) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        expected = f"expected one of an elliptic curve: {', '.join(CURVES)}"
        raise UsageError(f"{where}: a key of another kind; {expected}", hint=_GENERATE)
    text: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text


def _check_installed(name: str) -> None:
    """Imports what signs, so that what is missing is missed before a model is read.

    Raises:
        UsageError: it is not installed, or lacks something itself.
    """
    try:
        import model_signing.signing
        import model_signing.verifying  # noqa: F401
    except ImportError as error:
        message = f"{name} needs model-signing, which cannot be imported: {escape(str(error))}"
        raise UsageError(message, hint="pip install 'runner[sign]'") from error
