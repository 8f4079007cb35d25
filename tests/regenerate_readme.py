"""Writes the generated tables of schemas/README.md: `python -m tests.regenerate_readme`.

Run it after a change to the settings, table schemas, reject reasons or layouts; a test compares.
"""

from __future__ import annotations

import re
import typing

from cutline.schemas.settings import Settings
from cutline.schemas.tables import NOTICES, REASONS, TABLES, TRANSIENT, dtypes_of
from cutline.tasks.ingest.layouts.registry import layout_names
from tests import REPOSITORY

README = REPOSITORY / "schemas" / "README.md"
DEFAULTS = Settings()
CHOICES = {"ingest.layout": layout_names()}  # of settings whose values a registry has
SIZES = {
    "side_px": DEFAULTS.images.side_px,
    "regions": 49,
    "channels": 512,
    "state_size": DEFAULTS.language_model.state_size,
    "size": DEFAULTS.joint_embedding.size,
}


def settings_table() -> str:
    """Every setting with its default and meaning."""
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for stage, field in Settings.model_fields.items():
        for name, setting in typing.cast(typing.Any, field.annotation).model_fields.items():
            choices = CHOICES.get(f"{stage}.{name}") or (
                typing.get_args(setting.annotation) if isinstance(setting.default, str) else ()
            )
            listed = " (" + ", ".join(f"`{choice}`" for choice in choices) + ")" if choices else ""
            meaning = (setting.description or "").replace("<", "&lt;")
            lines.append(f"| `{stage}.{name}` | `{setting.default}` | {meaning}{listed} |")
    return "\n".join(lines)


def columns_table() -> str:
    """Every table with its columns and their types, as Polars names them."""
    lines = ["| table | columns |", "| --- | --- |"]
    for table in TABLES:
        described = ", ".join(f"`{name}` {_type(dtype)}" for name, dtype in dtypes_of(table, **SIZES).items())
        lines.append(f"| `{table}` | {described} |")
    return "\n".join(lines)


def reasons_table() -> str:
    """Every reject reason with its meaning and kind."""
    lines = ["| reason | meaning | kind |", "| --- | --- | --- |"]
    for reason, meaning in REASONS.items():
        kind = "notice" if reason in NOTICES else "transient" if reason in TRANSIENT else ""
        lines.append(f"| `{reason}` | {meaning} | {kind} |")
    return "\n".join(lines)


def _type(dtype: object) -> str:
    text = str(dtype).replace("shape=", "").replace("Struct({", "{").replace("})", "}")
    return text.replace("'", "").lower()


def renewed(text: str) -> str:
    """The text of schemas/README.md with its generated tables brought up to date."""
    tables = {"settings": settings_table(), "columns": columns_table(), "reasons": reasons_table()}
    for name, table in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(
            pattern, lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text, flags=re.S
        )
        assert count == 1, f"{README.name} has {count} places for the table of {name}"
    return text


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
