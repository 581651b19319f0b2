"""core/optional.py."""

import sys

import pytest

from scratchgen.core.optional import MissingPackage, optional


def test_a_module_that_is_there_is_given():
    assert optional("json.decoder", "files").JSONDecoder


def test_a_missing_package_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingPackage, match="^files need .* scipy; .* pip install scipy$"):
        optional("scipy.io", "files")
    assert issubclass(MissingPackage, ImportError)
