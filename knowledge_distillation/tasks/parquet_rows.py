"""Rows to a parquet file as they come, where the first of them may not say yet what a column holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ParquetRows:
    """Writes columns of some rows after those before. Types are those of the first rows.

    A column of nothing, or of empty lists alone, is written anew once later rows say what it is of.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.schema: Any = None
        self.writer: Any = None

    def write(self, columns: Mapping[str, list[Any]]) -> None:
        import pyarrow as pa

        found = pa.table(dict(columns)).schema
        if self.schema is None:
            self._open(found)
        told = {name: found.field(name).type for name in columns if _is_open(self.schema.field(name).type)}
        told = {name: kind for name, kind in told.items() if not _is_open(kind)}
        if told:
            self._write_anew(told)
        self.writer.write_table(pa.table(dict(columns), schema=self.schema))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _open(self, schema: Any) -> None:
        import pyarrow.parquet as parquet

        self.schema, self.writer = schema, parquet.ParquetWriter(self.path, schema)

    def _write_anew(self, types: Mapping[str, Any]) -> None:
        """What is written, with these types for columns that hold nothing yet."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        self.close()
        before = self.path.with_name(f"{self.path.name}.before")
        os.replace(self.path, before)
        try:
            self._open(pa.schema([(one.name, types.get(one.name, one.type)) for one in self.schema]))
            for batch in parquet.ParquetFile(before).iter_batches():
                self.writer.write_table(pa.table(batch.to_pydict(), schema=self.schema))
        finally:
            before.unlink()


def _is_open(kind: Any) -> bool:
    """Whether a type says nothing of the values: there are none, or they are empty lists."""
    import pyarrow as pa

    return pa.types.is_null(kind) or (pa.types.is_list(kind) and _is_open(kind.value_type))
