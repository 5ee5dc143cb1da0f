"""What the footer of a file of episodes says, with a checksum: Parquet's own covers pages alone."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from fornix.common.signature import Signature
from fornix.common.validation import shown

FORMAT = "fornix episodes"
VERSION = 1
_PREFIX = "fornix."


@dataclass(frozen=True)
class Contents:
    """What a file of episodes holds."""

    signature: Signature
    """Of every episode."""
    episodes: int
    steps: int
    """Rows of all episodes together."""


@dataclass(frozen=True)
class Footer:
    """The metadata of a file."""

    contents: Contents
    checksums: list[int]
    """CRC-32 of the values of each row group."""

    def metadata(self) -> dict[str, str]:
        """Return what is written."""
        fields = {
            "format": FORMAT,
            "version": str(VERSION),
            "signature": self.contents.signature.model_dump_json(),
            "episodes": str(self.contents.episodes),
            "steps": str(self.contents.steps),
            "checksums": json.dumps(self.checksums, separators=(",", ":")),
        }
        return {_PREFIX + name: text for name, text in (fields | {"check": _check(fields)}).items()}

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes] | None) -> "Footer":
        """Return what `metadata` made, or raise ValueError with the reason why it can't be that."""
        prefix = _PREFIX.encode()
        fields = {
            key.removeprefix(prefix).decode(): text.decode()
            for key, text in (metadata or {}).items()
            if key.startswith(prefix)
        }
        if fields.get("format") != FORMAT:
            raise ForeignError(f"its format is {shown(fields.get('format'))}, not {FORMAT!r}")
        if fields.get("version") != str(VERSION):
            raise ForeignError(
                f"its version is {shown(fields.get('version'))}; this release reads version {VERSION}"
            )
        if fields.pop("check", None) != _check(fields):
            raise ValueError("the checksum of its footer is wrong")
        contents = Contents(_signature(fields["signature"]), int(fields["episodes"]), int(fields["steps"]))
        return cls(contents, [int(check) for check in json.loads(fields["checksums"])])


class ForeignError(ValueError):
    """A file of something else, or of another version."""


def _signature(text: str) -> Signature:
    try:
        return Signature.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(f"its signature can't be read: {error.errors()[0]['msg']}") from None


def _check(fields: Mapping[str, str]) -> str:
    text = "\n".join(f"{name}={fields[name]}" for name in sorted(fields))
    return f"{zlib.crc32(text.encode()):08x}"
