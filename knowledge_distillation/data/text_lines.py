"""The lines of a file of text in UTF-8, and clear words where it is none."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError

_FIRST_BYTES = {  # of files that are no text, and what makes text of them
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save the sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save the sheet as CSV in UTF-8",
    b"\x1f\x8b": "packed by gzip: unpack it first (gunzip)",
    b"BZh": "packed by bzip2: unpack it first (bunzip2)",
    b"\xfd7zXZ": "packed by xz: unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it first (unzstd)",
    b"%PDF": "a PDF: copy its table or its text into a file of its own",
    b"PAR1": "in parquet: give it the ending .parquet",
    b"ARROW1": "in Arrow: give it the ending .arrow",
}
_UTF_16 = {"UTF-16LE": (b"\xff\xfe", 1), "UTF-16BE": (b"\xfe\xff", 0)}  # its mark, and where zeros are without one


def lines_of(path: Path) -> Iterator[str]:
    """The lines one after another, with their ends and without a byte order mark; "\\n" alone ends a line.

    Raises:
        DataError: the file cannot be opened, is no text, or holds a byte that is not UTF-8.
    """
    begin = _first_bytes(path)
    for mark, what in _FIRST_BYTES.items():
        if begin.startswith(mark):
            raise DataError(f"{path} is {what}")
    for encoding, (mark, zeros) in _UTF_16.items():
        if begin.startswith(mark) or len(begin) == 8 and not any(begin[zeros::2]):
            raise DataError(
                f"{path}, line 1: byte 0x{begin[0]:02x} begins a file in UTF-16. {_convert(path, encoding)}"
            )
    number = 0
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                number += 1
                if "\0" in line:
                    raise DataError(
                        f"{path}, line {number}: byte 0x00 at position {line.index(chr(0))} is no text. Take such "
                        f"bytes out: tr -d '\\000' < {_there(path)} > {_there(path, 'clean-')}"
                    )
                yield line
    except UnicodeDecodeError:
        raise _not_utf_8(path) from None


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(8)
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}") from error


def _not_utf_8(path: Path) -> DataError:
    """The error of the first byte that is not; found by a second reading, which counts in bytes."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return DataError(
                    f"{path}, line {number}: byte 0x{line[error.start]:02x} at position {error.start} is not UTF-8. "
                    f"{_convert(path, 'WINDOWS-1252')} (or -f with the encoding that it has)"
                )
    return DataError(f"{path} is not UTF-8. {_convert(path, 'WINDOWS-1252')}")


def _convert(path: Path, encoding: str) -> str:
    return f"Convert it: iconv -f {encoding} -t UTF-8 {_there(path)} > {_there(path, 'utf8-')}"


def _there(path: Path, begin: str = "") -> str:
    """The path for a shell; or that of another file beside it."""
    return shlex.quote(str(path.with_name(begin + path.name)))
