"""What an installed copy contains."""

from __future__ import annotations

import re

from .conftest import ROOT


def test_every_package_is_listed() -> None:
    """The list is explicit because bnn_compiler.passes and bnn_compiler.schedules are symbolic links."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^packages = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in (ROOT / "bnn_compiler", *(p for p in (ROOT / "bnn_compiler").iterdir() if p.is_symlink()))
        for path in folder.rglob("__init__.py")
    }
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == found
